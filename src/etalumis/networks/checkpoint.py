"""Trained networks as files: tensors and plain containers only, so that loading never runs code.

A checkpoint holds everything inference needs: configuration, address dictionary, simulator name, shapes and
standardisation of the observations, and the used rows of every bank.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from etalumis.networks.errors import CheckpointError, NetworkConfigError
from etalumis.networks.network import InferenceNetwork

FORMAT = "etalumis-network"
VERSION = 1


def save(path: str | os.PathLike[str], network: InferenceNetwork, extra: Mapping[str, Any] | None = None) -> None:
    """Write a network; the file appears complete or not at all.

    Args:
        path: of the file.
        network: with its rows on any device.
        extra: numbers, strings, tensors, lists and dictionaries to keep with it.
    """
    content = {**contents(network), "extra": dict(extra or {})}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        torch.save(content, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], simulator: str | None = None) -> tuple[InferenceNetwork, dict[str, Any]]:
    """Read a network that :func:`save` wrote, on the CPU and in evaluation mode.

    Args:
        path: of the file.
        simulator: name of the simulator it has to belong to; None takes any.

    Returns:
        the network and what was given as ``extra``.

    Raises:
        CheckpointError: where the file is missing, damaged, no network, or one for another simulator.
    """
    content = read(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no etalumis network; `etalumis train` writes them")
    network = restore(content, str(path), simulator)
    return network, dict(content["extra"])


def contents(network: InferenceNetwork) -> dict[str, Any]:
    """A network as tensors and plain containers: what :func:`restore` needs."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "simulator": network.simulator,
        "config": network.config,
        "observations": {name: list(shape) for name, shape in network.layout.observations.items()},
        "state": {key: value.cpu() if torch.is_tensor(value) else value for key, value in network.state_dict().items()},
    }


def restore(content: Mapping[str, Any], origin: str, simulator: str | None = None) -> InferenceNetwork:
    """The network of :func:`contents`; ``origin`` is for error messages.

    Raises:
        CheckpointError: as for :func:`load`.
    """
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{origin} has version {content.get('version')} of the network format, this package reads {VERSION}; "
            "use the package that wrote it, or train again"
        )
    if simulator is not None and content["simulator"] != simulator:
        raise CheckpointError(
            f"{origin} was trained for the simulator {content['simulator']!r}, not for {simulator!r}; "
            "give the checkpoint of this simulator, or train one"
        )
    try:
        network = InferenceNetwork(content["config"], content["observations"], content["simulator"])
        network.load_state_dict(content["state"])
    except (KeyError, RuntimeError, TypeError, NetworkConfigError) as error:
        raise CheckpointError(f"{origin} does not hold a complete network: {error}") from error
    return network.eval()


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The plain content of a checkpoint file; no code in it is run.

    Raises:
        CheckpointError: where the file is missing or damaged.
    """
    try:
        content = torch.load(Path(path), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except (EOFError, OSError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is no checkpoint, or a damaged one: copy it again or train again ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no checkpoint: it holds a {type(content).__name__}")
    return content
