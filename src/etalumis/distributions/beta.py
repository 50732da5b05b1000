"""Beta(concentration1, concentration0) on (0, 1)."""

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
from etalumis.distributions.gamma import log_standard_gamma
from etalumis.distributions.special import ALMOST_ONE, TINY, log_gamma
from etalumis.distributions.stream import Uniforms
from etalumis.distributions.truncated_normal import TruncatedNormal

_INF = math.inf


class Beta(Continuous):
    """Beta distribution with density ∝ x^(concentration1 − 1) (1 − x)^(concentration0 − 1).

    Sampling: x = g₁ / (g₁ + g₀) from the logs of two standard gamma draws, g₁ first
    (:func:`~etalumis.distributions.gamma.log_standard_gamma`), as 1 / (1 + exp(log g₀ − log g₁)): never 0/0.
    Clipped to the open interval: at least the smallest positive normal number, at most 1 − 2^−53.
    """

    __slots__ = ("concentration0", "concentration1")
    family = "Beta"
    code = 6
    parameter_names = ("concentration1", "concentration0")

    concentration1: float
    concentration0: float

    def __init__(self, concentration1: Any, concentration0: Any) -> None:
        a, b = concentration1, concentration0
        if type(a) is float and type(b) is float and 0.0 < a < _INF and 0.0 < b < _INF:
            self.concentration1, self.concentration0, self.shape = a, b, ()
            return
        self.concentration1 = a = as_parameter(a, "concentration1")
        self.concentration0 = b = as_parameter(b, "concentration0")
        valid = (a > 0.0) & (a < _INF) & (b > 0.0) & (b < _INF)
        require(valid, "Beta", "finite concentrations > 0", concentration1=a, concentration0=b)
        self.shape = common_shape(a, b)

    def draw_scalar(self, stream: Uniforms) -> float:
        log_g1 = log_standard_gamma(self.concentration1, stream)
        log_g0 = log_standard_gamma(self.concentration0, stream)
        t = log_g0 - log_g1
        if t > 0.0:
            small = math.exp(-t)
            return max(small / (1.0 + small), TINY)
        return min(1.0 / (1.0 + math.exp(t)), ALMOST_ONE)

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        a, b = self.concentration1, self.concentration0
        if 0.0 < value < 1.0:
            log_norm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
            return log_norm + (a - 1.0) * math.log(value) + (b - 1.0) * math.log1p(-value)
        if value == 0.0:
            return math.log(b) if a == 1.0 else math.copysign(_INF, 1.0 - a)
        if value == 1.0:
            return math.log(a) if b == 1.0 else math.copysign(_INF, 1.0 - b)
        return math.nan if value != value else -_INF

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, a, b = as_arrays(value, *parameters)
        inside = (x > 0.0) & (x < 1.0)
        interior = np.where(inside, x, 0.5)
        log_norm = log_gamma(a + b) - log_gamma(a) - log_gamma(b)
        density = log_norm + (a - 1.0) * np.log(interior) + (b - 1.0) * np.log1p(-interior)
        at_zero = np.where(a == 1.0, np.log(b), np.copysign(_INF, 1.0 - a))
        at_one = np.where(b == 1.0, np.log(a), np.copysign(_INF, 1.0 - b))
        density = np.where(x == 0.0, at_zero, np.where(x == 1.0, at_one, density))
        return on_support(x, (x >= 0.0) & (x <= 1.0), density)

    def random_walk(self, value: Any, step: float) -> Distribution:
        """Normal around ``value``, truncated to the unit interval, relative to the standard deviation."""
        a, b = self.concentration1, self.concentration0
        stddev = (a * b / (a + b + 1.0)) ** 0.5 / (a + b)
        return TruncatedNormal(value, step * stddev, 0.0, 1.0)

    def inflated(self, factor: float) -> Distribution:
        """The density to the power 1/factor², normalised: towards the uniform."""
        a, b = np.asarray(self.concentration1), np.asarray(self.concentration0)
        square = factor * factor
        return Beta(
            np.maximum(1.0 + (a - 1.0) / square, np.minimum(a, 1.0)),
            np.maximum(1.0 + (b - 1.0) / square, np.minimum(b, 1.0)),
        )

    def moments(self) -> tuple[float, float]:
        a, b = self.concentration1, self.concentration0
        return a / (a + b), math.sqrt(a * b / (a + b + 1.0)) / (a + b)

    def support(self) -> tuple[float, float]:
        return 0.0, 1.0

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """The mean and the standard deviation, between the images of 0 and 1."""
        a, b = parameters
        total = a + b
        stddev = np.sqrt(a * b / (total + 1.0)) / total
        return bounded_coordinates(a / total, stddev, np.zeros_like(a), np.ones_like(a))
