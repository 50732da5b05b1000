"""What a proposal sees of a draw, as columns.

Families answered by a mixture ("mixture") or by its integral over unit cells ("count") are looked at in
coordinates z = (t − loc)/scale of order one, t = x or log x: columns ``z``, ``low``, ``high`` and
``log_jacobian`` = log |dz/dx|, or ``half`` (half a cell's width in z) for counts. Categorical families have
``log_prior`` (n, K) and the value's ``category``. All float64 but ``category``, int64.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import Distribution

Array = NDArray[np.float64]
_ROUNDING = 1e-9  # how far outside of its support a value may stand by rounding, in units of z


class CategoricalFamily(Protocol):
    """What families with categorical proposals add to :class:`Distribution`."""

    @classmethod
    def categories(cls, *packed: float) -> int: ...

    @classmethod
    def log_probabilities(cls, packed: Array) -> Array: ...


def categories(family: type[Distribution], *packed: float) -> int:
    """The number of categories of a distribution, 0 where its proposal is not categorical."""
    return cast("CategoricalFamily", family).categories(*packed) if family.proposal == "categorical" else 0


class UnreachableError(ValueError):
    """A value outside of what its proposal covers; ``draw`` is its position among the values given."""

    def __init__(self, message: str, draw: int) -> None:
        super().__init__(message)
        self.draw = draw


class Frame(NamedTuple):
    """Coordinates of n draws; see :class:`etalumis.distributions.Coordinates`."""

    loc: Array
    scale: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, family: type[Distribution], packed: Array, place: NDArray[np.int64]) -> Frame:
        """Coordinates of draws from distributions of one family.

        Args:
            packed: packed parameters of the distinct distributions, (R, P).
            place: which of them each draw has, (n,).
        """
        return cls(*(column[place] for column in family.coordinates(*np.ascontiguousarray(packed.T))))

    def columns(self, family: type[Distribution], value: Array) -> dict[str, NDArray[Any]]:
        """The columns of values that stand in the support."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            t = np.log(value) if family.log_space else value
            z = (t - self.loc) / self.scale
        slack = _ROUNDING * (1.0 + np.abs(z))
        wrong = ~((z >= self.low - slack) & (z <= self.high + slack) & np.isfinite(z))
        if wrong.any():
            draw = int(np.argmax(wrong))
            message = f"the proposal can't reach the value {float(value[draw])!r} of a {family.family}"
            raise UnreachableError(message, draw)
        columns = {"z": np.clip(z, self.low, self.high), "low": self.low, "high": self.high}
        if family.proposal == "count":
            return columns | {"half": 0.5 / self.scale}
        return columns | {"log_jacobian": -np.log(self.scale) - (t if family.log_space else 0.0)}

    def value(self, family: type[Distribution], z: Array) -> Array:
        """Values of the family from coordinates: inside the support, never on its border where it is continuous."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            t = self.loc + self.scale * z
            low, high = self.loc + self.scale * self.low, self.loc + self.scale * self.high
            if family.proposal == "count":
                return np.clip(np.rint(t), np.ceil(low), np.floor(high))
            if family.log_space:
                t, low, high = np.exp(t), np.exp(low), np.exp(high)
            return np.clip(t, np.nextafter(low, np.inf), np.nextafter(high, -np.inf))


def coordinate_columns(
    family: type[Distribution], packed: Array, place: NDArray[np.int64], value: Array
) -> dict[str, NDArray[Any]]:
    """Columns of n draws of a "mixture" or "count" family; arguments as for :meth:`Frame.of`.

    Raises:
        UnreachableError: where a value is outside of the support or not a number.
    """
    return Frame.of(family, packed, place).columns(family, value)


def log_prior_columns(family: type[Distribution], packed: Array, place: NDArray[np.int64]) -> Array:
    """Log prior probabilities of the categories, (n, K)."""
    return cast("CategoricalFamily", family).log_probabilities(packed)[place]


def category_columns(
    family: type[Distribution], packed: Array, place: NDArray[np.int64], value: Array
) -> dict[str, NDArray[Any]]:
    """Columns of n draws of a categorical family.

    Raises:
        UnreachableError: where a value is no category, or one of probability zero.
    """
    log_prior = log_prior_columns(family, packed, place)
    category = value.astype(np.int64)
    valid = (category >= 0) & (category < log_prior.shape[1])
    chosen = np.where(valid, category, 0)
    wrong = ~valid | (log_prior[np.arange(len(chosen)), chosen] == -np.inf)
    if wrong.any():
        draw = int(np.argmax(wrong))
        message = f"the proposal can't reach the value {float(value[draw])!r} of a {family.family}"
        raise UnreachableError(message, draw)
    return {"category": category, "log_prior": log_prior}
