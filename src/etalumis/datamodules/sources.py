"""Datasets to read from as one list of storage chunks, with one address dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import AddressBook, TraceBatch
from etalumis.storage import ChunkEntry, Dataset, DatasetError
from etalumis.storage.merge import refuse_doubles, runs_of
from etalumis.storage.sites import Sites, join_observed

_APART = 1 << 40  # between the trace indices of two datasets: the seed of a trace's noise must be its own
_SAMPLE = 3  # kind of random numbers
_SAMPLE_BYTES = 256 * 2**20


class JoinedDatasets:
    """The chunks of one or several datasets of one simulator, numbered through.

    Args:
        directories: the datasets' folders.

    Attributes:
        chunks: all chunks.
        dataset_of: the number of the dataset that each chunk is of.
        addresses: what address ids of all batches mean.

    Raises:
        DatasetError: a folder holds no whole dataset, or they come from different models.
    """

    def __init__(self, directories: Sequence[str | Path]) -> None:
        if not directories:
            raise DatasetError("no dataset is given: name at least one folder")
        self.datasets = [Dataset(directory) for directory in directories]
        first = self.datasets[0]
        for other in self.datasets[1:]:
            if other.name != first.name:
                raise DatasetError(
                    f"{first.directory} holds traces of {first.name!r}, {other.directory} of {other.name!r}; train "
                    "and validate with datasets of one simulator"
                )
        self.chunks: list[ChunkEntry] = [chunk for dataset in self.datasets for chunk in dataset.chunks]
        self._starts = [0, *accumulate(len(dataset.chunks) for dataset in self.datasets)]
        self.dataset_of = np.repeat(np.arange(len(self.datasets)), np.diff(self._starts)).tolist()
        self.addresses = first.addresses
        self._ids: list[NDArray[np.int32]] = []
        if len(self.datasets) > 1:
            self.addresses = AddressBook()
            self._ids = [self.addresses.merge(dataset.addresses) for dataset in self.datasets]

    @property
    def name(self) -> str:
        """The model's name."""
        return self.datasets[0].name

    def __len__(self) -> int:
        """Number of traces."""
        return sum(map(len, self.datasets))

    @property
    def by_type(self) -> bool:
        """Whether all datasets are sorted by trace type."""
        return all(dataset.manifest.origin.sources for dataset in self.datasets)

    def refuse_doubles(self, *others: JoinedDatasets) -> None:
        """A validation with traces that are trained with says nothing, and a trace that comes twice counts twice.

        Raises:
            DatasetError: two of the datasets hold the same traces.
        """
        every = [dataset for sources in (self, *others) for dataset in sources.datasets]
        refuse_doubles(run for dataset in every for run in runs_of(dataset))

    def read(self, number: int) -> TraceBatch:
        """Storage chunk ``number``."""
        which = self.dataset_of[number]
        batch = self.datasets[which].read(number - self._starts[which])
        if not self._ids:
            return batch
        return replace(batch.remap(self._ids[which], self.addresses), index=batch.index + which * _APART)

    def batches(self) -> Iterator[TraceBatch]:
        """All chunks in order."""
        return map(self.read, range(len(self.chunks)))

    @cached_property
    def sites(self) -> Sites:
        """The addresses of draws that a network may propose, traces by position in all chunks; nothing is read."""
        parts = [dataset.sites for dataset in self.datasets]
        if self._ids:
            parts = [part.remap(ids) for part, ids in zip(parts, self._ids, strict=True)]
        return Sites.concatenate(parts, map(len, self.datasets))

    @property
    def observes(self) -> dict[str, dict[str, Any]]:
        """What is observed, as in a manifest."""
        return join_observed(dataset.manifest.observes for dataset in self.datasets)

    def lengths(self) -> list[NDArray[np.int64]]:
        """Controlled draws of each trace of each chunk; known without reading them."""
        out: list[NDArray[np.int64]] = []
        for dataset in self.datasets:
            index = dataset.index
            controlled = index.controlled[index.type]
            out += np.split(controlled, np.cumsum([chunk.traces for chunk in dataset.chunks])[:-1])
        return out

    def sample(self, count: int, seed: int, chunks: int = 32) -> TraceBatch:
        """Traces drawn from chunks drawn by size, ``count`` or as many as 256 MiB hold (but at least 64)."""
        generator = np.random.default_rng((seed, _SAMPLE))
        sizes = np.array([chunk.traces for chunk in self.chunks])
        memory = sum(chunk.memory for chunk in self.chunks) / sizes.sum()
        count = min(count, max(int(_SAMPLE_BYTES / max(memory, 1.0)), 64), int(sizes.sum()))
        few = min(chunks, len(sizes))
        chosen = generator.choice(len(sizes), few, replace=False, p=sizes / sizes.sum())
        parts, left = [], count
        for place, number in enumerate(sorted(chosen.tolist(), key=sizes.__getitem__)):  # large ones make up for small
            share = min(-(-left // (few - place)), int(sizes[number]))
            left -= share
            parts.append(self.read(number).select(np.sort(generator.permutation(sizes[number])[:share])))
        return TraceBatch.concatenate(parts)

    def close(self) -> None:
        """Close all files; reading opens them again."""
        for dataset in self.datasets:
            dataset.close()


class HeldChunk(NamedTuple):
    """A chunk in memory: its number of traces, and its bytes."""

    traces: int
    memory: int


class Held:
    """Traces in memory, as chunks to read from."""

    def __init__(self, batches: Iterable[TraceBatch]) -> None:
        self._batches = list(batches)
        self.chunks = [HeldChunk(len(b), sum(a.nbytes for a in b.to_arrays()[0].values())) for b in self._batches]

    def read(self, number: int) -> TraceBatch:
        """Chunk ``number``."""
        return self._batches[number]

    def batches(self) -> Iterator[TraceBatch]:
        """All chunks in order."""
        return iter(self._batches)
