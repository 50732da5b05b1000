"""What a distribution family is: one class that knows everything said about the family anywhere.

A family states its parameters in wire order, draws from a :class:`Stream` by one algorithm that every
language front end shares, scores values, names a random-walk kernel on its support, and says in which
coordinates a neural proposal looks at it. Nothing else in the package asks which family it has before it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etalumis.distributions.stream import Stream, Uniforms

Array = NDArray[np.float64]
Parameter = float | Array
Value = float | int | NDArray[Any]


class Coordinates(NamedTuple):
    """Where a proposal looks at a family: z = (t − loc) / scale with t = x, or log x where ``log_space``.

    All are arrays of shape (n,), one entry per distribution; ``low`` and ``high`` bound z, may be infinite.
    ``loc`` and ``scale`` are the location and spread of t under the prior, so that z is of order one.
    """

    loc: Array
    scale: Array
    low: Array
    high: Array


class Distribution(ABC):
    """A distribution of a family; parameters are scalars, or arrays that broadcast to ``shape``.

    Parameters are attributes under their names. Families declare them as ``float``, which is what scalar code
    computes with; where ``shape`` is not () they may be float64 arrays.

    Class attributes:
        family: the family's name, part of every address.
        code: its number on the wire (PPX union tag) and in stored tables.
        parameter_names: in wire order.
        parameter_axes: trailing axes of a parameter beyond ``shape`` (1 where it is a vector of weights).
        discrete: values are integers.
        proposal: how a neural proposal answers it: ``"mixture"`` (of truncated normals in ``coordinates``),
            ``"count"`` (the same, integrated over unit cells), or ``"categorical"``.
        log_space: proposal coordinates are taken of log x.
    """

    __slots__ = ("shape",)

    family: ClassVar[str]
    code: ClassVar[int]
    parameter_names: ClassVar[tuple[str, ...]]
    parameter_axes: ClassVar[int] = 0
    discrete: ClassVar[bool] = False
    proposal: ClassVar[Literal["mixture", "count", "categorical"]] = "mixture"
    log_space: ClassVar[bool] = False

    shape: tuple[int, ...]
    _read: ClassVar[staticmethod[[Distribution], tuple[Any, ...]]]

    def __init_subclass__(cls) -> None:
        """Prepare reading the parameters: it happens once or twice for every draw that is stored."""
        super().__init_subclass__()
        if "parameter_names" in cls.__dict__:
            read = attrgetter(*cls.parameter_names)
            single = len(cls.parameter_names) == 1
            cls._read = staticmethod((lambda distribution: (read(distribution),)) if single else read)

    # --- parameters -----------------------------------------------------------------------------------------

    def parameters(self) -> tuple[Any, ...]:
        """The parameters in wire order, as given: floats, or float64 arrays."""
        return self._read(self)

    @classmethod
    def from_parameters(cls, *parameters: Any) -> Distribution:
        """The inverse of :meth:`parameters`."""
        return cls(*parameters)

    def pack(self) -> tuple[float, ...]:
        """The parameters as flat numbers: each broadcast to ``shape``, row-major, one after the other."""
        if not self.shape:
            return self._read(self)
        flat: list[float] = []
        for parameter in self.parameters():
            flat.extend(np.broadcast_to(parameter, self.shape).ravel().tolist())
        return tuple(flat)

    @classmethod
    def unpack(cls, packed: Sequence[float], shape: tuple[int, ...] = ()) -> Distribution:
        """The inverse of :meth:`pack`."""
        if not shape:
            return cls(*map(float, packed))
        columns = np.asarray(packed, dtype=np.float64).reshape(len(cls.parameter_names), *shape)
        return cls(*columns)

    # --- sampling and scoring -------------------------------------------------------------------------------

    @abstractmethod
    def draw_scalar(self, stream: Uniforms) -> float:
        """One value of a scalar distribution: the family's shared algorithm, from ``stream.uniform()``."""

    def draw(self, stream: Stream) -> Value:
        """A value of shape ``shape`` (a float or int for ()) from the selected statement's numbers."""
        if not self.shape:
            return self.draw_scalar(stream)
        return self.draw_array(stream)

    def draw_array(self, stream: Stream) -> NDArray[Any]:
        """Element by element; families with a fixed number of uniforms have a vectorised form instead."""
        count = math.prod(self.shape)
        columns = [np.broadcast_to(p, self.shape).ravel().tolist() for p in self.parameters()]
        family = type(self)
        values = [
            family(*row).draw_scalar(numbers)
            for row, numbers in zip(zip(*columns, strict=True), stream.each(count), strict=True)
        ]
        return np.array(values, dtype=np.int64 if self.discrete else np.float64).reshape(self.shape)

    @abstractmethod
    def log_prob(self, value: Any) -> float:
        """Log density (or mass) of the whole value, summed over elements; −inf outside the support."""

    @classmethod
    @abstractmethod
    def log_density(cls, value: ArrayLike, *parameters: ArrayLike) -> Array:
        """Elementwise log density, vectorised over values and parameters that broadcast together."""

    def sum_log_density(self, value: Any) -> float:
        """The array path of :meth:`log_prob`."""
        return float(np.sum(self.log_density(np.broadcast_to(value, self.shape), *self.parameters())))

    # --- what engines need ----------------------------------------------------------------------------------

    def cast(self, number: float) -> float | int:
        """A stored number as a value of this family: whole numbers become int for discrete families."""
        return int(number) if self.discrete and number % 1 == 0 else number

    @abstractmethod
    def random_walk(self, value: Any, step: float) -> Distribution:
        """A kernel around ``value`` on this support; ``step`` is relative to the distribution's own spread."""

    def inflated(self, factor: float) -> Distribution:
        """A wider distribution on the same support for prior inflation; itself where there is none."""
        return self

    @classmethod
    @abstractmethod
    def coordinates(cls, *parameters: Array) -> Coordinates:
        """Proposal coordinates of n scalar distributions; ``parameters`` are the columns of their packed
        form, arrays of shape (n,)."""

    # --- plain Python ---------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.parameter_names)
        return f"{self.family}({arguments})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.shape == other.shape and self.pack() == other.pack()

    def __hash__(self) -> int:
        return hash((self.code, self.shape, self.pack()))


