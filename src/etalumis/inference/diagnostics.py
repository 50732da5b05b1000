"""Whether a result can be trusted: mixing of chains, tails of importance weights.

Chains: rank-normalised split R̂, bulk and tail effective sample size (Vehtari, Gelman, Simpson, Carpenter and
Bürkner, "Rank-normalization, folding, and localization", Bayesian Analysis 2021), for continuous and discrete
variables; Gelman and Rubin's R̂ of 1992 against iteration, and autocorrelation. Weights: effective sample size
(Kong 1992) and k̂ (see :mod:`.pareto`).

Written on NumPy alone, because ``ess`` and ``rhat`` must answer where ArviZ is not installed; the tests hold
them against ArviZ. Shapes: chains are (C, S), one row per chain; log weights are (S,).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etalumis.inference.pareto import fit_tail

Array = NDArray[np.float64]

# Below this many draws a chain can't be split in two halves that have a variance.
_SHORTEST_CHAIN = 4


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


def gelman_rubin(chains: ArrayLike, lengths: ArrayLike) -> Array:
    """Gelman and Rubin's R̂ (Statistical Science 1992) of the first draws of every chain, as it falls with iterations.

    Args:
        chains: shape (C, S), C ≥ 2.
        lengths: how many first draws, each from 2 to S, shape (L,).

    Returns:
        shape (L,); ``inf`` where every chain stands still at values of its own, ``nan`` where all draws are equal.
    """
    draws = _as_chains(chains)
    counts = np.asarray(lengths, dtype=np.int64)
    centred = draws - draws.mean()  # sums of squares lose digits far from zero
    means = np.cumsum(centred, axis=1)[:, counts - 1] / counts
    squares = np.cumsum(np.square(centred), axis=1)[:, counts - 1]
    within = np.maximum((squares - counts * np.square(means)) / (counts - 1), 0.0).mean(axis=0)
    between = means.var(axis=0, ddof=1)
    scale = max(float(np.square(centred).mean()), np.finfo(np.float64).tiny)
    within[within < 1e-14 * scale] = 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.sqrt((counts - 1) / counts + between / within))


def autocorrelation(chains: ArrayLike, lags: int) -> Array:
    """Autocorrelation at lags 0 … ``lags`` − 1 about the mean of all chains, averaged over them; shape (lags,).

    About the common mean, so that chains which sit in different places show it: the curve does not fall to 0.
    """
    draws = _as_chains(chains)
    length = draws.shape[1]
    covariance = _autocovariance(draws - draws.mean(), centre=False).mean(axis=0)[:lags]
    unbiased = covariance * length / (length - np.arange(len(covariance)))
    return np.asarray(unbiased / unbiased[0])


def autocorrelation_time(chains: ArrayLike) -> float:
    """Draws that are worth one independent draw for the mean, 1 + 2 Σ ρ; ``nan`` where all draws are equal."""
    draws = _as_chains(chains)
    return draws.size / ess_mean(draws)


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


def _autocovariance(chains: Array, centre: bool = True) -> Array:
    """Biased autocovariances of each chain, shape (C, S), by Fourier transform."""
    length = chains.shape[1]
    size = 1 << (2 * length - 1).bit_length()
    if centre:
        chains = chains - chains.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(chains, n=size, axis=1)
    return np.asarray(np.fft.irfft(np.abs(spectrum) ** 2, n=size, axis=1)[:, :length] / length)


# --- importance weights -------------------------------------------------------------------------------------------


def normalise(log_weights: Array) -> Array:
    """Weights that sum to 1; all zero where every log weight is −inf."""
    largest = log_weights.max(initial=-np.inf)
    if largest == -np.inf:
        return np.zeros_like(log_weights)
    weights = np.exp(log_weights - largest)
    return np.asarray(weights / weights.sum())


def ess_weights(log_weights: ArrayLike, rows: NDArray[np.int64] | None = None) -> float:
    """Effective sample size (Σ w)² / Σ w²; 0 where every weight is zero.

    Args:
        log_weights: shape (S,).
        rows: the trace of each, where several may be of one (after resampling): copies are not independent.
    """
    weights = normalise(np.asarray(log_weights, dtype=np.float64))
    if rows is not None:
        weights = np.bincount(rows, weights).astype(np.float64, copy=False)
    total = float(np.square(weights).sum())
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
    return fit_tail(log_weights, num_traces).k


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
    return tail_advice(pareto_k(array, count), ess_weights(array), count)


def tail_advice(k: float, ess: float, count: int) -> str | None:
    """What k̂ and the effective sample size of ``count`` weights say is wrong; None where nothing is."""
    if k > pareto_k_threshold(count):
        return (
            f"the importance weights can't be trusted: Pareto k̂ = {k:.2f} exceeds "
            f"{pareto_k_threshold(count):.2f} (effective sample size {ess:.3g} of {count} traces). A few traces "
            "carry the result: draw more, propose better (a trained network, IC), or run RMH"
        )
    return None
