"""A shard of a sorted dataset in the making."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.storage.chunk import EncodedChunk
from etalumis.storage.manifest import ChunkEntry, shard_name, to_bytes
from etalumis.storage.plan import Plan, packed
from etalumis.storage.tar import END_OF_ARCHIVE


class SortedShard:
    """A shard in work and the list of its chunks, one line each, which tells where to go on.

    Attributes:
        start, stop: its first chunk, and the first of the next shard.
        lines: its chunks so far.
        traces: in them.
    """

    def __init__(self, output: Path, directory: Path, number: int, plan: Plan) -> None:
        self.start, self.stop = plan.shards[number : number + 2]
        self._plan = plan
        self._number = number
        self._final = output / shard_name(number)
        self._part = self._final.with_name(self._final.name + ".part")
        self._journal = directory / f"shard-{number:06d}.jsonl"
        self.lines, self._end = self._listed()

    @property
    def traces(self) -> int:
        return sum(line["chunk"]["traces"] for line in self.lines)

    def tasks(self, weight: NDArray[np.float64], most: float) -> list[tuple[int, int, int]]:
        """What is left to do: parts of groups as the group, the first chunk, and the one after the last.

        Args:
            weight: bytes of the traces of each chunk of the dataset.
            most: those of a part.
        """
        groups, following = self._plan.groups, self.start + len(self.lines)
        tasks: list[tuple[int, int, int]] = []
        for group, (start, last) in enumerate(pairwise(groups)):
            if self.start <= start and last <= self.stop and following < last:
                first = max(start, following)
                tasks += [(group, first + a, first + b) for a, b in pairwise(packed(weight[first:last], most))]
        return tasks

    def append(self, header: bytes, content: bytes) -> int:
        """Write the next chunk; returns its number of traces."""
        chunk = EncodedChunk.restore(header, b"")
        last = self.lines[-1]["chunk"] if self.lines else None
        offset = last["offset"] + last["size"] if last else 0
        entry = ChunkEntry(
            shard=self._number,
            offset=offset,
            size=len(content),
            crc32=zlib.crc32(content),
            **chunk.index.counts(),
            memory=chunk.memory,
        )
        line = {"chunk": asdict(entry), "index": chunk.index.to_text(), "sites": chunk.sites.to_text()}
        with self._part.open("r+b" if self._part.exists() else "w+b") as shard:
            shard.truncate(offset)  # what an interruption left behind the last listed chunk
            shard.seek(offset)
            shard.write(content)
        with self._journal.open("r+b" if self._journal.exists() else "w+b") as journal:
            journal.truncate(self._end)
            journal.seek(self._end)
            journal.write(to_bytes(line))
            self._end = journal.tell()
        self.lines.append(line)
        return len(chunk.index)

    def close(self) -> None:
        """Give the complete shard its name."""
        if self._final.exists():
            return
        last = self.lines[-1]["chunk"]
        with self._part.open("r+b") as shard:
            shard.truncate(last["offset"] + last["size"])
            shard.seek(0, os.SEEK_END)
            shard.write(END_OF_ARCHIVE)
            shard.flush()
            os.fsync(shard.fileno())
        self._part.replace(self._final)

    def _listed(self) -> tuple[list[dict[str, Any]], int]:
        """The whole lines of the list, and where they end."""
        lines: list[dict[str, Any]] = []
        end = 0
        if self._journal.exists():
            for line in self._journal.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    lines.append(json.loads(line))
                    end += len(line)
        return lines, end
