"""Models with exact posteriors, and z-scores against them, for the tests of inference.

Each check compares a posterior mean with the exact one in units of its Monte-Carlo standard error. A correct engine
exceeds 5 with probability below 1e-6 for importance sampling and, with errors from the spread of 16 independent
chains (Student, 15 degrees of freedom), below 2e-4 for Markov chains. Seeds are fixed: a check that passes, stays.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import etalumis as et
from etalumis.distributions import Distribution, Normal, Uniform
from etalumis.execution import Address, AddressBook, Answer, Request

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


def linear_exact() -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Means and standard deviations of (a, b), and the log evidence, of :func:`linear` given ``LINEAR``."""
    # Rows: a | 0, b | a, c | b, the factor, y; each a unit-variance residual of A x − d.
    A = np.array([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0], [1.0, 0.0], [1.0, 1.0]])
    d = np.array([0.0, 0.0, -LINEAR["c"], 0.5, LINEAR["y"]])
    covariance = np.linalg.inv(A.T @ A)
    mean = covariance @ A.T @ d
    residual = A @ mean - d
    log_evidence = -0.5 * residual @ residual - 1.5 * math.log(2 * math.pi) + 0.5 * math.log(np.linalg.det(covariance))
    return mean, np.sqrt(np.diag(covariance)), float(log_evidence)


def loop() -> None:
    """A rejection loop whose acceptance depends on what is inferred."""
    m = et.sample(Uniform(0.0, 1.0), name="m")
    while (x := et.sample(Uniform(0.0, 1.0))) >= 0.2 + 0.8 * m:
        pass
    et.observe(Normal(x, 0.1), name="y")


def loop_exact() -> float:
    """E[m | y] of :func:`loop` given ``LOOP``, by quadrature: 0.4616."""
    m = (np.arange(4000) + 0.5) / 4000
    accepted = 0.2 + 0.8 * m
    inside = np.array(
        [math.erf((a - 0.3) / 0.1 / math.sqrt(2)) - math.erf(-0.3 / 0.1 / math.sqrt(2)) for a in accepted]
    )
    return float((m * inside / accepted).sum() / (inside / accepted).sum())


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
        if make is None:
            address = addresses[request.address]
            self.unknown[address] = self.unknown.get(address, 0) + 1
            return request.distribution.draw(request.stream) if request.value is None else request.value, None
        proposal = make(request.distribution)
        value = proposal.draw(request.stream) if request.value is None else request.value
        self.proposed += 1
        return value, proposal.log_prob(value)
