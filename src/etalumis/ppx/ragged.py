"""Ragged columns from outside: checked lengths and shapes, order of first use, parameters and values."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import DISTRIBUTIONS, Distribution
from etalumis.execution import Column, DistributionTable
from etalumis.execution.ragged import gather, offsets_of
from etalumis.ppx.errors import ProtocolError


def column(numbers: Any, dtype: Any, count: int | None = None) -> NDArray[Any]:
    array = np.zeros(0, dtype) if numbers is None else np.asarray(numbers).astype(dtype, copy=False)
    if count is not None and len(array) != count:
        raise ProtocolError(f"a column has {len(array)} entries instead of {count}")
    return array


def totals(owner: NDArray[np.int64], terms: NDArray[np.float64], traces: int) -> NDArray[np.float64]:
    """Sums over the entries of each trace, added one by one as the loop adds them."""
    return np.bincount(owner, terms, traces).astype(np.float64, copy=False)


def owners(lengths: Any, traces: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths, and the trace that owns each entry."""
    counts = np.zeros(traces, dtype=np.int64) if lengths is None else column(lengths, np.int64, traces)
    if counts.sum() > 1 << 28:
        raise ProtocolError("more entries than a message can hold")
    return counts, np.repeat(np.arange(traces), counts)


def shapes_of(ranks: Any, extents: Any, count: int) -> tuple[tuple[int, ...], ...]:
    if ranks is None or not len(ranks):
        return ((),) * count
    sizes, flat = column(ranks, np.int64, count), column(extents, np.int64)
    if sizes.sum() != len(flat) or (flat < 0).any():
        raise ProtocolError("shapes that do not add up")
    numbers, starts = flat.tolist(), offsets_of(sizes).tolist()
    return tuple([tuple(numbers[a:b]) for a, b in pairwise(starts)])


def first_use(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Distinct ids in order of first use, and the place of each entry among them."""
    distinct, first, place = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return distinct[order], rank[place]


def in_order(ids: NDArray[np.int64], texts: list[str]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Names in order of first use after "", and their ids."""
    used, place = first_use(ids)
    names = {"": 0}
    mapping = np.array([names.setdefault(texts[n], len(names)) for n in used.tolist()], dtype=np.int32)
    return tuple(names), mapping[place] if len(place) else place.astype(np.int32)


def rows_of(table: DistributionTable, rows: NDArray[np.int64]) -> DistributionTable:
    if len(rows) == len(table) and (rows == np.arange(len(rows))).all():
        return table
    parameters, offsets = gather(table.parameters, table.offsets, rows)
    shapes = tuple([table.shapes[row] for row in rows.tolist()])
    return DistributionTable(table.code[rows], offsets, parameters, shapes)


def parameters_of(family: str, packed: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[NDArray[Any], ...]:
    """Packed parameters (M, P) of one family and shape as arrays in wire order; what is constant is kept once."""
    kind = DISTRIBUTIONS[family]
    count = len(packed)
    if kind.parameter_axes:
        columns = [packed.reshape(count, *shape, -1)]
    else:
        split = packed.reshape(count, len(kind.parameter_names), *shape)
        columns = [split[:, k] for k in range(len(kind.parameter_names))]
        if shape:
            flat = [c.reshape(count, -1) for c in columns]
            same = [bool((f == f[:, :1]).all()) for f in flat]
            columns = [f[:, 0] if one else c for c, f, one in zip(columns, flat, same, strict=True)]
            if all(same):  # one parameter must tell the shape
                columns[0] = split[:, 0]
    return tuple([c[:1].copy() if count > 1 and bool((c == c[:1]).all()) else np.ascontiguousarray(c) for c in columns])


def value_column(
    name: str,
    rows: NDArray[np.int64],
    values: NDArray[np.float64],
    shapes: tuple[tuple[int, ...], ...],
    members: NDArray[np.int64],
) -> Column:
    if not any(shapes):
        return Column(name, rows, values[members])
    starts = offsets_of(np.array([math.prod(shape) for shape in shapes], dtype=np.int64))
    found = [values[starts[m] : starts[m + 1]].reshape(shapes[m]) for m in members.tolist()]
    return Column.from_values(name, list(zip(rows.tolist(), map(scalar, found), strict=True)))


def value_of(flat: NDArray[np.float64], distribution: Distribution) -> Any:
    if not distribution.shape:
        return distribution.cast(float(flat[0]))
    array = flat.reshape(distribution.shape)
    return array.astype(np.int64) if distribution.discrete and bool((array % 1 == 0).all()) else array


def scalar(value: Any) -> Any:
    return value if np.ndim(value) else float(value)
