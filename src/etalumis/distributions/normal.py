"""Normal(mean, stddev) on the real line."""

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
    require,
)
from etalumis.distributions.special import LOG_SQRT_2PI
from etalumis.distributions.stream import Stream, Uniforms

_INF = math.inf
_TWO_PI = 2.0 * math.pi


def standard_normal(stream: Uniforms) -> float:
    """One standard normal number from two uniforms: √(−2 log u₁) cos(2π u₂) (Box and Muller 1958)."""
    radius = math.sqrt(-2.0 * math.log(stream.uniform()))
    return radius * math.cos(_TWO_PI * stream.uniform())


def standard_normals(stream: Stream, shape: tuple[int, ...]) -> Array:
    """The same for every element of an array statement."""
    u = stream.elements(math.prod(shape))
    return np.asarray(np.sqrt(-2.0 * np.log(u[:, 0])) * np.cos(_TWO_PI * u[:, 1])).reshape(shape)


class Normal(Continuous):
    """Normal distribution with given mean and standard deviation.

    Sampling: mean + stddev · z with z by Box and Muller's transform, two uniforms.
    """

    __slots__ = ("mean", "stddev")
    family = "Normal"
    code = 1
    parameter_names = ("mean", "stddev")

    mean: float
    stddev: float

    def __init__(self, mean: Any, stddev: Any) -> None:
        if type(mean) is float and type(stddev) is float and -_INF < mean < _INF and 0.0 < stddev < _INF:
            self.mean, self.stddev, self.shape = mean, stddev, ()
            return
        self.mean, self.stddev = mean, stddev = as_parameter(mean, "mean"), as_parameter(stddev, "stddev")
        valid = (abs(mean) < _INF) & (stddev > 0.0) & (stddev < _INF)
        require(valid, "Normal", "a finite mean and a finite stddev > 0", mean=mean, stddev=stddev)
        self.shape = common_shape(mean, stddev)

    def draw_scalar(self, stream: Uniforms) -> float:
        return self.mean + self.stddev * standard_normal(stream)

    def draw_array(self, stream: Stream) -> NDArray[np.float64]:
        return np.asarray(self.mean + self.stddev * standard_normals(stream, self.shape))

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        z: float = (value - self.mean) / self.stddev
        return -0.5 * z * z - LOG_SQRT_2PI - math.log(self.stddev)

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, mean, stddev = as_arrays(value, *parameters)
        z = (x - mean) / stddev
        return np.asarray(-0.5 * z * z - LOG_SQRT_2PI - np.log(stddev))

    def random_walk(self, value: Any, step: float) -> Distribution:
        """Normal around ``value``."""
        return Normal(value, step * self.stddev)

    def inflated(self, factor: float) -> Distribution:
        """The standard deviation times ``factor``."""
        return Normal(self.mean, factor * self.stddev)

    def moments(self) -> tuple[float, float]:
        return self.mean, self.stddev

    def support(self) -> tuple[float, float]:
        return -_INF, _INF

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """The mean and the standard deviation."""
        mean, stddev = parameters
        unbounded = np.full_like(mean, np.inf)
        return Coordinates(mean, stddev, -unbounded, unbounded)
