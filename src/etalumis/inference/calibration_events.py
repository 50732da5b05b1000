"""Events with known truth: executions of the prior, what they observed, and what they drew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import FAILED, Trace
from etalumis.inference.errors import InferenceError

Array = NDArray[np.float64]
_MOST_NAMED = 5  # in one sentence


@dataclass(frozen=True, eq=False)
class Events:
    """E events.

    Attributes:
        observed: of each event, as engines take it.
        truth: true values by name, shape (E,) each.
        notes: what was left out.
    """

    observed: Sequence[dict[str, Any]]
    truth: Mapping[str, Array]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, traces: Sequence[Trace], names: Sequence[str] | None) -> Events:
        """Events of these executions, and the truth of these names, or of all that are a number in each.

        Executions that failed, or that have no likelihood (rejected ones), are no events: the posterior given a real
        observation has none of them either.

        Raises:
            InferenceError: there is no event, or one has an observation that engines can't be told, or a likelihood
                of its own, by which the truth was not drawn; or nothing is there to rank.
        """
        finished = [trace for trace in traces if trace.ended != FAILED]
        events = [trace for trace in finished if trace.log_likelihood > -math.inf]
        if not events:
            raise InferenceError(f"none of {len(traces)} executions of the prior came to its end: there are no events")
        for trace in events:
            _check(trace)
        numbers = [named_numbers(trace) for trace in events]
        everywhere = [name for name in numbers[0] if all(math.isfinite(found.get(name, math.nan)) for found in numbers)]
        missing = sorted(set(names or ()) - set(everywhere))
        if missing or not everywhere:
            raise InferenceError(
                f"{', '.join(map(repr, missing)) or 'nothing'} is a number that every event has exactly once; those "
                f"that are: {', '.join(map(repr, everywhere)) or 'none'}"
            )
        notes = []
        if len(events) < len(finished):
            notes.append(f"{len(finished) - len(events)} executions of the prior were rejected, and are no events")
        met = {name: None for trace in events for name in _names(trace)}
        others = [name for name in met if name not in everywhere]
        if others and not names:
            more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
            shown = ", ".join(others[:_MOST_NAMED])
            notes.append(f"not ranked, since not every event has exactly one finite number of them: {shown}{more}")
        truth = {name: np.array([found[name] for found in numbers]) for name in (names or everywhere)}
        return cls([observed_values(trace) for trace in events], truth, tuple(notes))

    def __len__(self) -> int:
        return len(self.observed)


def observed_values(trace: Trace) -> dict[str, Any]:
    """What an execution observed, by name, as engines take them: a list for a name met several times."""
    met: dict[str, list[Any]] = {}
    for statement in trace.observes:
        if statement.name:
            met.setdefault(statement.name, []).append(statement.value)
    return {name: values[0] if len(values) == 1 else values for name, values in met.items()}


def named_numbers(trace: Trace) -> dict[str, float]:
    """The named draws and tags of an execution that it has once, and that are numbers."""
    pairs = [(name, value) for name, value in zip(trace.names, trace.values, strict=True) if name]
    pairs += [(tag.name, tag.value) for tag in trace.tags if tag.name]
    seen: dict[str, list[Any]] = {}
    for name, value in pairs:
        seen.setdefault(name, []).append(value)
    return {n: float(v[0]) for n, v in seen.items() if len(v) == 1 and np.ndim(v[0]) == 0 and _is_number(v[0])}


def _check(trace: Trace) -> None:
    """Whether an engine that is told what an execution observed infers what drew it."""
    if not trace.observes:
        raise InferenceError("some events observe nothing: there is nothing to infer from")
    if not all(statement.name for statement in trace.observes):
        raise InferenceError(
            f"event {trace.index} observes something without a name, which no engine can be told: give each "
            "observe() of the model a name=…"
        )
    if trace.log_likelihood != 0.0:
        raise InferenceError(
            f"event {trace.index} has a likelihood of its own (log {trace.log_likelihood:.4g}), by factor() or by an "
            "observe() that has its value: engines weigh by it, but the truth is drawn without it, and right "
            "posteriors would look wrong. Calibrate a model that draws all that it observes"
        )


def _names(trace: Trace) -> list[str]:
    return [name for name in (*trace.names, *(tag.name for tag in trace.tags)) if name]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
