"""Importance sampling against exact posteriors: prior, proposals, inflation, stored datasets."""

import math
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Distribution, Normal, Poisson, Uniform
from etalumis.inference import InferenceError
from etalumis.inference.executions import shares
from etalumis.inference.stored import log_likelihood
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
from etalumis.storage import Dataset, simulate
from inference_checks import (
    LINEAR,
    LOOP,
    OBSERVED,
    TOLERANCE,
    linear,
    linear_exact,
    loop,
    loop_exact,
    z_probabilities,
    z_scores,
    z_weighted,
)

GUIDED = et.ImportanceSampling(proposals={"mu": Normal(6.5, 1.5)})
EMISSIONS = [0.9, 0.8, 0.7, 0.0, -0.025, -5.0, -2.0, -0.1, 0.0, 0.13]


def evidence_z(post: et.Posterior, truth: float) -> float:
    return (post.log_evidence - truth) / post.log_evidence_error


# --- exact answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [gaussian, marsaglia])
def test_prior_as_proposal(model: Callable[[], float]) -> None:
    post = et.posterior(et.Model(model), OBSERVED, num_traces=10_000, seed=5)
    assert np.abs(z_scores(post, "mu", *gaussian_posterior(8.0, 9.0))).max() < TOLERANCE
    assert abs(evidence_z(post, gaussian_log_evidence(8.0, 9.0))) < TOLERANCE


@pytest.mark.parametrize(
    "engine",
    [
        GUIDED,
        et.ImportanceSampling(proposals={"mu": lambda prior: Normal(prior.mean + 6.0, 1.5)}),
        et.ImportanceSampling(inflation=3.0),
    ],
)
def test_better_proposals(engine: et.ImportanceSampling) -> None:
    model = et.Model(gaussian)
    post = et.posterior(model, OBSERVED, engine, num_traces=4000, seed=6)
    assert np.abs(z_scores(post, "mu", *gaussian_posterior(8.0, 9.0))).max() < TOLERANCE
    assert abs(evidence_z(post, gaussian_log_evidence(8.0, 9.0))) < TOLERANCE
    assert post.ess > 5 * et.posterior(model, OBSERVED, num_traces=4000, seed=6).ess


def test_enumerated_branching() -> None:
    post = et.posterior(et.Model(branching), {"obs0": 6}, num_traces=5_000, seed=7)
    assert z_probabilities(post, "r", branching_posterior(6)) < TOLERANCE
    assert abs(evidence_z(post, branching_log_evidence(6))) < TOLERANCE


def test_enumerated_hidden_markov() -> None:
    chain = HiddenMarkov(steps=len(EMISSIONS))
    observe = {f"obs{k}": y for k, y in enumerate(EMISSIONS)}
    post = et.posterior(et.Model(chain), observe, num_traces=5000, seed=8)
    exact = chain.posterior(EMISSIONS)
    assert max(z_probabilities(post, f"state{k}", exact[k]) for k in range(len(EMISSIONS))) < TOLERANCE
    assert abs(evidence_z(post, chain.log_evidence(EMISSIONS))) < TOLERANCE


@pytest.mark.parametrize("proposals", [None, {"a": Normal(0.7, 0.8), "b": lambda p: Normal(p.mean + 0.3, 1.2)}])
def test_uncontrolled_conditioned_and_factor(
    proposals: dict[str, Distribution | Callable[[Distribution], Distribution]] | None,
) -> None:
    post = et.posterior(et.Model(linear), LINEAR, et.ImportanceSampling(proposals), num_traces=10_000, seed=9)
    mean, std, log_evidence = linear_exact()
    for k, name in enumerate("ab"):
        assert np.abs(z_scores(post, name, mean[k], std[k])).max() < TOLERANCE
    assert abs(evidence_z(post, log_evidence)) < TOLERANCE
    assert post.values("c").tolist() == [2.0] * 10_000


def test_rejection_loop() -> None:
    post = et.posterior(et.Model(loop), LOOP, num_traces=8_000, seed=10)
    assert abs(z_weighted(post, post.values("m"), loop_exact())) < TOLERANCE


