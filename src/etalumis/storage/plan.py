"""What a sort will do, decided before any data is read: from the index of the traces alone.

The order of traces is by (controlled draws of the type, type, trace index). Types with traces enough get storage
chunks of their own; rare ones share chunks with those next in length. Chunks, and the shards that they lie in,
depend on the traces alone; the steps of the work (runs to read, groups of chunks to write) also on the memory that a
process may use, never on how many processes there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

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
    base_mb = BASE_MB + _TRACE_BYTES * len(index) / 2**20
    budget = (memory_mb - base_mb) * 2**20 / _HELD
    largest = max(float(weight.max()), max(entry.memory for entry in entries))
    if largest > budget:
        needed = int(base_mb) + int(largest * _HELD / 2**20) + 2
        raise DatasetError(
            f"memory_mb={memory_mb:g} is too little: the largest storage chunk needs {needed}; give that, or "
            "simulate with a smaller chunk_size"
        )
    shards = list(_packed(weight * stored, shard_bytes))
    groups = [
        first + start for first, last in pairwise(shards) for start in list(_packed(weight[first:last], budget))[:-1]
    ]
    runs = list(_packed(np.array([entry.memory for entry in entries], dtype=np.float64), budget))
    return Plan(rank, chunks, shards, [*groups, shards[-1]], runs)


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


def _packed(weights: NDArray[np.float64], capacity: float) -> Iterator[int]:
    """Where to cut a sequence so that the parts weigh at most ``capacity`` (or are single), and its length."""
    held = 0.0
    for number, weight in enumerate(weights.tolist()):
        if not number or held + weight > capacity:
            yield number
            held = 0.0
        held += weight
    yield len(weights)
