"""Mixture(weights, components) of continuous scalar distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from etalumis.distributions.base import (
    Array,
    Continuous,
    Coordinates,
    Distribution,
    as_arrays,
    bounded_coordinates,
    require,
)
from etalumis.distributions.categorical import Categorical
from etalumis.distributions.normal import Normal
from etalumis.distributions.stream import Uniforms
from etalumis.distributions.truncated_normal import TruncatedNormal

_INF = math.inf
_FAR = 1e150  # squares of moments stay finite


class Mixture(Continuous):
    """Weighted mixture of scalar distributions of any continuous families, Mixture included.

    Discrete families are refused: their mixtures are no density, and a network could not propose them by the
    family alone. Draw the component by a Categorical and then from it instead.

    Packed form: the number of components, the weights, then for each component its family code, its number of
    packed parameters and these. ``parameters`` is this one vector, with its own axis.

    Sampling: the component as Categorical(weights), one uniform, then that component's own algorithm.
    """

    __slots__ = ("_selector", "components")
    family = "Mixture"
    code = 13
    parameter_names = ("weights", "components")
    parameter_axes = 1

    components: tuple[Continuous, ...]
    _selector: Categorical

    def __init__(self, weights: Any, components: Sequence[Distribution]) -> None:
        self._selector = Categorical(weights)
        scalar = [component for component in components if isinstance(component, Continuous) and not component.shape]
        one_each = self._selector.shape == () and len(self._selector.probs) == len(components)
        valid = one_each and len(scalar) == len(components)
        requirement = "scalar distributions of continuous families, one weight each"
        require(valid, "Mixture", requirement, weights=weights, components=components)
        self.components, self.shape = tuple(scalar), ()

    @property
    def weights(self) -> tuple[float, ...]:
        """The components' weights, as given."""
        return tuple(self._selector.probs)

    def parameters(self) -> tuple[Any, ...]:
        """The packed form as one vector."""
        return (np.array(self.pack()),)

    @classmethod
    def from_parameters(cls, *parameters: Any) -> Mixture:
        (packed,) = parameters
        return cls.unpack(np.asarray(packed, dtype=np.float64).tolist())

    def pack(self) -> tuple[float, ...]:
        flat = [float(len(self.components)), *self.weights]
        for component in self.components:
            packed = component.pack()
            flat += [float(component.code), float(len(packed)), *packed]
        return tuple(flat)

    @classmethod
    def unpack(cls, packed: Sequence[float], shape: tuple[int, ...] = ()) -> Mixture:
        from etalumis.distributions import BY_CODE  # the table of families holds this one, too

        require(shape == (), "Mixture", "the shape ()", shape=shape)
        count = int(packed[0])
        components, place = [], 1 + count
        for _ in range(count):
            code, size = int(packed[place]), int(packed[place + 1])
            place += 2
            components.append(BY_CODE[code].unpack(packed[place : place + size]))
            place += size
        return cls([float(w) for w in packed[1 : 1 + count]], components)

    def draw_scalar(self, stream: Uniforms) -> float:
        return self.components[self._selector.draw_scalar(stream)].draw_scalar(stream)

    def log_prob(self, value: Any) -> float:
        total = sum(self.weights)
        terms = [
            math.log(weight / total) + component.log_prob(value)
            for weight, component in zip(self.weights, self.components, strict=True)
            if weight > 0.0
        ]
        top = max(terms)
        if not -_INF < top < _INF:
            return math.nan if value != value else top
        return top + math.log(sum([math.exp(term - top) for term in terms]))

    @classmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        """As for other families; the packed vectors' shape (…, L) broadcasts with the value's without its last
        axis. One vector with many values is vectorised over the values."""
        x, packed = as_arrays(value, *parameters)
        if packed.ndim == 1:
            return cls.unpack(packed.tolist())._log_density_at(x)
        shape = np.broadcast_shapes(x.shape, packed.shape[:-1])
        rows = np.broadcast_to(packed, (*shape, packed.shape[-1])).reshape(-1, packed.shape[-1])
        values = np.broadcast_to(x, shape).ravel().tolist()
        density = [cls.unpack(row).log_prob(v) for row, v in zip(rows.tolist(), values, strict=True)]
        return np.array(density).reshape(shape)

    def _log_density_at(self, x: Array) -> Array:
        total = sum(self.weights)
        terms = [
            math.log(weight / total) + component.log_density(x, *component.parameters())
            for weight, component in zip(self.weights, self.components, strict=True)
            if weight > 0.0
        ]
        with np.errstate(invalid="ignore"):  # NumPy warns where all terms are −inf, and answers −inf
            return np.asarray(np.logaddexp.reduce(terms, axis=0), dtype=np.float64)

    def random_walk(self, value: Any, step: float) -> Distribution:
        """Normal around ``value``, truncated to the hull of the supports, relative to the mixture's spread."""
        low, high = self.support()
        width = step * self.moments()[1]
        return Normal(value, width) if low == -_INF and high == _INF else TruncatedNormal(value, width, low, high)

    def inflated(self, factor: float) -> Distribution:
        """Every component inflated."""
        return Mixture(self.weights, [component.inflated(factor) for component in self.components])

    def moments(self) -> tuple[float, float]:
        total = sum(self.weights)
        parts = [
            (weight / total, *(min(max(m, -_FAR), _FAR) for m in component.moments()))
            for weight, component in zip(self.weights, self.components, strict=True)
        ]
        mean = sum([w * m for w, m, _ in parts])
        variance = sum([w * (s * s + (m - mean) * (m - mean)) for w, m, s in parts])
        return mean, math.sqrt(variance)

    def support(self) -> tuple[float, float]:
        """The hull of the supports of components of positive weight."""
        supports = [c.support() for w, c in zip(self.weights, self.components, strict=True) if w > 0.0]
        return min(low for low, _ in supports), max(high for _, high in supports)

    @classmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """Moments of the mixture and the hull of the supports; rows of one packed length."""
        rows, places = np.unique(np.stack(parameters, axis=1), axis=0, return_inverse=True)
        mixtures = [cls.unpack(row) for row in rows.tolist()]
        numbers = np.array([(*mixture.moments(), *mixture.support()) for mixture in mixtures])
        loc, scale, low, high = numbers[places.reshape(-1)].T
        return bounded_coordinates(loc, scale, low, high)
