"""Categorical(probs) on 0, 1, …, K − 1."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etalumis.distributions.base import Array, Coordinates, Distribution, require
from etalumis.distributions.stream import Stream


class Categorical(Distribution):
    """Categorical distribution over K categories; values are integers from 0.

    ``probs`` are weights of any positive sum; the last axis runs over the categories, the axes before it are
    the distribution's shape. Kept as a tuple where the shape is ().

    Sampling: the first k whose running sum w₀ + … + w_k exceeds u · (w₀ + … + w_{K−1}), the sums taken from
    left to right. A category of weight zero is never drawn.
    """

    __slots__ = ("_cumulative", "probs")
    family = "Categorical"
    code = 3
    parameter_names = ("probs",)
    discrete = True
    proposal = "categorical"

    probs: Any
    _cumulative: list[float]  # of a scalar distribution; its last entry is the total weight

    def __init__(self, probs: Any) -> None:
        if not (type(probs) in (list, tuple) and probs and type(probs[0]) is float):
            array = np.asarray(probs, dtype=np.float64)
            require(array.ndim > 0 and array.size > 0, "Categorical", "at least one weight", probs=array)
            if array.ndim > 1:
                total = array.sum(axis=-1)
                positive = (total > 0.0) & (total < math.inf) & (array >= 0.0).all(axis=-1)
                require(positive, "Categorical", "weights ≥ 0 with a positive finite sum", probs=array)
                self.probs, self.shape, self._cumulative = array, array.shape[:-1], []
                return
            probs = array.tolist()
        cumulative = list(accumulate(probs))
        if not (0.0 < cumulative[-1] < math.inf and min(probs) >= 0.0):
            require(False, "Categorical", "weights ≥ 0 with a positive finite sum", probs=np.array(probs))
        self.probs, self.shape, self._cumulative = tuple(probs), (), cumulative

    def pack(self) -> tuple[float, ...]:
        return self.probs if not self.shape else tuple(self.probs.ravel().tolist())

    @classmethod
    def unpack(cls, packed: Sequence[float], shape: tuple[int, ...] = ()) -> Distribution:
        return cls(np.asarray(packed, dtype=np.float64).reshape(*shape, -1))

    def draw_scalar(self, stream: Stream) -> int:
        cumulative = self._cumulative
        k = bisect_right(cumulative, stream.uniform() * cumulative[-1])
        if k == len(cumulative):  # only where the weights are subnormal numbers can the product round up
            k = max(i for i, weight in enumerate(self.probs) if weight > 0.0)
        return k

    def draw_array(self, stream: Stream) -> NDArray[np.int64]:
        u = stream.elements(math.prod(self.shape))[:, 0].reshape(self.shape)
        cumulative = np.cumsum(self.probs, axis=-1)
        return np.asarray((cumulative <= (u * cumulative[..., -1])[..., None]).sum(axis=-1), dtype=np.int64)

    def log_prob(self, value: Any) -> float:
        if self.shape:
            return self.sum_log_density(value)
        if 0 <= value < len(self.probs) and value % 1 == 0:
            weight = self.probs[int(value)]
            return math.log(weight / self._cumulative[-1]) if weight > 0.0 else -math.inf
        return math.nan if value != value else -math.inf

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        x, probs = np.asarray(value), np.asarray(parameters[0], dtype=np.float64)
        shape = np.broadcast_shapes(x.shape, probs.shape[:-1])
        x = np.broadcast_to(x, shape)
        valid = (x >= 0) & (x < probs.shape[-1]) & (x % 1 == 0)
        k = np.where(valid, x, 0).astype(np.int64)
        log_p = np.broadcast_to(cls._log_normalised(probs), (*shape, probs.shape[-1]))
        inside = np.take_along_axis(log_p, k[..., None], axis=-1)[..., 0]
        return np.where(np.isnan(x), np.nan, np.where(valid, inside, -np.inf))

    @staticmethod
    def _log_normalised(probs: Array) -> Array:
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(probs / np.cumsum(probs, axis=-1)[..., -1:]))

    def random_walk(self, value: Any, step: float) -> Distribution:
        """Uniform over the other categories of positive probability; itself where there is none."""
        probs = np.asarray(self.probs)
        others = (probs > 0.0) & (np.arange(probs.shape[-1]) != np.asarray(value)[..., None])
        return Categorical(np.where(others.any(axis=-1, keepdims=True), others, probs))

    def inflated(self, factor: float) -> Distribution:
        """Weights to the power 1/factor: flatter, zeros stay zero."""
        return Categorical(np.asarray(self.probs) ** (1.0 / factor))

    @classmethod
    def categories(cls, *packed: float) -> int:
        """The number of categories of a scalar distribution with these packed parameters."""
        return len(packed)

    @classmethod
    def log_probabilities(cls, packed: Array) -> Array:
        """Normalised log probabilities (n, K) from packed weights (n, K)."""
        return cls._log_normalised(packed)

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """Trivial: proposals are categorical."""
        zero = np.zeros_like(parameters[0])
        return Coordinates(zero, zero + 1.0, zero - np.inf, zero + np.inf)
