"""Ranks of true values among the draws of posteriors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from etalumis.inference.errors import InferenceError
from etalumis.inference.posterior import Posterior

Array = NDArray[np.float64]
_ESS_PER_DRAW = 20.0  # resampled draws of a weighted posterior are independent only if they are far fewer than its ESS


class Ranks:
    """The ranks of E events, one after the other; every event has uniform ones until its posterior is told.

    Args:
        truth: true values by name, shape (E,) each; K − 1 names.
        generator: of random numbers.

    Attributes:
        weighted, raw: ranks among draws that respect the weights, and among all alike, shape (E, K); the last
            column is TARP's.
        draws: that :attr:`weighted` is among, shape (E,); 0 where an event gave no information.
        ess: shape (E,).
        markov: the posteriors are Markov chains.
        lost: why the first event without information gave none; empty where all did.
    """

    def __init__(self, truth: Mapping[str, Array], generator: np.random.Generator) -> None:
        self._names = tuple(truth)
        self._truth = np.stack(list(truth.values()), axis=1)
        # Where a trace has no such value: a constant makes it a number of every trace, and ranks stay exact.
        self._middle = np.median(self._truth, axis=0)
        spread = self._truth.std(axis=0)
        self._scale = np.where(spread > 0.0, spread, 1.0)
        self._generator = generator
        events, variables = self._truth.shape
        self.weighted = generator.random((events, variables + 1))
        self.raw = generator.random((events, variables + 1))
        self.draws = np.zeros(events, dtype=np.int64)
        self.ess = np.zeros(events)
        self.markov = False
        self.lost = ""

    def tell(self, event: int, posterior: Posterior | Exception) -> None:
        """Rank the truth of an event in its posterior, or in nothing where the engine gave none."""
        if isinstance(posterior, Exception):
            self.lost = self.lost or str(posterior)
            return
        self.markov = posterior.markov
        # TARP's random point: the truth of another event, that is, a draw from the prior.
        other = (event + int(self._generator.integers(1, max(len(self._truth), 2)))) % len(self._truth)
        try:
            if not posterior.markov and len(posterior):
                self.raw[event] = self._among(event, other, posterior)
            # A chain that never moved is worth one draw.
            ess = 1.0 if math.isnan(posterior.ess) else posterior.ess
            count = max(1, min(int(ess / _ESS_PER_DRAW), len(posterior)))
            chosen = posterior.resample(count, seed=int(self._generator.integers(1 << 62)))
            self.weighted[event] = self._among(event, other, chosen)
        except (InferenceError, ValueError) as error:  # every weight is zero; a name of several shapes
            self.lost = self.lost or str(error)
            return
        self.draws[event], self.ess[event] = count, ess

    def _among(self, event: int, other: int, posterior: Posterior) -> Array:
        columns = zip(self._names, self._middle.tolist(), strict=True)
        values = np.stack([_numbers(posterior, name, missing) for name, missing in columns], axis=1)
        truth, point = self._truth[event], self._truth[other]
        far = np.square((values - point) / self._scale).sum(axis=1)
        true_far = np.square((truth - point) / self._scale).sum()
        values = np.concatenate([values, far[:, None]], axis=1)
        truth = np.append(truth, true_far)
        below = (values < truth).sum(axis=0)
        ties = (values == truth).sum(axis=0)
        ranks: Array = (below + self._generator.random(len(truth)) * (ties + 1.0)) / (len(values) + 1.0)
        return ranks


def _numbers(posterior: Posterior, name: str, missing: float) -> Array:
    """The first value of a name in every sample."""
    if name not in posterior.names:
        return np.full(len(posterior), missing)
    values = posterior.values(name, index=0, missing=missing).astype(np.float64)
    return np.where(np.isnan(values), missing, values)
