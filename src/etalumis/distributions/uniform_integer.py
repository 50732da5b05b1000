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
    as_arrays,
    as_parameter,
    common_shape,
    on_support,
    require,
    whole,
)
from etalumis.distributions.stream import Stream, Uniforms

_INF = math.inf


class UniformInteger(Distribution):
    """Uniform distribution over the integers from ``low`` to ``high``, both included.

    Sampling: low + min(⌊u · (high − low + 1)⌋, high − low), one uniform.
    """

    __slots__ = ("high", "low")
    family = "UniformInteger"
    code = 14
    parameter_names = ("low", "high")
    discrete = True
    proposal = "count"

    low: float
    high: float

    def __init__(self, low: Any, high: Any) -> None:
        if type(low) is float and type(high) is float and low <= high and low % 1 == 0 and high % 1 == 0:
            self.low, self.high, self.shape = low, high, ()
            return
        self.low, self.high = low, high = as_parameter(low, "low"), as_parameter(high, "high")
        valid = (low <= high) & whole(np.asarray(low)) & whole(np.asarray(high))
        require(valid, "UniformInteger", "whole numbers low ≤ high", low=low, high=high)
        self.shape = common_shape(low, high)

    @classmethod
    def around(cls, value: Any, width: Any, low: Any, high: Any) -> UniformInteger:
        """Integers within ``width`` (rounded, at least 1) of ``value``, between ``low`` and ``high``.

        ``value`` outside of these bounds counts as the nearest bound.
        """
        if type(low) is float and type(high) is float and type(width) is float:
            reach = float(max(1, round(width)))
            centre = float(min(max(value, low), high))
            return cls(max(centre - reach, low), min(centre + reach, high))
        reach = np.maximum(1.0, np.rint(width))
        centre = np.clip(value, low, high)
        return cls(np.maximum(centre - reach, low), np.minimum(centre + reach, high))

    def draw_scalar(self, stream: Uniforms) -> int:
        span = self.high - self.low
        return int(self.low) + int(min(stream.uniform() * (span + 1.0), span))

    def draw_array(self, stream: Stream) -> NDArray[np.int64]:
        u = stream.elements(math.prod(self.shape))[:, 0].reshape(self.shape)
        low, high = as_arrays(self.low, self.high)
        return np.asarray(low + np.minimum(np.floor(u * (high - low + 1.0)), high - low), dtype=np.int64)

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        if self.low <= value <= self.high and value % 1 == 0:
            return -math.log(self.high - self.low + 1.0)
        return math.nan if value != value else -_INF

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, low, high = as_arrays(value, *parameters)
        return on_support(x, (x >= low) & (x <= high) & whole(x), -np.log(high - low + 1.0))

    def random_walk(self, value: Any, step: float) -> Distribution:
        """Uniform over the integers within step standard deviations (at least 1) of ``value``."""
        width = step * (self.high - self.low + 1.0) / math.sqrt(12.0)
        return UniformInteger.around(value, width, self.low, self.high)

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """The unit interval, from half a cell below ``low`` to half a cell above ``high``."""
        low, high = parameters
        return Coordinates(low - 0.5, high - low + 1.0, np.zeros_like(low), np.ones_like(low))
