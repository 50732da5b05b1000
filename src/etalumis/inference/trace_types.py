"""Which ways a program went under the posterior: the distinct sequences of controlled addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from etalumis.inference.weighted_traces import WeightedTraces


@dataclass(frozen=True)
class TraceType:
    """One sequence of controlled addresses.

    Attributes:
        hash: of the sequence, 64 bits, equal on every machine and in stored datasets.
        probability: under the posterior.
        num_traces: distinct traces of this type.
        addresses: the controlled addresses in order.
    """

    hash: int
    probability: float
    num_traces: int
    addresses: tuple[str, ...]

    @property
    def length(self) -> int:
        """Controlled draws."""
        return len(self.addresses)

    def __repr__(self) -> str:
        return f"TraceType({self.hash:016x}, probability {self.probability:.3g}, {self.length} controlled draws)"


def trace_types(posterior: WeightedTraces) -> list[TraceType]:
    """Types with their probabilities, most probable first."""
    traces = posterior.traces
    kinds, first, which = np.unique(traces.trace_types(), return_index=True, return_inverse=True)
    probability = np.bincount(which, posterior.trace_weights, minlength=len(kinds))
    counts = np.bincount(which, minlength=len(kinds))
    entries = traces.addresses.entries
    found = []
    for kind in np.argsort(-probability, kind="stable").tolist():
        draws = np.arange(traces.offsets[first[kind]], traces.offsets[first[kind] + 1])
        addresses = tuple(str(entries[a]) for a in traces.address[draws[traces.controlled[draws]]].tolist())
        found.append(TraceType(int(kinds[kind]), float(probability[kind]), int(counts[kind]), addresses))
    return found
