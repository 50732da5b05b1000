"""Trained networks as files: tensors and plain containers only, so that loading never runs code.

A checkpoint holds everything inference needs: configuration, address dictionary, simulator name, shapes and
standardisation of the observations, and the used rows of every bank.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from etalumis.networks.errors import CheckpointError, NetworkConfigError
from etalumis.networks.layout import Layout, Row
from etalumis.networks.network import InferenceNetwork

FORMAT = "etalumis-network"
VERSION = 1
AVERAGE = "average"  # where a training checkpoint keeps averaged weights
_MODULE = "network."


def save(path: str | os.PathLike[str], network: InferenceNetwork, extra: Mapping[str, Any] | None = None) -> None:
    """Write a network; the file appears complete or not at all.

    Args:
        path: of the file.
        network: with its rows on any device.
        extra: numbers, strings, tensors, lists and dictionaries to keep with it.
    """
    state = {key: _on_cpu(value) for key, value in network.state_dict().items()}
    write(path, {**describe(network), "state": state, "extra": dict(extra or {})})


def write(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write tensors and plain containers; the file appears complete or stays as it was, whatever happens.

    Raises:
        CheckpointError: the file can't be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except (OSError, RuntimeError) as error:
        # What torch says after an error of the system is only that its file has not the length that it should have.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(
            f"{target} can't be written: {cause}. If the disk is full, free some space; a file that was there before "
            "is whole"
        ) from error
    finally:
        with suppress(OSError):  # the folder can't be reached, as was said
            temporary.unlink()


def load(path: str | os.PathLike[str], simulator: str | None = None) -> tuple[InferenceNetwork, dict[str, Any]]:
    """Read a network on the CPU and in evaluation mode: one that :func:`save` wrote, or of a training checkpoint.

    A training checkpoint is any file that holds, beside its ``state_dict``, what :func:`describe` said, as
    ``etalumis``; the network is the module called ``network`` there. Where it keeps averaged weights as ``average``,
    (by name, of a bank the rows that have one) the network gets these.

    Args:
        path: of the file.
        simulator: name of the simulator it has to belong to; None takes any.

    Returns:
        the network and what was given as ``extra``.

    Raises:
        CheckpointError: where the file is missing, damaged, no network, or one for another simulator.
    """
    content = read(path)
    if "etalumis" in content:
        state = {
            key.removeprefix(_MODULE): value for key, value in content["state_dict"].items() if key.startswith(_MODULE)
        }
        _put_averages(state, content.get(AVERAGE, {}))
        content = {**content["etalumis"], "state": state, "extra": {}}
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} holds no etalumis network; `etalumis train` writes files that do")
    return _restore(content, str(path), simulator), dict(content["extra"])


def rows_of(content: Mapping[str, Any]) -> list[Row]:
    """The address rows of the network in a training checkpoint, in order."""
    return Layout.rows_from_json(content["state_dict"][f"{_MODULE}_extra_state"]["layout"])


def describe(network: InferenceNetwork) -> dict[str, Any]:
    """All of a network but its state dictionary, as plain containers."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "simulator": network.simulator,
        "config": network.config,
        "observations": {name: list(shape) for name, shape in network.layout.observations.items()},
    }


def _put_averages(state: dict[str, Any], average: Mapping[str, Any]) -> None:
    state.update(average.get("dense", {}))
    for name, rows in average.get("rows", {}).items():
        state[f"{name}.rows"][rows["ids"]] = rows["rows"]


def _restore(content: Mapping[str, Any], origin: str, simulator: str | None) -> InferenceNetwork:
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
    """What a file holds, whether a network's or a training's.

    Raises:
        CheckpointError: where it is missing, damaged or no dictionary.
    """
    try:
        _verify(Path(path))
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


def _verify(path: Path) -> None:
    """See that the bytes are those that were written: torch reads over the checksums without looking."""
    if not zipfile.is_zipfile(path):
        return  # older formats have none
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise zipfile.BadZipFile("a checksum is wrong")


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, torch.Tensor) else value
