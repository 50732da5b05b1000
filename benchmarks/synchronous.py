"""Synchronous training on many ranks, on paper: measured minibatches, and a model of the exchange.

In each iteration every rank works on a minibatch of the same bucket, chosen at random among the measured ones; buckets
have as many iterations as they have minibatches. The slowest rank ends the work of all. Then gradients are exchanged
and all ranks make the same step, on the union of what their minibatches touched; where ranks are more than the measured
minibatches of the bucket, on every row there is, as more minibatches would touch other rows. Nothing overlaps, unless
asked for: then all gradients but those that a backward pass completes last are exchanged as soon as every rank has
them, at no cost to the rest of that pass, and the last ones after it.

What is modelled is an all-reduce by the α–β–γ model of Thakur, Rabenseifner and Gropp (Optimization of Collective
Communication Operations in MPICH, 2005): a message of n bytes takes α + nβ, adding n bytes to others nγ. Noise of the
system, and of other jobs in its network, is not in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Interconnect(NamedTuple):
    """What a message costs between two ranks.

    Attributes:
        latency: α, seconds.
        per_byte: β, seconds, when all ranks of a node send at once.
        adding: γ, seconds to add a byte to another.
    """

    latency: float
    per_byte: float
    adding: float

    def all_reduce(self, ranks: int, size: float) -> float:
        """Seconds to sum ``size`` bytes over ranks, by the better of two algorithms.

        Recursive doubling sends everything ⌈log₂ p⌉ times, which is good for few bytes; Rabenseifner's halves and
        doubles, ⌈log₂ p⌉ times each, and sends everything about twice.
        """
        if ranks < 2:
            return 0.0
        rounds, share = math.ceil(math.log2(ranks)), (ranks - 1) / ranks
        doubling = rounds * (self.latency + size * (self.per_byte + self.adding))
        rabenseifner = 2 * rounds * self.latency + share * size * (2.0 * self.per_byte + self.adding)
        return min(doubling, rabenseifner)


# The Aries network of Cori and Edison (Cray XC). NERSC's page on Edison gave MPI latencies of 0.25 to 3.7 µs and about
# 8 GB/s a node; here the worst latency, and the bandwidth shared by two ranks to a node, as in the paper. One core adds
# some 10 GB/s, which is ours.
ARIES = Interconnect(latency=3.7e-6, per_byte=2.0 / 8e9, adding=1.0 / 10e9)


@dataclass(frozen=True)
class Measured:
    """Minibatches of one way to make them, as one rank works on them.

    Attributes:
        seconds: forward and backward pass, (minibatches,).
        traces: of each, (minibatches,).
        bucket: which each is of, (minibatches,).
        touched: which rows have a gradient, (minibatches, rows).
        row_bytes: of the gradient of each row, (rows,).
        dense_bytes: of the gradient of everything that is in every minibatch.
        step: seconds of an optimiser's step, a + b · bytes of gradients.
        last: of the seconds, those after all gradients but the last are complete, (minibatches,); None where there are
            none.
        last_bytes: of the dense gradients, those that come last.
    """

    seconds: NDArray[np.float64]
    traces: NDArray[np.int64]
    bucket: NDArray[np.int64]
    touched: NDArray[np.bool_]
    row_bytes: NDArray[np.int64]
    dense_bytes: int
    step: tuple[float, float]
    last: NDArray[np.float64] | None = None
    last_bytes: int = 0


@dataclass(frozen=True)
class Simulated:
    """Iterations of a number of ranks.

    Attributes:
        seconds: of each iteration, (iterations,).
        traces: of all ranks in each, (iterations,).
        waiting, exchange: shares of the time; waiting is the mean over ranks, exchange what nothing hides.
        bytes: of gradients exchanged in an iteration, the mean.
    """

    ranks: int
    seconds: NDArray[np.float64]
    traces: NDArray[np.int64]
    waiting: float
    exchange: float
    bytes: float

    @property
    def rate(self) -> float:
        """Traces per second of all ranks."""
        return float(self.traces.sum() / self.seconds.sum())

    @property
    def peak(self) -> float:
        """The same of the fastest tenth of the iterations."""
        rates = np.sort(self.traces / self.seconds)
        return float(rates[-max(1, len(rates) // 10) :].mean())


def simulate(
    measured: Measured,
    ranks: int,
    network: Interconnect = ARIES,
    *,
    iterations: int = 400,
    speed: float = 1.0,
    compression: float = 1.0,
    parts: int = 1,
    overlap: bool = False,
    seed: int = 0,
) -> Simulated:
    """Train on paper.

    Args:
        measured: minibatches to choose from.
        ranks: how many.
        network: between them.
        iterations: how many.
        speed: how many times faster than measured each rank computes.
        compression: bytes sent for a byte of gradients.
        parts: minibatches that each rank accumulates for an iteration, of a bucket each.
        overlap: exchange most gradients while the last part's backward pass ends.
        seed: of the choice.
    """
    generator = np.random.default_rng((seed, ranks))
    in_order = np.sort(measured.bucket)
    members = {bucket: np.flatnonzero(measured.bucket == bucket) for bucket in np.unique(in_order)}
    places = (np.arange(iterations * parts) + 0.5) / (iterations * parts) * len(in_order)
    buckets = generator.permutation(in_order[places.astype(np.int64)]).reshape(iterations, parts)
    rows = (len(measured.row_bytes) + 7) // 8 * 8  # flags of a byte
    seconds, traces = np.empty(iterations), np.empty(iterations, dtype=np.int64)
    waited = exchanged = sent = 0.0
    a, b = measured.step
    for number in range(iterations):
        chosen = np.array([generator.choice(members[bucket], ranks) for bucket in buckets[number]])
        work = measured.seconds[chosen].sum(0) / speed
        if ranks > min(len(members[bucket]) for bucket in buckets[number]):
            union = np.ones(len(measured.row_bytes), dtype=np.bool_)
        else:
            union = measured.touched[np.unique(chosen)].any(0)
        size = measured.dense_bytes + float(measured.row_bytes[union].sum())
        last, last_size = np.zeros(ranks), 0
        if overlap and measured.last is not None:
            last, last_size = measured.last[chosen[-1]] / speed, measured.last_bytes
        flags = network.all_reduce(ranks, rows)
        others = float((work - last).max()) + flags + network.all_reduce(ranks, compression * (size - last_size))
        if last_size:
            others = max(others, float(work.max())) + flags + network.all_reduce(ranks, compression * last_size)
        exchange = others - float(work.max())
        seconds[number] = others + (a + b * size) / speed
        traces[number] = measured.traces[chosen].sum()
        waited += float(work.max() - work.mean())
        exchanged += exchange
        sent += size if ranks > 1 else 0.0
    total = float(seconds.sum())
    return Simulated(ranks, seconds, traces, waited / total, exchanged / total, sent / iterations)


def efficiency(several: Simulated, one: Simulated) -> float:
    """Traces per second over those of one rank times the number of ranks (weak scaling)."""
    return several.rate / (several.ranks * one.rate)
