"""Which traces make which minibatch: an order that depends on (seed, epoch) alone.

Nothing here reads data or knows torch. A minibatch is a few *pieces*, each some traces of one storage chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

_WINDOW = 8  # chunks whose minibatches are mixed with each other: what a reader may have to keep at hand
_SPLIT, _ORDER = 0, 1  # kinds of random numbers


class Piece(NamedTuple):
    """Some traces of a storage chunk, by their positions in it."""

    chunk: int
    rows: Rows


Minibatch = tuple[Piece, ...]


@dataclass(frozen=True)
class Split:
    """Divides every storage chunk at random into traces to train and to validate with.

    Attributes:
        seed: decides which; a trace stays on its side for as long as the dataset is the same.
        fraction: of the traces to validate with; 0 trains with all.
    """

    seed: int
    fraction: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.fraction < 1.0:
            raise ValueError(f"the fraction to validate with must be at least 0 and below 1; got {self.fraction}")

    def rows(self, chunk: int, traces: int, validate: bool) -> Rows:
        """Positions of the traces of one side, rising."""
        generator = np.random.default_rng((self.seed, _SPLIT, chunk))
        # Rounded up or down at random, so that small chunks are divided fairly too.
        count = int(self.fraction * traces + generator.random())
        order = generator.permutation(traces)
        return np.sort(order[:count] if validate else order[count:])


class TrainingOrder:
    """Minibatches of each epoch: slices of storage chunks, in an order of their own.

    A chunk's traces are shuffled and cut into slices of equal size, at most ``batch_size``; chunks are shuffled,
    and the slices of every few consecutive ones. Every trace comes exactly once per epoch.

    Args:
        rows: for each chunk the positions of its traces to train with.
        batch_size: traces to a minibatch at most.
        seed: with the number of the epoch it decides the order.
    """

    def __init__(self, rows: Sequence[Rows], batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._slices = [-(-len(r) // batch_size) for r in rows]

    def __len__(self) -> int:
        """Minibatches per epoch, the same for all."""
        return sum(self._slices)

    @property
    def traces(self) -> int:
        """Traces per epoch."""
        return sum(map(len, self._rows))

    def epoch(self, epoch: int) -> list[Minibatch]:
        """The minibatches of an epoch in order."""
        generator = np.random.default_rng((self._seed, _ORDER, epoch))
        chunks = generator.permutation(len(self._rows)).tolist()
        order: list[Minibatch] = []
        for start in range(0, len(chunks), _WINDOW):
            slices: list[Minibatch] = []
            for chunk in chunks[start : start + _WINDOW]:
                if self._slices[chunk]:
                    shuffled = generator.permutation(self._rows[chunk])
                    slices += [(Piece(chunk, part),) for part in np.array_split(shuffled, self._slices[chunk])]
            order += [slices[k] for k in generator.permutation(len(slices)).tolist()]
        return order


class ValidationOrder:
    """All traces in the order of their chunks, ``batch_size`` at a time: the same minibatches in every epoch."""

    def __init__(self, rows: Sequence[Rows], batch_size: int) -> None:
        self.traces = sum(map(len, rows))
        self._minibatches: list[Minibatch] = []
        pieces: list[Piece] = []
        room = batch_size
        for chunk, left in enumerate(rows):
            while len(left):
                pieces.append(Piece(chunk, left[:room]))
                left = left[room:]
                room -= len(pieces[-1].rows)
                if room == 0:
                    self._minibatches.append(tuple(pieces))
                    pieces, room = [], batch_size
        if pieces:
            self._minibatches.append(tuple(pieces))

    def __len__(self) -> int:
        """Minibatches per epoch."""
        return len(self._minibatches)

    def epoch(self, epoch: int) -> list[Minibatch]:
        """The minibatches of any epoch."""
        return self._minibatches
