"""A whole-trace defensive mixture: some executions come from the prior, so that no weight can explode.

With probability ε every draw of an execution comes from the prior, and the network only tells its density there.
The trace then has the proposal density (1 − ε) q(x) + ε p(x), whoever made it, so its weight is at most the
likelihood / ε (Owen and Zhou 2000, "Safe and effective importance sampling"). Mixing site by site would bound it by
ε to the power of the number of draws only, and put a prior draw into most traces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from etalumis.distributions import Stream, derived_seed
from etalumis.execution import AddressBook, Answer, Proposer, Request, TraceBatch

_KEY = 0x646566  # "def": sets these numbers apart from the draws of the same seed


class Defensive:
    """Hands the prior's values to a proposer in the executions that the coin gives to the prior.

    Args:
        proposer: of the network.
        share: ε.
        seed: of the run; with the trace index it decides which executions.
    """

    def __init__(self, proposer: Proposer, share: float, seed: int) -> None:
        self._proposer = proposer
        self._share = share
        self._coin = Stream(derived_seed(seed, _KEY))
        self._of_prior: dict[int, bool] = {}  # by slot

    def begin(self, slots: Sequence[int], observe: Any) -> None:
        for slot in slots:
            self._of_prior.pop(slot, None)
        self._proposer.begin(slots, observe)

    def propose(self, requests: Sequence[Request], addresses: AddressBook) -> Sequence[Answer]:
        return self._proposer.propose([self._defended(request) for request in requests], addresses)

    def _defended(self, request: Request) -> Request:
        of_prior = self._of_prior.get(request.slot)
        if of_prior is None:
            self._coin.start(request.trace_index)
            self._coin.seek(0)
            of_prior = self._of_prior[request.slot] = self._coin.uniform() < self._share
        return request._replace(value=request.distribution.draw(request.stream)) if of_prior else request


def mixed(traces: TraceBatch, share: float) -> TraceBatch:
    """The same traces with the density of the mixture as that of their proposal.

    Draws that no network answers have their prior density on both sides and cancel.
    """
    with np.errstate(invalid="ignore"):
        density = np.logaddexp(math.log1p(-share) + traces.log_proposal, math.log(share) + traces.log_prior)
    return replace(traces, log_proposal=density)
