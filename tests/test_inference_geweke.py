"""Geweke's joint distribution test of every kind of move, on a model of changing length, and wrong ones that must fail.

Geweke, "Getting it right", JASA 99 (2004) 799: alternating y | x and a transition x | y keeps the joint distribution
where the transition keeps every posterior. Means are compared with those of prior draws in errors from the spread of
independent chains: a right move exceeds 5 with probability below 2e-4 for each of three expectations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Exponential, Gamma, Normal, Poisson, Stream
from etalumis.inference import moves
from etalumis.inference.acceptance import Move, log_acceptance_ratio
from etalumis.inference.block_moves import Dependants, Suffix
from etalumis.inference.chain import Chain
from etalumis.inference.network_moves import Proposed
from etalumis.inference.single_site import SingleSite
from inference_checks import TOLERANCE, Biased, ByHand, no_discrete_choice, no_proposal, no_site_choice

CHAINS, STEPS, PRIOR = 20, 1500, 20_000
KEYS = ("n", "total", "scale")


def two_lengths() -> dict[str, Any]:
    """Every kind of site, in traces of changing length and with a changing number of discrete draws."""
    n = et.sample(Poisson(1.5), name="n")
    total = et.sample(Normal(0.0, 1.0), name="base", control=False)
    for _ in range(n):
        total += et.sample(Exponential(1.0))
        total -= et.sample(Poisson(0.5))
    scale = et.sample(Gamma(3.0, 2.0), name="scale")
    et.observe(Normal(total, 0.5 + scale), name="y")
    return {"n": n, "total": total, "scale": scale}


def single(engine: et.LMH, wrong: bool) -> list[tuple[float, moves.Transition]]:
    """Moves of single sites; wrong ones forget the choice of the site."""

    def ratio(move: Move) -> float:
        return log_acceptance_ratio(move._replace(log_choice_new=0.0, log_choice_old=0.0) if wrong else move)

    return [(1.0, SingleSite(engine.kernel(), ratio))]


def suffix(wrong: bool) -> list[tuple[float, moves.Transition]]:
    right = Suffix()
    return [(1.0, Biased(right, no_site_choice) if wrong else right)]


def dependants(wrong: bool) -> list[tuple[float, moves.Transition]]:
    """With moves of single sites: alone they would not reach every value."""
    right = Dependants()
    others = [(0.4 * share, move) for share, move in single(et.LMH(), wrong=False)]
    return [(0.6, Biased(right, no_discrete_choice) if wrong else right), *others]


def network(whole: float, wrong: bool) -> list[tuple[float, moves.Transition]]:
    """Broad proposals that are not the prior; wrong ones are taken for it."""
    proposals = ByHand(
        {"n": lambda prior: Poisson(2.0), "": lambda prior: type(prior)(0.8), "scale": lambda prior: Gamma(2.5, 1.6)}
    )
    right = Proposed(proposals, whole)
    return [(1.0, Biased(right, no_proposal) if wrong else right)]


KINDS: dict[str, Callable[[bool], list[tuple[float, moves.Transition]]]] = {
    "lmh": lambda wrong: single(et.LMH(), wrong),
    "rmh": lambda wrong: single(et.RMH(), wrong),
    "suffix": suffix,
    "dependants": dependants,
    "network, whole traces": lambda wrong: network(1.0, wrong),
    "network, from a site on": lambda wrong: network(0.0, wrong),
}


def successive(kind: list[tuple[float, moves.Transition]], number: int) -> dict[str, float]:
    """Means along one chain of alternating draws of y and of the trace."""
    observations = et.execution.Observations({"y": 0.0})
    chain = Chain(et.Model(two_lengths), observations, kind, seed=number, number=0)
    chain.freeze()
    noise = Stream(1000 + number)
    chain.start(1)
    sums = dict.fromkeys(KEYS, 0.0)
    for step in range(STEPS):
        result = chain.trace.result
        likelihood = Normal(result["total"], 0.5 + result["scale"])
        noise.start(step)
        noise.seek(0)
        observations.values["y"] = y = likelihood.draw(noise)
        chain.trace.log_likelihood = likelihood.log_prob(y)
        chain.step()
        for key in sums:
            sums[key] += chain.trace.result[key]
    return {key: total / STEPS for key, total in sums.items()}


@pytest.fixture(scope="module")
def exact() -> dict[str, np.ndarray]:
    results = et.prior(et.Model(two_lengths), PRIOR, seed=1).results
    return {key: np.array([result[key] for result in results], dtype=np.float64) for key in KEYS}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
@pytest.mark.parametrize("kind", KINDS)
def test_joint_distribution(kind: str, wrong: bool, exact: dict[str, np.ndarray]) -> None:
    runs = [successive(KINDS[kind](wrong), number) for number in range(CHAINS)]
    scores = []
    for key in KEYS:
        means = [run[key] for run in runs]
        error = math.hypot(np.std(means, ddof=1) / math.sqrt(CHAINS), exact[key].std() / math.sqrt(PRIOR))
        scores.append(abs(np.mean(means) - exact[key].mean()) / error)
    assert max(scores) > TOLERANCE if wrong else max(scores) < TOLERANCE
