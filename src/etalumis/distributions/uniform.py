"""Uniform(low, high) on an interval."""

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


class Uniform(Distribution):
    """Uniform distribution between ``low`` and ``high``."""

    __slots__ = ("high", "low")
    family = "Uniform"
    code = 2
    parameter_names = ("low", "high")

    low: Parameter
    high: Parameter

    def __init__(self, low: Any = 0.0, high: Any = 1.0) -> None:
        if type(low) is float and type(high) is float and -math.inf < low < high < math.inf:
            self.low, self.high, self.shape = low, high, ()
            return
        self.low, self.high = as_parameter(low, "low"), as_parameter(high, "high")
        ordered = np.less(self.low, self.high) & np.isfinite(self.low) & np.isfinite(self.high)
        require(ordered, "Uniform", "finite low < high", low=self.low, high=self.high)
        self.shape = common_shape(self.low, self.high)

    def draw_scalar(self, stream: Stream) -> float:
        return self.low + (self.high - self.low) * stream.uniform()  # type: ignore[return-value]

    def draw_array(self, stream: Stream) -> NDArray[np.float64]:
        u = stream.elements(math.prod(self.shape))[:, 0].reshape(self.shape)
        return self.low + (self.high - self.low) * u

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        if self.low <= value <= self.high:
            return -math.log(self.high - self.low)  # type: ignore[arg-type]
        return math.nan if value != value else -math.inf

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        low, high = np.asarray(parameters[0]), np.asarray(parameters[1])
        x = np.asarray(value)
        inside = np.where((x >= low) & (x <= high), -np.log(high - low), -np.inf)
        return np.where(np.isnan(x), np.nan, inside)

    def random_walk(self, value: Any, step: float) -> Distribution:
        from etalumis.distributions.truncated_normal import TruncatedNormal

        return TruncatedNormal(value, step * (self.high - self.low) / math.sqrt(12.0), self.low, self.high)

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        low, high = parameters
        return Coordinates(low, high - low, np.zeros_like(low), np.ones_like(low))
