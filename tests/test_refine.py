"""Networks refined for one observation: far better proposals, exact weights, nothing else touched."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import etalumis as et
from etalumis.cli import main
from etalumis.distributions import Bernoulli, Normal, Uniform
from etalumis.execution import TraceBatch
from etalumis.inference import InferenceError
from etalumis.inference.diagnostics import ess_weights
from etalumis.inference.refinement import tempered
from etalumis.networks import InferenceNetwork, checkpoint, pack
from etalumis.networks.observed import given_values
from etalumis.simulators.classics import (
    HiddenMarkov,
    branching,
    branching_posterior,
    gaussian,
    gaussian_log_evidence,
    gaussian_posterior,
)
from inference_checks import TOLERANCE, ByHand, z_probabilities, z_scores
from network_models import SMALL, every_family, small, traces

FAR = {"obs0": 11.0, "obs1": 12.0}  # where the prior hardly comes
QUICK = et.Refine(rounds=3, num_traces=400, epochs=6, lr=1e-2)
LIGHT = et.Refine(rounds=1, num_traces=200, epochs=3, lr=1e-2)


def untrained(batch: TraceBatch, name: str) -> InferenceNetwork:
    return InferenceNetwork.for_batch(SMALL, batch, name).eval()


@pytest.fixture(scope="module")
def network() -> InferenceNetwork:
    return untrained(traces(gaussian, 200), "gaussian")


def state(network: InferenceNetwork) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in network.state_dict().items() if isinstance(x, torch.Tensor)}


def test_many_times_the_effective_sample_size_and_the_exact_answer(network: InferenceNetwork) -> None:
    before, rows = state(network), len(network.layout)
    plain = et.posterior(et.Model(gaussian), FAR, et.IC(network), num_traces=1000, seed=1)
    refined = et.posterior(et.Model(gaussian), FAR, et.IC(network, refine=QUICK), num_traces=1000, seed=1)
    assert refined.ess > 20.0 * plain.ess
    assert refined.ess > 200.0
    assert np.abs(z_scores(refined, "mu", *gaussian_posterior(11.0, 12.0))).max() < TOLERANCE
    error = refined.log_evidence - gaussian_log_evidence(11.0, 12.0)
    assert abs(error) < TOLERANCE * refined.log_evidence_error
    # what it says of itself
    first, _, last = refined.info["refinement"]
    assert first["power"] < last["power"] <= 1.0
    assert first["ess"] < last["ess"]
    assert all(done["loss"] < done["loss_before"] for done in (first, last))
    assert refined.info["executions"] == 1000
    # the network that was given stays
    assert len(network.layout) == rows
    assert all(torch.equal(x, before[name]) for name, x in state(network).items())


def test_forgetting_the_new_proposals_would_be_caught(network: InferenceNetwork) -> None:
    refined = et.posterior(et.Model(gaussian), FAR, et.IC(network, refine=LIGHT), num_traces=1000, seed=1)
    wrong = et.Posterior(refined.traces, refined.traces.log_likelihood + refined.traces.log_prior)
    assert np.abs(z_scores(wrong, "mu", *gaussian_posterior(11.0, 12.0))).max() > TOLERANCE


def test_discrete_draws(network: InferenceNetwork) -> None:
    """Poisson counts and a branch, against enumeration."""
    engine = et.IC(untrained(traces(branching, 200), "branching"), refine=QUICK)
    post = et.posterior(et.Model(branching), {"obs0": 14}, engine, num_traces=2000, seed=2)
    assert z_probabilities(post, "r", branching_posterior(14)) < TOLERANCE


@pytest.mark.slow
def test_sequences_of_discrete_states() -> None:
    emissions = [0.9, 0.8, 0.0, -2.0, 0.13, 1.2]
    chain = HiddenMarkov(steps=len(emissions))
    model = et.Model(chain, "hidden_markov")
    observe = {f"obs{k}": y for k, y in enumerate(emissions)}
    network = untrained(traces(chain, 300), "hidden_markov")
    plain = et.posterior(model, observe, et.IC(network), num_traces=3000, seed=3)
    post = et.posterior(model, observe, et.IC(network, refine=et.Refine(lr=5e-3)), num_traces=3000, seed=3)
    exact = chain.posterior(emissions)
    assert max(z_probabilities(post, f"state{k}", exact[k]) for k in range(len(emissions))) < TOLERANCE
    assert abs(post.log_evidence - chain.log_evidence(emissions)) < TOLERANCE * post.log_evidence_error
    assert post.ess > 3.0 * plain.ess


def two_paths() -> None:
    if et.sample(Bernoulli(0.1), name="rare"):
        x = et.sample(Normal(4.0, 1.0), name="x")
    else:
        x = et.sample(Normal(0.0, 1.0), name="x")
    et.observe(Normal(x, 0.5), name="y")


def test_rows_grow_for_addresses_that_training_never_met() -> None:
    batch = traces(two_paths, 200)
    rare = np.flatnonzero(batch.draws("rare")[1] == 0)
    network = untrained(batch.select(rare), "two_paths")
    y = 3.5
    rows = len(network.layout)
    post = et.posterior(et.Model(two_paths), {"y": y}, et.IC(network, refine=LIGHT), num_traces=2000, seed=1)
    assert len(network.layout) == rows
    assert post.info["refinement"][0]["new_addresses"] == 1
    assert post.info["unknown_draws"] == 0
    stddev = math.sqrt(1.25)
    odds = math.log(0.1 / 0.9) + Normal(4.0, stddev).log_prob(y) - Normal(0.0, stddev).log_prob(y)
    exact = 1.0 / (1.0 + math.exp(-odds))
    assert z_probabilities(post, "rare", np.array([1.0 - exact, exact])) < TOLERANCE


def test_a_lucky_trace_does_not_take_the_network_with_it(network: InferenceNetwork) -> None:
    """One round that begins with an effective sample size of one or two: the proposal moves and stays wide."""
    once = et.Refine(rounds=1, num_traces=300, epochs=50, lr=1e-2)
    post = et.posterior(et.Model(gaussian), FAR, et.IC(network, refine=once), num_traces=1000, seed=4)
    assert post.info["refinement"][0]["ess"] < 5.0
    proposed = post.values("mu")
    mean, std = gaussian_posterior(11.0, 12.0)
    assert proposed.std() > std
    assert proposed.mean() > 2.5  # the prior's is 1
    assert abs(proposed.mean() - mean) < 6.0
    assert np.abs(z_scores(post, "mu", mean, std)).max() < TOLERANCE


def test_tempering() -> None:
    log_weights = 6.0 * np.random.default_rng(1).standard_normal(1000)
    weights, power = tempered(log_weights, 100.0)
    assert ess_weights(log_weights) < 5.0
    assert 0.0 < power < 1.0
    assert 1.0 / np.square(weights).sum() == pytest.approx(100.0, rel=1e-6)
    assert (np.argsort(weights) == np.argsort(log_weights)).all()
    flat = 0.1 * log_weights
    weights, power = tempered(flat, 100.0)
    assert power == 1.0
    log_weights[3:] = -np.inf
    weights, power = tempered(log_weights, 100.0)
    assert power == 0.0
    assert weights[:3] == pytest.approx(1.0 / 3.0)
    assert not weights[3:].any()
    weights, _ = tempered(np.full(10, -np.inf), 100.0)
    assert not weights.any()


def test_a_shared_observation_is_each_traces_own() -> None:
    batch = traces(every_family, 40)
    network = small(batch)
    value = {"y": 0.7, "pair": np.array([0.5, -0.2])}
    post = et.posterior(et.Model(every_family), value, et.ImportanceSampling(keep_observes=True), 30, seed=1)
    own = pack(post.traces, network.layout).double()
    shared = pack(post.traces, network.layout, shared=given_values(value, network.layout.observations)).double()
    assert shared.observations["pair"].shape == (1, 2)
    expected, found = network.loss(own)[0], network.loss(shared)[0]
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for core in ("gru", "transformer"):
        other = small(batch, core={"kind": core})
        assert other.loss(shared)[0].item() == pytest.approx(other.loss(own)[0].item(), rel=1e-12)


def test_the_refined_network_is_kept_and_gives_the_same(network: InferenceNetwork, tmp_path: Path) -> None:
    kept = tmp_path / "nets" / "refined.pt"
    settings = et.Refine(rounds=1, num_traces=200, epochs=2, keep=kept)
    first = et.posterior(et.Model(gaussian), FAR, et.IC(network, refine=settings), num_traces=300, seed=5)
    again = et.posterior(et.Model(gaussian), FAR, et.IC(kept), num_traces=300, seed=5)
    assert np.array_equal(first.log_weights, again.log_weights)
    assert checkpoint.load(kept, simulator="gaussian")[1]["refined"][0][2] >= 1
    with pytest.raises(ValueError, match="one observation"):
        et.posteriors(et.Model(gaussian), [FAR, FAR], et.IC(network, refine=settings), num_traces=10)


@pytest.mark.slow
def test_each_event_has_a_network_of_its_own(network: InferenceNetwork) -> None:
    events = [FAR, {"obs0": -9.0, "obs1": -8.0}]
    refined = et.posteriors(et.Model(gaussian), events, et.IC(network, refine=QUICK), num_traces=500, seed=1)
    for post, event in zip(refined, events, strict=True):
        assert post.ess > 100.0
        assert np.abs(z_scores(post, "mu", *gaussian_posterior(event["obs0"], event["obs1"]))).max() < TOLERANCE
    alone = et.posterior(et.Model(gaussian), FAR, et.IC(network, refine=QUICK), num_traces=500, seed=1)
    assert np.array_equal(alone.log_weights, refined[0].log_weights)


def test_rounds_events_and_results_have_random_numbers_of_their_own() -> None:
    """Seen at a draw that no network proposes. Traces that the training has met are none of the result's."""
    drawn: list[float] = []

    def noisy() -> None:
        mu = et.sample(Normal(0.0, 1.0), name="mu")
        drawn.append(et.sample(Normal(0.0, 1.0), name="noise", control=False))
        et.observe(Normal(mu, 1.0), name="y")

    network = untrained(traces(noisy, 50), "noisy")
    drawn.clear()
    settings = et.Refine(rounds=2, num_traces=110, epochs=1)
    et.posteriors(et.Model(noisy), [{"y": 1.0}, {"y": 2.0}], et.IC(network, refine=settings), num_traces=110, seed=1)
    assert len(drawn) == len(set(drawn)) == 2 * 3 * 110


