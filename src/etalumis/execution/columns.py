"""The columns of a TraceBatch beside its draws: observes, tags and results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import DISTRIBUTIONS
from etalumis.execution.errors import StorableError
from etalumis.execution.ragged import gather
from etalumis.execution.trace import Observed


@dataclass(frozen=True, eq=False)
class ObserveColumn:
    """The observe statements of one address, name, family and shape, over the traces that met them.

    Attributes:
        rows: positions of the traces, int64 (M,).
        parameters: the likelihood's parameters in wire order, each (M or 1, *its shape): leading size 1 where
            all traces share it.
        values: (M, *shape), or None where only the parameters are kept.
        observed: the value was given (and scored), not drawn.
    """

    address: int
    name: str
    family: str
    rows: NDArray[np.int64]
    parameters: tuple[NDArray[Any], ...]
    values: NDArray[Any] | None
    observed: bool

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one observation."""
        axes = DISTRIBUTIONS[self.family].parameter_axes
        return np.broadcast_shapes(*(p.shape[1 : p.ndim - axes] for p in self.parameters))

    def log_likelihood(self, value: Any) -> NDArray[np.float64]:
        """Log density of ``value`` (given once, or per row) under each row's likelihood, shape (M,)."""
        family = DISTRIBUTIONS[self.family]
        rank = len(self.shape) + family.parameter_axes
        aligned = [p.reshape(len(p), *(1,) * (rank - p.ndim + 1), *p.shape[1:]) for p in self.parameters]
        density = family.log_density(np.asarray(value, dtype=np.float64), *aligned)
        density = np.broadcast_to(density, (len(self), *self.shape))
        return np.asarray(density.reshape(len(self), -1).sum(axis=1), dtype=np.float64)

    @classmethod
    def from_statements(cls, traces: Sequence[Sequence[Observed]]) -> tuple[ObserveColumn, ...]:
        """Columns of the observe statements of traces."""
        groups: dict[tuple[Any, ...], list[tuple[int, Observed, tuple[Any, ...]]]] = {}
        for row, statements in enumerate(traces):
            for statement in statements:
                distribution = statement.distribution
                parameters = distribution.parameters()
                shapes = tuple(() if type(p) is float else np.shape(p) for p in parameters)
                drawn = statement.value is None
                key = (
                    statement.address,
                    statement.name,
                    distribution.family,
                    shapes,
                    statement.observed,
                    drawn,
                )
                groups.setdefault(key, []).append((row, statement, parameters))
        columns = []
        for (address, name, family, shapes, observed, drawn), members in groups.items():
            stacked = (np.array([p[k] for _, _, p in members], dtype=np.float64) for k in range(len(shapes)))
            values = None if drawn else np.array([s.value for _, s, _ in members], dtype=np.float64)
            rows = np.array([row for row, _, _ in members], dtype=np.int64)
            columns.append(cls(address, name, family, rows, tuple(map(_once, stacked)), values, observed))
        return tuple(columns)

    @classmethod
    def concatenate(cls, batches: Sequence[Sequence[ObserveColumn]], starts: NDArray[Any]) -> tuple[ObserveColumn, ...]:
        """Columns over consecutive batches; ``starts`` are the positions of their first traces."""
        groups: dict[tuple[Any, ...], list[tuple[int, ObserveColumn]]] = {}
        for start, columns in zip(starts.tolist(), batches, strict=False):
            for c in columns:
                shapes = tuple(p.shape[1:] for p in c.parameters)
                groups.setdefault((c.address, c.name, c.family, shapes, c.observed, c.values is None), []).append(
                    (start, c)
                )
        out = []
        for members in groups.values():
            parameters = tuple(
                _join([c.parameters[k] for _, c in members], [len(c) for _, c in members])
                for k in range(len(members[0][1].parameters))
            )
            values = [c.values for _, c in members if c.values is not None]
            rows = np.concatenate([c.rows + start for start, c in members])
            out.append(
                replace(
                    members[0][1],
                    rows=rows,
                    parameters=parameters,
                    values=np.concatenate(values) if values else None,
                )
            )
        return tuple(out)

    def select(self, rows: NDArray[np.int64], count: int) -> ObserveColumn:
        """The column over selected traces of a batch of ``count``."""
        kept, places = _select(self.rows, rows, count)
        parameters = tuple(p if len(p) == 1 else p[places] for p in self.parameters)
        return replace(
            self,
            rows=kept,
            parameters=parameters,
            values=None if self.values is None else self.values[places],
        )

    def to_arrays(self, key: str, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
        arrays[f"{key}.rows"] = self.rows
        for k, parameter in enumerate(self.parameters):
            arrays[f"{key}.parameter{k}"] = parameter
        if self.values is not None:
            arrays[f"{key}.values"] = self.values
        return {
            "key": key,
            "address": self.address,
            "name": self.name,
            "family": self.family,
            "observed": self.observed,
            "parameters": len(self.parameters),
            "values": self.values is not None,
        }

    @classmethod
    def from_arrays(cls, meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> ObserveColumn:
        key = meta["key"]
        column = cls(
            int(meta["address"]),
            str(meta["name"]),
            str(meta["family"]),
            arrays[f"{key}.rows"].astype(np.int64),
            tuple(arrays[f"{key}.parameter{k}"] for k in range(int(meta["parameters"]))),
            arrays[f"{key}.values"] if meta["values"] else None,
            bool(meta["observed"]),
        )
        values = () if column.values is None else (column.values,)
        fits = all(len(p) in (1, len(column)) for p in column.parameters) and all(len(v) == len(column) for v in values)
        if not fits or column.family not in DISTRIBUTIONS:
            raise ValueError(f"the column of observation {column.name!r} ({column.family}) does not add up")
        return column


@dataclass(frozen=True, eq=False)
class Column:
    """Tags or results: trace positions ``rows`` (M,) with an array (M, …) of numbers, or a list of objects."""

    name: str
    rows: NDArray[np.int64]
    values: NDArray[Any] | list[Any]

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def from_values(cls, name: str, pairs: Sequence[tuple[int, Any]]) -> Column:
        """Numbers and arrays of one shape become an array; everything else stays a list."""
        rows = np.array([row for row, _ in pairs], dtype=np.int64)
        values = [value for _, value in pairs]
        return cls(name, rows, _as_array(values))

    @classmethod
    def from_named(cls, traces: Sequence[Sequence[tuple[str, Any]]]) -> tuple[Column, ...]:
        groups: dict[str, list[tuple[int, Any]]] = {}
        for row, pairs in enumerate(traces):
            for name, value in pairs:
                groups.setdefault(name, []).append((row, value))
        return tuple(cls.from_values(name, pairs) for name, pairs in groups.items())

    @classmethod
    def concatenate(cls, columns: Sequence[Column], starts: Iterable[int]) -> Column:
        rows = np.concatenate([c.rows + start for start, c in zip(starts, columns, strict=False)])
        filled = [c.values for c in columns if len(c)]
        arrays = [v for v in filled if isinstance(v, np.ndarray)]
        if len(arrays) == len(filled) and len({a.shape[1:] for a in arrays}) == 1:
            return cls(columns[0].name, rows, np.concatenate(arrays))
        return cls(columns[0].name, rows, [value for values in filled for value in _as_list(values)])

    def select(self, rows: NDArray[np.int64], count: int) -> Column:
        kept, places = _select(self.rows, rows, count)
        values = self.values[places] if isinstance(self.values, np.ndarray) else [self.values[p] for p in places]
        return replace(self, rows=kept, values=values)

    def to_arrays(self, key: str, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
        arrays[f"{key}.rows"] = self.rows
        meta: dict[str, Any] = {"key": key, "name": self.name}
        if isinstance(self.values, np.ndarray):
            arrays[f"{key}.values"] = self.values
        else:
            for value in self.values:
                if not _is_json(value):
                    raise StorableError(
                        f"{self.name!r} holds {value!r} ({type(value).__name__}), which can't be saved; tag or return "
                        "numbers, arrays of one shape, strings, booleans, or lists and dicts of finite ones"
                    )
            meta["values"] = self.values
        return meta

    @classmethod
    def from_arrays(cls, meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Column:
        key = meta["key"]
        rows = arrays[f"{key}.rows"].astype(np.int64)
        values = meta["values"] if "values" in meta else arrays[f"{key}.values"]
        if len(values) != len(rows):
            raise ValueError(f"the column {meta['name']!r} does not add up")
        return cls(str(meta["name"]), rows, values)


def concatenate_columns(batches: Sequence[Sequence[Column]], starts: NDArray[Any]) -> tuple[Column, ...]:
    """Columns of equal names joined over consecutive batches."""
    groups: dict[str, list[tuple[int, Column]]] = {}
    for start, columns in zip(starts.tolist(), batches, strict=False):
        for column in columns:
            groups.setdefault(column.name, []).append((start, column))
    return tuple(Column.concatenate([c for _, c in g], [start for start, _ in g]) for g in groups.values())


def _once(parameter: NDArray[Any]) -> NDArray[Any]:
    """Leading size 1 where all rows are equal."""
    return parameter[:1] if len(parameter) > 1 and bool((parameter == parameter[:1]).all()) else parameter


def _join(pieces: list[NDArray[Any]], lengths: list[int]) -> NDArray[Any]:
    if all(len(p) == 1 for p in pieces) and all(np.array_equal(p, pieces[0]) for p in pieces):
        return pieces[0]
    return np.concatenate([np.broadcast_to(p, (n, *p.shape[1:])) for p, n in zip(pieces, lengths, strict=True)])


def _select(have: NDArray[np.int64], rows: NDArray[np.int64], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """New trace positions, and places in the column, of the column's entries in selected traces."""
    if len(have) == count and np.array_equal(have, np.arange(count)):  # all traces, once each
        return np.arange(len(rows)), rows
    order = np.argsort(have, kind="stable")
    first = np.searchsorted(have[order], np.arange(count + 1))
    places, offsets = gather(order, first, rows)
    return np.repeat(np.arange(len(rows)), np.diff(offsets)), places


def _as_array(values: list[Any]) -> NDArray[Any] | list[Any]:
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    numeric = (int, float, np.ndarray)
    if not values or not all(isinstance(v, numeric) and not isinstance(v, bool) for v in values):
        return values
    if len({np.shape(v) for v in values}) > 1:
        return values
    array = np.array(values)
    return array if array.dtype.kind in "iuf" else values


def _as_list(values: NDArray[Any] | list[Any]) -> list[Any]:
    if not isinstance(values, np.ndarray):
        return values
    numbers: list[Any] = values.tolist() if values.ndim == 1 else list(values)
    return numbers


def _is_json(value: Any) -> bool:
    if value is None or isinstance(value, (str, bool, int)):
        return True
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return isinstance(value, dict) and all(isinstance(k, str) and _is_json(v) for k, v in value.items())
