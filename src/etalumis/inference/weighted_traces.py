"""Weighted traces in columns, read by name: the part of a posterior that holds, without judging."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etalumis.execution import TraceBatch
from etalumis.inference import weighted
from etalumis.inference.values import UNSET, NamedValues

Array = NDArray[np.float64]
_INDEXED = re.compile(r"(.+)\[(-?\d+)\]")


class WeightedTraces:
    """S samples, each a row of a batch of traces with a log weight and a chain.

    Args:
        traces: distinct traces, N of them; a Markov chain that stands still refers to one several times.
        log_weights: shape (S,); all equal for a Markov chain.
        rows: the trace of each sample, shape (S,); by default sample i is trace i.
        chains: the chain of each sample from 0, non-decreasing, shape (S,); by default one chain.
        markov: the samples are states of Markov chains: correlated, and silent about the evidence.
        info: how the samples were made (engine, settings, seed, executions, time, …): anything JSON can say.
        num_dropped: samples of negligible or zero weight that are counted but not held.
    """

    def __init__(
        self,
        traces: TraceBatch,
        log_weights: ArrayLike,
        rows: NDArray[np.int64] | None = None,
        chains: NDArray[np.int64] | None = None,
        markov: bool = False,
        info: Mapping[str, Any] | None = None,
        num_dropped: int = 0,
    ) -> None:
        self.traces = traces
        self.log_weights: Array = np.asarray(log_weights, dtype=np.float64)
        count = len(self.log_weights)
        self.rows: NDArray[np.int64] = np.arange(count) if rows is None else rows
        self.chains: NDArray[np.int64] = np.zeros(count, dtype=np.int64) if chains is None else chains
        self.markov = markov
        self.info: dict[str, Any] = dict(info or {})
        self.num_dropped = num_dropped
        if len(self.rows) != count or len(self.chains) != count:
            raise ValueError(f"{count} weights, {len(self.rows)} rows and {len(self.chains)} chains don't fit together")
        if np.isnan(self.log_weights).any():
            raise ValueError("a log weight is not a number")

    # --- shape ----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.log_weights)

    @property
    def num_traces(self) -> int:
        """Samples held, S."""
        return len(self.log_weights)

    @property
    def num_chains(self) -> int:
        return int(self.chains[-1]) + 1 if len(self) else 0

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of draws, then of tags, that ``values`` and the statistics read."""
        batch = self.traces
        drawn = [batch.names[i] for i in np.unique(batch.name) if batch.names[i]]
        return tuple(dict.fromkeys([*drawn, *(tag.name for tag in batch.tags if tag.name and len(tag))]))

    @cached_property
    def weights(self) -> Array:
        """Weights that sum to 1, shape (S,).

        Raises:
            InferenceError: every weight is zero.
        """
        return weighted.normalised(self.log_weights)

    @cached_property
    def trace_weights(self) -> Array:
        """The weight of each distinct trace, over all its samples, shape (N,); they sum to 1."""
        return np.bincount(self.rows, self.weights, minlength=len(self.traces)).astype(np.float64, copy=False)

    # --- values ---------------------------------------------------------------------------------------------------

    def values(self, name: str, index: int | None = None, missing: Any = UNSET) -> NDArray[Any]:
        """The value of a named draw or tag in every sample.

        Args:
            name: a name of :attr:`names`; ``"x[2]"`` means instance 2 of ``"x"``.
            index: which instance of a name that traces meet several times, from 0; negative from the last.
            missing: what to put where a trace has no value; without it that is an error.

        Returns:
            shape (S, *shape); or (S, K, *shape) where traces meet the name up to K > 1 times and no index is given.

        Raises:
            KeyError: no draw or tag has this name.
            ValueError: some samples have no value, and ``missing`` does not say what to put.
        """
        found, within = self._find(name)
        try:
            return found.take(self.rows, within if index is None else index, missing)
        except ValueError as error:
            raise ValueError(f"{name!r} {error}") from None

    def chain_values(self, name: str, index: int | None = None, missing: Any = UNSET) -> NDArray[Any]:
        """Values by chain, shape (C, draws, *shape); longer chains lose their last draws."""
        return self.by_chain(self.values(name, index, missing))

    @property
    def results(self) -> NDArray[Any] | list[Any]:
        """What the model returned, one per sample: an array where all are numbers, else a list."""
        column = self.traces.result
        if isinstance(column.values, np.ndarray) and len(column) == len(self.traces):
            return column.values[self.rows]
        whole: list[Any] = [None] * len(self.traces)
        for row, value in zip(column.rows.tolist(), column.values, strict=True):
            whole[row] = value
        return [whole[row] for row in self.rows.tolist()]

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """The names that stand for exactly one number in every sample."""
        return tuple(name for name in self.names if self._is_number(name))

    # --- inside ---------------------------------------------------------------------------------------------------

    def _find(self, name: str) -> tuple[NamedValues, int | None]:
        if name in self.names:
            return self._named(name), None
        indexed = _INDEXED.fullmatch(name)
        if indexed and indexed[1] in self.names:
            return self._named(indexed[1]), int(indexed[2])
        raise KeyError(f"no draw or tag is named {name!r}; the names are {sorted(self.names)}")

    def _is_number(self, name: str) -> bool:
        try:
            return self._named(name).is_number(self.rows)
        except ValueError:  # draws of different shapes, or a draw and a tag of one name
            return False

    @cached_property
    def _known(self) -> dict[str, NamedValues]:
        return {}

    def _named(self, name: str) -> NamedValues:
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = NamedValues.of(self.traces, name)
        return known

    def _numbers(self, name: str, index: int | None, missing: Any) -> Array:
        values = self.values(name, index, missing)
        if values.dtype.kind not in "biuf":
            raise TypeError(
                f"{name!r} holds no numbers but {type(values.flat[0]).__name__} values; see probabilities()"
            )
        return values.astype(np.float64)

    def by_chain(self, values: NDArray[Any]) -> NDArray[Any]:
        """An array with a leading axis of samples, (S, …), by chain: (C, draws, …)."""
        lengths = np.bincount(self.chains, minlength=self.num_chains)
        starts = np.cumsum(lengths) - lengths
        return np.stack([values[start : start + lengths.min()] for start in starts.tolist()])