def test_a_divergent_training_harms_nothing(network: InferenceNetwork) -> None:
    wild = et.Refine(rounds=3, num_traces=300, epochs=5, lr=1e30)
    post = et.posterior(et.Model(gaussian), {"obs0": 2.0, "obs1": 1.0}, et.IC(network, refine=wild), 1000, seed=1)
    assert "refinement ended in round 1" in post.info["warnings"][0]
    assert "refine.lr" in post.info["warnings"][0]
    assert len(post.info["refinement"]) == 1
    assert np.abs(z_scores(post, "mu", *gaussian_posterior(2.0, 1.0))).max() < TOLERANCE


def narrow() -> None:
    x = et.sample(Uniform(0.0, 1.0), name="x")
    et.observe(Uniform(x, x + 0.5), name="y")


@pytest.mark.parametrize("y", [3.0, 0.01])
def test_too_few_traces_with_a_weight(y: float) -> None:
    """None can have produced the one, one in a hundred the other: nothing is trained on these."""
    network = untrained(traces(narrow, 100), "narrow")
    post = et.posterior(et.Model(narrow), {"y": y}, et.IC(network, refine=LIGHT), num_traces=50, seed=1)
    assert "of 200 traces have a weight above zero" in post.info["warnings"][0]
    assert post.info["refinement"] == []


