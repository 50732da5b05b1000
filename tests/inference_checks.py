"""Models with exact posteriors, and z-scores against them, for the tests of inference.

Each check compares a posterior mean with the exact one in units of its Monte-Carlo standard error. A correct engine
exceeds 5 with probability below 1e-6 for importance sampling and, with errors from the spread of 16 independent
chains (Student, 15 degrees of freedom), below 2e-4 for Markov chains. Seeds are fixed: a check that passes, stays.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import etalumis as et
from etalumis.distributions import Distribution, Normal, Uniform
from etalumis.execution import Address, AddressBook, Answer, Request
from etalumis.inference import moves
from etalumis.inference.acceptance import Move, log_acceptance_ratio
from etalumis.inference.block_moves import discrete_sites

TOLERANCE = 5.0
OBSERVED = {"obs0": 8.0, "obs1": 9.0}
LINEAR = {"c": 2.0, "y": 1.5}
LOOP = {"y": 0.3}


def z_weighted(posterior: et.Posterior, values: NDArray[np.float64], truth: float) -> float:
    """Standard errors between the weighted mean of values (one per sample) and the truth."""
    mean = posterior.weights @ values
    return float((mean - truth) / np.sqrt(np.square(posterior.weights * (values - mean)).sum()))


def z_chains(posterior: et.Posterior, values: NDArray[np.float64], truth: float) -> float:
    """The same for Markov chains, with the standard error from the spread of the chains' means."""
    means = posterior.by_chain(values).mean(axis=1)
    return float((means.mean() - truth) / (means.std(ddof=1) / math.sqrt(len(means))))


def z_scores(posterior: et.Posterior, name: str, mean: float, std: float) -> tuple[float, float]:
    """Of the mean, and of the mean squared deviation from the exact mean."""
    score = z_chains if posterior.markov else z_weighted
    values = posterior.values(name)
    return score(posterior, values, mean), score(posterior, (values - mean) ** 2, std**2)


def z_probabilities(posterior: et.Posterior, name: str, exact: NDArray[np.float64]) -> float:
    """The largest z-score over the values of a discrete variable with exact probability above 1 %."""
    score = z_chains if posterior.markov else z_weighted
    values = posterior.values(name)
    likely = np.flatnonzero(exact > 0.01)
    return max(abs(score(posterior, (values == k).astype(np.float64), exact[k])) for k in likely)


def linear() -> None:
    """Linear and Gaussian, with everything a statement can be: an uncontrolled draw, a conditioned one, a factor."""
    a = et.sample(Normal(0.0, 1.0), name="a")
    b = et.sample(Normal(a, 1.0), name="b", control=False)
    et.sample(Normal(b, 1.0), name="c")
    et.factor(Normal(a, 1.0).log_prob(0.5), name="half")
    et.observe(Normal(a + b, 1.0), name="y")


