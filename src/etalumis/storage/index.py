"""What a dataset knows of each trace without reading it: type, length and index.

Stored beside the shards in ``index.tar``, in the same JSON and .npy members as a chunk: a byte or two per trace.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import TraceBatch
from etalumis.storage.codec import LIMIT, decode_arrays, encode_arrays
from etalumis.storage.errors import DatasetError
from etalumis.storage.tar import END_OF_ARCHIVE, pack_span, unpack_span

_KEY = "index"


@dataclass(frozen=True, eq=False)
class TraceIndex:
    """N traces of T types.

    Attributes:
        types: the distinct trace types (:meth:`.TraceBatch.trace_types`), sorted, uint64 (T,).
        controlled: controlled draws of a trace of each type, int64 (T,).
        type: row of each trace's type in ``types``, int32 (N,).
        length: draws of each trace, int64 (N,).
        index: its index in the run that made it, int64 (N,).
    """

    types: NDArray[np.uint64]
    controlled: NDArray[np.int64]
    type: NDArray[np.int32]
    length: NDArray[np.int64]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.type)

    def __getitem__(self, rows: slice) -> TraceIndex:
        """The index of some of the traces, with the same table of types."""
        return replace(self, type=self.type[rows], length=self.length[rows], index=self.index[rows])

    @classmethod
    def of(cls, batch: TraceBatch) -> TraceIndex:
        """The index of a batch."""
        types, first, of_trace = np.unique(batch.trace_types(), return_index=True, return_inverse=True)
        controlled = np.add.reduceat(np.append(batch.controlled, False), batch.offsets[:-1], dtype=np.int64)
        controlled[batch.lengths == 0] = 0  # reduceat gives the entry itself where a trace has no draws
        return cls(types, controlled[first], of_trace.astype(np.int32).reshape(-1), batch.lengths, batch.index)

    @classmethod
    def concatenate(cls, parts: Sequence[TraceIndex]) -> TraceIndex:
        """One index over consecutive ones."""
        types, first, rows = np.unique(np.concatenate([p.types for p in parts]), return_index=True, return_inverse=True)
        starts = np.cumsum([0, *(len(p.types) for p in parts)])
        rows = rows.reshape(-1).astype(np.int32)
        return cls(
            types,
            np.concatenate([p.controlled for p in parts])[first],
            np.concatenate([rows[start:][p.type] for start, p in zip(starts.tolist(), parts, strict=False)]),
            np.concatenate([p.length for p in parts]),
            np.concatenate([p.index for p in parts]),
        )

    def counts(self) -> dict[str, int]:
        """What a :class:`.ChunkEntry` says of these traces."""
        return {
            "first": int(self.index[0]) if len(self) else 0,
            "traces": len(self),
            "draws": int(self.length.sum()),
            "controlled": int(self.controlled[self.type].sum()),
            "types": len(self.types),
            "shortest": int(self.length.min()) if len(self) else 0,
            "longest": int(self.length.max(initial=0)),
        }

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The columns by name, as they are stored."""
        return {
            "types": self.types,
            "controlled": self.controlled,
            "type": self.type,
            "uncontrolled": self.length - self.controlled[self.type],  # most models have none: nothing is stored
            "index": self.index,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> TraceIndex:
        """The inverse of :meth:`to_arrays`.

        Raises:
            DatasetError: columns are missing or don't fit together.
        """
        try:
            types, controlled, of_trace, index = (arrays[key] for key in ("types", "controlled", "type", "index"))
            if of_trace.size and not 0 <= of_trace.min() <= of_trace.max() < len(types):
                raise ValueError("a trace type is unknown")
            return cls(types, controlled, of_trace, arrays["uncontrolled"] + controlled[of_trace], index)
        except (KeyError, ValueError, IndexError) as error:
            raise DatasetError(f"the index of traces does not add up ({error})") from error

    def to_text(self) -> str:
        """The columns in letters, for a line of JSON."""
        return to_text(self.to_arrays())

    @classmethod
    def from_text(cls, text: str) -> TraceIndex:
        """The inverse of :meth:`to_text`."""
        return cls.from_arrays(from_text(text))


def to_bytes(arrays: dict[str, NDArray[Any]]) -> bytes:
    """Columns as a tar archive of JSON and .npy members."""
    return pack_span(_KEY, encode_arrays(arrays, None)) + END_OF_ARCHIVE


def from_bytes(content: bytes, limit: int = LIMIT) -> dict[str, NDArray[Any]]:
    """The inverse of :func:`to_bytes`; the arrays may take ``limit`` bytes.

    Raises:
        DatasetError: the bytes are something else.
    """
    return decode_arrays(unpack_span(_KEY, bytearray(content[: -len(END_OF_ARCHIVE)])), limit)[0]


def to_text(arrays: dict[str, NDArray[Any]]) -> str:
    """Columns in letters, for a line of JSON."""
    return base64.b64encode(zlib.compress(to_bytes(arrays), 1)).decode()


def from_text(text: str) -> dict[str, NDArray[Any]]:
    """The inverse of :func:`to_text`."""
    return from_bytes(zlib.decompress(base64.b64decode(text)))
