"""Gamma(concentration, rate) on (0, ∞)."""

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
    common_shape,
    on_support,
    require,
)
from etalumis.distributions.lognormal import LogNormal
from etalumis.distributions.normal import standard_normal
from etalumis.distributions.special import digamma, log_gamma, positive_exp, trigamma
from etalumis.distributions.stream import Uniforms

_INF = math.inf


def log_standard_gamma(concentration: float, stream: Uniforms) -> float:
    """log of a Gamma(concentration, 1) draw (Marsaglia and Tsang 2000, ACM TOMS 26, 363-372).

    Three uniforms a try: a normal number by Box and Muller's transform, then the test (without the paper's
    squeeze, which changes nothing but speed). Below concentration 1 the draw is that of concentration + 1
    times v^(1/concentration) with one more uniform v, in log space, where it can't underflow.
    """
    d = (concentration if concentration >= 1.0 else concentration + 1.0) - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        x = standard_normal(stream)
        u = stream.uniform()
        root = 1.0 + c * x
        if root > 0.0:
            log_v = 3.0 * math.log(root)
            if math.log(u) < 0.5 * x * x + d - d * root * root * root + d * log_v:
                break
    log_draw = math.log(d) + log_v
    if concentration < 1.0:
        log_draw += math.log(stream.uniform()) / concentration
    return log_draw


class Gamma(Continuous):
    """Gamma distribution with mean concentration / rate.

    Sampling: :func:`log_standard_gamma` minus log(rate), exponentiated; clipped to the positive normal numbers
    of double precision.
    """

    __slots__ = ("concentration", "rate")
    family = "Gamma"
    code = 8
    parameter_names = ("concentration", "rate")
    log_space = True

    concentration: float
    rate: float

    def __init__(self, concentration: Any, rate: Any) -> None:
        if type(concentration) is float and type(rate) is float and 0.0 < concentration < _INF and 0.0 < rate < _INF:
            self.concentration, self.rate, self.shape = concentration, rate, ()
            return
        self.concentration = k = as_parameter(concentration, "concentration")
        self.rate = rate = as_parameter(rate, "rate")
        valid = (k > 0.0) & (k < _INF) & (rate > 0.0) & (rate < _INF)
        require(valid, "Gamma", "finite concentration > 0 and rate > 0", concentration=k, rate=rate)
        self.shape = common_shape(k, rate)

    def draw_scalar(self, stream: Uniforms) -> float:
        return positive_exp(log_standard_gamma(self.concentration, stream) - math.log(self.rate))

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        k, rate = self.concentration, self.rate
        if 0.0 < value < _INF:
            return k * math.log(rate) + (k - 1.0) * math.log(value) - rate * float(value) - math.lgamma(k)
        if value == 0.0:
            return math.log(rate) if k == 1.0 else math.copysign(_INF, 1.0 - k)
        return math.nan if value != value else -_INF

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, k, rate = as_arrays(value, *parameters)
        inside = (x > 0.0) & (x < _INF)
        positive = np.where(inside, x, 1.0)
        density = k * np.log(rate) + (k - 1.0) * np.log(positive) - rate * positive - log_gamma(k)
        at_zero = np.where(k == 1.0, np.log(rate), np.copysign(_INF, 1.0 - k))
        return on_support(x, inside | (x == 0.0), np.where(x == 0.0, at_zero, density))

    def random_walk(self, value: Any, step: float) -> Distribution:
        """LogNormal around ``value``, relative to the prior's spread of log x."""
        return LogNormal.around(value, step * trigamma(self.concentration) ** 0.5)

    def inflated(self, factor: float) -> Distribution:
        """The standard deviation times ``factor``; the concentration goes from its excess over 1 to its
        excess / factor², as flattening the density to the power 1/factor² does."""
        k = np.asarray(self.concentration)
        wider = np.maximum(1.0 + (k - 1.0) / (factor * factor), np.minimum(k, 1.0))
        return Gamma(wider, self.rate * np.sqrt(wider / k) / factor)

    def moments(self) -> tuple[float, float]:
        return self.concentration / self.rate, math.sqrt(self.concentration) / self.rate

    def support(self) -> tuple[float, float]:
        return 0.0, _INF

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """Mean ψ(concentration) − log(rate) and standard deviation √ψ′(concentration) of log x."""
        k, rate = parameters
        unbounded = np.full_like(rate, np.inf)
        return Coordinates(digamma(k) - np.log(rate), np.sqrt(trigamma(k)), -unbounded, unbounded)