def linear_exact(conditioned: bool = True) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Means and standard deviations of (a, b), and the log evidence, of :func:`linear` given ``LINEAR``.

    With ``conditioned`` False c is a free draw: only y is given.
    """
    # Rows: a | 0, b | a, c | b, the factor, y; each a unit-variance residual of A x − d.
    A = np.array([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0], [1.0, 0.0], [1.0, 1.0]])
    d = np.array([0.0, 0.0, -LINEAR["c"], 0.5, LINEAR["y"]])
    if not conditioned:
        A, d = np.delete(A, 2, axis=0), np.delete(d, 2)
    covariance = np.linalg.inv(A.T @ A)
    mean = covariance @ A.T @ d
    residual = A @ mean - d
    constant = math.log(np.linalg.det(covariance)) - (len(d) - 2) * math.log(2 * math.pi)
    log_evidence = 0.5 * (constant - residual @ residual)
    return mean, np.sqrt(np.diag(covariance)), float(log_evidence)


def loop() -> None:
    """A rejection loop whose acceptance depends on what is inferred."""
    m = et.sample(Uniform(0.0, 1.0), name="m")
    while (x := et.sample(Uniform(0.0, 1.0))) >= 0.2 + 0.8 * m:
        pass
    et.observe(Normal(x, 0.1), name="y")


def loop_exact() -> float:
    """E[m | y] of :func:`loop` given ``LOOP``, by quadrature: 0.4616."""
    m, density = _loop_density()
    return float(m @ density / density.sum())


def loop_log_evidence() -> float:
    """log p(y) of the same."""
    _, density = _loop_density()
    return math.log(density.mean())


def _loop_density() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """p(y | m) on a grid of m."""
    m = (np.arange(4000) + 0.5) / 4000
    accepted = 0.2 + 0.8 * m
    inside = np.array(
        [math.erf((a - 0.3) / 0.1 / math.sqrt(2)) - math.erf(-0.3 / 0.1 / math.sqrt(2)) for a in accepted]
    )
    return m, 0.5 * inside / accepted


Proposals = Mapping[str, Callable[[Distribution], Distribution]]


class ByHand:
    """Proposals by the name of a draw; the others come from the prior, as at addresses a network does not know."""

    def __init__(self, proposals: Proposals) -> None:
        self.proposals = proposals
        self.proposed = self.beyond = 0
        self.unknown: dict[Address, int] = {}
        self.largest = 0
        self.observed: Mapping[str, Any] = {}

    def proposer(self) -> "ByHand":
        return ByHand(self.proposals)

    def begin(self, slots: Sequence[int], observe: Mapping[str, Any]) -> None:
        self.observed = observe

    def propose(self, requests: Sequence[Request], addresses: AddressBook) -> list[Answer]:
        return [self.answer(request, addresses) for request in requests]

    def answer(self, request: Request, addresses: AddressBook) -> Answer:
        make = self.proposals.get(request.name)
        if make is None and request.value is not None:
            return request.value, None
        if make is None:
            address = addresses[request.address]
            self.unknown[address] = self.unknown.get(address, 0) + 1
            return request.distribution.draw(request.stream), None
        proposal = make(request.distribution)
        value = proposal.draw(request.stream) if request.value is None else request.value
        self.proposed += request.value is None
        return value, proposal.log_prob(value)


# --- wrong engines, which the checks must catch -------------------------------------------------------------------


@dataclass(frozen=True)
class NoSiteChoice(et.LMH):
    """Forgets that traces of another length choose the site with another probability."""

    def log_acceptance(self, move: Move) -> float:
        return log_acceptance_ratio(move._replace(log_choice_new=0.0, log_choice_old=0.0))


@dataclass(frozen=True)
class ReversedKernel(et.RMH):
    """The proposal ratio upside down."""

    def log_acceptance(self, move: Move) -> float:
        return log_acceptance_ratio(
            move._replace(log_kernel_back=move.log_kernel_forth, log_kernel_forth=move.log_kernel_back)
        )


@dataclass(frozen=True)
class NoKernel(et.RMH):
    """Takes every kernel for a symmetric one."""

    def log_acceptance(self, move: Move) -> float:
        return log_acceptance_ratio(move._replace(log_kernel_back=0.0, log_kernel_forth=0.0))


class Biased:
    """A kind of move with a term left out of its ratio."""

    def __init__(self, right: moves.Transition, change: Callable[[moves.State, moves.Attempt], float]) -> None:
        self._right, self._change = right, change

    def attempt(self, host: Any, state: moves.State, first: float, second: float, stream: Any) -> moves.Attempt:
        attempt = self._right.attempt(host, state, first, second, stream)
        if attempt.state is None:
            return attempt
        return attempt._replace(log_alpha=attempt.log_alpha + self._change(state, attempt))

    def settle(self, attempt: moves.Attempt, accepted: bool, acceptance: float, adapting: bool) -> None:
        self._right.settle(attempt, accepted, acceptance, adapting)


def no_site_choice(state: moves.State, attempt: moves.Attempt) -> float:
    """Undoes the term of a suffix move's choice of its site."""
    assert attempt.state is not None
    return math.log(len(attempt.state.trace) / len(state.trace))


def no_discrete_choice(state: moves.State, attempt: moves.Attempt) -> float:
    """Undoes the term of a dependants move's choice among the discrete sites."""
    assert attempt.state is not None
    counts = [len(discrete_sites(trace)) for trace in (attempt.state.trace, state.trace)]
    return math.log(counts[0] / counts[1])


def no_proposal(state: moves.State, attempt: moves.Attempt) -> float:
    """Takes the network's proposals for the prior."""
    assert attempt.state is not None
    new = attempt.state.trace
    return sum(new.log_proposals) - sum(new.log_priors)
