"""How the minibatches of an epoch go to ranks, and how far an epoch is.

An *iteration* is one minibatch for each rank, all from the same bucket. The minibatches of an epoch do not depend
on the number of ranks; which of them make an iteration does. So the position within an epoch is what was dealt:
so many iterations to so many ranks, maybe to several numbers of ranks one after the other. The rest of the epoch
can be dealt to any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from etalumis.datamodules.minibatches import Minibatch, pieces, single_traces, size

_DEAL = 2  # kind of random numbers


class Order(Protocol):
    """Minibatches of each epoch by bucket; their numbers are the same in all epochs."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Minibatches of each bucket."""
        ...

    @property
    def bucket_traces(self) -> tuple[int, ...]:
        """Traces of each bucket."""
        ...

    def epoch(self, epoch: int) -> list[list[Minibatch]]:
        """The minibatches."""
        ...


class Dealt(NamedTuple):
    """So many iterations to so many ranks."""

    world_size: int
    iterations: int


class EpochPosition(NamedTuple):
    """How far training is: the epoch, and what of it was dealt and trained with."""

    epoch: int = 0
    dealt: tuple[Dealt, ...] = ()

    @property
    def minibatches(self) -> int:
        """Minibatches of the epoch that were trained with, over all ranks."""
        return sum(d.world_size * d.iterations for d in self.dealt)

    def after(self, world_size: int, iterations: int) -> EpochPosition:
        """The position some iterations later in the same epoch."""
        if iterations == 0:
            return self
        dealt = self.dealt
        if dealt and dealt[-1].world_size == world_size:
            iterations += dealt[-1].iterations
            dealt = dealt[:-1]
        return EpochPosition(self.epoch, (*dealt, Dealt(world_size, iterations)))

    def to_json(self) -> dict[str, Any]:
        """Plain containers."""
        return {"epoch": self.epoch, "dealt": [list(d) for d in self.dealt]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EpochPosition:
        """The inverse of :meth:`to_json`."""
        return cls(int(data["epoch"]), tuple(Dealt(int(w), int(n)) for w, n in data["dealt"]))


class EpochPlan:
    """All iterations of the rest of an epoch.

    A bucket's last minibatches, where fewer than ranks are left, are cut anew so that each rank has some traces.

    Args:
        order: of the minibatches.
        world_size: number of ranks.
        seed: with the epoch it decides from which bucket each iteration takes.
        position: the epoch, and what of it is over.

    Attributes:
        iterations: for each iteration the minibatch of each rank.
        left_out: traces that no iteration has, fewer than ranks for each bucket.
    """

    def __init__(self, order: Order, world_size: int, seed: int, position: EpochPosition) -> None:
        buckets = order.epoch(position.epoch)
        dealt, done = position.dealt, 0
        if dealt and dealt[-1].world_size == world_size:
            dealt, done = dealt[:-1], dealt[-1].iterations
        for number, before in enumerate(dealt):
            groups, sequence = _plan(buckets, before.world_size, (seed, _DEAL, position.epoch, number))
            taken = np.bincount(sequence[: before.iterations], minlength=len(buckets)).tolist()
            buckets = [
                _rest(b, g, count, before.world_size) for b, g, count in zip(buckets, groups, taken, strict=True)
            ]
        groups, sequence = _plan(buckets, world_size, (seed, _DEAL, position.epoch, len(dealt)))
        self.left_out = sum(size(m) for b, g in zip(buckets, groups, strict=True) for m in _left(b, g, world_size))
        places = [iter(g) for g in groups]
        self.iterations: list[tuple[Minibatch, ...]] = [next(places[k]) for k in sequence.tolist()][done:]

    def __len__(self) -> int:
        """Iterations left."""
        return len(self.iterations)


def iterations(order: Order, world_size: int) -> int:
    """Iterations of a whole epoch, the same for all."""
    return sum(_steps(m, n, world_size) for m, n in zip(order.sizes, order.bucket_traces, strict=True))


def _steps(minibatches: int, traces: int, world_size: int) -> int:
    """Iterations of a bucket: the last may have fewer traces, but every rank has at least one."""
    return min(-(-minibatches // world_size), traces // world_size)


def _plan(
    buckets: Sequence[Sequence[Minibatch]], world_size: int, seed: tuple[int, ...]
) -> tuple[list[list[tuple[Minibatch, ...]]], Any]:
    """The iterations of each bucket, and the bucket of each iteration: any order of them is as likely."""
    groups = [_groups(bucket, world_size) for bucket in buckets]
    bucket = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    return groups, np.random.default_rng(seed).permutation(bucket)


def _groups(bucket: Sequence[Minibatch], world_size: int) -> list[tuple[Minibatch, ...]]:
    """A bucket's minibatches, as many as ranks at a time."""
    whole = len(bucket) // world_size
    groups = [tuple(bucket[k * world_size : (k + 1) * world_size]) for k in range(whole)]
    if _steps(len(bucket), sum(map(size, bucket)), world_size) > whole:
        tail = list(bucket[whole * world_size :])
        tail += _donated(groups, world_size - sum(map(size, tail)))
        chunk, rows = single_traces(tail)
        parts = zip(np.array_split(chunk, world_size), np.array_split(rows, world_size), strict=True)
        groups.append(tuple(pieces(c, r) for c, r in parts))
    return groups


def _donated(groups: list[tuple[Minibatch, ...]], wanted: int) -> list[Minibatch]:
    """Single traces taken out of the last minibatches, so that no rank is without any; none goes empty."""
    out: list[Minibatch] = []
    for number in range(len(groups) - 1, -1, -1):
        group = list(groups[number])
        for rank in range(len(group) - 1, -1, -1):
            count = min(wanted, size(group[rank]) - 1)
            if count > 0:
                chunk, rows = single_traces([group[rank]])
                group[rank] = pieces(chunk[:-count], rows[:-count])
                out.append(pieces(chunk[-count:], rows[-count:]))
                wanted -= count
        groups[number] = tuple(group)
        if wanted <= 0:
            break
    return out


def _left(bucket: Sequence[Minibatch], groups: Sequence[tuple[Minibatch, ...]], world_size: int) -> list[Minibatch]:
    """A bucket's minibatches that are in none of its iterations."""
    return list(bucket[len(groups) * world_size :])


def _rest(
    bucket: Sequence[Minibatch], groups: Sequence[tuple[Minibatch, ...]], count: int, world_size: int
) -> list[Minibatch]:
    """A bucket's minibatches after so many of its iterations."""
    end = count * world_size
    dealt = [minibatch for group in groups[:count] for minibatch in group]
    if end <= len(bucket) and all(m is before for m, before in zip(dealt, bucket[:end], strict=True)):
        return list(bucket[end:])
    return [m for group in groups[count:] for m in group] + _left(bucket, groups, world_size)
