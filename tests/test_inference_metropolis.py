"""LMH and RMH against exact posteriors, with controls that show that a wrong acceptance ratio would be seen."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Distribution,
    Exponential,
    Gamma,
    LogNormal,
    Mixture,
    Normal,
    Poisson,
    TruncatedNormal,
    Uniform,
    Weibull,
)
from etalumis.execution import Replay
from etalumis.inference import InferenceError
from etalumis.inference.acceptance import Sites, log_acceptance_ratio
from etalumis.inference.chain import Chain
from etalumis.inference.kernels import Mixture as KernelMixture
from etalumis.inference.kernels import RandomWalk
from etalumis.inference.single_site import SingleSite
from etalumis.simulators.classics import (
    HiddenMarkov,
    branching,
    branching_posterior,
    gaussian,
    gaussian_posterior,
    marsaglia,
)
from inference_checks import (
    LINEAR,
    LOOP,
    OBSERVED,
    TOLERANCE,
    NoKernel,
    NoSiteChoice,
    ReversedKernel,
    linear,
    linear_exact,
    loop,
    loop_exact,
    z_chains,
    z_probabilities,
    z_scores,
)

ENGINES = {"lmh": et.LMH, "rmh": et.RMH}
SHORT: dict[str, Any] = {"chains": 16, "burn_in": 100, "starts": 20}
EASY = {"obs0": 2.0, "obs1": 3.0}  # where redrawing from the prior is often accepted


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Callable[..., et.LMH]:
    return ENGINES[request.param]


# --- exact answers ------------------------------------------------------------------------------------------------


def conditioned_branch() -> None:
    """As many draws in either branch: a free one here, a conditioned one there."""
    if et.sample(Bernoulli(0.5), name="b"):
        x = et.sample(Normal(0.0, 0.1), name="x")
    else:
        x = et.sample(Normal(0.0, 1.0), name="c")
    et.observe(Normal(x, 1.0), name="y")


def test_a_free_draw_against_a_conditioned_one(engine: Callable[..., et.LMH]) -> None:
    observe = {"c": 0.5, "y": 0.0}
    here = math.exp(Normal(0.0, math.sqrt(1.01)).log_prob(0.0))
    there = math.exp(Normal(0.0, 1.0).log_prob(0.5) + Normal(0.5, 1.0).log_prob(0.0))
    post = et.posterior(et.Model(conditioned_branch), observe, engine(**SHORT), num_traces=8_000, seed=5)
    assert z_probabilities(post, "b", np.array([there, here]) / (here + there)) < TOLERANCE


def test_gaussian(engine: Callable[..., et.LMH]) -> None:
    observe = OBSERVED if engine is et.RMH else EASY
    post = et.posterior(et.Model(gaussian), observe, engine(**SHORT), num_traces=8_000, seed=1)
    assert np.abs(z_scores(post, "mu", *gaussian_posterior(*observe.values()))).max() < TOLERANCE


@pytest.mark.parametrize("observe", [OBSERVED, EASY])
def test_marsaglia(observe: dict[str, float]) -> None:
    post = et.posterior(et.Model(marsaglia), observe, et.RMH(**SHORT), num_traces=10_000, seed=2)
    assert np.abs(z_scores(post, "mu", *gaussian_posterior(*observe.values()))).max() < TOLERANCE


def test_enumerated_branching(engine: Callable[..., et.LMH]) -> None:
    post = et.posterior(et.Model(branching), {"obs0": 6}, engine(**SHORT), num_traces=16_000, seed=3)
    assert z_probabilities(post, "r", branching_posterior(6)) < TOLERANCE


def test_enumerated_hidden_markov(engine: Callable[..., et.LMH]) -> None:
    emissions = [0.9, 0.8, 0.0, -2.0, 0.13]
    chain = HiddenMarkov(steps=len(emissions))
    observe = {f"obs{k}": y for k, y in enumerate(emissions)}
    post = et.posterior(et.Model(chain), observe, engine(**SHORT), num_traces=6_000, seed=4)
    exact = chain.posterior(emissions)
    assert max(z_probabilities(post, f"state{k}", exact[k]) for k in range(len(emissions))) < TOLERANCE


def test_uncontrolled_conditioned_and_factor(engine: Callable[..., et.LMH]) -> None:
    post = et.posterior(et.Model(linear), LINEAR, engine(**SHORT), num_traces=12_000, seed=5)
    mean, std, _ = linear_exact()
    for k, name in enumerate("ab"):
        assert np.abs(z_scores(post, name, mean[k], std[k])).max() < TOLERANCE
    assert set(post.values("c")) == {2.0}  # conditioned: no site of its own


def test_rejection_loop(engine: Callable[..., et.LMH]) -> None:
    post = et.posterior(et.Model(loop), LOOP, engine(**SHORT), num_traces=16_000, seed=6)
    assert abs(z_chains(post, post.values("m"), loop_exact())) < TOLERANCE
    assert len(np.unique(post.traces.lengths)) > 3


def arrays() -> None:
    """A draw that is an array, of a length that another draw decides."""
    count = 1 + et.sample(Categorical([0.5, 0.5]), name="count")
    x = et.sample(Normal(np.zeros(count), 1.0), name="x", address="x")
    et.observe(Normal(float(x.sum()), 1.0), name="y")


def test_arrays_of_changing_shape(engine: Callable[..., et.LMH]) -> None:
    # The sum of n unit normals, seen with unit noise: y ~ Normal(0, √(1 + n)).
    post = et.posterior(et.Model(arrays), {"y": 2.0}, engine(**SHORT), num_traces=4_000, seed=7)
    evidence = [math.exp(Normal(0.0, math.sqrt(2.0 + n)).log_prob(2.0)) for n in range(2)]
    assert z_probabilities(post, "count", np.array(evidence) / sum(evidence)) < TOLERANCE


FAMILIES: dict[str, tuple[Distribution, Callable[[float], float]]] = {
    "Normal": (Normal(0.5, 2.0), float),
    "Uniform": (Uniform(-1.0, 2.0), float),
    "TruncatedNormal": (TruncatedNormal(0.0, 1.0, -0.5, 3.0), float),
    "Beta": (Beta(2.0, 3.0), lambda x: 3.0 * x),
    "Exponential": (Exponential(0.7), float),
    "Gamma": (Gamma(2.0, 1.5), float),
    "LogNormal": (LogNormal(0.0, 0.7), float),
    "Weibull": (Weibull(1.5, 2.0), float),
    "Poisson": (Poisson(3.0), lambda x: 0.5 * x),
    "Binomial": (Binomial(9, 0.4), lambda x: 0.5 * x),
    "Categorical": (Categorical([0.1, 0.2, 0.3, 0.4]), float),
    "Mixture": (Mixture([0.3, 0.7], [Normal(-1.0, 0.5), Normal(2.0, 0.7)]), float),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_random_walks_of_every_family(family: str) -> None:
    """Random walks alone (no redraws from the prior) leave each family's posterior as it is."""
    prior, scale = FAMILIES[family]

    def model() -> None:
        x = et.sample(prior, name="x")
        et.observe(Normal(scale(x), 1.0), name="y")

    numbers = np.arange(40.0) if prior.discrete else np.linspace(-8.0, 25.0, 66_001) + 1e-9
    with np.errstate(divide="ignore", invalid="ignore"):
        density = np.exp([prior.log_prob(prior.cast(x)) + Normal(scale(x), 1.0).log_prob(1.5) for x in numbers[::7]])
    numbers = numbers[::7]
    if prior.discrete:
        numbers = np.arange(40.0)
        support = [k for k in range(40) if prior.log_prob(k) > -math.inf]
        density = np.zeros(40)
        density[support] = [math.exp(prior.log_prob(k) + Normal(scale(k), 1.0).log_prob(1.5)) for k in support]
    truth = float((numbers * density).sum() / density.sum())

    engine = et.RMH(**SHORT, prior_fraction=0.0, initial_step=1.0)
    post = et.posterior(et.Model(model), {"y": 1.5}, engine, num_traces=4_000, seed=8)
    assert abs(z_chains(post, post.values("x").astype(float), truth)) < TOLERANCE