# --- the checks above can fail ------------------------------------------------------------------------------------


def test_a_forgotten_proposal_density_is_caught() -> None:
    post = et.posterior(et.Model(gaussian), OBSERVED, GUIDED, num_traces=4000, seed=6)
    batch = post.traces
    wrong = et.Posterior(batch, batch.log_likelihood + batch.log_prior)
    assert np.abs(z_scores(wrong, "mu", *gaussian_posterior(8.0, 9.0))).max() > 2 * TOLERANCE


def test_a_forgotten_prior_density_is_caught() -> None:
    post = et.posterior(et.Model(gaussian), OBSERVED, GUIDED, num_traces=4000, seed=6)
    batch = post.traces
    wrong = et.Posterior(batch, batch.log_likelihood - batch.log_proposal)
    assert np.abs(z_scores(wrong, "mu", *gaussian_posterior(8.0, 9.0))).max() > 2 * TOLERANCE


# --- errors -------------------------------------------------------------------------------------------------------


def test_unused_observation_name_is_an_error() -> None:
    with pytest.raises(et.ObservationError, match=r"'obs2'.*'obs0', 'obs1'"):
        et.posterior(et.Model(gaussian), {**OBSERVED, "obs2": 1.0}, num_traces=10)


def not_a_number() -> None:
    et.observe(Normal(math.nan * et.sample(Normal(0.0, 1.0), name="x"), 1.0), name="y", address="here")


def test_nan_density_names_address_and_parameters() -> None:
    with pytest.raises((et.DensityError, ValueError), match=r"Normal.*nan"):
        et.posterior(et.Model(not_a_number), {"y": 1.0}, num_traces=10)


def test_nan_observation_names_address_and_value() -> None:
    with pytest.raises(et.DensityError, match=r"obs0|gaussian.*Normal\(.*nan"):
        et.posterior(et.Model(gaussian), {"obs0": math.nan, "obs1": 1.0}, num_traces=10)


def test_counts_are_checked() -> None:
    with pytest.raises(ValueError, match="num_traces"):
        et.posterior(et.Model(gaussian), OBSERVED, num_traces=0)
    with pytest.raises(ValueError, match="workers"):
        et.posterior(et.Model(gaussian), OBSERVED, et.ImportanceSampling(workers=0), num_traces=10)


# --- workers ------------------------------------------------------------------------------------------------------


def branching_somewhere() -> None:
    branching()
    et.tag(os.getpid(), name="process")


@pytest.mark.parametrize(("num_traces", "workers"), [(1000, 2), (100, 3)])
def test_workers_change_nothing_and_all_of_them_work(num_traces: int, workers: int) -> None:
    model = et.Model(branching_somewhere)
    alone = et.posterior(model, {"obs0": 6}, num_traces=num_traces, seed=3)
    shared = et.posterior(model, {"obs0": 6}, et.ImportanceSampling(workers=workers), num_traces=num_traces, seed=3)
    used = set(shared.values("process").tolist())
    assert os.getpid() not in used
    assert len(used) == workers
    assert shared.log_weights.tolist() == alone.log_weights.tolist()
    assert shared.traces.value.tolist() == alone.traces.value.tolist()
    assert list(shared.traces.addresses) == list(alone.traces.addresses)
    assert shared.traces.address.tolist() == alone.traces.address.tolist()


@pytest.mark.parametrize(
    ("num_traces", "count", "lengths"),
    [(1, 4, [1]), (10, 4, [3, 3, 3, 1]), (4097, 2, [2049, 2048]), (20_000, 4, [2500] * 8), (20_000, 1, [4000] * 5)],
)
def test_every_worker_gets_as_much(num_traces: int, count: int, lengths: list[int]) -> None:
    tasks = shares(num_traces, count)
    assert [len(task) for task in tasks] == lengths
    assert [index for task in tasks for index in task] == list(range(num_traces))


def test_the_prior_works_in_all_workers() -> None:
    alone, shared = (et.prior(et.Model(branching_somewhere), 100, workers=workers) for workers in (1, 2))
    assert len(set(shared.values("process").tolist()) - {os.getpid()}) == 2
    assert shared.traces.value.tolist() == alone.traces.value.tolist()


