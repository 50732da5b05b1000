"""What a figure reads of a posterior: scalar variables, weights or chains, and how it was made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.inference import diagnostics, weighted
from etalumis.inference.origin import Origin
from etalumis.inference.posterior import Posterior

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """N weighted draws of scalar variables.

    Attributes:
        label: how figures call it.
        values: variable name → values, each shape (N,); integer arrays are categories or counts.
        log_weights: shape (N,); zeros for chains.
        chain: the chain of each draw, int (N,); None for importance samples.
        info: how it was made: "engine", "seconds" (of wall time), "executions", where known.
        num_dropped: further draws whose weight is zero.
        rows: the trace of each draw, where several may be of one (after resampling), int (N,).
    """

    label: str
    values: Mapping[str, NDArray[Any]]
    log_weights: Array
    chain: NDArray[np.int64] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    num_dropped: int = 0
    rows: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, posterior: Posterior, label: str, names: Sequence[str] | None = None) -> Sample:
        """The scalar variables of a posterior (or those of ``names`` that it has)."""
        numbers = [name for name in posterior.numbers if names is None or name in names]
        return cls(
            label=label,
            values={name: posterior.values(name) for name in numbers},
            log_weights=posterior.log_weights,
            chain=posterior.chains if posterior.markov else None,
            info=posterior.info,
            num_dropped=posterior.num_dropped,
            rows=None if posterior.markov else posterior.rows,
        )

    def __len__(self) -> int:
        return len(self.log_weights)

    @cached_property
    def weights(self) -> Array:
        """Weights that sum to one, shape (N,).

        Raises:
            InferenceError: every weight is zero.
        """
        return weighted.normalised(self.log_weights)

    @cached_property
    def ess(self) -> float:
        """Effective sample size of the weights; for chains, which have none, the number of draws."""
        return diagnostics.ess_weights(self.log_weights, self.rows)

    @cached_property
    def pareto_k(self) -> float:
        """k̂ of the weights; of resampled draws that of the weights before."""
        origin = Origin.of(self.info)
        if origin is not None:
            return origin.pareto_k
        return diagnostics.pareto_k(self.log_weights, len(self) + self.num_dropped)

    def ess_of(self, name: str) -> float:
        """How many independent draws of a variable it is worth: the weights' ESS, or bulk ESS over the chains."""
        if self.chain is None:
            return self.ess
        ess = diagnostics.ess_bulk(self.chains(name))
        return self.ess if math.isnan(ess) else ess  # all draws are equal

    def is_discrete(self, name: str) -> bool:
        return bool(np.issubdtype(self.values[name].dtype, np.integer))

    def mean(self, name: str) -> float:
        return float(weighted.mean(self.values[name], self.weights))

    def std(self, name: str) -> float:
        """Weighted standard deviation (of the distribution that the weights define)."""
        return float(weighted.std(self.values[name], self.weights))

    def quantiles(self, name: str, levels: Array) -> Array:
        """Weighted quantiles: the smallest values whose cumulative weight reaches the levels."""
        return np.asarray(weighted.quantile(self.values[name].astype(np.float64), self.weights, levels))

    def probabilities(self, name: str) -> dict[int, float]:
        """The probability of each value of a discrete variable that occurs."""
        return weighted.probabilities(self.values[name], self.weights)

    def chains(self, name: str) -> Array:
        """A variable's draws by chain, shape (chains, draws); chains of different length are cut to the shortest."""
        assert self.chain is not None, "only Markov chains have chains"
        rows = [self.values[name][self.chain == c] for c in np.unique(self.chain)]
        shortest = min(map(len, rows))
        return np.stack([row[:shortest] for row in rows]).astype(np.float64)