# --- the checks above can fail ------------------------------------------------------------------------------------


def test_a_missing_trace_length_term_is_caught() -> None:
    engine = NoSiteChoice(**SHORT)
    post = et.posterior(et.Model(branching), {"obs0": 6}, engine, num_traces=16_000, seed=3)
    assert z_probabilities(post, "r", branching_posterior(6)) > TOLERANCE


@pytest.mark.parametrize("wrong", [ReversedKernel, NoKernel])
def test_a_wrong_proposal_ratio_is_caught(wrong: Callable[..., et.RMH]) -> None:
    redraw = wrong(**SHORT, prior_fraction=1.0)
    post = et.posterior(et.Model(gaussian), EASY, redraw, num_traces=8_000, seed=1)
    assert np.abs(z_scores(post, "mu", *gaussian_posterior(*EASY.values()))).max() > TOLERANCE


def test_forgotten_normalisers_of_truncated_walks_are_caught() -> None:
    def model() -> None:
        et.observe(Normal(et.sample(Uniform(0.0, 1.0), name="x"), 0.3), name="y")

    grid = (np.arange(10_000) + 0.5) / 10_000
    density = np.exp(-0.5 * ((grid - 0.9) / 0.3) ** 2)
    truth = float((grid * density).sum() / density.sum())
    scores = []
    for engine in (et.RMH, ReversedKernel, NoKernel):
        post = et.posterior(
            et.Model(model), {"y": 0.9}, engine(chains=16, burn_in=0, starts=20, initial_step=1.5, prior_fraction=0.0),
            num_traces=16_000, seed=9,
        )  # fmt: skip
        scores.append(abs(z_chains(post, post.values("x"), truth)))
    assert scores[0] < TOLERANCE < min(scores[1:])


