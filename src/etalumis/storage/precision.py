"""Observes in fewer bytes, where that changes no density that matters.

Rounding to float32 moves a number by up to 6e-8 of itself. For a likelihood that is wide beside that (detector
voxels of some GeV known to 0.2) nothing is lost; for a Normal(1e8, 1) everything is. So the rounding error of each
column is held against the likelihood's own spread, and where it is too large the column stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import DISTRIBUTIONS, Distribution, Normal
from etalumis.execution import ObserveColumn

# Largest rounding error in units of the likelihood's spread. A log density moves by this times z: in an image of
# 25,000 voxels by about 0.01 in all, as roundings have either sign.
TOLERANCE = 1e-4
HALVES = ("float16", "bfloat16")
_FEW = 64  # numbers below which a half of their bytes is not worth any rounding
_ELEMENTS = 1 << 18  # numbers that are compared at once

Array = NDArray[np.float64]


def narrow(column: ObserveColumn, precision: str, forced: bool = False) -> ObserveColumn:
    """The column with parameters, and values, rounded where that is harmless; else as they were.

    Args:
        column: what is observed.
        precision: ``"float64"``, ``"float32"``, ``"float16"`` or ``"bfloat16"``. The last two have no place in
            computations: numbers are rounded to them and stay float32, of which :mod:`.codec` then stores the half
            that counts. Where they are too coarse, float32 is tried. In all but the first, means of a Normal that
            are below the tolerance become zeros.
        forced: round to ``precision`` though the likelihood can tell; what it can't hold at all still stays.
    """
    for step in (precision, *(("float32",) if precision in HALVES else ())):
        parameters = _flushed(column, tuple(_cast(p, step) for p in column.parameters))
        if not (forced and _finite(column.parameters, parameters)) and not _parameters_agree(column, parameters):
            continue
        column = replace(column, parameters=parameters)
        break
    for step in (precision, *(("float32",) if precision in HALVES else ())):
        if column.values is None:
            break
        values = _cast(column.values, step)
        if (forced and _finite((column.values,), (values,))) or _values_agree(column, column.values, values):
            return replace(column, values=values)
    return column


def to_half(array: NDArray[Any], name: str) -> NDArray[np.float32]:
    """float32 numbers rounded to the nearest of a half precision, ties to even."""
    if name == "float16":
        with np.errstate(over="ignore"):
            return array.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(array), np.float32(np.nan), rounded.view(np.float32)).astype(np.float32)


def _cast(array: NDArray[Any], precision: str) -> NDArray[Any]:
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite, and is found out
        if precision not in HALVES:
            return array.astype(precision, copy=False)
        narrowed = array.astype(np.float32, copy=False)
        return to_half(narrowed, precision) if array.size >= _FEW else narrowed


def _flushed(column: ObserveColumn, rounded: tuple[NDArray[Any], ...]) -> tuple[NDArray[Any], ...]:
    """Zero for means that are nothing beside the noise, as most of an image's are: zeros need not be stored."""
    if column.family != Normal.family or rounded[0].dtype != np.float32 or rounded[0].size < _FEW:
        return rounded
    mean, stddev = rounded
    rank = len(column.shape)
    least = TOLERANCE * stddev.reshape(len(stddev), *(1,) * (rank - stddev.ndim + 1), *stddev.shape[1:])
    if len(mean) == 1 < len(least) or mean.ndim < rank + 1:
        return rounded
    return np.where(np.abs(mean) <= least, np.float32(0.0), mean), stddev


def _finite(exact: Sequence[NDArray[Any]], rounded: Sequence[NDArray[Any]]) -> bool:
    """Whether nothing finite became infinite."""
    return all(bool((np.isfinite(r) | ~np.isfinite(e)).all()) for e, r in zip(exact, rounded, strict=True))


def _parameters_agree(column: ObserveColumn, rounded: tuple[NDArray[Any], ...]) -> bool:
    family = DISTRIBUTIONS[column.family]
    if all(_equal(p, r) for p, r in zip(column.parameters, rounded, strict=True)):
        return True
    if family.discrete and not all(
        _probabilities_agree(name, p, r)
        for name, p, r in zip(family.parameter_names, column.parameters, rounded, strict=True)
    ):
        return False
    if family.parameter_axes:
        return family.discrete  # packed mixtures hold components of any spread
    with np.errstate(all="ignore"):  # what rounding made of a parameter may be no parameter at all
        return all(
            _coordinates_agree(family, exact, approximate)
            for exact, approximate in zip(_pieces(column), _pieces(replace(column, parameters=rounded)), strict=True)
        )


def _probabilities_agree(name: str, exact: Array, rounded: NDArray[Any]) -> bool:
    """Masses are made of p, or of rates, themselves: their logs must stay, and that of 1 − p too."""
    size = np.abs(exact)
    if name == "probs":
        size = np.minimum(size, np.abs(1.0 - exact))
    return bool((np.abs(rounded.astype(np.float64) - exact) <= TOLERANCE * size).all())


def _coordinates_agree(family: type[Distribution], exact: list[Array], rounded: list[Array]) -> bool:
    """Location, spread and bounds, in units of the spread."""
    one, other = family.coordinates(*exact), family.coordinates(*rounded)
    moved = np.abs(other.loc - one.loc) / one.scale
    stretched = np.abs(other.scale / one.scale - 1.0)
    # All comparisons are false for nan, which rounding to 0 or to infinity leads to.
    return bool(
        (moved <= TOLERANCE).all()
        and (stretched <= TOLERANCE).all()
        and all(
            ((b == a) | (np.abs(b - a) <= TOLERANCE)).all() for a, b in ((one.low, other.low), (one.high, other.high))
        )
    )


def _values_agree(column: ObserveColumn, values: NDArray[Any], rounded: NDArray[Any]) -> bool:
    family = DISTRIBUTIONS[column.family]
    if _equal(values, rounded):
        return True
    if family.discrete or family.parameter_axes:
        return False
    start = 0
    flat, flat_rounded = values.reshape(-1), rounded.reshape(-1).astype(np.float64)
    for parameters in _pieces(column):
        piece = slice(start, start + len(parameters[0]))
        start = piece.stop
        with np.errstate(all="ignore"):
            x, y = (np.log(v) if family.log_space else v for v in (flat[piece], flat_rounded[piece]))
            loc, scale, low, high = family.coordinates(*parameters)
            z, error = (x - loc) / scale, np.abs(y - x) / scale
            # Near a bound, densities depend on the distance to it.
            room = np.minimum(1.0, np.minimum(z - low, high - z))
            if not ((y == x) | (error <= TOLERANCE * room)).all():
                return False
    return True


def _pieces(column: ObserveColumn) -> Iterator[list[Array]]:
    """The parameters of some rows at a time, each broadcast to the rows' shape and flattened."""
    shape, count = column.shape, len(column)
    step = max(_ELEMENTS // max(int(np.prod(shape)), 1), 1)
    if all(len(p) == 1 for p in column.parameters) and column.values is None:
        count = 1
    for first in range(0, count, step):
        rows = min(step, count - first)
        parts = (p if len(p) == 1 else p[first : first + rows] for p in column.parameters)
        yield [
            np.broadcast_to(p.reshape(len(p), *(1,) * (len(shape) - p.ndim + 1), *p.shape[1:]), (rows, *shape))
            .reshape(-1)
            .astype(np.float64, copy=False)
            for p in parts
        ]


def _equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one is other or bool((one == other).all())
