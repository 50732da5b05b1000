"""Which traces make which minibatch: an order that depends on (seed, epoch) alone.

Nothing here reads data or knows torch. A minibatch is a few *pieces*, each some traces of one storage chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from etalumis.datamodules.sampling import cuts, systematic

Rows = NDArray[np.int64]

_COMPANY = 8  # chunks of rare types whose traces meet each other
_ORDER = 1  # kind of random numbers


class Piece(NamedTuple):
    """Some traces of a storage chunk, by their positions in it."""

    chunk: int
    rows: Rows


Minibatch = tuple[Piece, ...]


def size(minibatch: Minibatch) -> int:
    """Traces of a minibatch."""
    return sum(len(piece.rows) for piece in minibatch)


def pieces(chunk: NDArray[np.int64], rows: Rows) -> Minibatch:
    """A minibatch of single traces (at least one), each given by its chunk and its position there."""
    order = np.argsort(chunk, kind="stable")
    chunk, rows = chunk[order], rows[order]
    starts = np.flatnonzero(np.concatenate([[True], chunk[1:] != chunk[:-1]]))
    return tuple(Piece(int(chunk[s]), part) for s, part in zip(starts, np.split(rows, starts[1:]), strict=True))


def single_traces(minibatches: Sequence[Minibatch]) -> tuple[NDArray[np.int64], Rows]:
    """Chunk and position of every trace of some minibatches: the inverse of :func:`pieces`."""
    parts = [piece for minibatch in minibatches for piece in minibatch]
    chunk = np.repeat(np.array([p.chunk for p in parts], dtype=np.int64), [len(p.rows) for p in parts])
    return chunk, np.concatenate([p.rows for p in parts]) if parts else np.zeros(0, dtype=np.int64)


class Stock(NamedTuple):
    """The traces of a storage chunk to train with.

    Attributes:
        rows: their positions.
        lengths: controlled draws of each; not needed without buckets and budget.
        alike: all are of one type.
        share: of them that an epoch takes, chosen anew in each.
    """

    rows: Rows
    lengths: NDArray[np.int64] | None = None
    alike: bool = False
    share: float = 1.0


class TrainingOrder:
    """Minibatches of each epoch, divided into buckets by length; every trace comes exactly once per epoch.

    A chunk's traces are shuffled and cut into slices of equal size. Traces of rare types, from chunks that hold
    many types or less than a minibatch, get new company in each epoch: those of every few such chunks, in an order
    of their own, are shuffled together. Then the minibatches of every ``mixing`` consecutive chunks are shuffled.

    Args:
        stocks: for each chunk the traces to train with.
        batch_size: traces to a minibatch at most.
        seed: with the number of the epoch it decides the order.
        buckets: into how many groups of about as many traces to divide by length; fewer where lengths are few.
        max_draws: controlled draws to a minibatch, exceeded by one trace at most; None does not count them.
        by_type: chunks are sorted by type: those with several types hold the rare ones.
        mixing: see above; what a reader may have to keep at hand.

    Attributes:
        traces: of an epoch.
        sizes: minibatches of each bucket, the same in every epoch; their sum is ``len(order)``.
    """

    def __init__(
        self,
        stocks: Sequence[Stock],
        batch_size: int,
        seed: int,
        *,
        buckets: int = 1,
        max_draws: int | None = None,
        by_type: bool = False,
        mixing: int = 8,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        if buckets < 1:
            raise ValueError(f"buckets must be at least 1; got {buckets}")
        if max_draws is not None and max_draws < 1:
            raise ValueError(f"max_draws must be at least 1; got {max_draws}")
        self._seed = seed
        self._mixing = mixing
        rare = by_type or buckets > 1
        self._buckets = []
        for chosen in _by_length(stocks, buckets):
            bucket = _Bucket(batch_size, max_draws)
            for chunk, (stock, rows) in enumerate(zip(stocks, chosen, strict=True)):
                bucket.add(chunk, stock, rows, rare and not stock.alike)
            if bucket.traces:
                self._buckets.append(bucket)
        self.sizes = tuple(bucket.minibatches for bucket in self._buckets)
        self.traces = sum(bucket.traces for bucket in self._buckets)

    def __len__(self) -> int:
        """Minibatches per epoch, the same for all."""
        return sum(self.sizes)

    @property
    def bucket_traces(self) -> tuple[int, ...]:
        """Traces of each bucket in an epoch."""
        return tuple(bucket.traces for bucket in self._buckets)

    def epoch(self, epoch: int) -> list[list[Minibatch]]:
        """The minibatches of an epoch in order, for each bucket."""
        generator = np.random.default_rng((self._seed, _ORDER, epoch))
        return [bucket.shuffled(generator, self._mixing) for bucket in self._buckets]


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

    @property
    def sizes(self) -> tuple[int, ...]:
        """Minibatches of the one bucket, as of a :class:`TrainingOrder`."""
        return (len(self),) if self._minibatches else ()

    @property
    def bucket_traces(self) -> tuple[int, ...]:
        """Traces of it."""
        return (self.traces,) if self._minibatches else ()

    def epoch(self, epoch: int) -> list[list[Minibatch]]:
        """The minibatches of any epoch."""
        return [self._minibatches] if self._minibatches else []


class _Portion(NamedTuple):
    """Traces of one chunk in one bucket, the share of them that an epoch takes, and what each costs of a minibatch."""

    chunk: int
    rows: Rows
    cost: NDArray[np.float64] | None
    share: float

    @property
    def expected(self) -> float:
        return self.share * len(self.rows)

    @property
    def dearest(self) -> float:
        """What those that an epoch takes cost at most, as about as many of each cost are taken."""
        if self.cost is None:
            return 0.0
        return self.share * float(self.cost.sum()) + (float(np.ptp(self.cost)) if self.share < 1.0 else 0.0)


class _Bucket:
    """Traces of about one length."""

    def __init__(self, batch_size: int, max_draws: int | None) -> None:
        self._batch_size = batch_size
        self._max_draws = max_draws
        self._whole: list[tuple[_Portion, int, int]] = []  # with numbers of traces and of minibatches
        self._rare: list[_Portion] = []
        self._expected = 0.0  # of portions that are whole minibatches
        self.traces = 0

    def add(self, chunk: int, stock: Stock, chosen: NDArray[Any] | slice, rare: bool) -> None:
        """Traces of a chunk; ``rare`` ones get new company in every epoch, and so do too few of them."""
        rows = stock.rows[chosen]
        if not len(rows):
            return
        cost = None
        if self._max_draws is not None:
            assert stock.lengths is not None
            cost = np.maximum(stock.lengths[chosen] / self._max_draws, 1.0 / self._batch_size)
        portion = _Portion(chunk, rows, cost, stock.share)
        whole = portion.expected / self._batch_size if cost is None else stock.share * float(cost.sum())
        if rare or whole < 1.0 or portion.expected < 1.0:
            self.traces -= self._rare_traces
            self._rare.append(portion)
            self.traces += self._rare_traces
        else:
            # Rounded so that what all of them take adds up.
            before, self._expected = self._expected, self._expected + portion.expected
            taken = math.floor(self._expected + 1e-9) - math.floor(before + 1e-9)
            self.traces += taken
            self._whole.append((portion, taken, self._parts(taken, portion.dearest * taken / portion.expected)))

    @property
    def _rare_traces(self) -> int:
        """Rare traces in an epoch."""
        whole = sum(len(portion.rows) for portion in self._rare if portion.share == 1.0)
        return whole + _rounded([portion for portion in self._rare if portion.share < 1.0])

    @property
    def minibatches(self) -> int:
        """How many an epoch has."""
        return sum(parts for _, _, parts in self._whole) + self._rare_parts

    @property
    def _rare_parts(self) -> int:
        partly = [portion for portion in self._rare if portion.share < 1.0]
        cost = sum(portion.dearest for portion in self._rare if portion.share == 1.0)
        if partly and self._max_draws is not None:
            costs = np.concatenate([portion.cost for portion in partly if portion.cost is not None])
            mean = sum(p.share * float(p.cost.sum()) for p in partly if p.cost is not None)
            cost += mean * _rounded(partly) / sum(p.expected for p in partly) + float(np.ptp(costs))
        return self._parts(self._rare_traces, cost) if self._rare else 0

    def shuffled(self, generator: np.random.Generator, mixing: int) -> list[Minibatch]:
        """The minibatches of one epoch."""
        units: list[tuple[int, list[Minibatch]]] = []  # number of chunks, minibatches
        for portion, taken, parts in self._whole:
            order = _taken(generator, [portion], taken)
            at = cuts(taken, parts, None if portion.cost is None else portion.cost[order])
            units.append((1, [(Piece(portion.chunk, part),) for part in np.split(portion.rows[order], at)]))
        units += self._shuffled_rare(generator)
        out: list[Minibatch] = []
        group: list[Minibatch] = []
        chunks = 0
        for number in generator.permutation(len(units)).tolist():
            chunks += units[number][0]
            group += units[number][1]
            if chunks >= mixing:
                out += (group[k] for k in generator.permutation(len(group)).tolist())
                group, chunks = [], 0
        out += (group[k] for k in generator.permutation(len(group)).tolist())
        return out

    def _shuffled_rare(self, generator: np.random.Generator) -> Iterator[tuple[int, list[Minibatch]]]:
        """Minibatches of rare types, those of every few chunks together."""
        if not self._rare:
            return
        taken = _taken(generator, self._rare, self._rare_traces)
        number = np.repeat(np.arange(len(self._rare)), [len(p.rows) for p in self._rare])[taken]
        company = (generator.permutation(len(self._rare)) // _COMPANY)[number]
        order = np.argsort(company, kind="stable")
        taken, number, company = taken[order], number[order], company[order]
        chunk = np.array([portion.chunk for portion in self._rare])[number]
        row = np.concatenate([portion.rows for portion in self._rare])[taken]
        costs = [portion.cost for portion in self._rare if portion.cost is not None]
        at = cuts(len(row), self._rare_parts, np.concatenate(costs)[taken] if costs else None)
        minibatches = [pieces(c, r) for c, r in zip(np.split(chunk, at), np.split(row, at), strict=True)]
        # A minibatch that reaches into the next chunks stands with those of its first trace.
        ends = np.flatnonzero(np.diff(company, append=-1)) + 1
        starts = np.searchsorted(np.concatenate([[0], at]), np.concatenate([[0], ends]))
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            yield _COMPANY, minibatches[start:end]

    def _parts(self, traces: int, cost: float) -> int:
        """Into how many minibatches to cut; the same in every epoch, whatever is taken."""
        if self._max_draws is None:
            return -(-traces // self._batch_size)
        return min(max(math.ceil(cost - 1e-9), 1), traces)


def _rounded(partly: Sequence[_Portion]) -> int:
    """How many an epoch takes of portions of which it takes a part: at least one, so that each has its chance."""
    return max(math.floor(sum(portion.expected for portion in partly) + 1e-9), 1) if partly else 0


def _taken(generator: np.random.Generator, portions: Sequence[_Portion], count: int) -> NDArray[np.int64]:
    """Which traces of some portions, counted through, an epoch takes, (count,), in random order."""
    share = np.repeat([portion.share for portion in portions], [len(portion.rows) for portion in portions])
    whole, partly = np.flatnonzero(share == 1.0), np.flatnonzero(share < 1.0)
    if not len(partly):
        return generator.permutation(len(share))
    costs = [np.full(len(p.rows), float(k)) if p.cost is None else p.cost for k, p in enumerate(portions)]
    few = systematic(generator, share[partly], count - len(whole), np.concatenate(costs)[partly])
    return generator.permutation(np.concatenate([whole, partly[few]]))


def _by_length(stocks: Sequence[Stock], buckets: int) -> Iterator[list[NDArray[Any] | slice]]:
    """For each bucket which traces of each chunk are in it."""
    if buckets == 1:
        yield [slice(None)] * len(stocks)
        return
    lengths = [stock.lengths for stock in stocks if stock.lengths is not None]
    assert len(lengths) == len(stocks)
    count = np.bincount(np.concatenate([np.zeros(0, dtype=np.int64), *lengths]))
    # Traces of one length stay together, in the bucket where the middle one of them belongs.
    of_length = ((np.cumsum(count) - count / 2) * (buckets / max(count.sum(), 1))).astype(np.int64)
    which = [of_length[length] for length in lengths]
    for bucket in range(buckets):
        yield [np.flatnonzero(w == bucket) for w in which]