class Continuous(Distribution):
    """A family with a density on an interval; its scalar distributions can be components of a Mixture."""

    __slots__ = ()

    @abstractmethod
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of a scalar distribution, finite."""

    @abstractmethod
    def support(self) -> tuple[float, float]:
        """The interval of a scalar distribution's values; bounds may be infinite."""


def as_parameter(value: Any, name: str) -> Any:
    """A parameter as a float, or as a float64 array where it has dimensions."""
    if isinstance(value, (int, float)):
        return float(value)
    array = np.asarray(value, dtype=np.float64)
    if array.ndim == 0:
        return float(array)
    if array.size == 0:
        raise ValueError(f"parameter {name} is an empty array; give at least one element")
    return array


def common_shape(*parameters: Parameter) -> tuple[int, ...]:
    """The shape that parameters broadcast to."""
    for parameter in parameters:
        if type(parameter) is not float:
            return np.broadcast_shapes(*(np.shape(p) for p in parameters))
    return ()


def require(condition: Any, family: str, requirement: str, **parameters: Any) -> None:
    """Raise a ValueError that names the family, what it requires and the parameters it got."""
    if condition is not True and not np.all(condition):
        got = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
        raise ValueError(f"{family} needs {requirement}; got {got}")


def as_arrays(*values: ArrayLike) -> tuple[Array, ...]:
    """Values and parameters as float64 arrays."""
    return tuple([np.asarray(value, dtype=np.float64) for value in values])


def bounded_coordinates(loc: Array, scale: Array, low: Array, high: Array) -> Coordinates:
    """Coordinates of supports [low, high], whose bounds come back from z to numbers inside the support."""
    z_low, z_high = (low - loc) / scale, (high - loc) / scale
    for _ in range(3):  # rounding is worth a few units in the last place
        z_low = np.where(loc + scale * z_low < low, np.nextafter(z_low, np.inf), z_low)
        z_high = np.where(loc + scale * z_high > high, np.nextafter(z_high, -np.inf), z_high)
    return Coordinates(loc, scale, z_low, z_high)


def on_support(x: Array, inside: NDArray[np.bool_], log_density: ArrayLike) -> Array:
    """``log_density`` where ``inside``, −inf elsewhere, NaN where ``x`` is."""
    return np.where(np.isnan(x), np.nan, np.where(inside, log_density, -np.inf))


def whole(x: Array) -> NDArray[np.bool_]:
    """Where ``x`` is a whole number."""
    return np.asarray((np.floor(x) == x) & np.isfinite(x))
