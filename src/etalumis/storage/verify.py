"""What must hold of any stored trace, beyond that its bytes are those which were written."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import BY_CODE
from etalumis.execution import TraceBatch
from etalumis.execution.ragged import gather
from etalumis.storage.index import TraceIndex
from etalumis.storage.manifest import ChunkEntry

# Log densities computed anew differ by rounding: other machines, other orders of summation.
_TOLERANCE = 1e-6


def broken_rules(batch: TraceBatch, entry: ChunkEntry, index: TraceIndex, densities: bool = True) -> Iterator[str]:
    """What is wrong with a chunk, in words; nothing where all is well.

    Args:
        batch: the chunk's traces.
        entry: what the manifest says of it.
        index: of its traces, from the dataset's.
        densities: compute all densities anew, which takes most of the time.
    """
    if not ((np.diff(batch.offsets) >= 0).all() and (np.diff(batch.value_offsets) >= 0).all()):
        yield "a trace has a negative number of draws"
        return
    found = TraceIndex.of(batch)
    for key, count in found.counts().items():
        if count != getattr(entry, key):
            yield f"it has {key} {count}, the manifest says {getattr(entry, key)}"
    same = np.array_equal(found.types[found.type], index.types[index.type])
    if not (same and np.array_equal(found.length, index.length) and np.array_equal(found.index, index.index)):
        yield "its traces are not those of the dataset's index"
    yield from _numbers(batch)
    if densities:
        yield from _draws(batch)
        yield from _observes(batch)


def _numbers(batch: TraceBatch) -> Iterator[str]:
    for name in ("value", "log_prob", "log_q", "log_prior", "log_proposal"):
        if not np.isfinite(getattr(batch, name)).all():
            yield f"{name} is not finite everywhere"
    if not (batch.log_likelihood < np.inf).all():  # zero likelihood is legal, NaN compares as false
        yield "log_likelihood is NaN or infinite"
    for name, of_draws, of_traces in (
        ("log_prior", batch.log_prob, batch.log_prior),
        ("log_proposal", batch.log_q, batch.log_proposal),
    ):
        sums = np.bincount(batch.trace_of_draw, of_draws, len(batch)).astype(np.float64)
        if (rows := np.flatnonzero(~_near(sums, of_traces))).size:
            yield f"{name} of trace {batch.index[rows[0]]} is not the sum over its draws"


def _draws(batch: TraceBatch) -> Iterator[str]:
    """Every value in its distribution's support, with the density that is stored."""
    drawn = np.flatnonzero(~batch.conditioned)
    density = np.zeros(batch.num_draws)
    table = batch.distributions
    scalar = np.array([not shape for shape in table.shapes], dtype=np.bool_)
    for code in np.unique(table.code[batch.distribution[drawn]]).tolist():
        family = BY_CODE[code]
        of_family = drawn[table.code[batch.distribution[drawn]] == code]
        plain = of_family[scalar[batch.distribution[of_family]]] if not family.parameter_axes else of_family[:0]
        if plain.size:
            rows = batch.distribution[plain]
            packed, _ = gather(table.parameters, table.offsets, rows)
            columns = packed.reshape(len(rows), -1).T
            values, _ = gather(batch.value, batch.value_offsets, plain)
            density[plain] = family.log_density(values, *columns)
        for row in np.unique(batch.distribution[np.setdiff1d(of_family, plain)]).tolist():
            these = of_family[batch.distribution[of_family] == row]
            density[these] = _of_row(batch, row, these)
    wrong = np.flatnonzero(~batch.conditioned & ~_near(density, batch.log_prob))
    if wrong.size:
        draw = int(wrong[0])
        distribution = table.distribution(int(batch.distribution[draw]))
        value = batch.value[batch.value_offsets[draw] : batch.value_offsets[draw + 1]].tolist()
        what = "lies outside the support" if density[draw] == -np.inf else "does not have the stored log density"
        yield (
            f"trace {batch.index[batch.trace_of_draw[draw]]}, address {batch.addresses[int(batch.address[draw])]}: "
            f"value {value[0] if len(value) == 1 else value[:4]} {what} of {distribution!r:.200}"
        )


def _of_row(batch: TraceBatch, row: int, draws: NDArray[np.int64]) -> NDArray[np.float64]:
    distribution = batch.distributions.distribution(row)
    values, _ = gather(batch.value, batch.value_offsets, draws)
    density = distribution.log_density(values.reshape(-1, *distribution.shape), *distribution.parameters())
    return np.asarray(density.reshape(len(draws), -1).sum(axis=1), dtype=np.float64)


def _observes(batch: TraceBatch) -> Iterator[str]:
    for column in batch.observes:
        numbers = [*column.parameters, *(() if column.values is None else (column.values,))]
        if any(np.isnan(n).any() for n in numbers):
            yield f"observation {column.name!r} holds NaN"
        elif column.values is not None and not (column.log_likelihood(column.values) < np.inf).all():
            yield f"observation {column.name!r} has no density under its {column.family}"


def _near(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        return np.asarray((one == other) | (np.abs(one - other) <= _TOLERANCE * (1.0 + np.abs(other))))
