"""Uniform(low, high) on an interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etalumis.distributions.base import (
    Array,
    Continuous,
    Coordinates,
    Distribution,
    as_arrays,
    as_parameter,
    common_shape,
    on_support,
    require,
)
from etalumis.distributions.stream import Stream, Uniforms
from etalumis.distributions.truncated_normal import TruncatedNormal

_INF = math.inf
_SQRT_12 = math.sqrt(12.0)


class Uniform(Continuous):
    """Uniform distribution between ``low`` and ``high``.

    Sampling: low + (high − low) · u, one uniform.
    """

    __slots__ = ("high", "low")
    family = "Uniform"
    code = 2
    parameter_names = ("low", "high")

    low: float
    high: float

    def __init__(self, low: Any = 0.0, high: Any = 1.0) -> None:
        if type(low) is float and type(high) is float and 0.0 < high - low < _INF:
            self.low, self.high, self.shape = low, high, ()
            return
        self.low, self.high = low, high = as_parameter(low, "low"), as_parameter(high, "high")
        valid = (abs(low) < _INF) & (abs(high) < _INF) & (low < high)
        require(valid, "Uniform", "finite low < high", low=low, high=high)
        require(high - low < _INF, "Uniform", "a width that is a finite number", low=low, high=high)
        self.shape = common_shape(low, high)

    def draw_scalar(self, stream: Uniforms) -> float:
        return self.low + (self.high - self.low) * stream.uniform()

    def draw_array(self, stream: Stream) -> NDArray[np.float64]:
        u = stream.elements(math.prod(self.shape))[:, 0].reshape(self.shape)
        return np.asarray(self.low + (self.high - self.low) * u)

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        if self.low <= value <= self.high:
            return -math.log(self.high - self.low)
        return math.nan if value != value else -_INF

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, low, high = as_arrays(value, *parameters)
        return on_support(x, (x >= low) & (x <= high), -np.log(high - low))

    def random_walk(self, value: Any, step: float) -> Distribution:
        """Normal around ``value``, truncated to the interval."""
        return TruncatedNormal(value, step * (self.high - self.low) / _SQRT_12, self.low, self.high)

    def moments(self) -> tuple[float, float]:
        return 0.5 * self.low + 0.5 * self.high, (self.high - self.low) / _SQRT_12

    def support(self) -> tuple[float, float]:
        return self.low, self.high

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """The interval as the unit interval."""
        low, high = parameters
        return Coordinates(low, high - low, np.zeros_like(low), np.ones_like(low))
