"""Normal(mean, stddev) on the real line."""

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

LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_TWO_PI = 2.0 * math.pi


def standard_normal(stream: Stream) -> float:
    """One standard normal number from two uniforms (Box and Muller 1958)."""
    radius = math.sqrt(-2.0 * math.log(stream.uniform()))
    return radius * math.cos(_TWO_PI * stream.uniform())


class Normal(Distribution):
    """Normal distribution with given mean and standard deviation."""

    __slots__ = ("mean", "stddev")
    family = "Normal"
    code = 1
    parameter_names = ("mean", "stddev")

    mean: Parameter
    stddev: Parameter

    def __init__(self, mean: Any, stddev: Any) -> None:
        if type(mean) is float and type(stddev) is float and stddev > 0.0:
            self.mean, self.stddev, self.shape = mean, stddev, ()
            return
        self.mean, self.stddev = as_parameter(mean, "mean"), as_parameter(stddev, "stddev")
        require(np.greater(self.stddev, 0.0), "Normal", "stddev > 0", mean=self.mean, stddev=self.stddev)
        self.shape = common_shape(self.mean, self.stddev)

    def draw_scalar(self, stream: Stream) -> float:
        return self.mean + self.stddev * standard_normal(stream)  # type: ignore[return-value]

    def draw_array(self, stream: Stream) -> NDArray[np.float64]:
        u = stream.elements(math.prod(self.shape))
        z = np.sqrt(-2.0 * np.log(u[:, 0])) * np.cos(_TWO_PI * u[:, 1])
        return self.mean + self.stddev * z.reshape(self.shape)

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        z = (value - self.mean) / self.stddev
        return -0.5 * z * z - LOG_SQRT_2PI - math.log(self.stddev)  # type: ignore[arg-type, no-any-return]

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        mean, stddev = parameters
        z = (np.asarray(value) - mean) / stddev
        return np.asarray(-0.5 * z * z - LOG_SQRT_2PI - np.log(stddev))

    def random_walk(self, value: Any, step: float) -> Distribution:
        return Normal(value, step * self.stddev)

    def inflated(self, factor: float) -> Distribution:
        return Normal(self.mean, factor * self.stddev)

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        mean, stddev = parameters
        unbounded = np.full_like(mean, np.inf)
        return Coordinates(mean, stddev, -unbounded, unbounded)
