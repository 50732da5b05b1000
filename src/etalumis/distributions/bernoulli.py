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
    Parameter,
    as_parameter,
    require,
)
from etalumis.distributions.stream import Stream


class Bernoulli(Distribution):
    """Bernoulli distribution: values are the integers 0 and 1."""

    __slots__ = ("probs",)
    family = "Bernoulli"
    code = 5
    parameter_names = ("probs",)
    discrete = True
    proposal = "categorical"

    probs: Parameter

    def __init__(self, probs: Any) -> None:
        if type(probs) is float and 0.0 <= probs <= 1.0:
            self.probs, self.shape = probs, ()
            return
        self.probs = as_parameter(probs, "probs")
        inside = np.greater_equal(self.probs, 0.0) & np.less_equal(self.probs, 1.0)
        require(inside, "Bernoulli", "0 ≤ probs ≤ 1", probs=self.probs)
        self.shape = np.shape(self.probs)

    def draw_scalar(self, stream: Stream) -> int:
        return 1 if stream.uniform() < self.probs else 0

    def draw_array(self, stream: Stream) -> NDArray[np.int64]:
        u = stream.elements(math.prod(self.shape))[:, 0].reshape(self.shape)
        return (u < self.probs).astype(np.int64)

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        p = self.probs
        if value == 1:
            return math.log(p) if p > 0.0 else -math.inf  # type: ignore[arg-type]
        if value == 0:
            return math.log1p(-p) if p < 1.0 else -math.inf  # type: ignore[arg-type]
        return math.nan if value != value else -math.inf

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, p = np.asarray(value), np.asarray(parameters[0])
        with np.errstate(divide="ignore"):
            inside = np.where(x == 1, np.log(p), np.where(x == 0, np.log1p(-p), -np.inf))
        return np.where(np.isnan(x), np.nan, inside)

    def random_walk(self, value: Any, step: float) -> Distribution:
        """The other value with certainty; where ``probs`` is 0 or 1, the only value that is possible."""
        flip = np.where(np.asarray(value) == 1, 0.0, 1.0)
        certain = (np.asarray(self.probs) == 0.0) | (np.asarray(self.probs) == 1.0)
        return Bernoulli(np.where(certain, self.probs, flip))

    def inflated(self, factor: float) -> Distribution:
        p, q = np.asarray(self.probs) ** (1.0 / factor), (1.0 - np.asarray(self.probs)) ** (1.0 / factor)
        return Bernoulli(p / (p + q))

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
