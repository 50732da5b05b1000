"""How well Markov chains mix over one variable, of numbers or of categories."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from etalumis.inference import diagnostics

# Mixing between categories is judged on those that hold at least this share of the draws: the indicator of a
# rarer one is constant in some chains by chance, and its R̂ says nothing.
RELEVANT_CATEGORY = 0.05


class Mixing(NamedTuple):
    """Of one variable.

    Attributes:
        rhat: rank-normalised split R̂; the largest over the indicators of its values, where it is discrete. ``inf``
            where chains stand still at values of their own, ``nan`` where the variable never changed.
        ess_bulk, ess_tail: effective sample sizes; the smallest bulk one over the indicators.
        value: the category with the largest R̂; None for numbers.
    """

    rhat: float
    ess_bulk: float
    ess_tail: float
    value: int | None = None


def mixing(chains: NDArray[np.float64], discrete: bool) -> Mixing:
    """Judge chains of a variable, shape (C, S)."""
    tail = diagnostics.ess_tail(chains)
    if chains.size == 0 or np.ptp(chains) == 0.0:
        return Mixing(math.nan, math.nan, tail)
    if discrete:
        values, counts = np.unique(chains, return_counts=True)
        relevant = values[counts >= RELEVANT_CATEGORY * chains.size]
        # Spread over many values it is a number like others.
        if len(relevant) and counts[np.isin(values, relevant)].sum() > 0.5 * chains.size:
            found = {int(v): _of((chains == v).astype(np.float64)) for v in relevant.tolist()}
            worst = max(found, key=lambda value: found[value][0])
            return Mixing(found[worst][0], min(ess for _, ess in found.values()), tail, worst)
    return Mixing(*_of(chains), tail)


def _of(chains: NDArray[np.float64]) -> tuple[float, float]:
    if np.ptp(chains) == 0.0:
        return 1.0, float(chains.size)  # a category that holds but for rare others
    return diagnostics.split_rhat(chains), diagnostics.ess_bulk(chains)
