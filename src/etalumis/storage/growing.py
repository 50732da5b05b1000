"""A dataset in the making, which many processes may write at the same time: each shard is one process's own.

Which chunks make a shard depends on the dataset's settings alone, so the same shards come about whatever the number
of processes. ``unfinished.jsonl`` says what is being made; beside each shard its journal, ``shard-….jsonl``, lists
its chunks, and a shard in work is called ``….tar.part``. Whoever goes on after an interruption cuts each shard after
the last chunk listed. Ids in the member ``addresses.npy``, the last of each chunk, are the shard's own until all
shards are closed; then the dataset's dictionary is known and they are put right, where they stand.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import AddressBook
from etalumis.storage.chunk import EncodedChunk, address_entry
from etalumis.storage.errors import DatasetError, SimulationError
from etalumis.storage.failures import FailedTrace, summarise
from etalumis.storage.index import TraceIndex
from etalumis.storage.journal import Layout, Line, journal_of, part_of, read_journal, tidy_up
from etalumis.storage.manifest import (
    FORMAT,
    JOURNAL,
    MANIFEST,
    VERSION,
    ChunkEntry,
    Manifest,
    Origin,
    complete,
    shard_name,
    to_bytes,
)
from etalumis.storage.sites import Seen, Sites, join_observed
from etalumis.storage.tar import END_OF_ARCHIVE


class State(NamedTuple):
    """How far a dataset has come.

    Attributes:
        unfinished: how many chunks each shard has that is not closed yet.
        executions: in all shards, with those that failed.
    """

    unfinished: dict[int, int]
    executions: int


class GrowingShard:
    """One shard of a dataset in the making; a context manager. Closed by itself when it is full.

    Args:
        directory: the dataset's folder.
        number: of the shard.
        chunks: numbers of the chunks that it shall hold.

    Raises:
        DatasetError: the shard's file is shorter than its journal says.
    """

    def __init__(self, directory: Path, number: int, chunks: range) -> None:
        self.number = number
        self._chunks = chunks
        self._final = directory / shard_name(number)
        self._part = part_of(self._final)
        self._book = AddressBook()
        lines, length = read_journal(directory, number)
        self.done = len(lines)
        self.executions = sum(line.chunk.traces + len(line.failures) for line in lines)
        if self.full:
            self._finish(lines[-1].chunk)
            return
        for line in lines:
            for address in line.addresses:
                self._book.intern(*address)
        end = lines[-1].chunk.offset + lines[-1].chunk.size if lines else 0
        if end and (not self._part.exists() or self._part.stat().st_size < end):
            raise DatasetError(
                f"{self._part} is shorter than its journal says; delete {directory} and simulate it anew"
            )
        self._file = self._part.open("r+b" if self._part.exists() else "w+b")
        self._file.truncate(end)
        self._file.seek(end)
        self._journal = journal_of(directory, number).open("ab")
        self._journal.truncate(length)

    @property
    def full(self) -> bool:
        """Whether all its chunks are there."""
        return self.done == len(self._chunks)

    def append(self, chunk: EncodedChunk, failures: tuple[FailedTrace, ...] = ()) -> None:
        """Write the next chunk; nothing but its line in the journal where it has no traces."""
        known = len(self._book)
        ids = self._book.merge(chunk.addresses)
        entry = address_entry(self._chunks[self.done], ids) if chunk.span else b""
        placed = ChunkEntry(
            shard=self.number,
            offset=self._file.tell(),
            size=len(chunk.span) + len(entry),
            crc32=zlib.crc32(chunk.span),
            **chunk.index.counts(),
            memory=chunk.memory,
        )
        self._file.write(chunk.span)
        self._file.write(entry)
        self._file.flush()
        fresh = [list(address) for address in self._book.entries[known:]]
        traces, sites = chunk.index.to_text(), chunk.sites.to_text()
        line = Line(placed, ids.tolist(), fresh, traces, sites, chunk.observes, list(failures))
        self._journal.write(to_bytes(line.to_json()))
        self._journal.flush()
        self.done += 1
        self.executions += placed.traces + len(failures)
        if self.full:
            self.suspend()
            self._finish(placed)

    def suspend(self) -> None:
        """Stop; whoever opens the shard next goes on."""
        self._file.close()
        self._journal.close()

    def __enter__(self) -> GrowingShard:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.full:
            self.suspend()

    def _finish(self, last: ChunkEntry) -> None:
        if self._final.exists():
            return
        end = last.offset + last.size
        with self._part.open("r+b") as file:
            file.truncate(end)
            file.seek(end)
            file.write(END_OF_ARCHIVE)
            file.flush()
            os.fsync(file.fileno())
        self._part.replace(self._final)


class GrowingDataset:
    """The folder of a dataset in the making, held by one process; a context manager.

    Args:
        directory: made where absent. One with the unfinished dataset of the same ``origin`` is gone on with.
        origin: what the dataset is made from.
        layout: of its shards; an unfinished dataset keeps the one that it began with.

    Raises:
        DatasetError: the folder holds another dataset, or another process is writing there.
    """

    def __init__(self, directory: Path, origin: Origin, layout: Layout) -> None:
        self._directory, self._origin, self.layout = directory, origin, layout
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / JOURNAL
        if not path.exists() and any(directory.glob("shard-*")):
            raise DatasetError(
                f"{directory} holds shards without a {MANIFEST}; choose another folder, or delete them first"
            )
        self._header = path.open("a+b")
        try:
            self._lock()
            self._begin()
        except BaseException:
            self._header.close()
            raise

    def state(self) -> State:
        """How far it has come."""
        unfinished: dict[int, int] = {}
        executions = 0
        for number in range(self.layout.shards):
            lines, _ = read_journal(self._directory, number)
            executions += sum(line.chunk.traces + len(line.failures) for line in lines)
            whole = len(lines) == len(self.layout.of_shard(number))
            if not (whole and (self._directory / shard_name(number)).exists()):
                unfinished[number] = len(lines)
        return State(unfinished, executions)

    def complete(self) -> Manifest:
        """Make a dataset of the shards, all of which are closed."""
        book, chunks, observes = AddressBook(), list[ChunkEntry](), list[Seen]()
        indices, sites, failures = list[TraceIndex](), list[Sites](), list[FailedTrace]()
        for number in range(self.layout.shards):
            lines, _ = read_journal(self._directory, number)
            assert len(lines) == len(self.layout.of_shard(number)), number
            for line, (chunk, ids) in zip(lines, self._settle(number, lines, book), strict=True):
                failures += line.failures
                if not chunk.traces:
                    continue
                chunks.append(chunk)
                indices.append(TraceIndex.from_text(line.traces))
                sites.append(Sites.from_text(line.sites).remap(ids))
                observes.append(line.observes)
        if not chunks:
            raise SimulationError(
                f"every one of the {len(failures)} executions failed, the first with {failures[0].message!r}: correct "
                f"the simulator, delete {self._directory}, and simulate anew"
            )
        manifest = complete(
            self._directory,
            self._origin,
            chunks,
            self.layout.shards,
            book,
            TraceIndex.concatenate(indices),
            Sites.concatenate(sites, map(len, indices)),
            join_observed(observes),
            summarise(failures),
        )
        self.suspend()
        tidy_up(self._directory)
        return manifest

    def suspend(self) -> None:
        """Let go of the folder."""
        self._header.close()

    def __enter__(self) -> GrowingDataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.suspend()

    def _settle(
        self, number: int, lines: list[Line], book: AddressBook
    ) -> Iterator[tuple[ChunkEntry, NDArray[np.int32]]]:
        """Put the dataset's address ids into a shard's chunks; yields these, too."""
        mapping: list[int] = []
        with (self._directory / shard_name(number)).open("r+b") as file:
            for position, line in zip(self.layout.of_shard(number), lines, strict=True):
                mapping += [book.intern(*address) for address in line.addresses]
                ids = np.array([mapping[own] for own in line.ids], dtype=np.int32)
                if not line.chunk.traces:
                    yield line.chunk, ids
                    continue
                entry, chunk = address_entry(position, ids), line.chunk
                file.seek(chunk.offset + chunk.size - len(entry))
                file.write(entry)
                yield replace(chunk, crc32=zlib.crc32(entry, chunk.crc32)), ids
            file.flush()
            os.fsync(file.fileno())

    def _lock(self) -> None:
        try:
            fcntl.flock(self._header, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DatasetError(
                f"another process is writing {self._directory}; wait for it, or choose another folder"
            ) from error

    def _begin(self) -> None:
        ours = {"format": FORMAT, "version": VERSION, "origin": asdict(self._origin)}
        ours = json.loads(to_bytes({**ours, "per_shard": self.layout.per_shard}))
        self._header.seek(0)
        said = self._header.readline()
        if not said.endswith(b"\n"):  # killed before it was said
            self._header.truncate(0)
            self._header.write(to_bytes(ours))
            self._header.flush()
            return
        theirs = json.loads(said)
        origin = theirs.get("origin", {})
        differing = [key for key in ours["origin"] if origin.get(key) != ours["origin"][key]]
        if differing or "per_shard" not in theirs or any(theirs.get(k) != ours[k] for k in ("format", "version")):
            raise DatasetError(
                f"{self._directory} holds an unfinished dataset made with other settings "
                f"({', '.join(differing) or 'another format, or by another command'}): repeat its own command to "
                "finish it, choose another folder, or delete it"
            )
        self.layout = self.layout._replace(per_shard=int(theirs["per_shard"]))
