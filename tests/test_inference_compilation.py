"""Proposals in lock-step against exact posteriors: made by hand, and by a network."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import etalumis as et
from etalumis.distributions import Categorical, Normal, Poisson, Uniform
from etalumis.simulators.classics import (
    HiddenMarkov,
    branching,
    branching_log_evidence,
    branching_posterior,
    gaussian,
    gaussian_log_evidence,
    gaussian_posterior,
    marsaglia,
)
from inference_checks import (
    LINEAR,
    LOOP,
    OBSERVED,
    TOLERANCE,
    ByHand,
    Proposals,
    linear,
    linear_exact,
    loop,
    loop_exact,
    z_probabilities,
    z_scores,
    z_weighted,
)

MEAN = ByHand({"mu": lambda prior: Normal(6.5, 1.5)})


def evidence_z(post: et.Posterior, truth: float) -> float:
    return (post.log_evidence - truth) / post.log_evidence_error


def test_gaussian() -> None:
    post = et.posterior(et.Model(gaussian), OBSERVED, et.IC(MEAN), num_traces=3000, seed=1)
    assert np.abs(z_scores(post, "mu", *gaussian_posterior(8.0, 9.0))).max() < TOLERANCE
    assert abs(evidence_z(post, gaussian_log_evidence(8.0, 9.0))) < TOLERANCE
    assert post.ess > 1000
    assert post.info["proposed_draws"] == 3000
    assert post.info["warnings"] == []


def test_forgetting_the_proposal_is_caught() -> None:
    batch = et.posterior(et.Model(gaussian), OBSERVED, et.IC(MEAN), num_traces=3000, seed=1).traces
    wrong = et.Posterior(batch, batch.log_likelihood + batch.log_prior)
    assert np.abs(z_scores(wrong, "mu", *gaussian_posterior(8.0, 9.0))).max() > TOLERANCE


def test_branching() -> None:
    engine = et.IC(ByHand({"r": lambda prior: Poisson(5.0)}))
    post = et.posterior(et.Model(branching), {"obs0": 6}, engine, num_traces=5000, seed=2)
    assert z_probabilities(post, "r", branching_posterior(6)) < TOLERANCE
    assert abs(evidence_z(post, branching_log_evidence(6))) < TOLERANCE


def test_hidden_markov() -> None:
    emissions = [0.9, 0.8, 0.0, -2.0, 0.13]
    chain = HiddenMarkov(steps=len(emissions))
    proposals: Proposals = {
        f"state{k}": lambda prior, y=y: Categorical(
            np.array(prior.pack()) * np.exp(-0.4 * (y - chain.means) ** 2)
            / (np.array(prior.pack()) * np.exp(-0.4 * (y - chain.means) ** 2)).sum()
        )
        for k, y in enumerate(emissions)
    }  # fmt: skip
    observe = {f"obs{k}": y for k, y in enumerate(emissions)}
    post = et.posterior(et.Model(chain), observe, et.IC(ByHand(proposals)), num_traces=3000, seed=3)
    exact = chain.posterior(emissions)
    assert max(z_probabilities(post, f"state{k}", exact[k]) for k in range(len(emissions))) < TOLERANCE
    assert abs(evidence_z(post, chain.log_evidence(emissions))) < TOLERANCE


def test_uncontrolled_conditioned_and_factor() -> None:
    engine = et.IC(ByHand({"a": lambda prior: Normal(0.7, 0.8), "b": lambda prior: pytest.fail("b is not controlled")}))
    post = et.posterior(et.Model(linear), LINEAR, engine, num_traces=5000, seed=4)
    mean, std, log_evidence = linear_exact()
    for k, name in enumerate("ab"):
        assert np.abs(z_scores(post, name, mean[k], std[k])).max() < TOLERANCE
    assert abs(evidence_z(post, log_evidence)) < TOLERANCE


def test_rejection_loop() -> None:
    post = et.posterior(
        et.Model(loop), LOOP, et.IC(ByHand({"m": lambda prior: Uniform(0.0, 1.0)})), num_traces=5_000, seed=5
    )
    assert abs(z_weighted(post, post.values("m"), loop_exact())) < TOLERANCE


def two_draws() -> None:
    a = et.sample(Normal(0.0, 1.0), name="a")
    b = et.sample(Normal(a, 1.0), name="b")
    et.observe(Normal(b, 0.5), name="y")


def test_a_defensive_share_bounds_the_weights_of_whole_traces() -> None:
    """Far too narrow a proposal in the wrong place: alone it is lost, defended it is right."""
    wrong = ByHand({"a": lambda prior: Normal(3.0, 0.05), "b": lambda prior: Normal(-3.0, 0.05)})
    share = 0.2
    post = et.posterior(et.Model(two_draws), {"y": 1.0}, et.IC(wrong, defensive=share), num_traces=8000, seed=1)
    bound = post.traces.log_likelihood - math.log(share)
    assert (post.log_weights <= bound + 1e-12).all()
    # y has variance 2.25: E[a | y] = y / 2.25, Var = 1 − 1 / 2.25
    assert np.abs(z_scores(post, "a", 1.0 / 2.25, math.sqrt(1.0 - 1.0 / 2.25))).max() < TOLERANCE
    assert abs(evidence_z(post, Normal(0.0, 1.5).log_prob(1.0))) < TOLERANCE
    from_prior = np.abs(post.values("a") - 3.0) > 1.0
    assert abs(from_prior.mean() - share) < 5.0 * math.sqrt(share * (1.0 - share) / len(post)) + 0.02
    # Whole traces: a and b come from the same side, but for prior draws near the proposal's place.
    assert (from_prior != (np.abs(post.values("b") + 3.0) > 0.5)).mean() < 0.02
    alone = et.posterior(et.Model(two_draws), {"y": 1.0}, et.IC(wrong), num_traces=8000, seed=1)
    assert abs(alone.mean("a") - 1.0 / 2.25) > 1.0


def test_the_density_of_a_defended_trace_is_the_mixtures() -> None:
    """Where proposal and prior overlap, both parts count: compared with the formula, and with the evidence."""
    near = ByHand({"a": lambda prior: Normal(0.5, 0.8), "b": lambda prior: Normal(prior.mean, 0.7)})
    share = 0.4
    post = et.posterior(et.Model(two_draws), {"y": 1.0}, et.IC(near, defensive=share), num_traces=8000, seed=1)
    a, b = post.values("a"), post.values("b")
    log_p = scipy.stats.norm(0.0, 1.0).logpdf(a) + scipy.stats.norm(a, 1.0).logpdf(b)
    log_q = scipy.stats.norm(0.5, 0.8).logpdf(a) + scipy.stats.norm(a, 0.7).logpdf(b)
    mixture = np.log((1.0 - share) * np.exp(log_q) + share * np.exp(log_p))
    assert post.log_weights == pytest.approx(scipy.stats.norm(b, 0.5).logpdf(1.0) + log_p - mixture)
    assert abs(evidence_z(post, Normal(0.0, 1.5).log_prob(1.0))) < TOLERANCE


def test_many_events_in_one_run_equal_single_ones() -> None:
    observed = [{"obs0": 8.0, "obs1": 9.0}, {"obs0": -1.0, "obs1": 0.5}, {"obs0": 2.0, "obs1": 2.0}]
    prior = {"mu": lambda prior: Normal(4.0, 4.0)}
    posts = et.posteriors(et.Model(marsaglia), observed, et.IC(ByHand(prior)), num_traces=2000, seed=3)
    assert [len(p) for p in posts] == [2000] * 3
    for observe, post in zip(observed, posts, strict=True):
        exact = gaussian_posterior(observe["obs0"], observe["obs1"])
        assert np.abs(z_scores(post, "mu", *exact)).max() < TOLERANCE
    assert (
        posts[0].log_weights.tolist()
        == (
            et.posterior(et.Model(marsaglia), observed[0], et.IC(ByHand(prior)), num_traces=2000, seed=3)
        ).log_weights.tolist()
    )
    assert not np.isin(posts[1].values("mu"), posts[0].values("mu")).any()  # random numbers of their own
    by_other_engines = et.posteriors(et.Model(gaussian), observed[:2], num_traces=500, seed=1)
    assert by_other_engines[0].values("mu").tolist() != by_other_engines[1].values("mu").tolist()


def test_an_event_that_observes_nothing_known_is_an_error() -> None:
    with pytest.raises(et.ObservationError, match="'nothing'"):
        et.posteriors(et.Model(gaussian), [OBSERVED, {"nothing": 1.0}], et.IC(MEAN), num_traces=5)


def pair() -> None:
    mu = et.sample(Normal(0.0, 1.0), name="mu")
    for _ in range(2):
        et.observe(Normal(mu, 1.0), name="y")


@pytest.mark.parametrize("engine", [et.IC(MEAN), et.ImportanceSampling(), et.RMH(chains=2, burn_in=1, starts=5)])
def test_values_that_no_execution_asks_for_are_an_error(engine: et.IC) -> None:
    assert len(et.posterior(et.Model(pair), {"y": [0.0, 0.0]}, engine, num_traces=10)) == 10
    with pytest.raises(et.ObservationError, match="lists 3 values"):
        et.posterior(et.Model(pair), {"y": [0.0, 0.0, 50.0]}, engine, num_traces=10)


def test_batch_size_changes_nothing() -> None:
    runs = [
        et.posterior(et.Model(marsaglia), OBSERVED, et.IC(MEAN, batch_size=size), num_traces=300, seed=6)
        for size in (1, 7, 64)
    ]
    for other in runs[1:]:
        assert other.log_weights.tolist() == runs[0].log_weights.tolist()
        assert other.values("mu").tolist() == runs[0].values("mu").tolist()
    assert runs[0].traces.index.tolist() == list(range(300))


def test_unknown_addresses_are_counted_and_reported() -> None:
    post = et.posterior(et.Model(branching), {"obs0": 6}, et.IC(ByHand({})), num_traces=200, seed=7)
    assert post.info["unknown_draws"] == int(post.traces.controlled.sum())
    assert post.info["unknown_addresses"] == 2
    assert "the network does not know" in post.info["warnings"][0]
    assert post.log_weights == pytest.approx(post.traces.log_likelihood)  # all from the prior: exact


def array_and_scalars() -> None:
    shift = et.sample(Normal(0.0, 1.0), name="shift")
    x = et.sample(Normal(np.zeros(3), 1.0), name="x")
    for _ in range(3):
        et.sample(Normal(0.0, 1.0), name="late")
    et.observe(Normal(x + shift, 0.5), name="y")


ALL = ByHand(dict.fromkeys(("shift", "x", "late"), lambda prior: Normal(0.0, 1.5)))


def test_arrays_are_left_to_the_prior_and_reported() -> None:
    post = et.posterior(et.Model(array_and_scalars), {"y": np.ones(3)}, et.IC(ALL), num_traces=100, seed=1)
    assert post.info["array_draws"] == 100
    assert post.info["controlled_draws"] == int(post.traces.controlled.sum()) == 500
    assert post.info["proposed_draws"] == 400
    assert any("100 of 500 controlled draws are arrays" in warning for warning in post.info["warnings"])
    scalars = et.posterior(et.Model(two_draws), {"y": 1.0}, et.IC(MEAN), num_traces=100, seed=1)
    assert scalars.info["array_draws"] == 0
    assert not any("arrays" in warning for warning in scalars.info["warnings"])


def test_draws_left_to_the_prior_do_not_count_as_proposed() -> None:
    capped = et.posterior(et.Model(array_and_scalars), {"y": np.ones(3)}, et.IC(ALL, max_instances=1), 100, seed=1)
    assert capped.info["proposed_draws"] == 200
    defended = et.posterior(et.Model(two_draws), {"y": 1.0}, et.IC(MEAN, defensive=0.5), num_traces=100, seed=1)
    assert defended.info["proposed_draws"] + defended.info["unknown_draws"] < 150  # of 200, half of them told


def test_errors_come_through() -> None:
    with pytest.raises(et.ObservationError, match="'obs2'"):
        et.posterior(et.Model(gaussian), {**OBSERVED, "obs2": 0.0}, et.IC(MEAN), num_traces=10)
    with pytest.raises(ValueError, match="num_traces"):
        et.posterior(et.Model(gaussian), OBSERVED, et.IC(MEAN), num_traces=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        et.IC(MEAN, batch_size=0)
    nan = ByHand({"mu": lambda prior: Normal(0.0, 1.0)})
    with pytest.raises(et.DensityError, match="Normal"):
        et.posterior(et.Model(gaussian), {**OBSERVED, "obs0": math.nan}, et.IC(nan), num_traces=10)


def test_a_network_from_its_checkpoint(tmp_path: Path) -> None:
    """Untrained, the network proposes badly; its weights must make up for it exactly."""
    from etalumis.networks import CheckpointError, InferenceNetwork, checkpoint

    model = et.Model(gaussian)
    batch = et.prior(model, 500, seed=8).traces
    network = InferenceNetwork.for_batch({"core": {"kind": "lstm", "hidden": 16}}, batch, simulator="gaussian")
    checkpoint.save(tmp_path / "network.pt", network)
    observe = {"obs0": 2.0, "obs1": 3.0}
    post = et.posterior(et.Model(gaussian), observe, et.IC(tmp_path / "network.pt"), num_traces=1500, seed=9)
    assert np.abs(z_scores(post, "mu", *gaussian_posterior(2.0, 3.0))).max() < TOLERANCE
    assert abs(evidence_z(post, gaussian_log_evidence(2.0, 3.0))) < TOLERANCE
    assert post.info["proposed_draws"] == 1500
    shared = et.posterior(et.Model(gaussian), observe, et.IC(tmp_path / "network.pt", workers=2), 1500, seed=9)
    assert shared.log_weights == pytest.approx(post.log_weights, abs=1e-4)
    assert shared.info["proposed_draws"] == 1500
    defended = et.posterior(et.Model(gaussian), observe, et.IC(tmp_path / "network.pt", defensive=0.5), 1500, seed=9)
    assert np.abs(z_scores(defended, "mu", *gaussian_posterior(2.0, 3.0))).max() < TOLERANCE
    assert 600 < defended.info["proposed_draws"] < 900
    assert (defended.log_weights <= defended.traces.log_likelihood + math.log(2.0) + 1e-9).all()
    with pytest.raises(CheckpointError, match="branching"):
        et.posterior(et.Model(branching), {"obs0": 6}, et.IC(tmp_path / "network.pt"), num_traces=10)
