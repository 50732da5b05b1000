"""Bernoulli(probs): 1 with probability ``probs``, else 0."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etalumis.distributions.base import (
    Array,
    Coordinates,
    Distribution,
    as_arrays,
    as_parameter,
    on_support,
    require,
)
from etalumis.distributions.stream import Stream, Uniforms

_INF = math.inf


class Bernoulli(Distribution):
    """Bernoulli distribution: values are the integers 0 and 1.

    Sampling: 1 if u < probs, one uniform.
    """

    __slots__ = ("probs",)
    family = "Bernoulli"
    code = 5
    parameter_names = ("probs",)
    discrete = True
    proposal = "categorical"

    probs: float

    def __init__(self, probs: Any) -> None:
        if type(probs) is float and 0.0 <= probs <= 1.0:
            self.probs, self.shape = probs, ()
            return
        self.probs = probs = as_parameter(probs, "probs")
        require((probs >= 0.0) & (probs <= 1.0), "Bernoulli", "0 ≤ probs ≤ 1", probs=probs)
        self.shape = np.shape(probs)

    def draw_scalar(self, stream: Uniforms) -> int:
        return 1 if stream.uniform() < self.probs else 0

    def draw_array(self, stream: Stream) -> NDArray[np.int64]:
        u = stream.elements(math.prod(self.shape))[:, 0].reshape(self.shape)
        return np.asarray(u < self.probs, dtype=np.int64)

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        p = self.probs
        if value == 1:
            return math.log(p) if p > 0.0 else -_INF
        if value == 0:
            return math.log1p(-p) if p < 1.0 else -_INF
        return math.nan if value != value else -_INF

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, p = as_arrays(value, *parameters)
        with np.errstate(divide="ignore"):
            density = np.where(x == 1.0, np.log(p), np.log1p(-p))
        return on_support(x, (x == 0.0) | (x == 1.0), density)

    def random_walk(self, value: Any, step: float) -> Distribution:
        """The other value with certainty; where ``probs`` is 0 or 1, the only value that is possible."""
        if not self.shape:
            return Bernoulli(0.0 if value == 1 else 1.0) if 0.0 < self.probs < 1.0 else self
        (p,) = as_arrays(self.probs)
        return Bernoulli(np.where((p > 0.0) & (p < 1.0), np.asarray(value) != 1, p))

    def inflated(self, factor: float) -> Distribution:
        """Both probabilities to the power 1/factor, normalised."""
        one, zero = self.probs ** (1.0 / factor), (1.0 - self.probs) ** (1.0 / factor)
        return Bernoulli(one / (one + zero))

    @classmethod
    def categories(cls, *packed: float) -> int:
        """The number of categories of a scalar distribution with these packed parameters."""
        return 2

    @classmethod
    def log_probabilities(cls, packed: Array) -> Array:
        """Log probabilities of the values 0 and 1, shape (n, 2), from packed parameters of shape (n, 1)."""
        p = packed[:, 0]
        with np.errstate(divide="ignore"):
            return np.stack([np.log1p(-p), np.log(p)], axis=1)

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """Trivial: proposals are categorical."""
        zero = np.zeros_like(parameters[0])
        return Coordinates(zero, zero + 1.0, zero - np.inf, zero + np.inf)
