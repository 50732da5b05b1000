"""Cores: what carries the trace so far from one draw to the next. A new kind is a file here and a line in CORES."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from etalumis.networks.cores.base import Core, State
from etalumis.networks.cores.gru import GRU
from etalumis.networks.cores.lstm import LSTM
from etalumis.networks.cores.transformer import Transformer
from etalumis.networks.errors import NetworkConfigError

__all__ = ["CORES", "GRU", "LSTM", "Core", "State", "Transformer", "core"]

CORES: dict[str, type[Core]] = {"lstm": LSTM, "gru": GRU, "transformer": Transformer}


def core(config: Mapping[str, Any]) -> Core:
    """A core from ``{"kind": …, **settings}``.

    Raises:
        NetworkConfigError: naming an unknown kind, a setting that the kind does not have, or one that makes no sense.
    """
    if not isinstance(config, Mapping):
        raise NetworkConfigError(
            f"core={config!r} must have a kind and its settings, such as {{kind: gru, hidden: 64}}"
        )
    settings = dict(config)
    kind = settings.pop("kind", "lstm")
    if kind not in CORES:
        raise NetworkConfigError(f"unknown core {kind!r}; the cores are {sorted(CORES)}")
    known = [name for name in inspect.signature(CORES[kind].__init__).parameters if name != "self"]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise NetworkConfigError(f"core {kind!r}: unknown settings {unknown}; it has {known}")
    return CORES[kind](**settings)