# --- mechanics ----------------------------------------------------------------------------------------------------


def test_site_choice_probabilities_add_up() -> None:
    model = et.Model(linear)
    trace = next(iter(et.execution.run(model, observe={"c": 2.0, "y": 1.5}, indices=[0])))
    sites = Sites(trace)
    assert (sites.controlled, sites.uncontrolled) == ([0], [1])  # the conditioned draw is none
    total = sum(math.exp(sites.log_probability(flag)) for flag in (True, False))
    assert total == pytest.approx(1.0)
    trace.controlled, trace.conditioned = [True] * 6 + [False] * 2, [False] * 8
    sites = Sites(trace)
    assert math.exp(sites.log_probability(True)) == pytest.approx(1 / 8)  # more than half anyway: all alike
    trace.controlled = [True] * 2 + [False] * 6
    sites = Sites(trace)
    assert math.exp(sites.log_probability(True)) == pytest.approx(1 / 4)
    assert math.exp(sites.log_probability(False)) == pytest.approx(1 / 12)
    picks = np.bincount([sites.choose((k + 0.5) / 1200) for k in range(1200)], minlength=8)
    assert picks.tolist() == [300, 300] + [100] * 6


def test_named_discrete_sites_get_their_share_of_the_moves() -> None:
    trace = next(iter(et.execution.run(et.Model(branching), indices=[1])))
    share, count = 0.5, len(trace)
    sites = Sites(trace, share)
    named = [k for k, name in enumerate(trace.names) if name]
    assert sites.branches == named == [0]
    picks = np.bincount([sites.choose((k + 0.5) / 4800) for k in range(4800)], minlength=count) / 4800
    probabilities = [math.exp(sites.log_probability(True, branch=k in named)) for k in range(count)]
    assert picks == pytest.approx(probabilities)
    assert probabilities[0] == pytest.approx(share + (1.0 - share) / count)


