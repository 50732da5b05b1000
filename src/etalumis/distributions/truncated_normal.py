"""TruncatedNormal(mean, stddev, low, high): a normal distribution confined to an interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from etalumis.distributions.base import (
    Array,
    Continuous,
    Coordinates,
    Distribution,
    as_arrays,
    as_parameter,
    bounded_coordinates,
    common_shape,
    on_support,
    require,
)
from etalumis.distributions.special import (
    LOG_SQRT_2PI,
    SQRT_HALF,
    log_tail_integral,
    normal_quantile,
    upper_tail,
)
from etalumis.distributions.stream import Uniforms

_INF = math.inf
_FAR = 5.0  # standard deviations from which rejection from an exponential is used
_NARROW = 1e-3  # width in standard deviations below which rejection from a uniform is used


class TruncatedNormal(Continuous):
    """Normal(mean, stddev) given low < x < high; bounds may be infinite, and any distance from the mean.

    Sampling, with a = (low − mean)/stddev, b = (high − mean)/stddev, w = (high − low)/stddev:

    * nearest bound more than 5 standard deviations from the mean: an exponential of that rate, truncated to
      the interval, accepted with probability exp(−d²/2) at distance d from the bound (two uniforms a try;
      Robert 1995, Statistics and Computing 5, 121-125, with the distance itself as the rate);
    * else w < 0.001: a uniform number accepted with the density relative to its maximum (two uniforms a try);
    * else inversion, one uniform: lower tails where a ≤ 0, upper tails where a > 0, quantiles by AS 241.

    The log density uses log ∫ exp(−a t − t²/2) dt from the nearest bound, so nothing underflows in far tails.
    """

    __slots__ = ("high", "low", "mean", "stddev")
    family = "TruncatedNormal"
    code = 12
    parameter_names = ("mean", "stddev", "low", "high")

    mean: float
    stddev: float
    low: float
    high: float

    def __init__(self, mean: Any, stddev: Any, low: Any = -_INF, high: Any = _INF) -> None:
        if (
            type(mean) is type(stddev) is type(low) is type(high) is float
            and -_INF < mean < _INF
            and 0.0 < stddev < _INF
            and low < high
        ):
            self.mean, self.stddev, self.low, self.high, self.shape = mean, stddev, low, high, ()
            return
        self.mean, self.stddev = mean, stddev = as_parameter(mean, "mean"), as_parameter(stddev, "stddev")
        self.low, self.high = low, high = as_parameter(low, "low"), as_parameter(high, "high")
        valid = (abs(mean) < _INF) & (stddev > 0.0) & (stddev < _INF) & (low < high)
        requirement = "a finite mean, a finite stddev > 0 and low < high"
        require(valid, "TruncatedNormal", requirement, mean=mean, stddev=stddev, low=low, high=high)
        self.shape = common_shape(mean, stddev, low, high)

    def draw_scalar(self, stream: Uniforms) -> float:
        mean, stddev, low, high = self.mean, self.stddev, self.low, self.high
        a, b, width = (low - mean) / stddev, (high - mean) / stddev, (high - low) / stddev
        if a > _FAR:
            return min(low + stddev * _beyond(a, width, stream), high)
        if b < -_FAR:
            return max(high - stddev * _beyond(-b, width, stream), low)
        if width < _NARROW:
            nearest = min(max(a, 0.0), b)  # the density's maximum
            while True:
                x = low + (high - low) * stream.uniform()
                z = (x - mean) / stddev
                if stream.uniform() <= math.exp(0.5 * (nearest * nearest - z * z)):
                    return min(max(x, low), high)
        if a > 0.0:
            start = upper_tail(a)
            z = -normal_quantile(start + stream.uniform() * (upper_tail(b) - start))
        else:
            start = upper_tail(-a)
            z = normal_quantile(start + stream.uniform() * (upper_tail(-b) - start))
        return min(max(mean + stddev * z, low), high)

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        low, high = self.low, self.high
        if low <= value <= high:
            mean, stddev = self.mean, self.stddev
            a, b = (low - mean) / stddev, (high - mean) / stddev
            if a > 0.0:
                d: float = (value - low) / stddev
                return -d * (a + 0.5 * d) - math.log(stddev) - log_tail_integral(a, (high - low) / stddev)
            if b < 0.0:
                d = (high - value) / stddev
                return -d * (0.5 * d - b) - math.log(stddev) - log_tail_integral(-b, (high - low) / stddev)
            z: float = (value - mean) / stddev
            mass = 0.5 * (math.erf(b * SQRT_HALF) - math.erf(a * SQRT_HALF))
            return -0.5 * z * z - LOG_SQRT_2PI - math.log(stddev * mass)
        return math.nan if value != value else -_INF

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, mean, stddev, low, high = as_arrays(value, *parameters)
        a, b = (low - mean) / stddev, (high - mean) / stddev
        log_mass = np.asarray(_log_mass(a, b, (high - low) / stddev), dtype=np.float64)
        nearest = np.maximum(np.maximum(a, -b), 0.0)  # the interval's distance from the mean
        inside = (x >= low) & (x <= high)
        x_safe = np.where(inside, x, np.clip(mean, low, high))
        with np.errstate(invalid="ignore"):  # the branches not taken may have infinite bounds
            d = np.where(a > 0.0, x_safe - low, np.where(b < 0.0, high - x_safe, x_safe - mean)) / stddev
        return on_support(x, inside, -d * (nearest + 0.5 * d) - np.log(stddev) - log_mass)

    def random_walk(self, value: Any, step: float) -> Distribution:
        """Normal around ``value``, truncated to the interval, relative to the spread there."""
        return TruncatedNormal(value, step * self._scale(), self.low, self.high)

    def inflated(self, factor: float) -> Distribution:
        """The standard deviation times ``factor``, between the same bounds."""
        return TruncatedNormal(self.mean, factor * self.stddev, self.low, self.high)

    def moments(self) -> tuple[float, float]:
        """The mode and the spread around it (see :meth:`coordinates`), not the exact moments."""
        return min(max(self.mean, self.low), self.high), self._scale()

    def support(self) -> tuple[float, float]:
        return self.low, self.high

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """loc = the mode; scale = stddev, or the width or the tail's decay length where that is shorter."""
        mean, stddev, low, high = parameters
        loc, scale = np.clip(mean, low, high), _local_scale(mean, stddev, low, high)
        return bounded_coordinates(loc, scale, low, high)

    def _scale(self) -> Any:
        mean, stddev, low, high = self.mean, self.stddev, self.low, self.high
        if self.shape:
            return _local_scale(mean, stddev, low, high)
        return min(stddev, high - low, stddev * (stddev / max(low - mean, mean - high, stddev)))


def _beyond(a: float, width: float, stream: Uniforms) -> float:
    """A draw of z − a, z a standard normal given a < z < a + width, for large a."""
    share = -math.expm1(-a * width)
    while True:
        d = -math.log1p(-share * stream.uniform()) / a
        if stream.uniform() <= math.exp(-0.5 * d * d):
            return d


def _log_mass_scalar(a: float, b: float, width: float) -> float:
    """log ∫ₐᵇ exp((n² − z²)/2) dz, n the point of [a, b] nearest zero."""
    if a > 0.0 or b < 0.0:
        return log_tail_integral(max(a, -b), width)
    return LOG_SQRT_2PI + math.log(0.5 * (math.erf(b * SQRT_HALF) - math.erf(a * SQRT_HALF)))


_log_mass = np.frompyfunc(_log_mass_scalar, 3, 1)


def _local_scale(mean: Any, stddev: Any, low: Any, high: Any) -> Array:
    """The spread of the values: stddev, the interval's width, or the decay length stddev²/distance of a tail."""
    distance = np.maximum(np.maximum(low - mean, mean - high), stddev)
    return np.asarray(np.minimum(np.minimum(stddev, high - low), stddev * (stddev / distance)))
