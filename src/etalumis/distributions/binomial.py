"""Binomial(total_count, probs) on 0, 1, …, total_count."""

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
    common_shape,
    on_support,
    require,
    whole,
)
from etalumis.distributions.special import log_gamma
from etalumis.distributions.stream import Uniforms
from etalumis.distributions.uniform_integer import UniformInteger

_INF = math.inf


class Binomial(Distribution):
    """Number of successes in ``total_count`` trials of probability ``probs``.

    Sampling, with p = min(probs, 1 − probs) and the result k or total_count − k: for total_count · p < 10
    sequential search of the cumulative sum, one uniform; else the transformed rejection BTRS of Hörmann (1993,
    Journal of Statistical Computation and Simulation 46, 101-110), two uniforms a try.
    """

    __slots__ = ("probs", "total_count")
    family = "Binomial"
    code = 10
    parameter_names = ("total_count", "probs")
    discrete = True
    proposal = "count"

    total_count: float
    probs: float

    def __init__(self, total_count: Any, probs: Any) -> None:
        n = total_count = as_parameter(total_count, "total_count")
        if type(n) is float and type(probs) is float and n % 1 == 0 and n >= 0.0 and 0.0 <= probs <= 1.0:
            self.total_count, self.probs, self.shape = n, probs, ()
            return
        self.total_count, self.probs = n, probs = total_count, as_parameter(probs, "probs")
        valid = (n >= 0.0) & whole(np.asarray(n)) & (probs >= 0.0) & (probs <= 1.0)
        requirement = "a whole number total_count ≥ 0 and 0 ≤ probs ≤ 1"
        require(valid, "Binomial", requirement, total_count=n, probs=probs)
        self.shape = common_shape(n, probs)

    def draw_scalar(self, stream: Uniforms) -> int:
        n, p = int(self.total_count), min(self.probs, 1.0 - self.probs)
        k = _search(n, p, stream) if n * p < 10.0 else _btrs(n, p, stream)
        return k if self.probs <= 0.5 else n - k

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        n, p = self.total_count, self.probs
        if 0 <= value <= n and value % 1 == 0:
            k = float(value)
            if p == 0.0 or p == 1.0:
                return 0.0 if k == n * p else -_INF
            ways = math.lgamma(n + 1.0) - math.lgamma(k + 1.0) - math.lgamma(n - k + 1.0)
            return ways + k * math.log(p) + (n - k) * math.log1p(-p)
        return math.nan if value != value else -_INF

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, n, p = as_arrays(value, *parameters)
        inside = (x >= 0.0) & (x <= n) & whole(x)
        k = np.where(inside, x, 0.0)
        ways = log_gamma(n + 1.0) - log_gamma(k + 1.0) - log_gamma(n - k + 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            successes = np.where(k == 0.0, 0.0, k * np.log(p))
            failures = np.where(k == n, 0.0, (n - k) * np.log1p(-p))
        return on_support(x, inside, ways + successes + failures)

    def random_walk(self, value: Any, step: float) -> Distribution:
        """Uniform over the counts within step standard deviations (at least 1) of ``value``."""
        n, p = self.total_count, self.probs
        return UniformInteger.around(value, step * (n * p * (1.0 - p)) ** 0.5, 0.0 * n, n)

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """loc = the mean, scale² = the variance + 1/12 (the variance within a cell: it is never zero)."""
        n, p = parameters
        loc, scale = n * p, np.sqrt(n * p * (1.0 - p) + 1.0 / 12.0)
        return Coordinates(loc, scale, (-0.5 - loc) / scale, (n + 0.5 - loc) / scale)


def _search(n: int, p: float, stream: Uniforms) -> int:
    u = stream.uniform()
    odds = p / (1.0 - p)
    term = total = math.exp(n * math.log1p(-p))
    k = 0
    while u > total and k < n:
        k += 1
        term *= odds * (n - k + 1) / k
        if total + term == total:  # the sum has converged just below u
            break
        total += term
    return k


def _btrs(n: int, p: float, stream: Uniforms) -> int:
    stddev = math.sqrt(n * p * (1.0 - p))
    b = 1.15 + 2.53 * stddev
    a = -0.0873 + 0.0248 * b + 0.01 * p
    alpha = (2.83 + 5.1 / b) * stddev
    v_r = 0.92 - 4.2 / b
    log_odds = math.log(p / (1.0 - p))
    mode = math.floor((n + 1) * p)
    log_peak = math.lgamma(mode + 1.0) + math.lgamma(n - mode + 1.0)
    while True:
        u = stream.uniform() - 0.5
        v = stream.uniform()
        us = 0.5 - abs(u)
        k = math.floor((2.0 * a / us + b) * u + n * p + 0.5)
        if us >= 0.07 and v <= v_r:
            return k
        if k < 0 or k > n:
            continue
        log_bound = log_peak - math.lgamma(k + 1.0) - math.lgamma(n - k + 1.0) + (k - mode) * log_odds
        if math.log(v * alpha / (a / (us * us) + b)) <= log_bound:
            return k
