"""Which chunks make a shard, and the journals that list those which are done while a dataset grows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from etalumis.storage.failures import FailedTrace
from etalumis.storage.manifest import JOURNAL, ChunkEntry, shard_name

SHARD_TRACES = 65_536
_FEWEST = 16  # shards where there are chunks enough, so that processes can share them


class Layout(NamedTuple):
    """Which chunks a shard holds.

    Attributes:
        chunks: in the dataset.
        per_shard: in each shard; the last may hold fewer.
    """

    chunks: int
    per_shard: int

    @classmethod
    def of(cls, num_traces: int, chunk_size: int, shard_traces: int | None = None) -> Layout:
        """Shards of ``shard_traces``, or of a sixteenth of all and at most 65,536."""
        chunks = -(-num_traces // chunk_size)
        most = min(SHARD_TRACES, -(-num_traces // _FEWEST)) if shard_traces is None else shard_traces
        return cls(chunks, max(-(-most // chunk_size), 1))

    @property
    def shards(self) -> int:
        return -(-self.chunks // self.per_shard)

    def of_shard(self, shard: int) -> range:
        """Numbers of the chunks of a shard."""
        first = shard * self.per_shard
        return range(first, min(first + self.per_shard, self.chunks))


class Line(NamedTuple):
    """A chunk in a shard's journal.

    Attributes:
        chunk: its place; the checksum is that of its bytes before ``addresses.npy``.
        ids: the shard's id of each of its addresses.
        addresses: those that the shard did not have before.
        traces: the index of its traces, as text.
        sites: of its controlled draws, as text, with ids that it counts itself.
        observes: what :func:`.sites.observed` says of them.
        failures: of the executions that it lacks.
    """

    chunk: ChunkEntry
    ids: list[int]
    addresses: list[list[Any]]
    traces: str
    sites: str
    observes: Mapping[str, Mapping[str, Any]]
    failures: list[FailedTrace]

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "chunk": asdict(self.chunk)}

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Line:
        failures = [FailedTrace(*failure) for failure in line["failures"]]
        return cls(**{**line, "chunk": ChunkEntry(**line["chunk"]), "failures": failures})


def journal_of(directory: Path, number: int) -> Path:
    """The journal of a shard."""
    return directory / shard_name(number).replace(".tar", ".jsonl")


def part_of(shard: Path) -> Path:
    """What a shard in work is called."""
    return shard.with_name(f"{shard.name}.part")


def read_journal(directory: Path, number: int) -> tuple[list[Line], int]:
    """A shard's journal up to its last whole line, and the length of that; empty where there is none."""
    try:
        content = journal_of(directory, number).read_bytes()
    except FileNotFoundError:
        return [], 0
    length = content.rfind(b"\n") + 1
    return [Line.from_json(json.loads(line)) for line in content[:length].splitlines()], length


def tidy_up(directory: Path) -> None:
    """Remove the journals of a dataset that is complete."""
    for path in (directory / JOURNAL, *directory.glob("shard-*.jsonl")):
        path.unlink(missing_ok=True)
