"""Counter-based uniform numbers: the only source of randomness of an execution.

Every statement of every trace owns a fixed region of one Philox4x64-10 sequence (Salmon et al., SC'11), so
that a draw depends on (seed, trace, statement) alone: never on the number of workers, on the order of
executions, or on how many numbers an earlier statement consumed. Any language can compute the same numbers.

Key     = (seed, trace index)
Counter = (ordinal + 1, refill, 0,       kind)      scalar statements: four uniforms a counter value
        = (element + 1, refill, ordinal, kind + 2)  array statements: four uniforms an element
kind    = 0 for sample, 1 for observe; ordinal counts the statements of a kind within one execution from 0.

A 64-bit output r becomes the uniform ((r >> 12) + 1/2) / 2^52: exact in double precision, never 0 or 1.
The low counter word varies fastest, so one vectorised call yields the numbers of many statements.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE = 0
OBSERVE = 1
_ARRAY = 2
_FIRST_BLOCK = 16  # statements whose uniforms are made at once; doubles whenever a trace outgrows it
_WORD = (1 << 64) - 1


class Stream:
    """Uniform numbers of one execution at a time, addressed by statement.

    ``start`` selects the trace, ``seek`` a statement; ``uniform`` then yields that statement's numbers one by
    one, ``elements`` those of an array statement. One object serves any number of traces: resetting NumPy's
    generator is far cheaper than making one.

    Args:
        seed: any integer; taken modulo 2^64.
    """

    __slots__ = (
        "_bits",
        "_block",
        "_counter",
        "_cursor",
        "_key",
        "_kind",
        "_limit",
        "_ordinal",
        "_refills",
        "_state",
        "seed",
    )

    def __init__(self, seed: int) -> None:
        self.seed = seed & _WORD
        self._bits = np.random.Philox(key=np.zeros(2, dtype=np.uint64))
        self._state: dict[str, Any] = self._bits.state
        self._counter: NDArray[np.uint64] = self._state["state"]["counter"]
        self._key: NDArray[np.uint64] = self._state["state"]["key"]
        self._key[0] = self.seed
        self._state["buffer_pos"] = 4  # nothing buffered: the next number comes from the counter
        self._block: tuple[list[float], list[float]] = ([], [])
        self._ordinal = self._cursor = self._limit = self._kind = self._refills = 0

    def start(self, index: int) -> None:
        """Select the trace (or chain step) whose numbers come next."""
        self._key[1] = index & _WORD
        self._block = ([], [])
        self._cursor = self._limit = 0

    def seek(self, ordinal: int, kind: int = SAMPLE) -> None:
        """Select a statement by its ordinal among the statements of its kind."""
        self._kind = kind
        self._ordinal = ordinal
        self._cursor = 4 * ordinal
        self._limit = self._cursor + 4
        self._refills = 0

    def uniform(self) -> float:
        """The next uniform number in (0, 1) of the selected statement."""
        cursor = self._cursor
        if cursor == self._limit:
            return self._refill()
        self._cursor = cursor + 1
        block = self._block[self._kind]
        if cursor >= len(block):
            self._extend(block, cursor)
        return block[cursor]

    def elements(self, count: int, refill: int = 0) -> NDArray[np.float64]:
        """Uniforms of an array statement, shape (count, 4): row i belongs to element i in row-major order."""
        return self._raw(0, refill, self._ordinal, self._kind + _ARRAY, 4 * count).reshape(count, 4)

    def each(self, count: int) -> Iterator[Stream]:
        """For element after element of an array statement, this stream reading that element's numbers."""
        ordinal, kind = self._ordinal, self._kind
        for element, numbers in enumerate(self.elements(count).tolist()):
            yield _ElementStream(self, element, ordinal, kind + _ARRAY, numbers)

    def _extend(self, block: list[float], cursor: int) -> None:
        while cursor >= len(block):
            have = len(block) // 4
            block.extend(self._raw(have, 0, 0, self._kind, 4 * max(have, _FIRST_BLOCK)).tolist())

    def _refill(self) -> float:
        """A scalar statement that needs more than four numbers goes on at the same ordinal, next refill."""
        have = self._cursor - 4 * self._ordinal
        refill, place = divmod(self._refills, 4)
        self._refills += 1
        assert have == 4
        return float(self._raw(self._ordinal, refill + 1, 0, self._kind, 4)[place])

    def _raw(self, low: int, refill: int, word2: int, word3: int, count: int) -> NDArray[np.float64]:
        counter = self._counter
        # NumPy increments the counter before use: starting at `low` makes the first value that of `low + 1`.
        counter[0], counter[1], counter[2], counter[3] = low, refill, word2, word3
        self._bits.state = self._state
        return ((self._bits.random_raw(count) >> np.uint64(12)) + 0.5) * 2.0**-52


class _ElementStream(Stream):
    """One element's view of an array statement's numbers."""

    __slots__ = ("_element", "_numbers", "_parent", "_place", "_word3")

    def __init__(self, parent: Stream, element: int, ordinal: int, word3: int, numbers: list[float]) -> None:
        self._parent = parent
        self._element = element
        self._ordinal = ordinal
        self._word3 = word3
        self._numbers = numbers
        self._place = 0

    def uniform(self) -> float:
        place = self._place
        self._place = place + 1
        if place >= len(self._numbers):
            more = self._parent._raw(self._element, place // 4, self._ordinal, self._word3, 4)
            self._numbers.extend(more.tolist())
        return self._numbers[place]
