"""Going on with a training: the checkpoint, and whether it is one of the training that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etalumis.conf.build import ConfigError
from etalumis.networks import InferenceNetwork, checkpoint

_NOT_WEIGHTS = ("config.seed",)  # settings that a checkpoint makes meaningless


def find_checkpoint(resume: bool | str, output: Path) -> str | None:
    """The checkpoint to go on from.

    Raises:
        ConfigError: it does not exist.
    """
    if resume is False:
        return None
    path = output / "checkpoints" / "last.ckpt" if resume is True else Path(resume)
    if not path.is_file():
        raise ConfigError(
            f"there is no checkpoint {path} to go on from; give resume=PATH, or resume=false to begin anew"
        )
    return str(path)


def check_checkpoint(path: str, network: InferenceNetwork, max_epochs: int | None) -> None:
    """See that a training of this network, so many epochs long, can go on from a file.

    Raises:
        CheckpointError: the file is damaged.
        ConfigError: it is of another network or of a longer training.
    """
    content = checkpoint.read(path)
    if "etalumis" not in content or "epoch" not in content:
        raise ConfigError(
            f"{path} holds a network without its training; etalumis train goes on from checkpoints/last.ckpt"
        )
    given, stored = (dict(_leaves(c)) for c in (checkpoint.describe(network), content["etalumis"]))
    others = [
        f"{key.removeprefix('config.')}={given.get(key)} (was {stored.get(key)})"
        for key in sorted(given.keys() | stored.keys(), key=lambda key: (key != "simulator", key))
        if given.get(key) != stored.get(key) and key not in _NOT_WEIGHTS
    ]
    if others:
        raise ConfigError(f"{path} is of another network: {', '.join(others)}; give its settings, or resume=false")
    reached = content["epoch"] + 1
    if max_epochs is not None and 0 <= max_epochs < reached:
        raise ConfigError(
            f"{path} reached epoch {reached}, which is beyond trainer.max_epochs={max_epochs}; give more epochs, or "
            "resume=false to begin anew"
        )


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted keys."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
