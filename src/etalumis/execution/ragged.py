"""Ragged rows in flat arrays (CSR): row n owns ``flat[offsets[n]:offsets[n + 1]]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def offsets_of(lengths: NDArray[Any] | Sequence[int]) -> NDArray[np.int64]:
    """Where rows of these lengths start and the last one ends, shape (rows + 1,)."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def gather(
    flat: NDArray[Any], offsets: NDArray[np.int64], rows: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The ragged rows at these positions, and their own offsets."""
    starts, lengths = offsets[:-1][rows], np.diff(offsets)[rows]
    out = offsets_of(lengths)
    places = np.arange(out[-1]) + np.repeat(starts - out[:-1], lengths)
    return flat[places], out
