"""Pareto-smoothed importance sampling (Vehtari, Simpson, Gelman, Yao and Gabry, JMLR 2024).

The largest importance weights are as good as drawn from a generalised Pareto distribution. Its shape k̂ (fit after
Zhang and Stephens, Technometrics 2009) tells how many moments the weights have, and so whether averages over them
settle; its quantiles in place of the largest weights make averages that one lucky trace can't spoil.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_SHORTEST_TAIL = 5  # points that a generalised Pareto distribution needs at least
_ROUNDING = 1e-9  # relative differences of weights that sums of log densities leave by rounding
_SMALLEST = 1e-300  # of exceedances, as shares of the largest weight, that can be divided by


class Tail(NamedTuple):
    """The generalised Pareto distribution of the largest weights, relative to the largest of all.

    Attributes:
        k: shape; ``inf`` where fewer than five weights differ from zero, or too few do beside the largest; ``-inf``
            where the tail is flat, ``nan`` where there are too few traces to judge.
        sigma: scale; ``nan`` where k is not finite.
        cutoff: log weight, relative to the largest, above which the tail begins.
        size: weights in the tail.
    """

    k: float
    sigma: float = math.nan
    cutoff: float = 0.0
    size: int = 0


def fit_tail(log_weights: ArrayLike, num_traces: int | None = None) -> Tail:
    """Fit the tail of importance weights.

    Args:
        log_weights: shape (S,).
        num_traces: how many traces there were, where zero weights are left out of ``log_weights``.
    """
    ranked = np.sort(np.asarray(log_weights, dtype=np.float64))
    count = len(ranked) if num_traces is None else num_traces
    wanted = math.ceil(min(0.2 * count, 3.0 * math.sqrt(count)))
    if wanted < _SHORTEST_TAIL:
        return Tail(math.nan)
    if np.isfinite(ranked).sum() < _SHORTEST_TAIL:
        return Tail(math.inf)
    # Weights left out by the caller are zero. Ties at the cutoff (discrete models) may leave too few above it:
    # then the next lower weight is the cutoff.
    place = len(ranked) - wanted - 1
    cutoff = ranked[place] if place >= 0 else -np.inf
    while len(ranked) - (first := int(np.searchsorted(ranked, cutoff, side="right"))) < _SHORTEST_TAIL:
        below = int(np.searchsorted(ranked, cutoff, side="left"))
        cutoff = ranked[below - 1] if below else -np.inf
    largest = ranked[-1]
    exceedances = np.exp(ranked[first:] - largest) - math.exp(cutoff - largest)
    # What vanishes by rounding exceeds nothing; what vanishes beside the largest weight does.
    exceedances = exceedances[(exceedances > 0.0) | (ranked[first:] - cutoff > _ROUNDING)]
    # All but equal, to each other or to the cutoff: a flat tail.
    if len(exceedances) < _SHORTEST_TAIL or exceedances[-1] < _ROUNDING or np.ptp(exceedances) < _ROUNDING:
        return Tail(-math.inf)
    if exceedances[_quartile(len(exceedances))] < _SMALLEST:
        return Tail(math.inf)
    k, sigma = _fit_pareto(exceedances)
    return Tail(k, sigma, float(cutoff - largest), len(exceedances))


def smooth(log_weights: ArrayLike, num_traces: int | None = None) -> Array:
    """Log weights with the tail's replaced by the quantiles of its fit, none above the largest; shape (S,).

    Where no tail can be fitted (see :class:`Tail`) they stay as they are.
    """
    array = np.array(log_weights, dtype=np.float64)
    tail = fit_tail(array, num_traces)
    if not math.isfinite(tail.k):
        return array
    order = np.argsort(array, kind="stable")[len(array) - tail.size :]
    largest = array[order[-1]]
    levels = (np.arange(tail.size) + 0.5) / tail.size
    spread = -np.log1p(-levels)
    with np.errstate(over="ignore"):  # beyond the largest weight anyhow
        quantiles = tail.sigma * (np.expm1(tail.k * spread) / tail.k if tail.k else spread)
    smoothed = np.minimum(quantiles + math.exp(tail.cutoff), 1.0)
    # What was equal (discrete models) stays equal.
    _, tied = np.unique(array[order], return_inverse=True)
    smoothed = np.bincount(tied, smoothed) / np.bincount(tied)
    array[order] = largest + np.log(smoothed[tied])
    return array


def _quartile(count: int) -> int:
    return int(count / 4 + 0.5) - 1


def _fit_pareto(ranked: Array) -> tuple[float, float]:
    """Empirical-Bayes estimate of a generalised Pareto's k, with PSIS's weak prior, and σ from rising exceedances."""
    count = len(ranked)
    grid = 30 + int(math.sqrt(count))
    quartile = ranked[_quartile(count)]
    theta = 1.0 / ranked[-1] + (1.0 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3.0 * quartile)
    theta = theta[theta != 0.0]  # met where a discrete model's weights are tied
    shapes = np.log1p(-theta[:, None] * ranked).mean(axis=1)
    profile = count * (np.log(-theta / shapes) - shapes - 1.0)
    weights = np.exp(profile - profile.max())
    best = float((theta * weights).sum() / weights.sum())
    k = float(np.log1p(-best * ranked).mean())
    # Ten pseudo-observations of k = 0.5 steady short tails (Vehtari et al. 2024, appendix C).
    return (count * k + 10.0 * 0.5) / (count + 10.0), -k / best
