"""Moves by a network's proposals: of the whole trace, or of a site and everything after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from etalumis.distributions import Stream
from etalumis.execution import FAILED, FINISHED, Proposer, Trace
from etalumis.inference.acceptance import pick
from etalumis.inference.moves import Attempt, Host, State, Untaught, check_prefix, irreproducible, values_of

SCALAR = "controlled scalar draw"  # what Proposed moves


class Proposed(Untaught):
    """Redraws the whole trace, or a site and everything after it, by a network's proposals.

    With the weight of what is redrawn, w = p(y | x) Π p / q over the draws from the site on,
    log α = Δ log w + Δ log P(choose the site); a whole trace is chosen without looking at the state. What stands
    before the site is told to the network, so that it knows how the trace began.

    Args:
        proposer: of the network.
        whole: share of these moves that redraw the whole trace.
    """

    def __init__(self, proposer: Proposer, whole: float) -> None:
        self._proposer = proposer
        self._whole = whole
        self._scored: tuple[Trace | None, Sequence[float]] = (None, ())

    def attempt(self, host: Host, state: State, first: float, second: float, stream: Stream) -> Attempt:
        old = state.trace
        asked = asked_sites(old)
        whole = second < self._whole
        # A whole trace is redrawn from any state, also from one that has nothing to ask the network for: there must be
        # a way back into states that have.
        if not old.addresses or not (asked or whole):
            return Attempt(None, lacking=SCALAR)
        position = start = 0 if whole else pick(asked, first)
        log_q = self._log_q(host, old)
        if log_q is None:
            return Attempt(old.addresses[position])
        new = host.propose(self._proposer, *told_and_fixed(old, start))
        if new.ended != FINISHED or not math.isfinite(new.log_likelihood + new.log_prior):
            return Attempt(old.addresses[position])
        if not whole:
            check_prefix(host, old, new, position)
        log_alpha = host.power * (new.log_likelihood - old.log_likelihood)
        log_alpha += sum(new.log_priors[start:]) - sum(new.log_proposals[start:])
        log_alpha -= sum(old.log_priors[start:]) - sum(log_q[start:])
        if not whole:
            log_alpha += math.log(len(asked)) - math.log(len(asked_sites(new)))
        return Attempt(old.addresses[position], State(new, host.sites(new)), log_alpha)

    def settle(self, attempt: Attempt, accepted: bool, acceptance: float, adapting: bool) -> None:
        if accepted and attempt.state is not None:
            self._scored = (attempt.state.trace, attempt.state.trace.log_proposals)

    def _log_q(self, host: Host, trace: Trace) -> Sequence[float] | None:
        """The network's log q along a trace that another kind of move made; None where a policy dropped it."""
        if self._scored[0] is not trace:
            again = host.evaluate(self._proposer, *told_and_fixed(trace, len(trace)))
            if again.ended == FAILED:
                return None
            if again.addresses != trace.addresses:
                raise irreproducible(host, trace.addresses[0])
            self._scored = (trace, again.log_proposals)
        return self._scored[1]


def asked_sites(trace: Trace) -> list[int]:
    """Positions of the draws that a network is asked for: controlled scalars that are not conditioned."""
    rows = zip(trace.controlled, trace.conditioned, trace.distributions, strict=True)
    return [k for k, (control, given, d) in enumerate(rows) if control and not given and not d.shape]


def told_and_fixed(trace: Trace, stop: int) -> tuple[dict[int, Any], dict[int, Any]]:
    """The same, apart: those that a network is asked for, and the others."""
    values = values_of(trace, stop)
    told = {trace.addresses[k]: values.pop(trace.addresses[k]) for k in asked_sites(trace) if k < stop}
    return told, values
