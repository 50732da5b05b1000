"""Posterior: what was inferred, read by name, summarised, judged and drawn.

Importance samplers fill it with weighted traces, Markov chains with equally weighted states of several chains.
Draws and tags are read alike; expectations, quantiles and diagnostics respect the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etalumis.inference import diagnostics, pareto, weighted
from etalumis.inference.address_values import address_values
from etalumis.inference.by_address import by_address, chain_columns, most_judged, most_met
from etalumis.inference.errors import InferenceError
from etalumis.inference.origin import Origin
from etalumis.inference.values import UNSET
from etalumis.inference.weighted_traces import WeightedTraces

if TYPE_CHECKING:
    from etalumis.inference.diagnosis import Diagnosis
    from etalumis.inference.graph import TraceGraph
    from etalumis.inference.trace_types import TraceType

Array = NDArray[np.float64]


class Posterior(WeightedTraces):
    """S samples, each a row of a batch of traces with a log weight and a chain.

    The arguments are those of :class:`.weighted_traces.WeightedTraces`.
    """

    # --- how far to trust it --------------------------------------------------------------------------------------

    @cached_property
    def ess(self) -> float:
        """Effective sample size: of the weights; of Markov chains the smallest bulk ESS of what has a name.

        That is every named number, and of draws that are none (repeated, in some traces only, arrays) what
        :func:`.by_address.chain_columns` judges them by.
        """
        if self.markov:
            return self._ess_chains()
        return diagnostics.ess_weights(self.log_weights, self.rows)

    @property
    def log_evidence(self) -> float:
        """Log p(y), the log of the mean weight; :attr:`log_evidence_error` is its Monte-Carlo standard error.

        Raises:
            InferenceError: Markov chains say nothing about the evidence.
        """
        return self._evidence()[0]

    @property
    def log_evidence_error(self) -> float:
        """Monte-Carlo standard error of :attr:`log_evidence`; after :meth:`resample` that of the weights before."""
        error = self._evidence()[1]
        return error if self._origin is None else self._origin.log_evidence_error

    @cached_property
    def pareto_k(self) -> float:
        """k̂ of the weights; above ``diagnostics.pareto_k_threshold(S)`` they can't be trusted.

        After :meth:`resample` that of the weights before: the equal ones it leaves say nothing.
        """
        if self.markov:
            raise InferenceError("Markov chains have no importance weights; look at rhat(name) and ess")
        if self._origin is not None:
            return self._origin.pareto_k
        return diagnostics.pareto_k(self.log_weights, len(self) + self.num_dropped)

    @property
    def num_weighed(self) -> int:
        """Traces that were weighed: samples, with those of zero weight not held; of resampled ones, those before."""
        return len(self) + self.num_dropped if self._origin is None else self._origin.traces

    @property
    def _origin(self) -> Origin | None:
        return Origin.of(self.info)

    def _evidence(self) -> tuple[float, float]:
        if self.markov:
            raise InferenceError(
                "a Markov chain does not estimate the evidence; use ImportanceSampling or IC for log_evidence"
            )
        return diagnostics.log_evidence(self.log_weights, len(self) + self.num_dropped)

    def smoothed(self) -> Posterior:
        """The same samples with Pareto-smoothed weights: averages that a lucky trace or two can't spoil.

        The largest weights give way to quantiles of the generalised Pareto distribution fitted to them. That adds
        a little bias and takes much variance; it does not mend weights whose k̂ is beyond its threshold.

        Raises:
            InferenceError: Markov chains have no weights.
        """
        if self.markov:
            raise InferenceError("Markov chains have no importance weights to smooth")
        smoothed = pareto.smooth(self.log_weights, len(self) + self.num_dropped)
        info = self.info | {"smoothed": True}
        return Posterior(self.traces, smoothed, self.rows, self.chains, False, info, self.num_dropped)

    def diagnose(self, folder: str | Path | None = None) -> Diagnosis:
        """Everything that tells whether to trust this posterior: numbers, figures, and what to do about it.

        Args:
            folder: write the figures (PNG), the numbers (JSON) and a document with both (Markdown) there.

        Returns:
            an object with ``ok``, ``problems``, ``notes``, ``table``, ``addresses`` and ``figures``. See
            :mod:`.diagnosis`.

        Raises:
            InferenceError: a folder is given, and Matplotlib is not installed.
        """
        from etalumis.inference.diagnosis import diagnose

        found = diagnose(self)
        if folder is not None:
            found.save(folder)
        return found

    # --- statistics -----------------------------------------------------------------------------------------------

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
        return weighted.mcse_mean(values, self.weights, self.rows)

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

    # --- traces and figures ---------------------------------------------------------------------------------------

    def trace_types(self) -> list[TraceType]:
        """The distinct sequences of controlled addresses with their probabilities, most probable first."""
        from etalumis.inference.trace_types import trace_types

        return trace_types(self)

    def trace_graph(self, instances: bool = False) -> TraceGraph:
        """Which address follows which under the posterior, and how often. See :func:`.graph.trace_graph`."""
        from etalumis.inference.graph import trace_graph

        return trace_graph(self.traces, self.trace_weights, instances)

    def by_address(self, prior: Posterior | None = None, most: int = 200) -> list[dict[str, Any]]:
        """A row per address, unnamed draws too, those met most often first. See :func:`.by_address.by_address`."""
        return by_address(self, prior, most)

    def plot(
        self,
        names: Sequence[str] | None = None,
        truth: Mapping[str, float] | None = None,
        others: Sequence[Posterior] = (),
        prior: Posterior | None = None,
        pairs: bool = False,
        path: str | Path | None = None,
        labels: Mapping[str, Sequence[str]] | None = None,
        title: str = "",
    ) -> Any:
        """A figure of the marginals; with ``pairs`` of all pairs of variables.

        Args:
            names: what to show; by default the first twelve (of pairs: six) numbers that all posteriors have.
            truth: true values by name, drawn as lines.
            others: further posteriors to draw over this one (by another engine, say), at most four.
            prior: a posterior without observations (``et.prior``), drawn grey behind.
            pairs: the joint posterior of every two variables too.
            path: where to write it; PNG, SVG or PDF by its suffix.
            labels: for discrete variables, what each value is called.
            title: a line on top.

        Returns:
            the Matplotlib figure.

        Raises:
            InferenceError: Matplotlib is not installed.
            ValueError: a name is not one number in every sample of every posterior.
        """
        from etalumis.inference.figures.plot import plot

        return plot([self, *others], names, truth or {}, prior, pairs, path, labels or {}, title)

    def plot_addresses(
        self, prior: Posterior | None = None, addresses: Sequence[str] | None = None, path: str | Path | None = None
    ) -> Any:
        """A figure of what was inferred at each address, the prior grey behind.

        Args:
            prior: a posterior without observations, of the same model.
            addresses: as :meth:`by_address` spells them; by default the twelve met most often.
            path: where to write it.
        """
        from etalumis.inference.figures.plot import plot_addresses

        return plot_addresses(self, prior, addresses, path)

    # --- other forms ----------------------------------------------------------------------------------------------

    def resample(self, num_traces: int | None = None, seed: int = 0) -> Posterior:
        """Equally weighted samples by systematic resampling; of Markov chains, an even thinning.

        The common log weight is this posterior's log evidence, so that the estimate survives; its error and k̂ do, too.

        Raises:
            InferenceError: every weight is zero.
        """
        weights = self.weights
        count = len(self) if num_traces is None else num_traces
        if count < 1:
            raise ValueError(f"resampling needs num_traces ≥ 1; got {count}")
        picked = weighted.systematic(weights, count, seed)
        level, info = 0.0, self.info
        if not self.markov:
            level = self.log_evidence
            info = info | Origin(self.num_weighed, self.pareto_k, self.log_evidence_error).as_info()
        return Posterior(self.traces, np.full(count, level), self.rows[picked], self.chains[picked], self.markov, info)

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

    @property
    def reuse(self) -> dict[str, tuple[int, int]]:
        """Of Markov chains, after burn-in: address to how often single-site moves elsewhere met it, and how often
        the value that it had was reused; otherwise a fresh one was drawn from the prior."""
        entries = self.traces.addresses.entries
        return {str(entries[a]): (met, met - fresh) for a, met, fresh in self.info.get("reuse", ())}

    def summary(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """A row per named number: name, mean, std, q05, q95, mcse, ess; for Markov chains ess_tail and rhat too."""
        return [self._row(name) for name in (self.numbers if names is None else names)]

    def __repr__(self) -> str:
        from etalumis.inference.table import describe

        return describe(self)

    def _ess_chains(self) -> float:
        columns = [self.by_chain(self.values(name).astype(np.float64)) for name in self.numbers]
        columns += self._columns_elsewhere()
        results = self.results
        if isinstance(results, np.ndarray) and results.ndim == 1:
            columns.append(self.by_chain(results.astype(np.float64)))
        if not columns:
            columns.append(self.by_chain((self.traces.log_likelihood + self.traces.log_prior)[self.rows]))
        # A number that never changed has no ESS (nan): it does not hide that of the others.
        return float(np.fmin.reduce([diagnostics.ess_bulk(column) for column in columns]))

    def _columns_elsewhere(self) -> list[Array]:
        """What chains are judged by of named draws that are no numbers: repeated, in some traces only, arrays."""
        found = address_values(self.traces, set(self.names) - set(self.numbers))
        judged = most_met(self, found)[: most_judged(self)]
        return [column for key in judged for column in chain_columns(self, found[key]).values()]

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
