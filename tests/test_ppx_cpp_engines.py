"""C++ simulators under the engines: the same posterior, sample by sample, as of the same model in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import etalumis as et
from cpp_programs import ROOT, compiled
from etalumis.simulators import classics
from inference_checks import TOLERANCE, z_probabilities, z_scores

EASY = {"obs0": 2.0, "obs1": 3.0}
EXAMPLES = ROOT / "examples" / "ppx"
CASES: dict[str, tuple[Callable[[], Any], dict[str, float], str]] = {
    "gaussian": (classics.gaussian, {"obs0": 8.0, "obs1": 9.0}, "mu"),
    "marsaglia": (classics.marsaglia, {"obs0": 8.0, "obs1": 9.0}, "mu"),
    "branching": (classics.branching, {"obs0": 6.0}, "r"),
    "hidden_markov": (classics.HiddenMarkov(), {f"obs{step}": 0.1 * step for step in range(16)}, "state3"),
}
ENGINES: dict[str, tuple[Any, int]] = {
    "importance": (et.ImportanceSampling(), 2000),
    "lmh": (et.LMH(chains=2, burn_in=50), 300),
    "rmh": (et.RMH(chains=2, burn_in=50), 300),
}


@pytest.fixture(scope="module", params=[(name, scripted) for name in CASES for scripted in (True, False)], ids=str)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[str, bool, et.RemoteModel]]:
    name, scripted = request.param
    command = [str(compiled(EXAMPLES / f"{name}.cpp")), "{address}"]
    with et.RemoteModel(command=command, timeout=20.0, scripted=scripted) as model:
        yield name, scripted, model


@pytest.mark.parametrize("engine", ENGINES)
def test_posteriors_equal_those_of_the_python_model(pair: tuple[str, bool, et.RemoteModel], engine: str) -> None:
    name, scripted, remote = pair
    function, observe, variable = CASES[name]
    how, count = ENGINES[engine]
    if not scripted:
        count //= 10
    ours = et.posterior(remote, observe=observe, engine=how, num_traces=count, seed=3)
    theirs = et.posterior(et.Model(function), observe=observe, engine=how, num_traces=count, seed=3)
    np.testing.assert_array_equal(ours.values(variable), theirs.values(variable))
    np.testing.assert_allclose(ours.log_weights, theirs.log_weights, rtol=1e-12)
    assert remote.num_failures == 0


EMISSIONS = [0.1 * step for step in range(16)]
# What a broad proposal recovers: observations that are not far from the prior's own.
EXACT: dict[str, tuple[dict[str, float], Callable[[et.Posterior], float]]] = {
    "gaussian": (EASY, lambda post: np.abs(z_scores(post, "mu", *classics.gaussian_posterior(2.0, 3.0))).max()),
    "marsaglia": (EASY, lambda post: np.abs(z_scores(post, "mu", *classics.gaussian_posterior(2.0, 3.0))).max()),
    "branching": ({"obs0": 6.0}, lambda post: z_probabilities(post, "r", classics.branching_posterior(6))),
    "hidden_markov": (
        {f"obs{step}": y for step, y in enumerate(EMISSIONS)},
        lambda post: z_probabilities(post, "state3", classics.HiddenMarkov().posterior(EMISSIONS)[3]),
    ),
}


@pytest.mark.slow
def test_a_networks_proposals_recover_the_posterior(pair: tuple[str, bool, et.RemoteModel]) -> None:
    """Untrained, it proposes broadly; the weights must make up for it, over the wire as in-process."""
    from etalumis.networks import InferenceNetwork

    name, scripted, remote = pair
    observe, score = EXACT[name]
    known = et.prior(remote, num_traces=500 if scripted else 100, seed=8).traces
    network = InferenceNetwork.for_batch({"core": {"kind": "lstm", "hidden": 16}}, known, simulator=remote.name)
    post = et.posterior(remote, observe, et.IC(network), num_traces=1500 if scripted else 300, seed=9)
    assert score(post) < TOLERANCE
    assert post.info["proposed_draws"] >= len(post)
    assert remote.num_failures == 0


def test_two_simulators_give_the_same_traces_as_one() -> None:
    command = [str(compiled(EXAMPLES / "marsaglia.cpp")), "{address}"]
    with et.RemoteModel(command=command, workers=2) as two, et.RemoteModel(command=command) as one:
        a, b = (et.prior(model, num_traces=3000, seed=1) for model in (two, one))
        np.testing.assert_array_equal(a.values("mu"), b.values("mu"))
