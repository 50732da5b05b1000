"""Categorical(probs) on 0, 1, …, K − 1."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etalumis.distributions.base import (
    Array,
    Coordinates,
    Distribution,
    as_arrays,
    on_support,
    require,
    whole,
)
from etalumis.distributions.stream import Stream, Uniforms

_INF = math.inf


class Categorical(Distribution):
    """Categorical distribution over K categories; values are integers from 0.

    ``probs`` are weights of any positive sum. The last axis runs over the categories, the axes before it are
    the distribution's shape; kept as a tuple of floats where the shape is (), else as an array.

    Sampling: the first k whose running sum w₀ + … + w_k exceeds u · (w₀ + … + w_{K−1}), one uniform, sums
    taken from left to right. A category of weight zero is never drawn.
    """

    __slots__ = ("_cumulative", "probs")
    family = "Categorical"
    code = 3
    parameter_names = ("probs",)
    parameter_axes = 1
    discrete = True
    proposal = "categorical"

    probs: Any
    _cumulative: list[float]  # of a scalar distribution; its last entry is the total weight

    def __init__(self, probs: Any) -> None:
        if not (isinstance(probs, (list, tuple)) and probs and type(probs[0]) is float):
            array = np.asarray(probs, dtype=np.float64)
            require(array.ndim > 0 and array.size > 0, "Categorical", "at least one weight", probs=probs)
            if array.ndim > 1:
                total = array.sum(axis=-1)
                valid = (total > 0.0) & (total < _INF) & (array >= 0.0).all(axis=-1)
                require(valid, "Categorical", "weights ≥ 0 with a positive finite sum", probs=array)
                self.probs, self.shape, self._cumulative = array, array.shape[:-1], []
                return
            probs = array
        probs = tuple(map(float, probs))
        cumulative = list(accumulate(probs))
        valid = 0.0 < cumulative[-1] < _INF and min(probs) >= 0.0
        require(valid, "Categorical", "weights ≥ 0 with a positive finite sum", probs=probs)
        self.probs, self.shape, self._cumulative = probs, (), cumulative

    def parameters(self) -> tuple[Any, ...]:
        """The weights as an array of shape (*shape, K)."""
        return (np.asarray(self.probs),)

    def pack(self) -> tuple[float, ...]:
        """The weights, category fastest."""
        return tuple(self.probs.ravel().tolist() if self.shape else self.probs)

    @classmethod
    def unpack(cls, packed: Sequence[float], shape: tuple[int, ...] = ()) -> Distribution:
        if not shape:
            return cls(list(map(float, packed)))
        return cls(np.asarray(packed, dtype=np.float64).reshape(*shape, -1))

    def draw_scalar(self, stream: Uniforms) -> int:
        cumulative = self._cumulative
        k = bisect_right(cumulative, stream.uniform() * cumulative[-1])
        if k == len(cumulative):  # the product can round up to the total where that is a subnormal number
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
            return math.log(weight / self._cumulative[-1]) if weight > 0.0 else -_INF
        return math.nan if value != value else -_INF

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        """As for other families; the weights' shape (…, K) broadcasts with the value's without its last axis."""
        x, probs = as_arrays(value, *parameters)
        shape = np.broadcast_shapes(x.shape, probs.shape[:-1])
        x = np.broadcast_to(x, shape)
        inside = (x >= 0.0) & (x < probs.shape[-1]) & whole(x)
        k = np.where(inside, x, 0.0).astype(np.int64)
        log_p = np.broadcast_to(cls.log_probabilities(probs), (*shape, probs.shape[-1]))
        return on_support(x, inside, np.take_along_axis(log_p, k[..., None], axis=-1)[..., 0])

    def random_walk(self, value: Any, step: float) -> Distribution:
        """Uniform over the other categories of positive probability; itself where there is none."""
        if not self.shape:
            others = [1.0 if weight > 0.0 else 0.0 for weight in self.probs]
            if 0 <= value < len(others):
                others[int(value)] = 0.0
            return Categorical(others) if any(others) else self
        change = (self.probs > 0.0) & (np.arange(self.probs.shape[-1]) != np.asarray(value)[..., None])
        return Categorical(np.where(change.any(axis=-1, keepdims=True), change, self.probs))

    def inflated(self, factor: float) -> Distribution:
        """Weights to the power 1/factor: flatter, zeros stay zero."""
        weights = np.asarray(self.probs)
        return Categorical((weights / weights.max(axis=-1, keepdims=True)) ** (1.0 / factor))

    @classmethod
    def categories(cls, *packed: float) -> int:
        """The number of categories of a scalar distribution with these packed parameters."""
        return len(packed)

    @classmethod
    def log_probabilities(cls, packed: Array) -> Array:
        """Normalised log probabilities (n, K) from packed weights (n, K)."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(packed / np.cumsum(packed, axis=-1)[..., -1:]))

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """Trivial: proposals are categorical."""
        zero = np.zeros_like(parameters[0])
        return Coordinates(zero, zero + 1.0, zero - np.inf, zero + np.inf)
