"""Exponential(rate) on [0, ∞)."""

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
    on_support,
    require,
)
from etalumis.distributions.lognormal import LogNormal
from etalumis.distributions.special import EULER_GAMMA, GUMBEL_STDDEV
from etalumis.distributions.stream import Stream, Uniforms

_INF = math.inf


class Exponential(Continuous):
    """Exponential distribution with density rate · exp(−rate · x).

    Sampling: −log(u) / rate, one uniform.
    """

    __slots__ = ("rate",)
    family = "Exponential"
    code = 7
    parameter_names = ("rate",)
    log_space = True

    rate: float

    def __init__(self, rate: Any) -> None:
        if type(rate) is float and 0.0 < rate < _INF:
            self.rate, self.shape = rate, ()
            return
        self.rate = rate = as_parameter(rate, "rate")
        require((rate > 0.0) & (rate < _INF), "Exponential", "a finite rate > 0", rate=rate)
        self.shape = np.shape(rate)

    def draw_scalar(self, stream: Uniforms) -> float:
        return -math.log(stream.uniform()) / self.rate

    def draw_array(self, stream: Stream) -> NDArray[np.float64]:
        u = stream.elements(math.prod(self.shape))[:, 0].reshape(self.shape)
        return np.asarray(-np.log(u) / self.rate)

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        if value >= 0.0:
            return math.log(self.rate) - self.rate * float(value)
        return math.nan if value != value else -_INF

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, rate = as_arrays(value, *parameters)
        return on_support(x, x >= 0.0, np.log(rate) - rate * x)

    def random_walk(self, value: Any, step: float) -> Distribution:
        """LogNormal around ``value``, relative to the prior's spread of log x, π/√6."""
        return LogNormal.around(value, step * GUMBEL_STDDEV)

    def inflated(self, factor: float) -> Distribution:
        """The mean times ``factor``."""
        return Exponential(self.rate / factor)

    def moments(self) -> tuple[float, float]:
        return 1.0 / self.rate, 1.0 / self.rate

    def support(self) -> tuple[float, float]:
        return 0.0, _INF

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """Mean −γ − log(rate) and standard deviation π/√6 of log x."""
        (rate,) = parameters
        unbounded = np.full_like(rate, np.inf)
        return Coordinates(-EULER_GAMMA - np.log(rate), np.full_like(rate, GUMBEL_STDDEV), -unbounded, unbounded)
