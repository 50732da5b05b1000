"""The values that an engine conditions a model on, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.execution.errors import ObservationError


class Observations:
    """Observed values by name for the executions of one run.

    A list gives the values of a name met several times, in order; their shapes may differ. A list of the shape that
    the model observes is one value, as is anything else, and meeting its name twice in one execution is an error.

    Args:
        values: name to value, array, or list of values.
        override: let these replace values that the simulator supplies itself; without it that is an error.

    Attributes:
        used: by name, how many of its values one execution has asked for at most. Of runs that share the work, the
            union (``|``) is that of all.
    """

    __slots__ = ("override", "used", "values")

    def __init__(self, values: Mapping[str, Any] | None = None, override: bool = False) -> None:
        self.values = dict(values or {})
        self.override = override
        self.used: Counter[str] = Counter()

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __len__(self) -> int:
        return len(self.values)

    def value(self, name: str, count: int, shape: tuple[int, ...]) -> Any:
        """The value for the ``count``-th (from 0) meeting of a name whose distribution has this shape."""
        value = self.values[name]
        if self.used[name] <= count:
            self.note(name, count + 1, shape)
        if type(value) is float and not count and not shape:
            return value
        if isinstance(value, list) and not _has_shape(value, shape):
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
            array = _numbers(name, value)
            if array.shape != shape:
                raise _misshapen(name, array.shape, f"shape {shape}")
            return array
        if isinstance(value, (list, tuple)):
            value = _numbers(name, value)
        if np.ndim(value):
            if np.size(value) != 1:
                raise _misshapen(name, np.shape(value), "a number")
            return np.asarray(value).item()
        return value

    def note(self, name: str, times: int, shape: tuple[int, ...]) -> None:
        """One execution met a name so many times; its distribution there has this shape."""
        value = self.values[name]
        if isinstance(value, list) and _has_shape(value, shape):
            times = len(value)  # one array, all of it used
        self.used[name] = max(self.used[name], times)

    @property
    def used_up(self) -> bool:
        """Whether executions have asked for every value."""
        return all(self.used[name] >= _count(value) for name, value in self.values.items())

    def arrays(self, name: str) -> list[NDArray[np.float64]]:
        """The value of a name in numbers: one array, or where those of a list differ in shape, one of each."""
        value = self.values[name]
        if isinstance(value, list):
            each = [_numbers(name, v) for v in value]
            if len({array.shape for array in each}) > 1:
                return each
        return [_numbers(name, value)]

    def check_used(self, known: Iterable[str] = ()) -> None:
        """Raise an error naming the observations that no execution asked for, or some of whose values none did.

        Args:
            known: names that executions could have been conditioned by.
        """
        unused = sorted(name for name in self.values if not self.used[name])
        if unused:
            names = sorted(set(known))
            raise ObservationError(
                f"no execution met an observation named {' or '.join(map(repr, unused))}; the model's names are {names}"
            )
        for name, value in self.values.items():
            if self.used[name] < _count(value):
                raise ObservationError(
                    f"observe[{name!r}] lists {_count(value)} values, but no execution met the name more than "
                    f"{self.used[name]} times: the others would not count. Leave them out, or execute more often "
                    "where few executions ask for as many"
                )


def _count(value: Any) -> int:
    """Values given for a name."""
    return len(value) if isinstance(value, list) else 1


def _has_shape(values: list[Any], shape: tuple[int, ...]) -> bool:
    """Whether a list is one array of this shape, and not the values of several meetings."""
    if not shape or len(values) != shape[0]:
        return False
    try:
        return np.shape(values) == shape
    except ValueError:  # of different shapes
        return False


def _numbers(name: str, value: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ObservationError(
            f"observe[{name!r}] holds something that is neither a number nor an array of numbers; a name met several "
            "times takes a list with a value for each meeting"
        ) from None


def _misshapen(name: str, shape: tuple[int, ...], wanted: str) -> ObservationError:
    return ObservationError(
        f"observe[{name!r}] has shape {shape}, but the model observes {wanted}; a name met several times takes a list "
        "with a value for each meeting"
    )
