"""The values that an engine conditions a model on, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from etalumis.execution.errors import ObservationError


class Observations:
    """Observed values by name for the executions of one run.

    A list gives the values of a name met several times, in order; anything else is one value, and meeting its
    name twice in one execution is an error.

    Args:
        values: name to value, array, or list of values.
        override: let these replace values that the simulator supplies itself; without it that is an error.
    """

    __slots__ = ("override", "used", "values")

    def __init__(self, values: Mapping[str, Any] | None = None, override: bool = False) -> None:
        self.values = dict(values or {})
        self.override = override
        self.used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __len__(self) -> int:
        return len(self.values)

    def value(self, name: str, count: int, shape: tuple[int, ...]) -> Any:
        """The value for the ``count``-th (from 0) meeting of a name whose distribution has this shape."""
        self.used.add(name)
        value = self.values[name]
        if type(value) is float and not count and not shape:
            return value
        if isinstance(value, list) and not (shape and np.shape(value) == shape):
            if count >= len(value):
                raise ObservationError(
                    f"observe[{name!r}] lists {len(value)} values, but one execution met the name "
                    f"{count + 1} times; give as many values as the model can ask for"
                )
            value = value[count]
        elif count:
            raise ObservationError(
                f"one execution met the name {name!r} twice, but observe[{name!r}] is a single value; "
                "give a list with a value for each meeting, or distinct names in the model"
            )
        if shape:
            array = np.asarray(value, dtype=np.float64)
            if array.shape != shape:
                raise _misshapen(name, array.shape, f"shape {shape}")
            return array
        if np.ndim(value):
            if np.size(value) != 1:
                raise _misshapen(name, np.shape(value), "a number")
            return np.asarray(value).item()
        return value

    def check_used(self, known: Iterable[str] = ()) -> None:
        """Raise an error naming the observations that no execution asked for."""
        unused = sorted(set(self.values) - self.used)
        if unused:
            names = sorted(set(known))
            raise ObservationError(
                f"no execution met an observation named {' or '.join(map(repr, unused))}; the model's names are {names}"
            )


def _misshapen(name: str, shape: tuple[int, ...], wanted: str) -> ObservationError:
    return ObservationError(
        f"observe[{name!r}] has shape {shape}, but the model observes {wanted}; a name met several times takes a list "
        "with a value for each meeting"
    )
