"""Taking a share of some traces at random, and cutting a sequence of them into minibatches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def systematic(
    generator: np.random.Generator, chance: NDArray[np.float64], count: int, key: NDArray[np.float64]
) -> NDArray[np.int64]:
    """So many of some traces, each in proportion to its chance, in random order.

    Systematic sampling (Madow 1949): the traces in a row, each as long as its chance, and a comb of ``count`` teeth
    laid on it at random. In the row they are sorted by ``key``, those of one key at random: what is taken has nearly
    the same mean of it every time, up to the range of the keys divided by ``count``.

    Args:
        generator: of the random numbers.
        chance: of each trace, above 0; scaled to a sum of ``count`` none may be above 1.
        count: how many to take.
        key: of each trace.

    Returns:
        Positions, (count,).
    """
    order = generator.permutation(len(chance))
    order = order[np.argsort(key[order], kind="stable")]
    ends = np.cumsum(chance[order])
    ends *= count / ends[-1]
    ends[-1] = count
    teeth = np.minimum(np.floor(ends + generator.random()), count)
    return generator.permutation(order[np.diff(teeth, prepend=0.0) > 0.0])


def cuts(traces: int, parts: int, cost: NDArray[np.float64] | None) -> NDArray[np.int64]:
    """Where to cut a sequence of traces so that parts cost about the same and none is empty, (parts − 1,)."""
    inner = np.arange(1, parts)
    if cost is None:
        return inner * traces // parts
    total = np.cumsum(cost)
    cuts = np.searchsorted(total, inner * (total[-1] / parts), side="left") + 1
    # At least one trace to each part: no cut before the one of its number, nor after that of its number from the end.
    cuts = np.maximum.accumulate(cuts - inner) + inner
    return np.minimum(cuts, traces - parts + inner)
