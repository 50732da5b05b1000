"""UniformInteger(low, high): equal weight on low, low + 1, …, high; the random-walk kernel of counts."""

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
    common_shape,
    require,
)
from etalumis.distributions.stream import Stream


class UniformInteger(Distribution):
    """Uniform distribution over the integers from ``low`` to ``high``, both included.

    Sampling: low + ⌊u · (high − low + 1)⌋.
    """

    __slots__ = ("high", "low")
    family = "UniformInteger"
    code = 14
    parameter_names = ("low", "high")
    discrete = True
    proposal = "count"

    low: Parameter
    high: Parameter

    def __init__(self, low: Any, high: Any) -> None:
        if type(low) is float and type(high) is float and low <= high and low % 1 == 0 and high % 1 == 0:
            self.low, self.high, self.shape = low, high, ()
            return
        self.low, self.high = as_parameter(low, "low"), as_parameter(high, "high")
        ordered = np.less_equal(self.low, self.high) & np.isfinite(self.low) & np.isfinite(self.high)
        whole = np.equal(np.floor(self.low), self.low) & np.equal(np.floor(self.high), self.high)
        require(ordered & whole, "UniformInteger", "whole numbers low ≤ high", low=self.low, high=self.high)
        self.shape = common_shape(self.low, self.high)

    def draw_scalar(self, stream: Stream) -> int:
        low, high = self.low, self.high
        return int(low + min(math.floor(stream.uniform() * (high - low + 1.0)), high - low))

    def draw_array(self, stream: Stream) -> NDArray[np.int64]:
        u = stream.elements(math.prod(self.shape))[:, 0].reshape(self.shape)
        span = np.asarray(self.high - self.low)
        return (self.low + np.minimum(np.floor(u * (span + 1.0)), span)).astype(np.int64)

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        if self.low <= value <= self.high and value % 1 == 0:
            return -math.log(self.high - self.low + 1.0)
        return math.nan if value != value else -math.inf

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, low, high = np.asarray(value), np.asarray(parameters[0]), np.asarray(parameters[1])
        inside = (x >= low) & (x <= high) & (np.floor(x) == x)
        return np.where(np.isnan(x), np.nan, np.where(inside, -np.log(high - low + 1.0), -np.inf))

    def random_walk(self, value: Any, step: float) -> Distribution:
        """Uniform over the integers within step standard deviations (at least 1) of ``value``."""
        width = np.maximum(1.0, np.rint(step * np.asarray(self.high - self.low + 1.0) / math.sqrt(12.0)))
        centre = np.clip(value, self.low, self.high)
        return UniformInteger(np.maximum(centre - width, self.low), np.minimum(centre + width, self.high))

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        low, high = parameters
        scale = high - low + 1.0
        return Coordinates(low - 0.5, scale, np.zeros_like(low), np.ones_like(low))
