"""Cores: what carries the trace so far from one draw to the next. A new kind is a file here and a line in CORES."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etalumis.networks.cores.base import Core, State
from etalumis.networks.cores.lstm import LSTM
from etalumis.networks.errors import NetworkConfigError

__all__ = ["CORES", "LSTM", "Core", "State", "core"]

CORES: dict[str, type[Core]] = {"lstm": LSTM}


def core(config: Mapping[str, Any]) -> Core:
    """A core from ``{"kind": …, **arguments}``."""
    arguments = dict(config)
    kind = arguments.pop("kind", "lstm")
    if kind not in CORES:
        raise NetworkConfigError(f"unknown core {kind!r}; the cores are {sorted(CORES)}")
    try:
        return CORES[kind](**arguments)
    except TypeError as error:
        raise NetworkConfigError(f"core {kind!r}: {error}") from None
