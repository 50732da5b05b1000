"""Whether a result can be trusted: mixing of chains, tails of importance weights.

Chains: rank-normalised split R̂, bulk and tail effective sample size (Vehtari, Gelman, Simpson, Carpenter and
Bürkner, "Rank-normalization, folding, and localization", Bayesian Analysis 2021), for continuous and discrete
variables. Weights: effective sample size (Kong 1992) and the k̂ of Pareto-smoothed importance sampling (Vehtari,
Simpson, Gelman, Yao and Gabry, JMLR 2024; fit after Zhang and Stephens, Technometrics 2009).

Written on NumPy alone, because ``ess`` and ``rhat`` must answer where ArviZ is not installed; the tests hold
them against ArviZ. Shapes: chains are (C, S), one row per chain; log weights are (S,).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Below this many draws a chain can't be split in two halves that have a variance.
_SHORTEST_CHAIN = 4
# A generalised Pareto distribution needs at least this many points.
_SHORTEST_TAIL = 5
_ROUNDING = 1e-9  # relative differences of weights that sums of log densities leave by rounding


# --- chains -------------------------------------------------------------------------------------------------------


def split_rhat(chains: ArrayLike) -> float:
    """Rank-normalised split R̂, the larger of bulk and folded.

    Returns:
        about 1 where chains agree; ``inf`` where every chain stands still at values of its own; ``nan`` where
        all draws are equal, or chains have fewer than 4.
    """
    halves = _split(_as_chains(chains))
    if halves is None:
        return math.nan
    folded = np.abs(halves - np.median(halves))
    return float(np.fmax(_rhat(_rank_normalise(halves)), _rhat(_rank_normalise(folded))))


def ess_bulk(chains: ArrayLike) -> float:
    """Effective sample size for the bulk of the distribution; ``nan`` where all draws are equal."""
    halves = _split(_as_chains(chains))
    return math.nan if halves is None else _ess(_rank_normalise(halves))


def ess_tail(chains: ArrayLike) -> float:
    """The smaller effective sample size of the 5 % and 95 % quantiles; ``nan`` where all draws are equal."""
    draws = _as_chains(chains)
    halves = _split(draws)
    if halves is None:
        return math.nan
    indicators = [(halves <= quantile).astype(np.float64) for quantile in np.quantile(draws, (0.05, 0.95))]
    # An indicator that is constant (a discrete variable whose extreme value holds the quantile) says nothing.
    return float(np.fmin.reduce([_ess(indicator) for indicator in indicators]))


def ess_mean(chains: ArrayLike) -> float:
    """Effective sample size for the mean, without rank normalisation; ``nan`` where all draws are equal."""
    halves = _split(_as_chains(chains))
    return math.nan if halves is None else _ess(halves)


def mcse_mean(chains: ArrayLike) -> float:
    """Monte-Carlo standard error of the mean over all chains."""
    draws = _as_chains(chains)
    return float(draws.std(ddof=1) / math.sqrt(ess_mean(draws)))


def _as_chains(chains: ArrayLike) -> Array:
    array = np.asarray(chains, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"chains have shape (chains, draws); got an array of shape {array.shape}")
    return array


def _split(chains: Array) -> Array | None:
    """Each chain's halves as chains of their own; None where there is nothing to judge."""
    length = chains.shape[1]
    if length < _SHORTEST_CHAIN or not np.isfinite(chains).all() or np.ptp(chains) == 0.0:
        return None
    half = length // 2
    return np.concatenate([chains[:, :half], chains[:, length - half :]])


