"""Counter-based uniform numbers: the only source of randomness of an execution.

Every statement of every trace owns a fixed region of one Philox4x64-10 sequence (Salmon et al., SC'11), so
that a draw depends on (seed, trace, statement) alone: never on the number of workers, on the order of
executions, or on how many numbers an earlier statement consumed. Any language can compute the same numbers.

Key     = (seed, trace index)
Counter = (ordinal + 1, refill, 0,       kind)      scalar statements: four uniforms a counter value
        = (element + 1, refill, ordinal, kind + 2)  array statements: four uniforms an element
kind    = 0 for sample, 1 for observe; ordinal counts the statements of a kind within one execution from 0.
refill  = 0 for a statement's (or an element's) first four uniforms, 1 for the next four, and so on.

A 64-bit output r becomes the uniform ((r >> 12) + 1/2) / 2^52: exact in double precision, never 0 or 1.
The low counter word varies fastest, so one vectorised call yields the numbers of many statements.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SAMPLE = 0
OBSERVE = 1
_ARRAY = 2
_FIRST_BLOCK = 8  # statements whose uniforms are made at once; doubles whenever a trace outgrows it
_SCALE = 2.0**-52
_WORD = (1 << 64) - 1


def derived_seed(*entropy: int) -> int:
    """The seed of a stream for a purpose of its own: unlike the run's, and unlike that of other entropy.

    Numbers below 2³² and as many of them each time never give the same seed but by the chance of 64 bits.

    Args:
        entropy: the purpose, the run's seed and what else decides; of negative numbers the lowest 64 bits.
    """
    return int(np.random.SeedSequence([number & _WORD for number in entropy]).generate_state(1, np.uint64)[0])


class Uniforms(Protocol):
    """What a scalar sampling algorithm consumes: one uniform number in (0, 1) after the other."""

    def uniform(self) -> float:
        """The next number."""


class Stream:
    """Uniform numbers of one execution at a time, addressed by statement.

    ``start`` selects the trace, ``seek`` a statement; ``uniform`` then yields that statement's numbers one by
    one, ``elements`` those of an array statement. One object serves any number of traces: resetting NumPy's
    generator is far cheaper than making one. Not to be shared between threads.

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
        "_spill",
        "_spilled",
        "_state",
        "seed",
    )

    def __init__(self, seed: int) -> None:
        self.seed = seed & _WORD
        self._bits = np.random.Philox(key=np.zeros(2, dtype=np.uint64))
        self._state: Any = self._bits.state
        self._counter: NDArray[np.uint64] = self._state["state"]["counter"]
        self._key: NDArray[np.uint64] = self._state["state"]["key"]
        self._key[0] = self.seed
        self._state["buffer_pos"] = 4  # nothing buffered: the next number comes from the counter
        self._block: tuple[list[int], list[int]] = ([], [])
        # numbers beyond a scalar statement's first four: of which refill and kind, and from which ordinal on
        self._spill: list[float] = []
        self._spilled: tuple[int, int, int] = (0, 0, 0)
        self._cursor = self._kind = 0
        self._limit = 4

    def start(self, index: int) -> None:
        """Select the trace (or chain step) whose numbers come next, at its first sample statement."""
        self._key[1] = index & _WORD
        self._block = ([], [])
        self._spill = []
        self.seek(0)

    def seek(self, ordinal: int, kind: int = SAMPLE) -> None:
        """Select a statement by its ordinal among the statements of its kind."""
        self._kind = kind
        self._cursor = cursor = 4 * ordinal
        self._limit = cursor + 4

    def uniform(self) -> float:
        """The next uniform number in (0, 1) of the selected statement."""
        cursor = self._cursor
        if cursor >= self._limit:
            return self._beyond(cursor)
        self._cursor = cursor + 1
        block = self._block[self._kind]
        if cursor >= len(block):
            self._extend(block, cursor)
        return ((block[cursor] >> 12) + 0.5) * _SCALE  # converted when used: most statements use one or two of four

    def elements(self, count: int) -> NDArray[np.float64]:
        """Uniforms of an array statement, shape (count, 4): row i belongs to element i in row-major order."""
        return self._raw(0, 0, self.ordinal, self._kind + _ARRAY, 4 * count).reshape(count, 4)

    def each(self, count: int) -> Iterator[Uniforms]:
        """For element after element of an array statement, that element's numbers, as many as it takes."""
        ordinal, word3 = self.ordinal, self._kind + _ARRAY
        for element, numbers in enumerate(self.elements(count).tolist()):
            yield _Element(self, element, ordinal, word3, numbers)

    @property
    def ordinal(self) -> int:
        """Of the selected statement."""
        return self._limit // 4 - 1

    def _extend(self, block: list[int], cursor: int) -> None:
        while cursor >= len(block):
            have = len(block) // 4
            block.extend(self._bits_at(have, 0, 0, self._kind, 4 * max(have, _FIRST_BLOCK)).tolist())

    def _beyond(self, cursor: int) -> float:
        """A scalar statement that needs more than four numbers goes on at the same ordinal, next refill."""
        self._cursor = cursor + 1
        refill, place = divmod(cursor - self._limit + 4, 4)
        ordinal = self.ordinal
        spilled_refill, spilled_kind, first = self._spilled
        place += 4 * (ordinal - first)
        if spilled_refill != refill or spilled_kind != self._kind or not 0 <= place < len(self._spill):
            # statements near each other tend to need as many: one call makes the numbers of a few
            self._spill = self._raw(ordinal, refill, 0, self._kind, 4 * _FIRST_BLOCK).tolist()
            self._spilled = (refill, self._kind, ordinal)
            place %= 4
        return self._spill[place]

    def _raw(self, low: int, refill: int, word2: int, word3: int, count: int) -> NDArray[np.float64]:
        """``count`` uniforms from this counter on."""
        bits = self._bits_at(low, refill, word2, word3, count)
        return np.asarray(((bits >> np.uint64(12)) + 0.5) * _SCALE, dtype=np.float64)

    def _bits_at(self, low: int, refill: int, word2: int, word3: int, count: int) -> NDArray[np.uint64]:
        counter = self._counter
        # NumPy increments the counter before use: starting at `low` makes the first value that of `low + 1`.
        counter[0], counter[1], counter[2], counter[3] = low, refill, word2, word3
        self._bits.state = self._state
        return self._bits.random_raw(count)


class _Element:
    """The numbers of one element of an array statement."""

    __slots__ = ("_element", "_numbers", "_ordinal", "_parent", "_place", "_word3")

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
        if place == len(self._numbers):
            more = self._parent._raw(self._element, place // 4, self._ordinal, self._word3, 4)
            self._numbers.extend(more.tolist())
        return self._numbers[place]
