"""TruncatedNormal(mean, stddev, low, high): a normal distribution confined to an interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from etalumis.distributions.base import (
    Array,
    Coordinates,
    Distribution,
    Parameter,
    as_parameter,
    common_shape,
    require,
)
from etalumis.distributions.special import (
    LOG_SQRT_2PI,
    SQRT_HALF,
    log_tail_integral,
    normal_quantile,
    upper_tail,
)
from etalumis.distributions.stream import Stream

_FAR = 5.0  # standard deviations from which rejection from an exponential is used
_NARROW = 1e-3  # width in standard deviations below which rejection from a uniform is used


class TruncatedNormal(Distribution):
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

    mean: Parameter
    stddev: Parameter
    low: Parameter
    high: Parameter

    def __init__(self, mean: Any, stddev: Any, low: Any = -math.inf, high: Any = math.inf) -> None:
        if (
            type(mean) is float
            and type(stddev) is float
            and type(low) is float
            and type(high) is float
            and stddev > 0.0
            and low < high
            and -math.inf < mean < math.inf
        ):
            self.mean, self.stddev, self.low, self.high, self.shape = mean, stddev, low, high, ()
            return
        self.mean, self.stddev = as_parameter(mean, "mean"), as_parameter(stddev, "stddev")
        self.low, self.high = as_parameter(low, "low"), as_parameter(high, "high")
        good = np.greater(self.stddev, 0.0) & np.less(self.low, self.high) & np.isfinite(self.mean)
        given = {"mean": self.mean, "stddev": self.stddev, "low": self.low, "high": self.high}
        require(good, "TruncatedNormal", "a finite mean, stddev > 0 and low < high", **given)
        self.shape = common_shape(self.mean, self.stddev, self.low, self.high)

    def draw_scalar(self, stream: Stream) -> float:
        mean, stddev, low, high = self.mean, self.stddev, self.low, self.high
        a, b = (low - mean) / stddev, (high - mean) / stddev
        width = (high - low) / stddev
        if a > _FAR:
            return min(low + stddev * _beyond(a, width, stream), high)
        if b < -_FAR:
            return max(high - stddev * _beyond(-b, width, stream), low)
        if width < _NARROW:
            while True:
                x = low + (high - low) * stream.uniform()
                z = (x - mean) / stddev
                top = a if a > 0.0 else min(b, 0.0)
                if stream.uniform() <= math.exp(0.5 * (top * top - z * z)):
                    return x
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
                d, near = (value - low) / stddev, a
            elif b < 0.0:
                d, near = (high - value) / stddev, -b
            else:
                z = (value - mean) / stddev
                mass = math.erf(b * SQRT_HALF) - math.erf(a * SQRT_HALF)
                return -0.5 * z * z - LOG_SQRT_2PI - math.log(0.5 * stddev * mass)
            return -d * (near + 0.5 * d) - math.log(stddev) - log_tail_integral(near, (high - low) / stddev)
        return math.nan if value != value else -math.inf

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x = np.asarray(value, dtype=np.float64)
        mean, stddev, low, high = (np.asarray(p, dtype=np.float64) for p in parameters)
        a, b = (low - mean) / stddev, (high - mean) / stddev
        near = np.maximum(np.maximum(a, -b), 0.0)  # distance of the interval from the mean
        with np.errstate(invalid="ignore"):
            d = np.where(a > 0.0, x - low, np.where(b < 0.0, high - x, np.abs(x - mean))) / stddev
            inside = -d * (near + 0.5 * d) - np.log(stddev) - _log_mass(a, b, (high - low) / stddev)
        return np.where(np.isnan(x), np.nan, np.where((x >= low) & (x <= high), inside, -np.inf))

    def random_walk(self, value: Any, step: float) -> Distribution:
        scale = _local_scale(self.mean, self.stddev, self.low, self.high)
        return TruncatedNormal(value, step * scale, self.low, self.high)

    def inflated(self, factor: float) -> Distribution:
        return TruncatedNormal(self.mean, factor * self.stddev, self.low, self.high)

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """loc = the mode, scale = stddev, or the width or the decay length of the tail where that is shorter."""
        mean, stddev, low, high = parameters
        loc = np.clip(mean, low, high)
        scale = _local_scale(mean, stddev, low, high)
        return Coordinates(loc, scale, (low - loc) / scale, (high - loc) / scale)


def _beyond(a: float, width: float, stream: Stream) -> float:
    """A draw of z − a, z a standard normal given a < z < a + width, for large a."""
    share = -math.expm1(-a * width)
    while True:
        d = -math.log1p(-share * stream.uniform()) / a
        if stream.uniform() <= math.exp(-0.5 * d * d):
            return d


def _log_mass_scalar(a: float, b: float, width: float) -> float:
    """log of ∫ₐᵇ exp((n² − z²)/2) dz, n the point of [a, b] nearest zero."""
    if a > 0.0 or b < 0.0:
        return log_tail_integral(max(a, -b), width)
    return LOG_SQRT_2PI + math.log(0.5 * (math.erf(b * SQRT_HALF) - math.erf(a * SQRT_HALF)))


_log_mass_each = np.frompyfunc(_log_mass_scalar, 3, 1)


def _log_mass(a: Array, b: Array, width: Array) -> Array:
    return np.asarray(_log_mass_each(a, b, width), dtype=np.float64)


def _local_scale(mean: Any, stddev: Any, low: Any, high: Any) -> Any:
    """The spread of the values: stddev, the interval's width, or the decay length stddev²/distance of a tail."""
    distance = np.maximum(np.maximum(low - mean, mean - high), stddev)
    return np.minimum(np.minimum(stddev, high - low), stddev * (stddev / distance))
