"""What a dataset says about itself: ``manifest.json`` beside its shards and ``addresses.json``."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from etalumis.execution import AddressBook
from etalumis.storage import forms
from etalumis.storage.errors import MALFORMED, DatasetError
from etalumis.storage.index import TraceIndex, from_bytes
from etalumis.storage.index import to_bytes as pack_arrays
from etalumis.storage.sites import Sites

FORMAT = "etalumis-traces"
VERSION = 3
MANIFEST = "manifest.json"
ADDRESSES = "addresses.json"
INDEX = "index.tar"
JOURNAL = "unfinished.jsonl"
_INDEX_BYTES = 1 << 16  # of an index, beside what traces take
SORTING = "sorting"  # the folder that a sort works in


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:06d}.tar"


@dataclass(frozen=True)
class ChunkEntry:
    """Where a storage chunk lies and what it holds.

    Attributes:
        shard, offset, size: its bytes: ``size`` of them from ``offset`` on in that shard.
        crc32: their checksum.
        first: index of its first trace.
        traces, draws, controlled: counts; ``controlled`` of draws that a network may propose.
        types: number of trace types.
        shortest, longest: draws of its shortest and longest trace.
        memory: bytes of its arrays when decoded.
    """

    shard: int
    offset: int
    size: int
    crc32: int
    first: int
    traces: int
    draws: int
    controlled: int
    types: int
    shortest: int
    longest: int
    memory: int


@dataclass(frozen=True)
class Origin:
    """What a dataset was made from; equal origins give equal datasets, byte for byte.

    Attributes:
        model: the model's name.
        seed: of its random numbers.
        num_traces, chunk_size: how many traces, and how many to a storage chunk.
        simulator: the configuration that the model was built from, as plain JSON.
        encoding: how chunks are stored.
        sources: of a sorted dataset, the origins of those it was sorted from, as plain JSON, with the checksums of
            their manifests.
        shard_bytes: of a sorted dataset, about how large its shards became.
    """

    model: str
    seed: int = 0
    num_traces: int | None = None
    chunk_size: int | None = None
    simulator: Mapping[str, Any] = field(default_factory=dict)
    encoding: Mapping[str, Any] = field(default_factory=dict)
    sources: Sequence[Mapping[str, Any]] = field(default_factory=list)
    shard_bytes: int | None = None


@dataclass(frozen=True)
class Manifest:
    """A finished dataset.

    Attributes:
        origin: what it was made from.
        traces, draws, controlled, trace_types: counts over all chunks.
        shortest, longest: draws of the shortest and longest trace.
        observes: name to what :func:`.sites.observed` says of it.
        shards: bytes of each shard.
        chunks: the storage chunks in order.
        addresses_crc32: checksum of the address dictionary that the chunks' ids refer to.
        index_crc32: checksum of ``index.tar``, which holds type, length and index of every trace, and
            the sites.
        failures: what is said of the executions that failed and were left out, by :class:`.failures.Failures`.
    """

    origin: Origin
    traces: int
    draws: int
    controlled: int
    trace_types: int
    shortest: int
    longest: int
    observes: Mapping[str, Mapping[str, Any]]
    shards: tuple[int, ...]
    chunks: tuple[ChunkEntry, ...]
    addresses_crc32: int
    index_crc32: int
    failures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(self.shards)

    def to_json(self) -> dict[str, Any]:
        """Plain containers."""
        columns = {name: [getattr(chunk, name) for chunk in self.chunks] for name in ChunkEntry.__annotations__}
        return {"format": FORMAT, "version": VERSION, **asdict(self), "chunks": columns}

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read the manifest of a finished dataset.

        Raises:
            DatasetError: there is none, the dataset is unfinished, or the file is not one of ours.
        """
        path = directory / MANIFEST
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DatasetError(_absent(directory)) from error
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path} is not JSON ({error}); simulate the dataset anew") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise DatasetError(f"{path} is not the manifest of an etalumis dataset; is {directory} the right folder?")
        if document.get("version") != VERSION:
            raise DatasetError(
                f"{path} has format version {document.get('version')}, this etalumis reads version {VERSION}; "
                "install the etalumis that wrote it, or simulate the dataset anew"
            )
        try:
            columns = document.pop("chunks")
            names = list(ChunkEntry.__annotations__)
            rows = zip(*(columns[name] for name in names), strict=True)
            fields = {name: document[name] for name in cls.__annotations__ if name in document}
            fields["origin"] = Origin(**document["origin"])
            fields["shards"] = tuple(document["shards"])
            manifest = cls(**fields, chunks=tuple(ChunkEntry(*row) for row in rows))
            forms.check(manifest)
        except MALFORMED as error:
            raise DatasetError(f"{path} is damaged ({error}); simulate the dataset anew") from error
        return manifest


