"""What moved between ArviZ 0.x and 1.x, for the tests that compare with it."""

from typing import NamedTuple

import arviz
import numpy as np
from numpy.typing import NDArray


class Smoothed(NamedTuple):
    """Pareto-smoothed weights as ArviZ makes them of independent draws.

    Attributes:
        log_weights: shape (S,).
        k: of the tail.
        tolerance: by which k may differ from ours: 1.x takes another number of weights for the tail.
    """

    log_weights: NDArray[np.float64]
    k: float
    tolerance: float


def psislw(log_weights: NDArray[np.float64]) -> Smoothed:
    """Smooth log weights."""
    if hasattr(arviz, "psislw"):
        smoothed, k = arviz.psislw(log_weights.copy(), 1.0)
        return Smoothed(smoothed, float(k), 1e-9)
    from arviz_stats.base import array_stats

    smoothed, k = array_stats.psislw(-log_weights, 1.0)  # as of log likelihoods, which weights are the inverse of
    return Smoothed(smoothed, float(k), 0.03)
