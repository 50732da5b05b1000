"""Posterior: weighted traces in columns, read by name.

Importance samplers fill it with weighted traces, Markov chains with equally weighted states of several chains.
Draws and tags are read alike; expectations, quantiles and diagnostics respect the weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etalumis.execution import TraceBatch
from etalumis.inference import diagnostics, weighted
from etalumis.inference.errors import InferenceError
from etalumis.inference.values import UNSET, NamedValues

Array = NDArray[np.float64]
_INDEXED = re.compile(r"(.+)\[(-?\d+)\]")


class Posterior:
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

    # --- weights --------------------------------------------------------------------------------------------------

    @cached_property
    def weights(self) -> Array:
        """Weights that sum to 1, shape (S,).

        Raises:
            InferenceError: every weight is zero.
        """
        return weighted.normalised(self.log_weights)

    @cached_property
    def ess(self) -> float:
        """Effective sample size: of the weights; of Markov chains the smallest bulk ESS of a named number."""
        if self.markov:
            return self._ess_chains()
        with np.errstate(divide="ignore"):
            pooled = np.log(np.bincount(self.rows, diagnostics.normalise(self.log_weights)))
        return diagnostics.ess_weights(pooled)

    @property
    def log_evidence(self) -> float:
        """Log p(y), the log of the mean weight; :attr:`log_evidence_error` is its Monte-Carlo standard error.

        Raises:
            InferenceError: Markov chains say nothing about the evidence.
        """
        return self._evidence()[0]

    @property
    def log_evidence_error(self) -> float:
        """Monte-Carlo standard error of :attr:`log_evidence`."""
        return self._evidence()[1]

    @cached_property
    def pareto_k(self) -> float:
        """k̂ of the weights; above ``diagnostics.pareto_k_threshold(S)`` they can't be trusted."""
        if self.markov:
            raise InferenceError("Markov chains have no importance weights; look at rhat(name) and ess")
        return diagnostics.pareto_k(self.log_weights, len(self) + self.num_dropped)

    def _evidence(self) -> tuple[float, float]:
        if self.markov:
            raise InferenceError(
                "a Markov chain does not estimate the evidence; use ImportanceSampling or IC for log_evidence"
            )
        return diagnostics.log_evidence(self.log_weights, len(self) + self.num_dropped)

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

    def expectation(self, function: Callable[[Any], Any], name: str | None = None, missing: Any = UNSET) -> Any:
        """The posterior mean of a function of the model's result, or of a named value.

        Args:
            function: from one result (or value) to a number or an array.
            name: apply it to this name's values instead of the results.
            missing: as for :meth:`values`.
        """
        values = self.results if name is None else self.values(name, missing=missing)
        kept = np.flatnonzero(self.weights)
        outcomes = np.array([function(values[i]) for i in kept.tolist()], dtype=np.float64)
        return weighted.mean(outcomes, self.weights[kept])

    # --- statistics -----------------------------------------------------------------------------------------------

    def mean(self, name: str, index: int | None = None, missing: Any = UNSET) -> Any:
        """Posterior mean: a number, or an array for arrays and repeated names."""
        return weighted.mean(self._numbers(name, index, missing), self.weights)

    def std(self, name: str, index: int | None = None, missing: Any = UNSET) -> Any:
        """Posterior standard deviation."""
        return weighted.std(self._numbers(name, index, missing), self.weights)

    def quantile(self, name: str, q: ArrayLike, index: int | None = None, missing: Any = UNSET) -> Any:
        """The smallest values whose cumulative weight reaches ``q``; its shape, then the values' shape."""
        return weighted.quantile(self._numbers(name, index, missing), self.weights, q)

    def probabilities(self, name: str, index: int | None = None, missing: Any = UNSET) -> dict[Any, float]:
        """The posterior probability of each value of a discrete variable, in rising order of values."""
        values = self.values(name, index, missing)
        if values.ndim != 1:
            raise ValueError(f"{name!r} has shape {values.shape[1:]} in each sample; ask for one number with index=…")
        return weighted.probabilities(values, self.weights)

    def mcse(self, name: str, index: int | None = None, missing: Any = UNSET) -> float:
        """Monte-Carlo standard error of the mean of a number."""
        values = self._numbers(name, index, missing)
        if self.markov:
            return diagnostics.mcse_mean(self.by_chain(values))
        centred = values - np.tensordot(self.weights, values, axes=1)
        # Samples that are one trace (after resampling) are one piece of evidence.
        return float(np.sqrt(np.square(np.bincount(self.rows, self.weights * centred)).sum()))

    def ess_of(self, name: str, index: int | None = None, missing: Any = UNSET) -> float:
        """Effective sample size for one number: bulk ESS over chains, or that of the weights."""
        if not self.markov:
            return self.ess
        return diagnostics.ess_bulk(self.by_chain(self._numbers(name, index, missing)))

    def rhat(self, name: str, index: int | None = None, missing: Any = UNSET) -> float:
        """Rank-normalised split R̂ of one number over Markov chains.

        Raises:
            InferenceError: the samples are weighted traces, not Markov chains.
        """
        if not self.markov:
            raise InferenceError("R̂ compares Markov chains; weighted traces are judged by ess and pareto_k")
        return diagnostics.split_rhat(self.by_chain(self._numbers(name, index, missing)))

    # --- other forms ----------------------------------------------------------------------------------------------

    def resample(self, num_traces: int | None = None, seed: int = 0) -> Posterior:
        """Equally weighted samples by systematic resampling; of Markov chains, an even thinning.

        The common log weight is this posterior's log evidence, so that the estimate survives.
        """
        count = len(self) if num_traces is None else num_traces
        if count < 1:
            raise ValueError(f"resampling needs num_traces ≥ 1; got {count}")
        offset = np.random.default_rng(seed).random()
        reach = np.cumsum(self.weights)
        picked = np.searchsorted(reach / reach[-1], (np.arange(count) + offset) / count, side="right")
        picked = np.minimum(picked, len(self) - 1)
        level = 0.0 if self.markov else self.log_evidence
        return Posterior(
            self.traces, np.full(count, level), self.rows[picked], self.chains[picked], self.markov, self.info
        )

    def save(self, path: str | Path) -> None:
        """Write a folder of .npy files and JSON, under a temporary name first. See :mod:`.persistence`.

        Raises:
            TypeError: naming a tag or result that holds objects which can't be saved safely.
        """
        from etalumis.inference import persistence

        persistence.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Posterior:
        """The inverse of :meth:`save`."""
        from etalumis.inference import persistence

        return persistence.load(Path(path))

    def to_arviz(self, num_draws: int | None = None) -> Any:
        """An ArviZ object with the named numbers (extra ``report``). See :mod:`.to_arviz`."""
        from etalumis.inference.to_arviz import to_arviz

        return to_arviz(self, num_draws)

    @property
    def acceptance(self) -> dict[str, tuple[int, int]]:
        """Of Markov chains, after burn-in: address to the number of moves proposed and accepted there."""
        entries = self.traces.addresses.entries
        return {str(entries[a]): (proposed, accepted) for a, proposed, accepted in self.info.get("moves", ())}

    def summary(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """A row per named number: name, mean, std, q05, q95, mcse, ess; for Markov chains ess_tail and rhat too."""
        return [self._row(name) for name in (self.numbers if names is None else names)]

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """The names that stand for exactly one number in every sample."""
        return tuple(name for name in self.names if self._is_number(name))

    def __repr__(self) -> str:
        from etalumis.inference.table import describe

        return describe(self)

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

    def _ess_chains(self) -> float:
        columns = [self.values(name).astype(np.float64) for name in self.numbers]
        results = self.results
        if isinstance(results, np.ndarray) and results.ndim == 1:
            columns.append(results.astype(np.float64))
        if not columns:
            columns.append((self.traces.log_likelihood + self.traces.log_prior)[self.rows])
        # A number that never changed has no ESS (nan): it does not hide that of the others.
        sizes = [diagnostics.ess_bulk(self.by_chain(column)) for column in columns]
        return float(np.fmin.reduce(sizes))

    def _row(self, name: str) -> dict[str, Any]:
        low, high = self.quantile(name, (0.05, 0.95))
        row = {
            "name": name,
            "mean": self.mean(name),
            "std": self.std(name),
            "q05": float(low),
            "q95": float(high),
            "mcse": self.mcse(name),
            "ess": self.ess_of(name),
        }
        if self.markov:
            tail = diagnostics.ess_tail(self.by_chain(self._numbers(name, None, UNSET)))
            row |= {"ess_tail": tail, "rhat": self.rhat(name)}
        return row