def _rank_normalise(chains: Array) -> Array:
    """Normal scores of average ranks (Blom's offset 3/8)."""
    from scipy.special import ndtri

    _, inverse, counts = np.unique(chains, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    average = last - (counts - 1) / 2.0
    ranks = average[inverse.reshape(chains.shape)]
    return np.asarray(ndtri((ranks - 0.375) / (chains.size + 0.25)), dtype=np.float64)


def _rhat(chains: Array) -> float:
    length = chains.shape[1]
    standing = not np.ptp(chains, axis=1).any()
    within = 0.0 if standing else float(chains.var(axis=1, ddof=1).mean())
    between = float(chains.mean(axis=1).var(ddof=1))
    if within == 0.0:
        return math.inf if between > 0.0 else math.nan
    return math.sqrt((length - 1) / length + between / within)


def _ess(chains: Array) -> float:
    """Geyer's initial monotone sequence over several chains (Stan reference manual, section 16.4)."""
    count, length = chains.shape
    if np.ptp(chains) == 0.0:
        return math.nan
    covariance = _autocovariance(chains)
    within = covariance[:, 0].mean() * length / (length - 1)
    pooled = covariance[:, 0].mean() + (chains.mean(axis=1).var(ddof=1) if count > 1 else 0.0)
    correlation = 1.0 - (within - covariance.mean(axis=0)) / pooled
    correlation[0] = 1.0
    pairs = correlation[: length // 2 * 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs < 0.0)
    cut = max((length - 3) // 2, 0)  # the last lags have hardly any terms
    if len(negative):
        cut = min(cut, int(negative[0]))
    # The even term of the first negative pair improves the estimate for antithetic chains.
    even = max(float(correlation[2 * cut]), 0.0) if cut > 0 else 0.0
    time = -1.0 + 2.0 * float(np.minimum.accumulate(pairs[: max(cut, 1)]).sum()) + even
    draws = count * length
    return float(draws / max(time, 1.0 / math.log10(draws)))


def _autocovariance(chains: Array) -> Array:
    """Biased autocovariances of each chain, shape (C, S), by Fourier transform."""
    length = chains.shape[1]
    size = 1 << (2 * length - 1).bit_length()
    spectrum = np.fft.rfft(chains - chains.mean(axis=1, keepdims=True), n=size, axis=1)
    return np.asarray(np.fft.irfft(np.abs(spectrum) ** 2, n=size, axis=1)[:, :length] / length)


# --- importance weights -------------------------------------------------------------------------------------------


def normalise(log_weights: Array) -> Array:
    """Weights that sum to 1; all zero where every log weight is −inf."""
    largest = log_weights.max(initial=-np.inf)
    if largest == -np.inf:
        return np.zeros_like(log_weights)
    weights = np.exp(log_weights - largest)
    return np.asarray(weights / weights.sum())


def ess_weights(log_weights: ArrayLike) -> float:
    """Effective sample size (Σ w)² / Σ w²; 0 where every weight is zero."""
    total = float(np.square(normalise(np.asarray(log_weights, dtype=np.float64))).sum())
    return 1.0 / total if total else 0.0


def log_evidence(log_weights: ArrayLike, num_traces: int | None = None) -> tuple[float, float]:
    """Log of the mean weight and its Monte-Carlo standard error.

    Args:
        log_weights: shape (S,).
        num_traces: how many traces there were, where zero weights are left out of ``log_weights``.
    """
    array = np.asarray(log_weights, dtype=np.float64)
    count = len(array) if num_traces is None else num_traces
    largest = float(array.max(initial=-np.inf))
    if largest == -math.inf:
        return -math.inf, math.inf
    mean = float(np.exp(array - largest).sum()) / count
    # The delta method: relative variance of the mean weight.
    return largest + math.log(mean), math.sqrt(max(1.0 / ess_weights(array) - 1.0 / count, 0.0))


def pareto_k(log_weights: ArrayLike, num_traces: int | None = None) -> float:
    """The tail index k̂ of importance weights; compare it with :func:`pareto_k_threshold`.

    Returns:
        ``inf`` where fewer than five weights differ from zero; ``nan`` where there are too few to judge.
    """
    return _tail_index(np.asarray(log_weights, dtype=np.float64), num_traces)


def pareto_k_threshold(num_traces: int) -> float:
    """Above min(1 − 1/log₁₀ S, 0.7) estimates from S weighted traces can't be trusted."""
    return min(1.0 - 1.0 / math.log10(max(num_traces, 11)), 0.7)


def weight_advice(log_weights: ArrayLike, num_traces: int | None = None) -> str | None:
    """What is wrong with importance weights and what to do about it; None where nothing is."""
    array = np.asarray(log_weights, dtype=np.float64)
    count = len(array) if num_traces is None else num_traces
    if not np.isfinite(array).any():
        return (
            f"all {count} traces have weight zero: none can have produced the observation. Check the observed "
            "values and their units; then draw more traces, or propose better ones (a trained network, IC)"
        )
    k = pareto_k(array, count)
    ess = ess_weights(array)
    if k > pareto_k_threshold(count):
        return (
            f"the importance weights can't be trusted: Pareto k̂ = {k:.2f} exceeds "
            f"{pareto_k_threshold(count):.2f} (effective sample size {ess:.3g} of {count} traces). A few traces "
            "carry the result: draw more, propose better (a trained network, IC), or run RMH"
        )
    return None


def _tail_index(log_weights: Array, num_traces: int | None) -> float:
    count = len(log_weights) if num_traces is None else num_traces
    wanted = math.ceil(min(0.2 * count, 3.0 * math.sqrt(count)))
    if wanted < _SHORTEST_TAIL:
        return math.nan
    ranked = np.sort(log_weights)
    if np.isfinite(ranked).sum() < _SHORTEST_TAIL:
        return math.inf
    # Weights left out by the caller are zero. Ties at the cutoff (discrete models) may leave too few above it:
    # then the next lower weight is the cutoff.
    place = len(ranked) - wanted - 1
    cutoff = ranked[place] if place >= 0 else -np.inf
    while len(ranked) - (first := int(np.searchsorted(ranked, cutoff, side="right"))) < _SHORTEST_TAIL:
        below = int(np.searchsorted(ranked, cutoff, side="left"))
        cutoff = ranked[below - 1] if below else -np.inf
    largest = ranked[-1]
    exceedances = np.exp(ranked[first:] - largest) - math.exp(cutoff - largest)
    exceedances = exceedances[exceedances > 0.0]
    if len(exceedances) < _SHORTEST_TAIL or exceedances[-1] < _ROUNDING:
        return -math.inf  # all but equal: a flat tail
    return _fit_pareto(exceedances)


def _fit_pareto(ranked: Array) -> float:
    """Empirical-Bayes estimate of a generalised Pareto's k from rising exceedances, with PSIS's weak prior."""
    count = len(ranked)
    grid = 30 + int(math.sqrt(count))
    quartile = ranked[int(count / 4 + 0.5) - 1]
    theta = 1.0 / ranked[-1] + (1.0 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3.0 * quartile)
    theta = theta[theta != 0.0]  # met where a discrete model's weights are tied
    shapes = np.log1p(-theta[:, None] * ranked).mean(axis=1)
    profile = count * (np.log(-theta / shapes) - shapes - 1.0)
    weights = np.exp(profile - profile.max())
    best = float((theta * weights).sum() / weights.sum())
    k = float(np.log1p(-best * ranked).mean())
    # Ten pseudo-observations of k = 0.5 steady short tails (Vehtari et al. 2024, appendix C).
    return (count * k + 10.0 * 0.5) / (count + 10.0)
