"""Weibull(scale, concentration) on [0, ∞)."""

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
from etalumis.distributions.lognormal import LogNormal
from etalumis.distributions.special import (
    EULER_GAMMA,
    GUMBEL_STDDEV,
    HUGE,
    TINY,
    exp_moments,
    positive_exp,
)
from etalumis.distributions.stream import Stream, Uniforms

_INF = math.inf


class Weibull(Continuous):
    """Weibull distribution: (x / scale)^concentration is a standard exponential variable.

    Sampling: exp(log(−log u) / concentration + log scale), one uniform; clipped to the positive normal numbers
    of double precision.
    """

    __slots__ = ("concentration", "scale")
    family = "Weibull"
    code = 11
    parameter_names = ("scale", "concentration")
    log_space = True

    scale: float
    concentration: float

    def __init__(self, scale: Any, concentration: Any) -> None:
        if type(scale) is float and type(concentration) is float and 0.0 < scale < _INF and 0.0 < concentration < _INF:
            self.scale, self.concentration, self.shape = scale, concentration, ()
            return
        self.scale = scale = as_parameter(scale, "scale")
        self.concentration = k = as_parameter(concentration, "concentration")
        valid = (scale > 0.0) & (scale < _INF) & (k > 0.0) & (k < _INF)
        require(valid, "Weibull", "finite scale > 0 and concentration > 0", scale=scale, concentration=k)
        self.shape = common_shape(scale, k)

    def draw_scalar(self, stream: Uniforms) -> float:
        return positive_exp(math.log(-math.log(stream.uniform())) / self.concentration + math.log(self.scale))

    def draw_array(self, stream: Stream) -> NDArray[np.float64]:
        u = stream.elements(math.prod(self.shape))[:, 0].reshape(self.shape)
        t = np.log(-np.log(u)) / self.concentration + np.log(self.scale)
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(np.clip(np.exp(t), TINY, HUGE))

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        scale, k = self.scale, self.concentration
        if 0.0 < value < _INF:
            t = math.log(value) - math.log(scale)
            exponent = k * t
            if exponent > 700.0:
                return -_INF
            return math.log(k / scale) + (k - 1.0) * t - math.exp(exponent)
        if value == 0.0:
            return -math.log(scale) if k == 1.0 else math.copysign(_INF, 1.0 - k)
        return math.nan if value != value else -_INF

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, scale, k = as_arrays(value, *parameters)
        inside = (x > 0.0) & (x < _INF)
        t = np.log(np.where(inside, x, 1.0)) - np.log(scale)
        with np.errstate(over="ignore", under="ignore"):
            density = np.log(k / scale) + (k - 1.0) * t - np.exp(k * t)
        at_zero = np.where(k == 1.0, -np.log(scale), np.copysign(_INF, 1.0 - k))
        return on_support(x, inside | (x == 0.0), np.where(x == 0.0, at_zero, density))

    def random_walk(self, value: Any, step: float) -> Distribution:
        """LogNormal around ``value``, relative to the prior's spread of log x."""
        return LogNormal.around(value, step * GUMBEL_STDDEV / self.concentration)

    def inflated(self, factor: float) -> Distribution:
        """The spread of log x times ``factor``."""
        return Weibull(self.scale, self.concentration / factor)

    def moments(self) -> tuple[float, float]:
        k = self.concentration
        log_mean = math.lgamma(1.0 + 1.0 / k)
        # for a narrow distribution the difference would cancel: there it is the variance of log x
        narrow = GUMBEL_STDDEV * GUMBEL_STDDEV / (k * k)
        ratio = narrow if k > 1e4 else math.lgamma(1.0 + 2.0 / k) - 2.0 * log_mean
        return exp_moments(math.log(self.scale) + log_mean, ratio)

    def support(self) -> tuple[float, float]:
        return 0.0, _INF

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """Mean log(scale) − γ/concentration and standard deviation π/√6/concentration of log x."""
        scale, k = parameters
        unbounded = np.full_like(scale, np.inf)
        return Coordinates(np.log(scale) - EULER_GAMMA / k, GUMBEL_STDDEV / k, -unbounded, unbounded)
