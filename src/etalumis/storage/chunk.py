"""A storage chunk: up to about a thousand traces as tar members.

Ids in a chunk's columns are its own, counted from 0 in order of first use; the member ``addresses.npy`` holds the
dataset's id of each. So a chunk can be encoded anywhere, before the dataset's dictionary is known, its bytes depend
on its traces alone, and merging dictionaries rewrites one small member.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import AddressBook, TraceBatch
from etalumis.storage.codec import COMPRESSIONS, LIMIT, Buffer, decode_arrays, encode_arrays, from_npy, npy, zstandard
from etalumis.storage.errors import DatasetError
from etalumis.storage.index import TraceIndex
from etalumis.storage.precision import HALVES, narrow
from etalumis.storage.sites import Sites, observed
from etalumis.storage.tar import pack_span

_ADDRESSES = "addresses.npy"


@dataclass(frozen=True)
class Encoding:
    """How chunks are stored.

    Attributes:
        observes: ``"parameters"`` keeps the parameters of each likelihood and drops values that were only drawn
            from it (readers draw fresh ones); ``"both"`` keeps them.
        observe_dtype: type of likelihood parameters and values: ``"float64"``, ``"float32"``, ``"float16"`` or
            ``"bfloat16"``, each only for columns whose rounding the likelihood does not see (by
            :data:`.precision.TOLERANCE`), while others stay in the next wider one that does.
        force_dtype: round to ``observe_dtype`` though the likelihood can tell.
        sparse_above: share of zeros from which an array is stored sparsely; 1 never does.
        compression: ``"none"``, or ``"zstd"`` for members that it makes smaller.
    """

    observes: Literal["parameters", "both"] = "parameters"
    observe_dtype: Literal["float64", "float32", "float16", "bfloat16"] = "float32"
    force_dtype: bool = False
    sparse_above: float = 0.5
    compression: Literal["none", "zstd"] = "none"

    def __post_init__(self) -> None:
        if self.observes not in ("parameters", "both"):
            raise ValueError(f'encoding.observes is "parameters" or "both"; got {self.observes!r}')
        if self.observe_dtype not in ("float64", "float32", *HALVES):
            raise ValueError(
                f'encoding.observe_dtype is "float64", "float32", "float16" or "bfloat16"; got {self.observe_dtype!r}'
            )
        if not isinstance(self.force_dtype, bool):
            raise ValueError(f"encoding.force_dtype is true or false; got {self.force_dtype!r}")
        if not 0.0 <= self.sparse_above <= 1.0:
            raise ValueError(f"encoding.sparse_above is a share between 0 and 1; got {self.sparse_above!r}")
        if self.compression not in COMPRESSIONS:
            raise ValueError(f'encoding.compression is "none" or "zstd"; got {self.compression!r}')
        if self.compression == "zstd":
            zstandard()  # where it is missing that is said now

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class EncodedChunk:
    """A chunk's bytes and what its dataset must know of it.

    Attributes:
        span: tar entries of all members but ``addresses.npy``.
        addresses: the chunk's own dictionary.
        index: type, length and number of its traces.
        sites: of its controlled draws, with ids of ``addresses``.
        memory: bytes of its arrays when decoded.
        observes: what :func:`.sites.observed` says of them.
    """

    span: bytes
    addresses: AddressBook
    index: TraceIndex
    sites: Sites
    memory: int
    observes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> EncodedChunk:
        """A chunk all of whose executions failed: no traces, no bytes."""
        none = np.zeros(0, dtype=np.int64)
        index = TraceIndex(none.astype(np.uint64), none, none.astype(np.int32), none, none)
        return cls(b"", AddressBook(), index, Sites(none, none, none, none), 0)

    def header(self) -> bytes:
        """Everything but the span, as JSON."""
        return json.dumps(
            {
                "addresses": self.addresses.to_json(),
                "index": self.index.to_text(),
                "sites": self.sites.to_text(),
                "memory": self.memory,
                "observes": self.observes,
            }
        ).encode()

    @classmethod
    def restore(cls, header: bytes, span: bytes) -> EncodedChunk:
        """The inverse of :meth:`header`."""
        plain = json.loads(header)
        addresses = AddressBook.from_json(plain.pop("addresses"))
        index, sites = TraceIndex.from_text(plain.pop("index")), Sites.from_text(plain.pop("sites"))
        return cls(span=span, addresses=addresses, index=index, sites=sites, **plain)


def chunk_key(number: int) -> str:
    """The WebDataset key of a chunk."""
    return f"{number:09d}"


def address_entry(number: int, ids: NDArray[np.int32]) -> bytes:
    """The tar entry that a chunk's span lacks: the dataset's id of each of its own ids."""
    return pack_span(chunk_key(number), {_ADDRESSES: npy(ids)})


def encode(batch: TraceBatch, encoding: Encoding | None = None) -> dict[str, bytes]:
    """Members of a batch whose ids are already as they shall be stored: JSON and .npy only."""
    encoding = encoding or Encoding()
    arrays, meta = trim(batch, encoding).to_arrays()
    return encode_arrays(arrays, meta, encoding.sparse_above, encoding.compression)


def decode(members: Mapping[str, Buffer], addresses: AddressBook, limit: int = LIMIT) -> TraceBatch:
    """The batch in a chunk's members, with ids of the dataset's dictionary; its arrays may take ``limit`` bytes."""
    arrays, meta = decode_arrays(members, limit)
    batch = TraceBatch.from_arrays(arrays, meta, addresses)
    if _ADDRESSES not in members:
        return batch
    ids = from_npy(members[_ADDRESSES])
    for wrong in ids[(ids < 0) | (ids >= len(addresses))][:1].tolist():
        raise DatasetError(f"the chunk uses address {wrong}, the dictionary holds {len(addresses)}")
    try:
        return batch.remap(ids, addresses)
    except IndexError as error:
        raise DatasetError(f"the chunk has more addresses than its {len(ids)} ids of the dictionary") from error


def encode_chunk(number: int, batch: TraceBatch, encoding: Encoding) -> EncodedChunk:
    """Encode a batch as chunk ``number`` of a dataset."""
    used = _used(batch)
    own = AddressBook()
    ids = np.full(len(batch.addresses), -1, dtype=np.int32)
    for identifier in used:
        ids[identifier] = own.intern(*batch.addresses[identifier])
    batch = batch.remap(ids, own)
    arrays, meta = trim(batch, encoding).to_arrays()
    members = encode_arrays(arrays, meta, encoding.sparse_above, encoding.compression)
    return EncodedChunk(
        span=pack_span(chunk_key(number), members),
        addresses=own,
        index=TraceIndex.of(batch),
        sites=Sites.of(batch),
        memory=sum(array.nbytes for array in arrays.values()),
        observes=observed(batch),
    )


def trim(batch: TraceBatch, encoding: Encoding) -> TraceBatch:
    """The batch as it is kept: observes in the stored type, without values that can be drawn again."""
    columns = []
    for column in batch.observes:
        keep = column.observed or encoding.observes == "both"
        values = column.values if keep else None
        columns.append(narrow(replace(column, values=values), encoding.observe_dtype, encoding.force_dtype))
    return replace(batch, observes=tuple(columns))


def _used(batch: TraceBatch) -> list[int]:
    """The ids that a batch uses, draws first, in order of first use."""
    found, first = np.unique(batch.address, return_index=True)
    ids = found[np.argsort(first)].tolist()
    return list(dict.fromkeys([*ids, *(column.address for column in batch.observes)]))
