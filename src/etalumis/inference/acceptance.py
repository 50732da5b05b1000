"""The Metropolis–Hastings acceptance ratio of single-site moves over traces, as pure functions.

A move redraws the site s from a kernel κ, executes the model again with every other value reused by its full
address, and draws values of statements that the old trace did not meet from the prior. Those fresh draws, and the
old trace's draws that are no longer met, cancel against their own prior densities. What remains is

    log α = log p(y | x') − log p(y | x)
          + Σ over s and reused sites [log p(x'_a; parameters in x') − log p(x_a; parameters in x)]
          + log κ(x_s | x'_s; parameters in x') − log κ(x'_s | x_s; parameters in x)
          + log P(choose s | x') − log P(choose s | x).

(Wingate, Stuhlmüller and Goodman, AISTATS 2011, with the kernel's and the choice's terms.)
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

from etalumis.execution import Trace


class Move(NamedTuple):
    """The terms of log α; ``new`` belongs to the proposed trace x', ``old`` to the present one x."""

    log_likelihood_new: float
    log_likelihood_old: float
    log_prior_change: float  # over s and the reused sites
    log_kernel_back: float  # κ(x_s | x'_s)
    log_kernel_forth: float  # κ(x'_s | x_s)
    log_choice_new: float  # P(choose s | x')
    log_choice_old: float  # P(choose s | x)


def log_acceptance_ratio(move: Move) -> float:
    """log α before it is cut at 0."""
    return (
        move.log_likelihood_new
        - move.log_likelihood_old
        + move.log_prior_change
        + move.log_kernel_back
        - move.log_kernel_forth
        + move.log_choice_new
        - move.log_choice_old
    )


class Sites:
    """The draws of a trace that a chain may move (all that are not conditioned), and how it chooses among them.

    Controlled sites together are chosen with probability at least one half, whatever their number: uncontrolled
    ones (lifetimes, late passes of loops) may be many, and networks are not the only ones to care less for them.

    Args:
        trace: the state.
        branch_share: of the moves, this share is made at named discrete draws, where there are any. Their values
            (a decay channel, the number of particles) tell modes apart, and moves between modes are rarely accepted.
    """

    __slots__ = (
        "_branch_share",
        "_log",
        "_log_branch",
        "_names",
        "_of",
        "_share",
        "branches",
        "controlled",
        "uncontrolled",
    )

    def __init__(self, trace: Trace, branch_share: float = 0.0) -> None:
        flags, conditioned = trace.controlled, trace.conditioned
        self._of = (trace.addresses, flags, conditioned)
        self._names = trace.names if branch_share else None
        self.controlled = [k for k, flag in enumerate(flags) if flag]
        self.uncontrolled = [k for k, flag in enumerate(flags) if not flag and not conditioned[k]]
        ours, others = len(self.controlled), len(self.uncontrolled)
        self._share = share = max(0.5, ours / (ours + others)) if ours and others else float(others == 0)
        self.branches: list[int] = []
        if branch_share:
            discrete = [bool(n) and d.discrete for n, d in zip(trace.names, trace.distributions, strict=True)]
            self.branches = [k for k, flag in enumerate(discrete) if flag and not conditioned[k]]
        self._branch_share = branch = branch_share if self.branches else 0.0
        # By (controlled, branch): the log probability of choosing one such site.
        one = {True: share / max(ours, 1), False: (1.0 - share) / max(others, 1)}
        extra = branch / max(len(self.branches), 1)
        self._log = {flag: _log((1.0 - branch) * p) for flag, p in one.items()}
        self._log_branch = {flag: _log((1.0 - branch) * p + extra) for flag, p in one.items()}

    def __len__(self) -> int:
        return len(self.controlled) + len(self.uncontrolled)

    def serve(self, trace: Trace) -> bool:
        """Whether another trace has the same draws, and the same of them to choose among with the same probabilities.

        Addresses alone don't say: names, which may change from trace to trace, decide what is conditioned.
        """
        addresses, controlled, conditioned = self._of
        return (
            trace.addresses == addresses
            and trace.controlled == controlled
            and trace.conditioned == conditioned
            and (self._names is None or trace.names == self._names)
        )

    def choose(self, uniform: float) -> int:
        """A draw's position in the trace, by a uniform number."""
        branch, share = self._branch_share, self._share
        if uniform < branch:
            return pick(self.branches, uniform / branch)
        if branch:
            uniform = (uniform - branch) / (1.0 - branch)
        if uniform < share:
            return pick(self.controlled, uniform / share)
        return pick(self.uncontrolled, (uniform - share) / (1.0 - share))

    def log_probability(self, controlled: bool, branch: bool = False) -> float:
        """Of choosing one given site that is controlled or not, a branch or not."""
        return self._log_branch[controlled] if branch else self._log[controlled]


def pick(positions: list[int], uniform: float) -> int:
    """One of some positions, all alike, by a uniform number."""
    return positions[min(int(uniform * len(positions)), len(positions) - 1)]


def _log(probability: float) -> float:
    return math.log(probability) if probability else -math.inf


def log_prior_change(old: Trace, new: Trace, fresh: Collection[int]) -> float:
    """Change of the log prior over the sites whose values were reused, and the moved site.

    Args:
        old: the present trace.
        new: the proposed one.
        fresh: addresses whose values in ``new`` were drawn anew from the prior.
    """
    change = new.log_prior - old.log_prior
    if not fresh and new.addresses == old.addresses and new.conditioned == old.conditioned:
        return change  # the same statements, nothing fresh and nothing stale
    before, after = _log_priors(old), _log_priors(new)
    change -= sum(after[address] for address in fresh)
    stale = (before.keys() - after.keys()) | (before.keys() & set(fresh))
    return change + sum(before[address] for address in stale)


def _log_priors(trace: Trace) -> dict[int, float]:
    """Log priors by address of the draws that belong to the state: conditioned ones do not."""
    return {
        address: log_prior
        for address, log_prior, conditioned in zip(trace.addresses, trace.log_priors, trace.conditioned, strict=True)
        if not conditioned
    }
