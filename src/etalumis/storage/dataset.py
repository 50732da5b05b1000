"""Reads datasets: any storage chunk with one positioned read, checked."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from etalumis.execution import TraceBatch
from etalumis.storage.chunk import decode
from etalumis.storage.errors import MALFORMED, DatasetError
from etalumis.storage.index import TraceIndex
from etalumis.storage.manifest import ChunkEntry, Manifest, load_addresses, load_index, shard_name
from etalumis.storage.sites import Sites, join_observed, observed
from etalumis.storage.tar import END_OF_ARCHIVE, unpack_span
from etalumis.storage.verify import broken_rules


class Dataset:
    """A finished dataset on disk. Safe to share over threads and forked processes, and to send to spawned ones.

    Args:
        directory: the folder that ``etalumis simulate`` wrote.
        check: that all shards are there in their full size.

    Raises:
        DatasetError: there is no dataset, it is unfinished, or files are missing, truncated or foreign.
    """

    def __init__(self, directory: str | Path, check: bool = True) -> None:
        self.directory = Path(directory)
        self.manifest = Manifest.load(self.directory)
        self.addresses = load_addresses(self.directory, self.manifest.addresses_crc32)
        self._files: dict[int, int] = {}
        for _, wrong in self.misfits() if check else ():
            raise DatasetError(wrong)

    def __len__(self) -> int:
        """Number of traces."""
        return self.manifest.traces

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.origin.model

    @property
    def index(self) -> TraceIndex:
        """Type, length and index of every trace, in the order of storage; read from disk at first use."""
        return self._index[0]

    @property
    def sites(self) -> Sites:
        """The addresses of draws that a network may propose; read from disk at first use."""
        return self._index[1]

    @cached_property
    def _index(self) -> tuple[TraceIndex, Sites]:
        return load_index(self.directory, self.manifest)

    @property
    def chunks(self) -> tuple[ChunkEntry, ...]:
        """The storage chunks in order."""
        return self.manifest.chunks

    def read(self, number: int) -> TraceBatch:
        """Storage chunk ``number`` (from 0).

        Raises:
            DatasetError: its bytes are not those that were written.
        """
        chunk = self.chunks[number]
        members = self.members(number)
        path = self.directory / shard_name(chunk.shard)
        try:
            batch = decode(members, self.addresses, chunk.memory)
        except (DatasetError, *MALFORMED) as error:
            raise DatasetError(f"{path}, chunk {number}: {error}") from error
        if len(batch) != chunk.traces:
            raise DatasetError(f"{path}, chunk {number}: {len(batch)} traces, the manifest says {chunk.traces}")
        return batch

    def members(self, number: int) -> dict[str, memoryview]:
        """What a storage chunk is made of: the content of its tar members by field.

        Raises:
            DatasetError: its bytes are not those that were written.
        """
        chunk = self.chunks[number]
        span = self._bytes(chunk)
        path = self.directory / shard_name(chunk.shard)
        if zlib.crc32(span) != chunk.crc32:
            raise DatasetError(
                f"{path} is damaged: chunk {number} (bytes {chunk.offset} to {chunk.offset + chunk.size}) does not "
                "have the checksum of the manifest; copy the file again, or simulate the dataset anew"
            )
        try:
            return unpack_span(None, span)  # numbered as made: not those of which nothing was left
        except DatasetError as error:
            raise DatasetError(f"{path}, chunk {number}: {error}") from error

    def verify(self, number: int, densities: bool = True) -> None:
        """Check all that can be known of storage chunk ``number``: its bytes, and that its traces are traces.

        Args:
            number: of the chunk.
            densities: compute all densities anew, which takes most of the time.

        Raises:
            DatasetError: naming the chunk and everything found wrong with it.
        """
        chunk = self.chunks[number]
        batch = self.read(number)
        start = self._starts[number]
        wrong = list(broken_rules(batch, chunk, self.index[start : start + chunk.traces], densities))
        if not self.sites.holds(Sites.of(batch), start, chunk.traces):
            wrong.append("its controlled draws are not those of the dataset's index")
        if join_observed([self.manifest.observes, observed(batch)]) != self.manifest.observes:
            wrong.append("its observations are not those of the manifest")
        if wrong:
            path = self.directory / shard_name(chunk.shard)
            raise DatasetError(f"{path}, chunk {number}: {'; '.join(wrong)}")

    @cached_property
    def _starts(self) -> list[int]:
        """The position of each chunk's first trace."""
        return [0, *accumulate(chunk.traces for chunk in self.chunks)]

    def batches(self) -> Iterator[TraceBatch]:
        """All chunks in order."""
        return map(self.read, range(len(self.chunks)))

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if "_files" in self.__dict__:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Neither open files nor the index, which reading does not need.
        return {key: value for key, value in self.__dict__.items() if key != "_index"} | {"_files": {}}

    def __repr__(self) -> str:
        return f"Dataset({str(self.directory)!r}, model={self.name!r}, {len(self)} traces, {len(self.chunks)} chunks)"

    def _bytes(self, chunk: ChunkEntry) -> bytearray:
        file = self._files.get(chunk.shard)
        if file is None:
            path = self.directory / shard_name(chunk.shard)
            file = self._files[chunk.shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        there = max(os.fstat(file).st_size - chunk.offset, 0)
        span = bytearray(min(chunk.size, there))  # of a truncated file, less; the checksum tells
        view, done = memoryview(span), 0
        while done < len(span):
            count = os.preadv(file, [view[done:]], chunk.offset + done)
            if count == 0:
                break  # truncated since it was opened: the checksum tells
            done += count
        return span

    def misfits(self) -> Iterator[tuple[int, str]]:
        """Shards that are not the files which the manifest lists, with what is wrong."""
        ends: dict[int, int] = {}
        for chunk in self.chunks:
            ends[chunk.shard] = chunk.offset + chunk.size
        for number, expected in enumerate(self.manifest.shards):
            path = self.directory / shard_name(number)
            size = path.stat().st_size if path.is_file() else None
            if size is None:
                yield (
                    number,
                    f"{path} is missing ({len(self.manifest.shards)} shards in all); copy the folder again, or "
                    "simulate the dataset anew",
                )
            elif size != expected:
                yield (
                    number,
                    f"{path} has {size} bytes, the manifest says {expected}: it is truncated, not yet copied, or of "
                    "another dataset; copy it again, or simulate the dataset anew",
                )
            elif ends.get(number, 0) + len(END_OF_ARCHIVE) != expected:
                yield number, f"{path} and the list of chunks in the manifest do not belong together"
