"""Amortised rejection sampling: weights of traces with rejection loops, without the noise of the rejected passes.

A loop draws z from p(z | x) until it accepts, z ∈ A, so the model is p(z | x, A) = p(z | x) 1[z ∈ A] / p(A | x).
Importance weights that multiply the ratios p / q of every pass are exact, but their variance grows with the number of
passes and may be infinite; the ratio of the accepted pass alone is biased, because it forgets that proposals are
accepted at another rate than the prior. Naderiparizi et al., "Amortized rejection sampling in universal probabilistic
programming" (AISTATS 2022, arXiv:1910.09056), correct it by estimates of both rates.

Here the proposals of a pass may depend on the rejected passes h before it, as those of a recurrent network do. Pass
k + 1 is drawn from q(· | x, h_k) with h_k the k passes rejected before. The loop ends with n rejected passes and z with
density Π_k q(r_k | x, h_{k−1}) · q(z | x, h_n). Let the target be p(z | x, A) on z, and on the rejected passes
ρ(h_n) = Π_k q(r_k | x, h_{k−1}) · q(A | x, h_n), in words: the loop runs with proposals and stops when it would accept.
If it ends at all, ρ is normalised, since from any h_n it either stops, with probability q(A | x, h_n), or rejects. So
summing the rejected passes out leaves the model, and the factor of the loop in the weight is

    p(z | x) / q(z | x, h_n) · q(A | x, h_n) / p(A | x).

Everything behind the loop is weighed as always: its proposals may depend on h_n, the model there does not. Both rates
are replaced by unbiased estimates that are independent of each other and of the trace, so weights keep their
expectation:

- q(A | x, h_n): the share accepted of ``extra_runs`` executions told all up to the accepted pass, which they draw
  anew from the proposals, and end behind it;
- 1 / p(A | x): the mean number of passes in ``extra_runs`` executions told all up to the loop, which then runs
  by the prior until it accepts: a geometric variable of mean 1 / p(A | x).

In nested loops, a pass of the outer loop includes whole inner ones; the same argument, from the inside out, gives a
factor for every visit that is not inside of a rejected pass. An estimate of q(A | x, h_n) can be 0, and then the
weight is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from etalumis.distributions import derived_seed
from etalumis.execution import FAILED, FINISHED, Job, Observations, Proposer, Simulator, Stop, Trace, run_jobs
from etalumis.inference.errors import InferenceError
from etalumis.inference.loops import Finder, Visit
from etalumis.inference.moves import values_of
from etalumis.inference.network_moves import told_and_fixed

Rejection = Literal["exact", "amortised", "accepted_only_biased"]
_MANY_ZEROS = 0.1  # share of traces without weight for want of an accepted execution that is worth a warning
REJECTIONS = ("exact", "amortised", "accepted_only_biased")
_KEY = 0x617273  # "ars": sets the random numbers of extra executions apart from those of the same seed


class Counts(NamedTuple):
    """What was met and done.

    Attributes:
        loops: visits to rejection loops.
        rejected: passes that they rejected.
        extra: executions to estimate rates.
        zeros: traces that lost their weight because no extra execution was accepted.
    """

    loops: int = 0
    rejected: int = 0
    extra: int = 0
    zeros: int = 0

    def __add__(self, other: Counts) -> Counts:  # type: ignore[override]
        return Counts(*(one + two for one, two in zip(self, other, strict=True)))


class _Rates:
    """Of one visit: extra executions, and what they found."""

    def __init__(self, trace: Trace, visit: Visit) -> None:
        self.trace = trace
        self.visit = visit
        self.asked, self.given = told_and_fixed(trace, visit.starts[-1])  # up to the accepted pass
        self.before = values_of(trace, visit.starts[0])  # up to the loop
        self.tried = self.accepted = 0  # by the proposals
        self.loops = self.passes = 0  # by the prior

    def log_factor(self) -> float:
        """log of q(A) / p(A), as estimated."""
        if not self.tried or not self.loops:
            raise InferenceError(
                f"every extra execution of the rejection loop {self.visit.loop!r} failed; see model.failures"
            )
        if not self.accepted:
            return -math.inf
        return math.log(self.accepted / self.tried) + math.log(self.passes / self.loops)


class _Extra(NamedTuple):
    """An extra execution."""

    rates: _Rates
    proposed: bool  # the accepted pass anew, from the proposals; else the loop, from the prior
    stop: Stop


class Corrector:
    """Corrects traces for what their loops rejected.

    Args:
        model: the simulator.
        rejection: "amortised", or "accepted_only_biased" to leave the correction out.
        patterns: see :class:`.loops.Finder`.
        proposer: answers the extra executions.
        extra_runs: of each kind, for each visit.
        batch_size: of these executions.
        seed: of the run.
    """

    def __init__(
        self,
        model: Simulator,
        rejection: Rejection,
        patterns: Mapping[str, str],
        proposer: Proposer,
        extra_runs: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.counts = Counts()
        self._model = model
        self._amortised = rejection == "amortised"
        self._finder = Finder(patterns, model.addresses)
        self._proposer = proposer
        self._runs = extra_runs
        self._batch_size = batch_size
        self._seed = seed

    def correct(self, traces: Sequence[Trace], observations: Sequence[Observations]) -> None:
        """Take the rejected passes out of the densities of traces, and the loops' rates into that of the proposal.

        Args:
            traces: changed in place.
            observations: what each is conditioned on.

        Raises:
            InferenceError: loops overlap, or the simulator does not repeat itself.
        """
        estimates: list[list[_Rates]] = []
        jobs: list[tuple[Observations, list[_Rates]]] = []
        for trace, observed in zip(traces, observations, strict=True):
            visits = self._finder.visits(trace) if trace.ended == FINISHED else []
            rates = [_Rates(trace, visit) for visit in visits]
            leave_out(trace, visits)
            rejected = sum(len(visit.starts) - 1 for visit in visits)
            self.counts += Counts(loops=len(visits), rejected=rejected)
            if self._amortised and rates and trace.log_weight > -math.inf:
                estimates.append(rates)
                jobs.append((observed, rates))
        extras: dict[int, _Extra] = {}

        def executions() -> Iterator[Job]:
            for observed, rates in jobs:
                for number, one in enumerate(rates):
                    first = self._first_index(one.trace.index, number)
                    for run in range(2 * self._runs):
                        proposed = run < self._runs
                        stop = one.visit.after_pass() if proposed else one.visit.after_loop()
                        extras[first + run] = _Extra(one, proposed, stop)
                        told = (one.asked, one.given) if proposed else ({}, one.before)
                        yield Job(first + run, observed, *told, asks=proposed, stop=stop)

        for made in run_jobs(
            self._model, self._proposer, executions(), self._seed, self._batch_size, draw_observations=False
        ):
            self.counts += Counts(extra=1)
            self._count(extras.pop(made.index), made)
        for rates in estimates:
            log_factor = sum(one.log_factor() for one in rates)
            rates[0].trace.log_proposal -= log_factor
            self.counts += Counts(zeros=int(log_factor == -math.inf))

    def _count(self, extra: _Extra, made: Trace) -> None:
        if made.ended == FAILED:
            return
        rates, visit = extra.rates, extra.rates.visit
        told = visit.starts[-1] if extra.proposed else visit.starts[0]
        if made.addresses[:told] != rates.trace.addresses[:told]:
            raise self._irreproducible(visit)
        if extra.proposed:
            rates.tried += 1
            rates.accepted += visit.accepted(made, extra.stop)
            return
        passes = visit.passes(made, extra.stop)
        if not passes:
            raise self._irreproducible(visit)
        rates.loops += 1
        rates.passes += passes

    def _first_index(self, trace_index: int, visit: int) -> int:
        """Of the random numbers of a visit's extra executions."""
        return derived_seed(self._seed, _KEY, trace_index, visit) >> 2

    @staticmethod
    def _irreproducible(visit: Visit) -> InferenceError:
        return InferenceError(
            f"executed again with the same values, the simulator did not come to the rejection loop {visit.loop!r} as "
            "before: it has randomness or memory of its own. Draw all random numbers with sample(), and keep no "
            "state from one execution to the next"
        )


def leave_out(trace: Trace, visits: Sequence[Visit]) -> None:
    """Take the rejected passes out of a trace's densities."""
    if not visits:
        return
    for visit in visits:
        for position in range(visit.starts[0], visit.starts[-1]):
            trace.log_priors[position] = trace.log_proposals[position] = 0.0
    trace.log_prior = sum(trace.log_priors)
    trace.log_proposal = sum(trace.log_proposals)


def rejection_advice(rejection: Rejection, counts: Counts, total: int) -> list[str]:
    """Warnings where loops were not treated as they should be, in ``total`` traces."""
    if not counts.loops:
        return [
            f"rejection={rejection!r}, but no execution met a rejection loop: mark it with etalumis.rejection, or name "
            "its addresses by loops={…}"
        ]
    if rejection == "accepted_only_biased":
        return [f"rejection={rejection!r}: biased, unless proposals are accepted at the rate of the prior"]
    if counts.zeros <= _MANY_ZEROS * total:
        return []
    return [
        f"{counts.zeros} of {total} traces lost their weight because none of the extra executions of a rejection loop "
        "was accepted: right on average but wasteful. Raise extra_runs, or train on more traces"
    ]
