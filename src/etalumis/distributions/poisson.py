"""Poisson(rate) on 0, 1, 2, …"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from etalumis.distributions.base import (
    Array,
    Coordinates,
    Distribution,
    as_arrays,
    as_parameter,
    on_support,
    require,
    whole,
)
from etalumis.distributions.special import log_gamma
from etalumis.distributions.stream import Uniforms
from etalumis.distributions.uniform_integer import UniformInteger

_INF = math.inf


class Poisson(Distribution):
    """Poisson distribution with rate ≥ 0.

    Sampling: for rate < 10 sequential search of the cumulative sum, one uniform; else the transformed
    rejection PTRS of Hörmann (1993, Insurance: Mathematics and Economics 12, 39-45), two uniforms a try.
    """

    __slots__ = ("rate",)
    family = "Poisson"
    code = 4
    parameter_names = ("rate",)
    discrete = True
    proposal = "count"

    rate: float

    def __init__(self, rate: Any) -> None:
        if type(rate) is float and 0.0 <= rate < _INF:
            self.rate, self.shape = rate, ()
            return
        self.rate = rate = as_parameter(rate, "rate")
        require((rate >= 0.0) & (rate < _INF), "Poisson", "a finite rate ≥ 0", rate=rate)
        self.shape = np.shape(rate)

    def draw_scalar(self, stream: Uniforms) -> int:
        if self.rate < 10.0:
            return _search(self.rate, stream)
        return _ptrs(self.rate, stream)

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        rate = self.rate
        if value > 0 and value % 1 == 0:
            if rate == 0.0:
                return -_INF
            return float(value) * math.log(rate) - rate - math.lgamma(value + 1.0)
        if value == 0:
            return -rate
        return math.nan if value != value else -_INF

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, rate = as_arrays(value, *parameters)
        inside = (x >= 0.0) & whole(x)
        k = np.where(inside, x, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_power = np.where(k == 0.0, 0.0, k * np.log(rate))
        return on_support(x, inside, log_power - rate - log_gamma(k + 1.0))

    def random_walk(self, value: Any, step: float) -> Distribution:
        """Uniform over the counts within step standard deviations (at least 1) of ``value``."""
        return UniformInteger.around(value, step * self.rate**0.5, 0.0, _INF)

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """loc = rate, scale² = rate + 1/12 (1/12: the variance within a cell, so that it is never zero)."""
        (rate,) = parameters
        scale = np.sqrt(rate + 1.0 / 12.0)
        return Coordinates(rate, scale, (-0.5 - rate) / scale, np.full_like(rate, np.inf))


def _search(rate: float, stream: Uniforms) -> int:
    u = stream.uniform()
    term = total = math.exp(-rate)
    k = 0
    while u > total:
        k += 1
        term *= rate / k
        if total + term == total:  # the sum has converged just below u
            break
        total += term
    return k


def _ptrs(rate: float, stream: Uniforms) -> int:
    log_rate = math.log(rate)
    b = 0.931 + 2.53 * math.sqrt(rate)
    a = -0.059 + 0.02483 * b
    log_inverse_alpha = math.log(1.1239 + 1.1328 / (b - 3.4))
    v_r = 0.9277 - 3.6224 / (b - 2.0)
    while True:
        u = stream.uniform() - 0.5
        v = stream.uniform()
        us = 0.5 - abs(u)
        k = math.floor((2.0 * a / us + b) * u + rate + 0.43)
        if us >= 0.07 and v <= v_r:
            return k
        if k < 0 or (us < 0.013 and v > us):
            continue
        log_bound = k * log_rate - rate - math.lgamma(k + 1.0)
        if math.log(v) + log_inverse_alpha - math.log(a / (us * us) + b) <= log_bound:
            return k
