"""LogNormal(loc, scale): exp of a normal variable."""

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
from etalumis.distributions.normal import standard_normal, standard_normals
from etalumis.distributions.special import HUGE, LOG_SQRT_2PI, TINY, exp_moments, positive_exp
from etalumis.distributions.stream import Stream, Uniforms

_INF = math.inf


class LogNormal(Continuous):
    """Log-normal distribution: log x is Normal(loc, scale).

    Sampling: exp(loc + scale · z), z by Box and Muller's transform, two uniforms; clipped to the positive
    normal numbers of double precision.
    """

    __slots__ = ("loc", "scale")
    family = "LogNormal"
    code = 9
    parameter_names = ("loc", "scale")
    log_space = True

    loc: float
    scale: float

    def __init__(self, loc: Any, scale: Any) -> None:
        if type(loc) is float and type(scale) is float and -_INF < loc < _INF and 0.0 < scale < _INF:
            self.loc, self.scale, self.shape = loc, scale, ()
            return
        self.loc, self.scale = loc, scale = as_parameter(loc, "loc"), as_parameter(scale, "scale")
        valid = (abs(loc) < _INF) & (scale > 0.0) & (scale < _INF)
        require(valid, "LogNormal", "a finite loc and a finite scale > 0", loc=loc, scale=scale)
        self.shape = common_shape(loc, scale)

    @classmethod
    def around(cls, value: Any, scale: Any) -> LogNormal:
        """The kernel on the positive numbers whose median is ``value``; 0 counts as the smallest of them."""
        if isinstance(value, (int, float)):
            return cls(math.log(max(value, TINY)), scale)
        return cls(np.log(np.maximum(value, TINY)), scale)

    def draw_scalar(self, stream: Uniforms) -> float:
        return positive_exp(self.loc + self.scale * standard_normal(stream))

    def draw_array(self, stream: Stream) -> NDArray[np.float64]:
        t = self.loc + self.scale * standard_normals(stream, self.shape)
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(np.clip(np.exp(t), TINY, HUGE))

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        if 0.0 < value < _INF:
            t = math.log(value)
            z = (t - self.loc) / self.scale
            return -0.5 * z * z - LOG_SQRT_2PI - math.log(self.scale) - t
        return math.nan if value != value else -_INF

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, loc, scale = as_arrays(value, *parameters)
        inside = (x > 0.0) & (x < _INF)
        t = np.log(np.where(inside, x, 1.0))
        z = (t - loc) / scale
        return on_support(x, inside, -0.5 * z * z - LOG_SQRT_2PI - np.log(scale) - t)

    def random_walk(self, value: Any, step: float) -> Distribution:
        """LogNormal around ``value``, relative to ``scale``."""
        return LogNormal.around(value, step * self.scale)

    def inflated(self, factor: float) -> Distribution:
        """The spread of log x times ``factor``."""
        return LogNormal(self.loc, factor * self.scale)

    def moments(self) -> tuple[float, float]:
        variance = self.scale * self.scale
        return exp_moments(self.loc + 0.5 * variance, variance)

    def support(self) -> tuple[float, float]:
        return 0.0, _INF

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """Mean and standard deviation of log x."""
        loc, scale = parameters
        unbounded = np.full_like(loc, np.inf)
        return Coordinates(loc, scale, -unbounded, unbounded)
