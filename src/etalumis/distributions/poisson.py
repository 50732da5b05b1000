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
    Parameter,
    as_parameter,
    require,
)
from etalumis.distributions.special import log_gamma
from etalumis.distributions.stream import Stream


class Poisson(Distribution):
    """Poisson distribution with rate ≥ 0.

    Sampling: for rate < 10 sequential search of the cumulative sum, one uniform; else the transformed rejection
    PTRS of Hörmann (1993, Insurance: Mathematics and Economics 12, 39-45), two uniforms a try.
    """

    __slots__ = ("rate",)
    family = "Poisson"
    code = 4
    parameter_names = ("rate",)
    discrete = True
    proposal = "count"

    rate: Parameter

    def __init__(self, rate: Any) -> None:
        if type(rate) is float and 0.0 <= rate < math.inf:
            self.rate, self.shape = rate, ()
            return
        self.rate = as_parameter(rate, "rate")
        finite = np.greater_equal(self.rate, 0.0) & np.isfinite(self.rate)
        require(finite, "Poisson", "a finite rate ≥ 0", rate=self.rate)
        self.shape = np.shape(self.rate)

    def draw_scalar(self, stream: Stream) -> int:
        rate: float = self.rate  # type: ignore[assignment]
        if rate < 10.0:
            return _search(rate, stream)
        return _ptrs(rate, stream)

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        rate = self.rate
        if value >= 0 and value % 1 == 0:
            if value == 0:
                return -rate  # type: ignore[return-value]
            if rate == 0.0:
                return -math.inf
            return value * math.log(rate) - rate - math.lgamma(value + 1.0)  # type: ignore
        return math.nan if value != value else -math.inf

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, rate = np.asarray(value), np.asarray(parameters[0])
        valid = (x >= 0) & np.isfinite(x) & (np.floor(x) == x)
        k = np.where(valid, x, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = np.where(k == 0, 0.0, k * np.log(rate)) - rate - log_gamma(k + 1.0)
        return np.where(np.isnan(x), np.nan, np.where(valid, inside, -np.inf))

    def random_walk(self, value: Any, step: float) -> Distribution:
        """Uniform over the counts within step standard deviations (at least 1) of ``value``."""
        from etalumis.distributions.uniform_integer import UniformInteger

        width = np.maximum(1.0, np.rint(step * np.sqrt(self.rate)))
        centre = np.maximum(value, 0.0)
        return UniformInteger(np.maximum(centre - width, 0.0), centre + width)

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """loc = rate, scale² = rate + 1/12 (the 1/12 for the width of a cell): never zero."""
        (rate,) = parameters
        scale = np.sqrt(rate + 1.0 / 12.0)
        return Coordinates(rate, scale, (-0.5 - rate) / scale, np.full_like(rate, np.inf))


def _search(rate: float, stream: Stream) -> int:
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


def _ptrs(rate: float, stream: Stream) -> int:
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
        bound = k * log_rate - rate - math.lgamma(k + 1.0)
        if math.log(v) + log_inverse_alpha - math.log(a / (us * us) + b) <= bound:
            return k