def deadly() -> None:
    et.sample(Normal(0.0, 1.0), name="x")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_worker_is_named_with_what_it_did() -> None:
    with pytest.raises(InferenceError, match=r"died \(exit code -9\) while it did task range\((0, 5|5, 10)\)"):
        et.posterior(et.Model(deadly), {}, et.ImportanceSampling(workers=2), num_traces=10)


def test_models_that_cannot_be_sent_to_workers() -> None:
    with pytest.raises(InferenceError, match="top level of an importable module, or use workers=1"):
        et.posterior(et.Model(lambda: None), {}, et.ImportanceSampling(workers=2), num_traces=10_000)


# --- stored datasets ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("gaussian")
    simulate(partial(et.Model, gaussian), folder, 8_000, model="gaussian", seed=11, workers=0, chunk_size=1000)
    return Dataset(folder)


def test_dataset_gives_the_weights_of_the_simulator(dataset: Dataset) -> None:
    model = et.Model(gaussian)
    live = et.posterior(model, OBSERVED, num_traces=8_000, seed=11)
    post = et.posterior(model, OBSERVED, et.ImportanceSampling(dataset=dataset))
    assert len(post) + post.num_dropped == 8_000
    # Stored likelihood parameters have single precision.
    assert post.log_weights == pytest.approx(live.log_weights[post.traces.index], rel=1e-4)
    assert post.log_evidence == pytest.approx(live.log_evidence, rel=1e-5)
    assert post.mean("mu") == pytest.approx(live.mean("mu"), rel=1e-5)
    assert post.ess == pytest.approx(live.ess, rel=1e-3)
    assert np.abs(z_scores(post, "mu", *gaussian_posterior(8.0, 9.0))).max() < TOLERANCE


def test_dataset_limited_to_its_first_indices(dataset: Dataset) -> None:
    engine = et.ImportanceSampling(dataset=dataset.directory)
    post = et.posterior(et.Model(gaussian), OBSERVED, engine, num_traces=3000)
    assert len(post) + post.num_dropped == 3000
    assert post.traces.index.max() < 3000


def test_dataset_errors(dataset: Dataset) -> None:
    engine = et.ImportanceSampling(dataset=dataset)
    with pytest.raises(et.ObservationError, match="'obs7'"):
        et.posterior(et.Model(gaussian), {"obs7": 1.0}, engine)
    with pytest.raises(et.ObservationError, match="'mu' names a draw"):
        et.posterior(et.Model(gaussian), {"mu": 1.0}, engine)
    with pytest.raises(InferenceError, match="holds traces of the model 'gaussian', not of 'branching'"):
        et.posterior(et.Model(branching), {"obs0": 1}, engine)
    with pytest.raises(et.DensityError, match=r"obs0|gaussian.*stored trace 0: Normal\("):
        et.posterior(et.Model(gaussian), {"obs0": math.nan}, engine)
    with pytest.raises(ValueError, match="came from the prior"):
        et.ImportanceSampling(dataset=dataset, inflation=2.0)


def flat() -> None:
    k = et.sample(Poisson(3.0), name="k")
    x = et.sample(Uniform(0.0, 1.0), name="x")
    et.observe(Normal(k + x, 1.0), name="y")


def test_inflation_that_widens_no_prior_is_told() -> None:
    told = [
        any("inflation=5.0 widened no prior" in text for text in post.info["warnings"])
        for post in (
            et.posterior(et.Model(flat), {"y": 4.0}, et.ImportanceSampling(inflation=5.0), 100),
            et.posterior(et.Model(flat), {"y": 4.0}, et.ImportanceSampling({"k": Poisson(4.0)}, inflation=5.0), 100),
            et.posterior(et.Model(gaussian), OBSERVED, et.ImportanceSampling(inflation=5.0), 100),
        )
    ]
    assert told == [True, True, False]