@pytest.mark.parametrize("right", [True, False])
def test_enumerated_branching_with_a_share_of_moves_at_branches(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice of a site counts in the ratio: treating branches as other sites there gives a wrong answer."""
    if not right:
        exact = Sites.log_probability
        monkeypatch.setattr(Sites, "log_probability", lambda self, controlled, branch=False: exact(self, controlled))
    engine = et.LMH(**SHORT, branch_share=0.7)
    post = et.posterior(et.Model(branching), {"obs0": 6}, engine, num_traces=16_000, seed=3)
    few = branching_posterior(6)[:5].sum()  # r ≤ 4: the traces with a second draw
    assert (abs(z_chains(post, (post.values("r") <= 4).astype(float), few)) < TOLERANCE) == right


def test_steps_adapt_in_burn_in_only() -> None:
    walk = RandomWalk(initial=5.0, target=0.44)
    model = et.Model(gaussian)
    observations = et.execution.Observations(OBSERVED)
    chain = Chain(
        model, observations, [(1.0, SingleSite(KernelMixture([walk], [1.0]), log_acceptance_ratio))], seed=0, number=0
    )
    chain.start(200)
    for _ in range(1500):
        chain.step()
    steps = dict(walk.steps)
    assert steps[0] < 2.0
    chain.freeze()
    for _ in range(1500):
        chain.step()
    assert walk.steps == steps
    proposed, accepted = chain.tally[0]
    assert proposed == 1500
    assert accepted / proposed == pytest.approx(0.44, abs=0.06)


def test_acceptance_is_reported_per_address() -> None:
    post = et.posterior(et.Model(branching), {"obs0": 6}, et.RMH(chains=2, burn_in=100), num_traces=1000, seed=1)
    rates = post.acceptance
    assert sum(proposed for proposed, _ in rates.values()) == 1000
    assert all(0 <= accepted <= proposed for proposed, accepted in rates.values())
    assert all("Poisson" in address for address in rates)
    assert post.info["acceptance"] == pytest.approx(sum(a for _, a in rates.values()) / 1000)


def test_kept_traces_burn_in_and_thinning() -> None:
    model = et.Model(gaussian)
    thin = et.posterior(model, OBSERVED, et.RMH(chains=2, burn_in=50, thinning=5), num_traces=101, seed=1)
    full = et.posterior(model, OBSERVED, et.RMH(chains=2, burn_in=50), num_traces=505, seed=1)
    assert np.bincount(thin.chains).tolist() == [51, 50]
    assert thin.values("mu")[:50].tolist() == full.values("mu")[:253][4::5][:50].tolist()
    assert thin.info["executions"] == 2 * (200 + 50) + 505


def test_states_are_traces_of_the_model() -> None:
    post = et.posterior(et.Model(marsaglia), EASY, et.RMH(chains=2, burn_in=10), num_traces=500, seed=1)
    batch = post.traces
    assert batch.finished.all()
    likelihood = sum(Normal(mu, math.sqrt(2)).log_prob(2.0) for mu in post.values("mu")[:1])
    assert batch.log_likelihood[post.rows[0]] == pytest.approx(
        likelihood + Normal(post.values("mu")[0], math.sqrt(2)).log_prob(3.0)
    )
    assert batch.log_weight == pytest.approx(batch.log_likelihood)
    sums = [batch.log_prob[a:b].sum() for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]
    assert batch.log_prior == pytest.approx(sums)


def test_equal_seeds_give_equal_chains_whatever_the_workers() -> None:
    runs = [
        et.posterior(et.Model(marsaglia), EASY, et.RMH(chains=3, burn_in=50, workers=w), num_traces=600, seed=4)
        for w in (1, 1, 2)
    ]
    for other in runs[1:]:
        assert other.values("mu").tolist() == runs[0].values("mu").tolist()
        assert other.traces.value.tolist() == runs[0].traces.value.tolist()
        assert other.info["moves"] == runs[0].info["moves"]
    different = et.posterior(et.Model(marsaglia), EASY, et.RMH(chains=3, burn_in=50), num_traces=600, seed=5)
    assert different.values("mu").tolist() != runs[0].values("mu").tolist()


class Scripted(et.Model):
    """A simulator that follows a controller's script by itself, as one behind a wire does."""

    def execute(self, controller: et.Controller, *args: Any, **kwargs: Any) -> et.Trace:
        script = controller.script()
        assert script is not None
        trace = super().execute(Replay(script.values), *args, **kwargs)
        trace.log_proposals = list(trace.log_priors)
        trace.log_proposal = trace.log_prior
        controller.followed(trace)
        return trace


@pytest.mark.parametrize("model", [branching, loop])
def test_scripted_simulators_give_the_same_chains(engine: Callable[..., et.LMH], model: Callable[[], Any]) -> None:
    observe = {"obs0": 6} if model is branching else LOOP
    runs = [et.posterior(m(model), observe, engine(chains=2, burn_in=50), 1000, seed=3) for m in (et.Model, Scripted)]
    assert runs[0].traces.value.tolist() == runs[1].traces.value.tolist()
    assert runs[0].rows.tolist() == runs[1].rows.tolist()


def breaks() -> None:
    x = et.sample(Normal(0.0, 1.0), name="x")
    if x > 1.0:
        raise ZeroDivisionError("the simulator's own error")
    et.observe(Normal(x, 1.0), name="y")


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_the_simulator_come_through(workers: int) -> None:
    with pytest.raises(ZeroDivisionError, match="the simulator's own error"):
        et.posterior(et.Model(breaks), {"y": 0.0}, et.RMH(chains=2, workers=workers), num_traces=100)


def test_errors_name_the_fix() -> None:
    model = et.Model(gaussian)
    with pytest.raises(et.ObservationError, match="'obs2'"):
        et.posterior(model, {**OBSERVED, "obs2": 1.0}, et.RMH(chains=1, burn_in=10), num_traces=10)
    with pytest.raises(ValueError, match="can't share"):
        et.posterior(model, OBSERVED, et.RMH(chains=4), num_traces=3)
    with pytest.raises(ValueError, match="chains"):
        et.RMH(chains=0)
    with pytest.raises(ValueError, match="prior_fraction"):
        et.RMH(prior_fraction=2.0)
    with pytest.raises(InferenceError, match="nothing to infer"):
        et.posterior(model, {**OBSERVED, "mu": 1.0}, et.RMH(chains=1, burn_in=10), num_traces=10)


def test_nowhere_to_start_is_an_error() -> None:
    def model() -> None:
        x = et.sample(Uniform(0.0, 1.0), name="x")
        et.observe(Uniform(x, x + 1.0), name="y")

    with pytest.raises(InferenceError, match="none of 10000 draws from the prior has a finite likelihood"):
        et.posterior(et.Model(model), {"y": 5.0}, et.LMH(chains=1), num_traces=10)


def test_a_nan_density_on_the_way_is_an_error() -> None:
    def model() -> None:
        x = et.sample(Normal(0.0, 1.0), name="x")
        et.factor(math.nan if x > 2.5 else 0.0, name="broken")
        et.observe(Normal(x, 1.0), name="y")

    with pytest.raises(et.DensityError, match="broken"):
        et.posterior(et.Model(model), {"y": 5.0}, et.RMH(chains=1), num_traces=5000)


def test_a_simulator_with_a_memory_is_an_error() -> None:
    calls: list[int] = []

    def model() -> None:
        calls.append(1)
        et.sample(Normal(0.0, 1.0), address=f"call{len(calls) % 7}")
        x = et.sample(Normal(0.0, 1.0), name="x")
        et.observe(Normal(x, 1.0), name="y")

    with pytest.raises(InferenceError, match="randomness or memory of its own"):
        et.posterior(et.Model(model), {"y": 0.0}, et.RMH(chains=1), num_traces=100)


def modes(separation: float) -> Callable[[], None]:
    def model() -> None:
        side = et.sample(Categorical([0.5, 0.5]), name="side")
        x = et.sample(Normal(0.0, 10.0), name="x")
        et.observe(Normal(x - separation * side, 0.1), name="y")

    return model


def test_a_discrete_variable_that_never_moves_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    stuck = et.posterior(et.Model(modes(9.0)), {"y": 0.0}, et.RMH(chains=2, burn_in=100), num_traces=1000, seed=1)
    assert "discrete variables never moved: 'side' in chains 0, 1" in stuck.info["warnings"][0]
    assert stuck.info["warnings"][0] in caplog.text
    free = et.posterior(et.Model(modes(0.1)), {"y": 0.0}, et.RMH(chains=2, burn_in=100), num_traces=1000, seed=1)
    assert free.info["warnings"] == []


def test_keeping_observes() -> None:
    model = et.Model(gaussian)
    assert et.posterior(model, OBSERVED, et.RMH(chains=1, burn_in=0), num_traces=50).traces.observes == ()
    post = et.posterior(model, OBSERVED, et.RMH(chains=1, burn_in=0, keep_observes=True), num_traces=50)
    assert post.traces.observes[0].parameters[0].tolist() == post.traces.draws("mu")[1].tolist()


# --- long checks --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_long_marsaglia_chains(engine: Callable[..., et.LMH]) -> None:
    post = et.posterior(et.Model(marsaglia), EASY, engine(chains=16, burn_in=1000), num_traces=80_000, seed=10)
    assert np.abs(z_scores(post, "mu", *gaussian_posterior(*EASY.values()))).max() < TOLERANCE


@pytest.mark.slow
def test_a_missing_trace_length_term_is_caught_in_loops() -> None:
    post = et.posterior(et.Model(loop), LOOP, NoSiteChoice(**SHORT), num_traces=64_000, seed=6)
    assert abs(z_chains(post, post.values("m"), loop_exact())) > TOLERANCE
