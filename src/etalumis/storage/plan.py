"""What a sort will do, decided before any data is read: from the index of the traces alone.

The order of traces is by (controlled draws of the type, type, trace index). Types with traces enough get storage
chunks of their own; rare ones share chunks with those next in length. Chunks, and the shards that they lie in,
depend on the traces alone; the steps of the work (runs to read, groups of chunks to write) also on the memory that a
process may use, never on how many processes there are. How large each trace is the index does not say: what is planned
here takes it from the number of draws, and groups that turn out larger when they were read are put together in parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import TraceBatch
from etalumis.storage.errors import DatasetError
from etalumis.storage.index import TraceIndex
from etalumis.storage.merge import Sources

BASE_MB = 96  # a process before it holds any trace: the interpreter, NumPy, this package
_HELD = 5  # how often a group of traces is in memory at the most: read, joined, selected, encoded, on its way
_OWN_SHARE = 4  # types of at least chunk_size / this many traces get chunks of their own
_TRACE_BYTES = 80  # of each trace while the order is found
_DRAW_BYTES = 62  # of one scalar draw in the columns of a TraceBatch


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps of a sort of N traces into C chunks.

    Attributes:
        rank: place of each trace of the sources in the sorted order, int64 (N,).
        chunks: where each chunk starts in that order, and N, int64 (C + 1,).
        shards: the first chunk of each shard, and C.
        groups: the first chunk of each group of chunks that is put together at once, and C; a shard starts a group.
        runs: the first source chunk of each run that is read and divided at once, and their number.
    """

    rank: NDArray[np.int64]
    chunks: NDArray[np.int64]
    shards: list[int]
    groups: list[int]
    runs: list[int]


def make_plan(sources: Sources, chunk_size: int, shard_bytes: float, memory_mb: float) -> Plan:
    """Plan the sort of some datasets.

    Args:
        sources: the datasets.
        chunk_size: most traces to a storage chunk.
        shard_bytes: about how large shards become.
        memory_mb: MiB that each process may use.

    Raises:
        DatasetError: that is too little for a single chunk.
    """
    index = TraceIndex.concatenate([dataset.index for dataset in sources.datasets])
    of_type = np.lexsort((index.types, index.controlled))
    place = np.empty(len(of_type), dtype=np.int64)
    place[of_type] = np.arange(len(of_type))
    counts = np.bincount(place[index.type], minlength=len(of_type))
    order, chunks = _arrange(counts.tolist(), chunk_size)
    turn = np.empty(len(order), dtype=np.int64)
    turn[order] = np.arange(len(order))
    sorted_traces = np.lexsort((sources.index(), turn[place][index.type]))
    rank = np.empty(len(index), dtype=np.int64)
    rank[sorted_traces] = np.arange(len(index))

    entries = [entry for dataset in sources.datasets for entry in dataset.chunks]
    memory = sum(entry.memory for entry in entries)
    draws = sum(entry.draws for entry in entries)
    each = max(memory - _DRAW_BYTES * draws, 0) / len(index)
    weight = np.add.reduceat(each + _DRAW_BYTES * index.length[sorted_traces].astype(np.float64), chunks[:-1])
    stored = sum(entry.size for entry in entries) / memory
    sizes = np.array([entry.memory for entry in entries], dtype=np.float64)
    most = budget(memory_mb, len(index), max(float(weight.max()), float(sizes.max())))
    shards = list(packed(weight * stored, shard_bytes))
    groups = [
        first + start for first, last in pairwise(shards) for start in list(packed(weight[first:last], most))[:-1]
    ]
    return Plan(rank, chunks, shards, [*groups, shards[-1]], list(packed(sizes, most)))


def budget(memory_mb: float, traces: int, largest: float) -> float:
    """Bytes of decoded traces that a process may work on at once.

    Args:
        memory_mb: MiB that it may use.
        traces: how many are sorted.
        largest: bytes of the largest storage chunk.

    Raises:
        DatasetError: they are more.
    """
    base_mb = BASE_MB + _TRACE_BYTES * traces / 2**20
    most = (memory_mb - base_mb) * 2**20 / _HELD
    if largest > most:
        needed = int(base_mb) + int(largest * _HELD / 2**20) + 2
        raise DatasetError(
            f"memory_mb={memory_mb:g} is too little: the largest storage chunk needs {needed}; give that, or a smaller "
            "chunk_size (to simulate, if it is one of the input; else to sort, into another folder)"
        )
    return most


def weigh(batch: TraceBatch) -> NDArray[np.float64]:
    """Bytes of each trace of a batch in its arrays, float64 (N,)."""
    values = np.bincount(batch.trace_of_draw, np.diff(batch.value_offsets), len(batch))
    weight = (_DRAW_BYTES - 8) * batch.lengths + 8.0 * values
    for column in batch.observes:
        arrays = [*column.parameters, *(() if column.values is None else (column.values,))]
        of_row = sum(array.nbytes / len(array) for array in arrays if len(array) == len(column))
        weight += of_row * np.bincount(column.rows, minlength=len(batch))
    for tag in (*batch.tags, batch.result):
        if isinstance(tag.values, np.ndarray) and len(tag):
            weight += tag.values.nbytes / len(tag) * np.bincount(tag.rows, minlength=len(batch))
    whole = sum(array.nbytes for array in batch.to_arrays()[0].values())
    return np.asarray(weight + max(whole - weight.sum(), 0.0) / len(batch))


def _arrange(counts: list[int], chunk_size: int) -> tuple[list[int], NDArray[np.int64]]:
    """The order of the types, and where chunks start, given how many traces each has, by length."""
    order: list[int] = []
    sizes: list[int] = []
    shared: list[int] = []
    waiting = 0
    for kind, count in enumerate(counts):
        if _OWN_SHARE * count >= chunk_size:
            pieces = -(-count // chunk_size)
            order.append(kind)
            sizes += [count * (k + 1) // pieces - count * k // pieces for k in range(pieces)]
            continue
        if waiting + count > chunk_size:
            order += shared
            sizes.append(waiting)
            shared, waiting = [], 0
        shared.append(kind)
        waiting += count
    if shared:
        order += shared
        sizes.append(waiting)
    return order, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def packed(weights: NDArray[np.float64], capacity: float) -> Iterator[int]:
    """Where to cut a sequence so that the parts weigh at most ``capacity`` (or are single), and its length."""
    held = 0.0
    for number, weight in enumerate(weights.tolist()):
        if not number or held + weight > capacity:
            yield number
            held = 0.0
        held += weight
    yield len(weights)
