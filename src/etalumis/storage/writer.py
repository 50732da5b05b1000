"""Writes a dataset chunk by chunk, so that an interruption loses nothing that was written.

While a dataset grows, ``unfinished.jsonl`` lists its chunks, one line each, and the shard in work is called
``….tar.part``. Starting again on such a folder goes on after the last listed chunk. Finishing writes the
address dictionary, then the manifest, and removes the list: a folder with a manifest is complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from etalumis.execution import AddressBook, TraceBatch
from etalumis.storage.chunk import EncodedChunk, Encoding, address_entry, encode_chunk
from etalumis.storage.errors import DatasetError
from etalumis.storage.failures import FailedTrace, summarise
from etalumis.storage.index import TraceIndex
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
from etalumis.storage.sites import Sites, join_observed
from etalumis.storage.tar import END_OF_ARCHIVE

SHARD_BYTES = 256 * 2**20


class ShardWriter:
    """Appends storage chunks to a dataset; a context manager that finishes it unless an exception leaves.

    Args:
        directory: the dataset's folder; made where absent. A folder with the unfinished dataset of the same
            ``origin`` is gone on with.
        origin: what the dataset is made from.
        shard_bytes: size from which a shard is closed and the next one begun.

    Raises:
        DatasetError: the folder holds another dataset, or another process is writing there.
    """

    def __init__(self, directory: str | Path, origin: Origin, shard_bytes: int = SHARD_BYTES) -> None:
        self.directory = Path(directory)
        self.origin = origin
        self.addresses = AddressBook()
        self.chunks: list[ChunkEntry] = []
        self._encoding = Encoding(**origin.encoding)
        self._shard_bytes = shard_bytes
        self._index: list[TraceIndex] = []
        self._sites: list[Sites] = []
        self._observes: dict[str, dict[str, Any]] = {}
        self._failures: list[FailedTrace] = []
        self.directory.mkdir(parents=True, exist_ok=True)
        self._refuse_other_data()
        self._journal = (self.directory / JOURNAL).open("a+b")
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._journal.close()
            raise DatasetError(
                f"another process is writing {directory}; wait for it, or choose another folder"
            ) from error
        try:
            self._restore()
        except BaseException:
            self._journal.close()
            raise

    @property
    def traces(self) -> int:
        """Traces written so far."""
        return sum(chunk.traces for chunk in self.chunks)

    def write(self, batch: TraceBatch) -> None:
        """Append a batch as one storage chunk."""
        self.append(encode_chunk(len(self.chunks), batch, self._encoding))

    def append(self, chunk: EncodedChunk, failures: Sequence[FailedTrace] = ()) -> None:
        """Append a chunk that was encoded, maybe by another process, as number ``len(self.chunks)``.

        Args:
            chunk: of that number.
            failures: executions that it lacks.
        """
        if self._shard.tell() >= self._shard_bytes:
            self._close_shard()
            self._open_shard(self._shard_number + 1, 0)
        known = len(self.addresses)
        ids = self.addresses.merge(chunk.addresses)
        entry = address_entry(len(self.chunks), ids)
        placed = ChunkEntry(
            shard=self._shard_number,
            offset=self._shard.tell(),
            size=len(entry) + len(chunk.span),
            crc32=zlib.crc32(chunk.span, zlib.crc32(entry)),
            **chunk.index.counts(),
            memory=chunk.memory,
        )
        self._shard.write(entry)
        self._shard.write(chunk.span)
        self._shard.flush()
        sites = chunk.sites.remap(ids)
        line = {
            "chunk": asdict(placed),
            "index": chunk.index.to_text(),
            "sites": sites.to_text(),
            "observes": chunk.observes,
            "addresses": self.addresses.entries[known:],
            "failures": failures,
        }
        self._journal.write(to_bytes(line))
        self._journal.flush()
        self._account(placed, chunk.index, sites, chunk.observes, failures)

    def close(self) -> Manifest:
        """Finish the dataset: from here on it is complete."""
        if not self.chunks:
            self.suspend()
            raise DatasetError(f"no traces were written to {self.directory}: a dataset needs at least one")
        self._close_shard()
        manifest = complete(
            self.directory,
            self.origin,
            self.chunks,
            self._shard_number + 1,
            self.addresses,
            TraceIndex.concatenate(self._index),
            Sites.concatenate(self._sites, map(len, self._index)),
            self._observes,
            summarise(self._failures),
        )
        (self.directory / JOURNAL).unlink()
        self._journal.close()
        return manifest

    def suspend(self) -> None:
        """Stop without finishing; another writer of the same origin goes on here."""
        self._shard.close()
        self._journal.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.suspend()

    # --- going on after an interruption -----------------------------------------------------------------------

    def _refuse_other_data(self) -> None:
        if (self.directory / MANIFEST).exists():
            raise DatasetError(f"{self.directory} already holds a dataset; choose another folder, or delete it first")
        if not (self.directory / JOURNAL).exists() and any(self.directory.glob("shard-*.tar*")):
            raise DatasetError(
                f"{self.directory} holds shards without a {MANIFEST}; choose another folder, or delete them first"
            )

    def _restore(self) -> None:
        """Read the journal up to its last whole line, and cut shard and journal there."""
        self._journal.seek(0)
        end = 0
        for number, line in enumerate(self._journal):
            if not line.endswith(b"\n"):
                break
            self._replay(number, json.loads(line))
            end += len(line)
        self._journal.truncate(end)
        if not end:
            header = {"format": FORMAT, "version": VERSION, "origin": asdict(self.origin)}
            self._journal.write(to_bytes(header))
            self._journal.flush()
        last = self.chunks[-1] if self.chunks else None
        self._open_shard(last.shard if last else 0, last.offset + last.size if last else 0)

    def _replay(self, number: int, line: dict[str, Any]) -> None:
        if number == 0:
            ours = json.loads(to_bytes(asdict(self.origin)))
            theirs = line.get("origin")
            if line.get("format") != FORMAT or line.get("version") != VERSION or theirs != ours:
                differing = [key for key in ours if not isinstance(theirs, dict) or theirs.get(key) != ours[key]]
                raise DatasetError(
                    f"{self.directory} holds an unfinished dataset made with other settings "
                    f"({', '.join(differing) or 'another format'}): repeat its own command to finish it, choose "
                    "another folder, or delete it"
                )
            return
        for address in line["addresses"]:
            self.addresses.intern(*address)
        index, sites = TraceIndex.from_text(line["index"]), Sites.from_text(line["sites"])
        failures = [FailedTrace(*failure) for failure in line["failures"]]
        self._account(ChunkEntry(**line["chunk"]), index, sites, line["observes"], failures)

    def _account(
        self, chunk: ChunkEntry, index: TraceIndex, sites: Sites, observes: Any, failures: Sequence[FailedTrace]
    ) -> None:
        self.chunks.append(chunk)
        self._index.append(index)
        self._sites.append(sites)
        self._observes = join_observed([self._observes, observes])
        self._failures += failures

    def _open_shard(self, number: int, end: int) -> None:
        self._shard_number = number
        final = self.directory / shard_name(number)
        part = final.with_name(final.name + ".part")
        if final.exists():  # closed, but the next chunk was never listed
            final.replace(part)
        if end and (not part.exists() or part.stat().st_size < end):
            raise DatasetError(f"{part} is shorter than {JOURNAL} says; delete {self.directory} and simulate anew")
        self._shard = part.open("r+b" if part.exists() else "w+b")
        self._shard.truncate(end)
        self._shard.seek(end)

    def _close_shard(self) -> None:
        part = Path(self._shard.name)
        self._shard.write(END_OF_ARCHIVE)
        self._shard.flush()
        os.fsync(self._shard.fileno())
        self._shard.close()
        part.replace(part.with_suffix(""))
