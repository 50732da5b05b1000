"""The distinct distributions of a TraceBatch, each stored once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import BY_CODE, Distribution
from etalumis.execution.ragged import offsets_of


@dataclass(frozen=True, eq=False)
class DistributionTable:
    """T distinct distributions: ``code`` uint8 (T,), ``parameters`` flat with ``offsets`` (T + 1,), shapes."""

    code: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    parameters: NDArray[np.float64]
    shapes: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.code)

    def distribution(self, row: int) -> Distribution:
        """Row ``row`` as a distribution object."""
        packed = self.parameters[self.offsets[row] : self.offsets[row + 1]]
        return BY_CODE[int(self.code[row])].unpack(packed.tolist(), self.shapes[row])

    @classmethod
    def from_packed(cls, rows: Sequence[tuple[int, tuple[int, ...], Sequence[float]]]) -> DistributionTable:
        """A table of (code, shape, packed parameters)."""
        lengths = np.array([len(packed) for _, _, packed in rows], dtype=np.int64)
        return cls(
            np.array([code for code, _, _ in rows], dtype=np.uint8),
            offsets_of(lengths),
            np.array([x for _, _, packed in rows for x in packed], dtype=np.float64),
            tuple(shape for _, shape, _ in rows),
        )

    @classmethod
    def merge(cls, tables: Sequence[DistributionTable]) -> tuple[DistributionTable, list[NDArray[np.int32]]]:
        """One table with each distinct row once, and for each given table the new row of each of its rows."""
        rows: dict[tuple[int, tuple[int, ...], bytes], int] = {}
        codes: list[int] = []
        pieces: list[NDArray[np.float64]] = []
        maps: list[NDArray[np.int32]] = []
        for table in tables:
            mapping = np.empty(len(table), dtype=np.int32)
            for row, (code, shape) in enumerate(zip(table.code.tolist(), table.shapes, strict=True)):
                piece = table.parameters[table.offsets[row] : table.offsets[row + 1]]
                key = (code, shape, piece.tobytes())
                known = rows.get(key)
                if known is None:
                    known = rows[key] = len(rows)
                    codes.append(code)
                    pieces.append(piece)
                mapping[row] = known
            maps.append(mapping)
        lengths = np.array([len(p) for p in pieces], dtype=np.int64)
        merged = cls(
            np.array(codes, dtype=np.uint8),
            offsets_of(lengths),
            np.concatenate(pieces) if pieces else np.zeros(0),
            tuple(shape for _, shape, _ in rows),
        )
        return merged, maps

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return {"code": self.code, "lengths": np.diff(self.offsets), "parameters": self.parameters}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], shapes: Sequence[tuple[int, ...]]) -> DistributionTable:
        code = arrays["distributions.code"].astype(np.uint8, copy=False)
        lengths = arrays["distributions.lengths"].astype(np.int64)
        parameters = arrays["distributions.parameters"].astype(np.float64, copy=False)
        offsets = offsets_of(lengths)
        if len(code) != len(lengths) or len(code) != len(shapes) or offsets[-1] != len(parameters):
            raise ValueError("the table of distributions does not add up")
        if not set(code.tolist()) <= set(BY_CODE):
            raise ValueError(
                f"the table of distributions has an unknown family code among {sorted(set(code.tolist()))}"
            )
        return cls(code, offsets, parameters, tuple(shapes))
