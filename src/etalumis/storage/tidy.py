"""One form for equal traces: how a batch is written must not depend on the batches that it was put together from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import Column, DistributionTable, ObserveColumn, TraceBatch
from etalumis.execution.ragged import gather


def tidy(batch: TraceBatch) -> TraceBatch:
    """The batch without names, distributions and columns that no trace uses, the rest in a fixed order.

    Names and distributions come in order of first use, observes by address, tags by name; what is equal for all
    rows of a column is there once.
    """
    names, _ = _used(batch.name)
    if len(names) and (unnamed := np.flatnonzero(names == 0)).size:  # row 0 is "unnamed", used or not
        names = np.concatenate([[0], np.delete(names, unnamed[0])])
    else:
        names = np.concatenate([[0], names])
    lookup = np.zeros(len(batch.names), dtype=np.int32)
    lookup[names] = np.arange(len(names))
    rows, distribution = _used(batch.distribution)
    return replace(
        batch,
        names=tuple(batch.names[n] for n in names.tolist()),
        name=lookup[batch.name],
        distributions=_rows(batch.distributions, rows),
        distribution=distribution,
        observes=tuple(sorted((_once(c) for c in batch.observes if len(c)), key=_place)),
        tags=tuple(sorted((_as_stored(c) for c in batch.tags if len(c)), key=lambda c: c.name)),
        result=_as_stored(batch.result),
    )


def _used(ids: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The distinct ids in order of first use, and each id's place among them."""
    found, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), dtype=np.int32)
    place[order] = np.arange(len(order))
    return found[order].astype(np.int64), place[inverse.reshape(-1)]


def _rows(table: DistributionTable, rows: NDArray[np.int64]) -> DistributionTable:
    parameters, offsets = gather(table.parameters, table.offsets, rows)
    return DistributionTable(table.code[rows], offsets, parameters, tuple(table.shapes[r] for r in rows.tolist()))


def _once(column: ObserveColumn) -> ObserveColumn:
    """Leading size 1 for parameters that are equal in all rows."""
    return replace(
        column,
        parameters=tuple(
            p[:1] if len(p) > 1 and bool((p[-1] == p[0]).all()) and bool((p == p[:1]).all()) else p
            for p in column.parameters
        ),
    )


def _place(column: ObserveColumn) -> tuple[Any, ...]:
    shapes = tuple(p.shape[1:] for p in column.parameters)
    return (column.address, column.name, column.family, shapes, column.observed, column.values is None)


def _as_stored(column: Column) -> Column:
    """A list whose entries here are all numbers, or arrays of one shape, becomes an array."""
    if isinstance(column.values, np.ndarray):
        return column
    return Column.from_values(column.name, list(zip(column.rows.tolist(), column.values, strict=True)))
