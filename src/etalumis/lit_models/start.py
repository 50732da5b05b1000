"""The network that a training starts from: new, or trained before; which addresses it knows, and what may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etalumis.conf.build import ConfigError
from etalumis.datamodules.tracked import Told, TrackedDataModule
from etalumis.lit_models.resume import Stored, leaves
from etalumis.networks import InferenceNetwork, NetworkConfigError, Row, checkpoint
from etalumis.networks.settings import merged_config

DICTIONARY = "dictionary"
_AHEAD = {"seen": False, "all": True}


class Start(NamedTuple):
    """A network, and the rows that it lacks for the data, to be appended when a checkpoint has been loaded."""

    network: InferenceNetwork
    missing: list[Row]


def start(config: Mapping[str, Any], data: TrackedDataModule, resume: Stored | None = None) -> Start:
    """The network that ``init``, ``addresses`` and ``freeze`` ask for.

    Args:
        config: settings of the training.
        data: what it learns from.
        resume: the checkpoint that will be loaded: the network has its rows, in its order.

    Raises:
        ConfigError: settings that don't go together, or not with the network to begin with.
        CheckpointError: a file is missing or damaged.
    """
    frozen, init = list(config["freeze"] or []), config["init"]
    if config["addresses"] not in _AHEAD:
        raise ConfigError(f"addresses={config['addresses']}: it is one of {', '.join(_AHEAD)}")
    if DICTIONARY in frozen and init is None:
        raise ConfigError("freeze=[dictionary] keeps the addresses of a trained network: give init=PATH/network.pt")
    told = data.tell(_AHEAD[config["addresses"]])
    if init is None:
        network = _new(config["network"], data, told)
    else:
        network = _trained(init, config["network"], data, told)
    if DICTIONARY in frozen:
        data.grow = False
    rows = [] if DICTIONARY in frozen else told.rows
    stored = None if resume is None else resume.rows
    if stored is None:
        network.grow(rows)
    elif network.layout.rows == stored[: len(network.layout)]:  # where not, loading says so
        network.grow(stored)
    try:
        network.freeze([pattern for pattern in frozen if pattern != DICTIONARY])
    except NetworkConfigError as error:
        raise ConfigError(str(error)) from error
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(f"freeze={frozen} leaves nothing to train")
    return Start(network, rows)


def make_network(settings: Mapping[str, Any], data: TrackedDataModule) -> InferenceNetwork:
    """A new network with rows for every address of the traces to train with, and room for every observation."""
    told = data.tell()
    network = _new(settings, data, told)
    network.grow(told.rows)
    return network


def _new(settings: Mapping[str, Any], data: TrackedDataModule, told: Told) -> InferenceNetwork:
    network = InferenceNetwork(dict(settings), told.observations, data.model)
    network.standardise(data.sample())
    return network


def _trained(path: str, settings: Mapping[str, Any], data: TrackedDataModule, told: Told) -> InferenceNetwork:
    """The network of a file, if it is one that these settings describe."""
    network, _ = checkpoint.load(path)
    given = {"simulator": data.model, **merged_config(settings)}
    stored = {"simulator": network.simulator, **network.config}
    others = _differences(given, stored) + _differences(
        {"observations of the data": told.observations}, {"observations of the data": network.layout.observations}
    )
    if others:
        raise ConfigError(f"init={path} holds another network: {', '.join(others)}; give its settings, or another file")
    return network.train()


def _differences(given: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    now, then = dict(leaves(given)), dict(leaves(stored))
    keys = sorted((now.keys() | then.keys()) - {"seed"})
    return [
        f"{key}={_said(now, key)} (there {_said(then, key)})" for key in keys if _said(now, key) != _said(then, key)
    ]


def _said(settings: Mapping[str, Any], key: str) -> Any:
    value = settings.get(key)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