def repeated() -> None:
    """An observation of the same name several times, some in branches, an array, and a factor."""
    mu = et.sample(Normal(0.0, 1.0), name="mu")
    count = et.sample(Poisson(1.0), name="count")
    for _ in range(1 + min(count, 2)):
        et.observe(Normal(mu, 1.0), name="y")
    if mu > 0.0:
        et.observe(Poisson(1.0 + mu), name="branch")
    et.observe(Normal(np.array([mu, -mu, 0.5]), 2.0), name="image")
    et.factor(-0.1 * count)


def test_stored_likelihoods_equal_executed_ones() -> None:
    model = et.Model(repeated)
    observe = {"y": [0.3, -0.2, 0.7], "branch": 2, "image": np.array([0.1, 0.2, 0.3])}
    live = et.posterior(model, observe, num_traces=300, seed=4)
    prior = et.prior(model, 300, seed=4)
    stored = log_likelihood(prior.traces, et.execution.Observations(observe))
    assert stored == pytest.approx(live.log_weights)


def test_one_value_for_a_stored_name_met_twice_is_an_error() -> None:
    prior = et.prior(et.Model(repeated), 100, seed=4)
    with pytest.raises(et.ObservationError, match="met the name 'y' twice"):
        log_likelihood(prior.traces, et.execution.Observations({"y": 0.3}))


def test_stored_order_that_is_not_known_is_an_error() -> None:
    def model() -> None:
        x = et.sample(Normal(0.0, 1.0))
        et.observe(Normal(x, 1.0), name="y")
        et.observe(Normal(-x, 1.0), name="y")

    prior = et.prior(et.Model(model), 10)
    with pytest.raises(et.ObservationError, match="share the name 'y'"):
        log_likelihood(prior.traces, et.execution.Observations({"y": [0.0, 1.0]}))


def test_values_of_the_simulator_are_not_replaced_in_stored_traces() -> None:
    def model() -> None:
        et.observe(Normal(et.sample(Normal(0.0, 1.0)), 1.0), value=0.5, name="y")

    prior = et.prior(et.Model(model), 10)
    assert log_likelihood(prior.traces, et.execution.Observations({})).tolist() == prior.traces.log_likelihood.tolist()
    with pytest.raises(et.ObservationError, match="supplied the value"):
        log_likelihood(prior.traces, et.execution.Observations({"y": 1.0}))


def test_override_replaces_the_simulators_value() -> None:
    def model() -> None:
        et.observe(Normal(et.sample(Normal(0.0, 1.0), name="x"), 1.0), value=0.5, name="y")

    with pytest.raises(et.ObservationError, match="override=True"):
        et.posterior(et.Model(model), {"y": 3.0}, num_traces=10)
    post = et.posterior(et.Model(model), {"y": 3.0}, num_traces=5000, override=True)
    assert abs(z_weighted(post, post.values("x"), 1.5)) < TOLERANCE


def test_only_traces_that_matter_are_held(dataset: Dataset, tmp_path: Path) -> None:
    """A posterior of a dataset saves only traces that matter."""
    post = et.posterior(et.Model(gaussian), {"obs0": 40.0, "obs1": 40.0}, et.ImportanceSampling(dataset=dataset))
    assert len(post) < 1000
    post.save(tmp_path / "post")
    assert et.Posterior.load(tmp_path / "post").log_evidence == post.log_evidence


@pytest.mark.slow
def test_coverage_of_the_evidence() -> None:
    """The stated error of the log evidence is the spread of its estimates."""
    model = et.Model(gaussian)
    runs = [et.posterior(model, OBSERVED, GUIDED, num_traces=500, seed=s) for s in range(200)]
    scores = np.array([evidence_z(run, gaussian_log_evidence(8.0, 9.0)) for run in runs])
    assert np.abs(scores).max() < TOLERANCE
    assert scores.std() == pytest.approx(1.0, abs=0.2)
    assert abs(scores.mean()) < 5 / math.sqrt(200)


def test_a_proposal_for_a_name_that_nobody_draws_is_an_error() -> None:
    engine = et.ImportanceSampling(proposals={"mu": Normal(6.5, 1.5), "um": Normal(6.5, 1.5)})
    with pytest.raises(InferenceError, match=r"no execution draws 'um'.*names that are drawn: 'mu'"):
        et.posterior(et.Model(gaussian), OBSERVED, engine, num_traces=10)
