"""The two steps of a sort that touch data: dividing a run of source chunks, and putting groups of chunks together.

Every trace is read once, written once to a run file in the work folder, read from there once, and written once to its
shard. A run file holds, one after the other, the run's traces for each group, in their final order.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import AddressBook, TraceBatch
from etalumis.storage.chunk import Encoding, address_entry, encode_chunk
from etalumis.storage.codec import decode_arrays, encode_arrays
from etalumis.storage.errors import DatasetError
from etalumis.storage.manifest import ADDRESSES, to_bytes, write_atomically
from etalumis.storage.merge import Sources
from etalumis.storage.plan import Plan, weigh
from etalumis.storage.tar import END_OF_ARCHIVE, pack_span, unpack_span
from etalumis.storage.tidy import tidy

_RANK = "rank"  # an array beside a batch's own: the places of its traces in the sorted order


@dataclass(frozen=True)
class Workshop:
    """The work folder of a sort: what its processes share. Sent to workers as its few settings.

    Args:
        directory: the folder.
        inputs: folders of the sources.
        shifts: what is added to the indices of the traces of each.
        encoding: of the sorted chunks.
    """

    directory: Path
    inputs: tuple[str, ...]
    shifts: tuple[int, ...]
    encoding: Encoding

    def __reduce__(self) -> tuple[type[Workshop], tuple[Any, ...]]:
        return Workshop, (self.directory, self.inputs, self.shifts, self.encoding)  # not what was read here

    @cached_property
    def sources(self) -> Sources:
        return Sources(self.inputs, self.shifts)

    @cached_property
    def addresses(self) -> AddressBook:
        return self.sources.addresses

    @cached_property
    def plan(self) -> Plan:
        steps = json.loads((self.directory / "plan.json").read_bytes())
        rank = np.load(self.directory / "rank.npy", mmap_mode="r", allow_pickle=False)
        chunks = np.array(steps["chunks"], dtype=np.int64)
        return Plan(rank, chunks, steps["shards"], steps["groups"], steps["runs"])

    def publish(self, plan: Plan) -> None:
        """Leave a plan for the other processes."""
        with (self.directory / "rank.npy").open("wb") as file:
            np.save(file, plan.rank, allow_pickle=False)
        steps = {"shards": plan.shards, "groups": plan.groups, "runs": plan.runs, "chunks": plan.chunks.tolist()}
        write_atomically(self.directory / "plan.json", to_bytes(steps))
        write_atomically(self.directory / ADDRESSES, to_bytes(self.addresses.to_json()))

    def run_path(self, number: int) -> Path:
        """The file of a run; it is there when it is complete."""
        return self.directory / f"run-{number:06d}.tar"

    def divide(self, number: int) -> list[bytes]:
        """Read run ``number`` and store its traces by group."""
        plan, sources = self.plan, self.sources
        places = sources.places[plan.runs[number] : plan.runs[number + 1]]
        batches = [sources.read(place) for place in places]
        start = places[0].position
        whole = TraceBatch.concatenate(batches)
        del batches
        rank = np.array(plan.rank[start : start + len(whole)])
        order = np.argsort(rank)
        weight = np.bincount(np.searchsorted(plan.chunks, rank, side="right") - 1, weigh(whole))
        starts = plan.chunks[plan.groups]
        cuts = np.searchsorted(rank[order], starts)
        part = self.run_path(number).with_suffix(".part")
        table: list[list[int]] = []
        with part.open("wb") as file:
            for group, (first, last) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)):
                if first == last:
                    continue
                rows = order[first:last]
                span = _pack(group, whole.select(rows), rank[rows])
                table.append([group, file.tell(), len(span), zlib.crc32(span)])
                file.write(span)
            file.write(END_OF_ARCHIVE)
        held = {"pieces": table, "bytes": [[chunk, weight[chunk]] for chunk in np.flatnonzero(weight).tolist()]}
        write_atomically(self.run_path(number).with_suffix(".json"), to_bytes(held))
        part.replace(self.run_path(number))
        return []

    def weights(self) -> NDArray[np.float64]:
        """Bytes of the traces of each sorted chunk, float64 (C,); known when all runs are divided."""
        weight = np.zeros(len(self.plan.chunks) - 1)
        for held in self._held:
            for chunk, size in held["bytes"]:
                weight[chunk] += size
        return weight

    def assemble(self, task: tuple[int, int, int]) -> list[bytes]:
        """Encode some chunks of a group.

        Args:
            task: the group, the first chunk, and the one after the last.

        Returns:
            per chunk: JSON of what its dataset must know of it, sites with the dataset's ids, and its tar entries.
        """
        group, first, last = task
        plan = self.plan
        start, stop = int(plan.chunks[first]), int(plan.chunks[last])
        pieces: list[tuple[TraceBatch, NDArray[np.int64]]] = []
        for run in range(len(plan.runs) - 1):
            for batch, rank in self._pieces(run, group):
                rows = np.flatnonzero((start <= rank) & (rank < stop))
                if len(rows):
                    pieces.append((batch, rank) if len(rows) == len(rank) else (batch.select(rows), rank[rows]))
        rank = np.concatenate([rank for _, rank in pieces])
        whole = TraceBatch.concatenate([batch for batch, _ in pieces])
        del pieces
        order = np.argsort(rank)
        out: list[bytes] = []
        for chunk in range(first, last):
            rows = order[plan.chunks[chunk] - start : plan.chunks[chunk + 1] - start]
            encoded = encode_chunk(chunk, tidy(whole.select(rows)), self.encoding)
            ids = np.array([self.addresses.find(address) for address in encoded.addresses.entries], dtype=np.int32)
            encoded = replace(encoded, sites=encoded.sites.remap(ids))
            out += [encoded.header(), address_entry(chunk, ids) + encoded.span]
        return out

    @property
    def _held(self) -> Iterator[dict[str, Any]]:
        """What was written down of each run."""
        for run in range(len(self.plan.runs) - 1):
            yield json.loads(self.run_path(run).with_suffix(".json").read_bytes())

    @cached_property
    def _tables(self) -> list[dict[int, list[int]]]:
        """Where the traces for each group lie in each run file."""
        return [{group: place for group, *place in held["pieces"]} for held in self._held]

    def _pieces(self, run: int, group: int) -> list[tuple[TraceBatch, NDArray[np.int64]]]:
        place = self._tables[run].get(group)
        if place is None:
            return []
        offset, size, crc32 = place
        path = self.run_path(run)
        with path.open("rb") as file:
            file.seek(offset)
            span = bytearray(file.read(size))
        if zlib.crc32(span) != crc32:
            raise DatasetError(f"{path} is damaged; delete {self.directory} and sort again")
        return [_unpack(group, span, self.addresses)]


def _key(group: int) -> str:
    return f"{group:09d}"


def _pack(group: int, batch: TraceBatch, rank: NDArray[np.int64]) -> bytes:
    arrays, meta = tidy(batch).to_arrays()
    return pack_span(_key(group), encode_arrays({**arrays, _RANK: rank}, meta))


def _unpack(group: int, span: bytearray, addresses: AddressBook) -> tuple[TraceBatch, NDArray[np.int64]]:
    arrays, meta = decode_arrays(unpack_span(_key(group), span))
    rank = arrays.pop(_RANK)
    return TraceBatch.from_arrays(arrays, meta, addresses), rank
