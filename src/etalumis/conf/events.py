"""Single events: making one with known truth, and reading what to infer from."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from etalumis.distributions import Stream
from etalumis.execution import Observations, Prior, Simulator
from etalumis.inference.calibration_events import named_numbers, observed_values
from etalumis.report import Event


def simulate_event(model: Simulator, seed: int = 0, index: int = 0) -> Event:
    """Execute a model once from its prior; what it observed becomes the event, what it drew and tagged the truth.

    Args:
        model: the simulator. Where its function has an attribute ``labels`` (name to names of categories), the
            event keeps them.
        seed, index: which trace; values of observes are drawn by it too.

    Raises:
        ValueError: the execution observes nothing under a name.
    """
    trace = model.execute(Prior(), Observations(), Stream(seed), index)
    observed = observed_values(trace)
    if not observed:
        raise ValueError(f"trace {index} of {model.name!r} observes nothing under a name: there is nothing to infer")
    observe = {
        name: [np.asarray(value) for value in values] if isinstance(values, list) else np.asarray(values)
        for name, values in observed.items()
    }
    truth = named_numbers(trace)
    labels = getattr(getattr(model, "function", None), "labels", {})
    return Event(observe, truth, {name: tuple(names) for name, names in labels.items() if name in truth})


def read_observation(source: str | Mapping[str, Any]) -> dict[str, Any]:
    """Observed values by name, as engines take them.

    Args:
        source: an event file (``.npz``), a ``.json`` file of name to number or list, or the values themselves.

    Raises:
        ValueError: the file is missing or of another kind, or there are no values, or one is not numeric.
    """
    if isinstance(source, Mapping):
        found = dict(source)
    elif Path(source).suffix == ".json":
        found = _read_json(Path(source))
    else:
        found = dict(Event.load(source).observe)
    if not found:
        raise ValueError("nothing to infer from: give observe=event.npz, or values as observe.NAME=VALUE")
    for name, value in found.items():
        if not _is_numeric(value):
            raise ValueError(f"observe.{name} must be a number or a list of numbers; got {reprlib.repr(value)}")
    return found


def _is_numeric(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_numeric, value))
    return np.asarray(value).dtype.kind in "biuf"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"there is no observation file {path}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f'{path} must hold an object of name to value, such as {{"obs0": 8.0}}')
    return document