def complete(
    directory: Path,
    origin: Origin,
    chunks: Sequence[ChunkEntry],
    shards: int,
    addresses: AddressBook,
    index: TraceIndex,
    sites: Sites,
    observes: Mapping[str, Mapping[str, Any]],
    failures: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write what makes closed shards a dataset: the address dictionary, the index, and last the manifest."""
    dictionary = to_bytes(addresses.to_json())
    traces = pack_arrays({**index.to_arrays(), **sites.to_arrays()})
    manifest = Manifest(
        origin=origin,
        traces=sum(chunk.traces for chunk in chunks),
        draws=sum(chunk.draws for chunk in chunks),
        controlled=sum(chunk.controlled for chunk in chunks),
        trace_types=len(index.types),
        shortest=min(chunk.shortest for chunk in chunks),
        longest=max(chunk.longest for chunk in chunks),
        observes=observes,
        shards=tuple((directory / shard_name(number)).stat().st_size for number in range(shards)),
        chunks=tuple(chunks),
        addresses_crc32=zlib.crc32(dictionary),
        index_crc32=zlib.crc32(traces),
        failures=failures or {},
    )
    write_atomically(directory / ADDRESSES, dictionary)
    write_atomically(directory / INDEX, traces)
    write_atomically(directory / MANIFEST, to_bytes(manifest.to_json()))
    return manifest


def finished(output: Path, origin: Origin) -> Manifest | None:
    """The manifest in a folder where it holds exactly this dataset, None where it holds none.

    Raises:
        DatasetError: it holds another dataset.
    """
    if not (output / MANIFEST).exists():
        return None
    found = Manifest.load(output)
    ours, theirs = json.loads(to_bytes(asdict(origin))), asdict(found.origin)
    differing = [key for key in ours if ours[key] != theirs[key]]
    if differing:
        raise DatasetError(
            f"{output} already holds a dataset made with other settings ({', '.join(differing)}); "
            "choose another folder, or delete it first"
        )
    return found


def load_addresses(directory: Path, crc32: int) -> AddressBook:
    """The address dictionary of a dataset, checked against the manifest's checksum."""
    path = directory / ADDRESSES
    try:
        return AddressBook.from_json(json.loads(_companion(path, crc32)))
    except MALFORMED as error:
        raise DatasetError(f"{path} is no address dictionary ({error}); simulate the dataset anew") from error


def load_index(directory: Path, manifest: Manifest) -> tuple[TraceIndex, Sites]:
    """Type, length and index of every trace of a dataset, and its sites, checked against the manifest's checksum."""
    path = directory / INDEX
    limit = _INDEX_BYTES + 40 * manifest.traces + 32 * manifest.controlled  # its arrays as they are in memory
    content = _companion(path, manifest.index_crc32)
    try:
        arrays = from_bytes(content, limit)
        return TraceIndex.from_arrays(arrays), Sites.from_arrays(arrays)
    except (DatasetError, *MALFORMED) as error:
        raise DatasetError(f"{path} can't be read ({error}); simulate the dataset anew") from error


def _companion(path: Path, crc32: int) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing; copy the whole folder again, or simulate the dataset anew") from error
    if zlib.crc32(content) != crc32:
        raise DatasetError(
            f"{path} does not belong to the manifest beside it (checksum differs): one of them is damaged or "
            "comes from another dataset; copy the whole folder again, or simulate the dataset anew"
        )
    return content


def to_bytes(document: Any) -> bytes:
    """A JSON document as it is written to disk."""
    return (json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either absent (or as it was) or complete, whatever happens."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _absent(directory: Path) -> str:
    if (directory / JOURNAL).exists():
        return (
            f"{directory} holds an unfinished dataset: run the same simulate command again, it goes on where it stopped"
        )
    if (directory / SORTING).exists():
        return f"{directory} holds an unfinished sort: run the same sort command again, it goes on where it stopped"
    what = "does not exist" if not directory.is_dir() else f"holds no dataset (no {MANIFEST})"
    return f"{directory} {what}; make one with: etalumis simulate simulator=tau num_traces=10000 output={directory}"