def no_draws() -> None:
    x = et.sample(Normal(0.0, 1.0), name="x", control=False)
    et.observe(Normal(x, 1.0), name="y")


def test_nothing_to_propose() -> None:
    network = untrained(traces(no_draws, 50), "no_draws")
    post = et.posterior(et.Model(no_draws), {"y": 1.0}, et.IC(network, refine=LIGHT), num_traces=500, seed=1)
    assert np.abs(z_scores(post, "x", 0.5, math.sqrt(0.5))).max() < TOLERANCE


def test_progress(network: InferenceNetwork) -> None:
    told: list[tuple[int, str]] = []
    engine = et.IC(network, refine=et.Refine(rounds=2, num_traces=110, epochs=2))
    et.posterior(et.Model(gaussian), FAR, engine, 50, progress=lambda amount, note: told.append((amount, note)))
    assert sum(amount for amount, _ in told) == 2 * 110 + 50
    notes = [note for _, note in told if note]
    assert notes[0].startswith("round 1, ESS ")
    assert "epoch 1, loss" in notes[0]


@pytest.mark.slow
def test_the_same_whatever_the_number_of_processes(network: InferenceNetwork) -> None:
    settings = et.Refine(rounds=1, num_traces=200, epochs=2, lr=1e-2)
    posts = [
        et.posterior(et.Model(gaussian), FAR, et.IC(network, workers=workers, refine=settings), 300, seed=5)
        for workers in (1, 2)
    ]
    # Not to the last bit: minibatches of the network are cut elsewhere.
    np.testing.assert_allclose(posts[0].values("mu"), posts[1].values("mu"), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(posts[0].log_weights, posts[1].log_weights, rtol=1e-3, atol=1e-2)


def test_refusals(network: InferenceNetwork) -> None:
    by_hand = et.IC(ByHand({}), refine=QUICK)
    with pytest.raises(InferenceError, match="ByHand can't be refined"):
        et.posterior(et.Model(gaussian), FAR, by_hand, 10)
    with pytest.raises(ValueError, match="refining needs exact densities"):
        et.IC(network, refine=QUICK, rejection="amortised")
    with pytest.raises(ValueError, match="keep=FILE"):
        et.IC(network, refine=QUICK).as_kernel()
    assert et.IC(network, refine=et.Refine(rounds=0), rejection="amortised").as_kernel  # nothing to refine
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        et.Refine(epochs=0)
    with pytest.raises(ValueError, match="lr must be above 0"):
        et.Refine(lr=math.nan)
    with pytest.raises(ValueError, match="teaches nothing"):
        et.Refine(num_traces=100)  # of any weights; an ESS of 100 needs more of them
    with pytest.raises(et.ObservationError, match="obs7"):
        et.posterior(et.Model(gaussian), {**FAR, "obs7": 1.0}, et.IC(network, refine=QUICK), 10)


def test_command_line(network: InferenceNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path / "network.pt", network)
    words = ["engine=ic", f"checkpoint={tmp_path / 'network.pt'}", "simulator=gaussian", "num_traces=200"]
    words += ["engine.refine.rounds=1", "engine.refine.num_traces=200", f"engine.refine.keep={tmp_path / 'kept.pt'}"]
    words += ["observe.obs0=11.0", "observe.obs1=12.0", f"output={tmp_path / 'post'}"]
    assert main(["infer", *words]) == 0
    post = et.Posterior.load(tmp_path / "post")
    assert len(post.info["refinement"]) == 1
    assert json.dumps(post.info)
    assert checkpoint.load(tmp_path / "kept.pt", simulator="gaussian")
    assert main(["infer", *words, "engine.refine.epochs=many"]) == 1
    assert "engine.refine.epochs=many must be a whole number" in capsys.readouterr().err
