"""Block moves, moves by a network and tempering: exact posteriors, and broken ratios that must be caught."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Bernoulli, Categorical, Distribution, Normal, Poisson, Stream, Uniform
from etalumis.execution import Replay, Simulator, Trace
from etalumis.inference import moves
from etalumis.inference.acceptance import Sites
from etalumis.inference.chain import Chain
from etalumis.simulators.classics import HiddenMarkov, branching, branching_posterior
from inference_checks import (
    LINEAR,
    LOOP,
    TOLERANCE,
    Biased,
    ByHand,
    linear,
    linear_exact,
    loop,
    loop_exact,
    no_proposal,
    no_site_choice,
    z_chains,
    z_probabilities,
    z_scores,
)

SHORT: dict[str, Any] = {"chains": 16, "burn_in": 100, "starts": 20}


def near(prior: Distribution) -> Distribution:
    """A proposal that is neither the prior nor right."""
    return Poisson(5.0) if isinstance(prior, Poisson) else Normal(0.5, 1.2)


def by_network(whole: float) -> dict[str, Any]:
    network = ByHand(
        dict.fromkeys(("r", "a"), near)
        | {"m": lambda prior: Uniform(0.0, 1.0)}
        | {f"state{k}": lambda prior: Categorical([0.5, 0.3, 0.2]) for k in range(5)}
    )
    return {"proposals": et.IC(network).as_kernel(share=0.6, whole=whole)}


KINDS: dict[str, dict[str, Any]] = {
    "suffix": {"suffix_share": 0.6},
    "suffix with branches": {"suffix_share": 0.5, "branch_share": 0.3},
    "dependants": {"dependants_share": 0.6},
    "network, whole traces": by_network(1.0),
    "network, from a site on": by_network(0.0),
    "everything": {"suffix_share": 0.2, "dependants_share": 0.2, **by_network(0.5), "temper": 0.5},
}


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest) -> et.RMH:
    return et.RMH(**SHORT, **KINDS[request.param])


def test_enumerated_branching(engine: et.RMH) -> None:
    post = et.posterior(et.Model(branching), {"obs0": 6}, engine, num_traces=16_000, seed=3)
    assert z_probabilities(post, "r", branching_posterior(6)) < TOLERANCE


@pytest.mark.slow
def test_enumerated_hidden_markov(engine: et.RMH) -> None:
    emissions = [0.9, 0.8, 0.0, -2.0, 0.13]
    chain = HiddenMarkov(steps=len(emissions))
    observe = {f"obs{k}": y for k, y in enumerate(emissions)}
    post = et.posterior(et.Model(chain), observe, engine, num_traces=6_000, seed=4)
    exact = chain.posterior(emissions)
    assert max(z_probabilities(post, f"state{k}", exact[k]) for k in range(len(emissions))) < TOLERANCE


def sometimes_asked() -> bool:
    """Half of the states have nothing that a network is asked for; what is observed tells nothing."""
    b = et.sample(Bernoulli(0.5), name="b", control=False)
    if b:
        et.sample(Normal(0.0, 1.0), name="a")
    et.observe(Normal(0.0, 1.0), name="y")
    return bool(b)


@pytest.mark.parametrize("whole", [0.0, 0.5, 1.0])
def test_states_without_a_draw_to_ask_for(whole: float) -> None:
    """A move into them that has no way back would leave chains there."""
    engine = et.LMH(**SHORT, **by_network(whole))
    post = et.posterior(et.Model(sometimes_asked), {"y": 0.5}, engine, num_traces=8_000, seed=6)
    assert abs(z_chains(post, np.array(post.results, dtype=np.float64), 0.5)) < TOLERANCE


def test_uncontrolled_conditioned_and_factor(engine: et.RMH) -> None:
    post = et.posterior(et.Model(linear), LINEAR, engine, num_traces=12_000, seed=5)
    mean, std, _ = linear_exact()
    for k, name in enumerate("ab"):
        assert np.abs(z_scores(post, name, mean[k], std[k])).max() < TOLERANCE


@pytest.mark.slow
def test_rejection_loop(engine: et.RMH) -> None:
    post = et.posterior(et.Model(loop), LOOP, engine, num_traces=16_000, seed=6)
    assert abs(z_chains(post, post.values("m"), loop_exact())) < TOLERANCE


def named_by_a_branch() -> None:
    """A draw of one address that is observed in one branch and free in the other; no network cares for it."""
    b = et.sample(Bernoulli(0.5), name="b")
    x = et.sample(Normal(0.0, 1.0), name="c" if b else "x", control=False, address="x")
    et.observe(Normal(x, 1.0), name="y")


@pytest.mark.parametrize("engine", [et.LMH(**SHORT), et.RMH(**SHORT)])
def test_a_name_decides_whether_an_address_is_conditioned(engine: et.LMH) -> None:
    there = math.exp(Normal(0.0, 1.0).log_prob(0.5) + Normal(0.5, 1.0).log_prob(0.0))
    here = math.exp(Normal(0.0, math.sqrt(2.0)).log_prob(0.0))
    post = et.posterior(et.Model(named_by_a_branch), {"c": 0.5, "y": 0.0}, engine, num_traces=8_000, seed=1)
    assert z_probabilities(post, "b", np.array([here, there]) / (here + there)) < TOLERANCE


def test_sites_serve_traces_of_the_same_draws_only() -> None:
    observe = et.execution.Observations({"c": 0.5, "y": 0.0})
    first, other = (run_with(named_by_a_branch, observe, {0: b}) for b in (0, 1))
    assert first.addresses == other.addresses
    assert first.controlled == other.controlled
    assert Sites(first).serve(run_with(named_by_a_branch, observe, {0: 0}))
    assert not Sites(first).serve(other)
    # Names matter too where named discrete draws have a share of the moves of their own.
    first, other = (run_with(sometimes_named, et.execution.Observations(), {0: b}) for b in (0, 1))
    assert Sites(first).serve(other)
    assert not Sites(first, branch_share=0.5).serve(other)


def sometimes_named() -> None:
    b = et.sample(Bernoulli(0.5))
    et.sample(Bernoulli(0.5), name="k" if b else None)


def run_with(function: Callable[[], None], observe: et.execution.Observations, values: dict[int, Any]) -> Trace:
    return et.Model(function).execute(Replay(values), observe, Stream(0), 0)


def barrier() -> None:
    """A channel whose value decides where x stands: moving one of them alone is next to impossible."""
    channel = et.sample(Categorical([0.5, 0.5]), name="channel")
    x = et.sample(Normal(-5.0 if channel == 0 else 5.0, 0.3), name="x")
    et.observe(Normal(x * x, 1.0), name="y")


def test_a_discrete_draw_moves_with_what_depends_on_it() -> None:
    alone = et.posterior(et.Model(barrier), {"y": 25.0}, et.RMH(**SHORT), num_traces=4_000, seed=1)
    assert alone.by_chain(alone.values("channel")).std(axis=1).max() == 0.0
    assert "never moved" in alone.info["warnings"][0]
    engine = et.RMH(**SHORT, dependants_share=0.4)
    together = et.posterior(et.Model(barrier), {"y": 25.0}, engine, num_traces=16_000, seed=1)
    assert z_probabilities(together, "channel", np.array([0.5, 0.5])) < TOLERANCE
    assert together.rhat("channel") < 1.05
    assert not together.info["warnings"]


def smooth() -> None:
    mu = et.sample(Normal(1.0, 2.0), name="mu")
    et.observe(Normal(mu, 1.0), name="y")


def test_moves_that_find_nothing_to_move_are_told_and_charged_to_no_address() -> None:
    """No discrete draw anywhere: eight steps in ten do nothing, and the others are accepted as ever."""
    engine = et.RMH(chains=2, burn_in=100, starts=20, dependants_share=0.8)
    post = et.posterior(et.Model(smooth), {"y": 2.0}, engine, num_traces=1000, seed=1)
    idle, moves = post.info["idle"]["discrete draw"], sum(proposed for _, proposed, _ in post.info["moves"])
    assert idle + moves == 1000
    assert idle > 700
    assert 0.3 < post.info["acceptance"] < 0.7
    assert "no discrete draw: lower dependants_share" in post.info["warnings"][0]
    nothing = replace(engine, dependants_share=1.0)
    assert et.posterior(et.Model(smooth), {"y": 2.0}, nothing, num_traces=10, seed=1).info["acceptance"] == 0.0


def test_a_chain_that_goes_on_counts_idle_steps_on(tmp_path: Any) -> None:
    engine = et.RMH(chains=1, burn_in=10, starts=5, dependants_share=0.5, folder=tmp_path)
    et.posterior(et.Model(smooth), {"y": 2.0}, engine, num_traces=50, seed=1)
    further = et.posterior(et.Model(smooth), {"y": 2.0}, engine, num_traces=100, seed=1)
    once = et.posterior(et.Model(smooth), {"y": 2.0}, replace(engine, folder=None), num_traces=100, seed=1)
    assert further.info["idle"] == once.info["idle"]
    assert further.info["moves"] == once.info["moves"]


def only_arrays() -> None:
    x = et.sample(Normal(np.zeros(2), 1.0), name="x")
    et.observe(Normal(x, 1.0), name="y")


def test_a_network_without_scalars_to_move_is_told() -> None:
    engine = et.RMH(chains=2, burn_in=100, starts=20, proposals=et.IC(ByHand({})).as_kernel(0.5, whole=0.0))
    post = et.posterior(et.Model(only_arrays), {"y": np.ones(2)}, engine, num_traces=1000, seed=1)
    assert post.info["idle"]["controlled scalar draw"] > 400
    assert "draw the elements of arrays one by one" in post.info["warnings"][0]


def test_a_share_of_branches_where_there_are_none_is_told() -> None:
    engine = et.RMH(chains=1, burn_in=10, starts=5, branch_share=0.5)
    assert "branch_share did nothing" in et.posterior(et.Model(smooth), {"y": 2.0}, engine, 50).info["warnings"][0]
    assert not et.posterior(et.Model(branching), {"obs0": 6}, engine, 50).info["warnings"]


def test_tempering_ends_with_the_whole_likelihood() -> None:
    """The power rises to 1 in the share of the burn-in asked for; before that, worse states are accepted more often."""
    model = et.Model(barrier)
    accepted = {}
    for temper in (0, 400):
        kind = et.RMH(prior_fraction=1.0).transitions(model)
        chain = Chain(model, et.execution.Observations({"y": 25.0}), kind, seed=1, number=0, temper=temper)
        chain.start(20)
        accepted[temper] = sum(chain.step() for _ in range(200))
        assert chain.power == (0.5 if temper else 1.0)
        for _ in range(200):
            chain.step()
        assert chain.power == 1.0
    assert accepted[400] > 1.2 * accepted[0]


# --- the checks above can fail ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong(et.RMH):
    change: Callable[[moves.State, moves.Attempt], float] = lambda state, attempt: 0.0

    def transitions(self, model: Simulator) -> list[tuple[float, moves.Transition]]:
        return [(share, Biased(kind, self.change)) for share, kind in super().transitions(model)]


def test_a_missing_choice_term_of_suffix_moves_is_caught() -> None:
    wrong = Wrong(**SHORT, suffix_share=1.0, change=no_site_choice)
    post = et.posterior(et.Model(branching), {"obs0": 6}, wrong, num_traces=16_000, seed=3)
    assert z_probabilities(post, "r", branching_posterior(6)) > TOLERANCE
    right = et.posterior(et.Model(branching), {"obs0": 6}, replace(wrong, change=lambda s, a: 0.0), 16_000, seed=3)
    assert z_probabilities(right, "r", branching_posterior(6)) < TOLERANCE


def test_a_missing_proposal_term_of_network_moves_is_caught() -> None:
    network = et.IC(ByHand({"a": near})).as_kernel(share=1.0, whole=1.0)
    wrong = Wrong(**SHORT, proposals=network, change=no_proposal)
    post = et.posterior(et.Model(linear), LINEAR, wrong, num_traces=24_000, seed=5)
    mean, std, _ = linear_exact()
    assert np.abs(z_scores(post, "a", mean[0], std[0])).max() > TOLERANCE


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="shares of moves"):
        et.RMH(suffix_share=0.7, dependants_share=0.5)
    with pytest.raises(ValueError, match="shares of moves"):
        et.IC(ByHand({})).as_kernel(share=0.0)
    with pytest.raises(ValueError, match="defensive"):
        et.IC(ByHand({}), defensive=0.1).as_kernel()
    with pytest.raises(ValueError, match="temper"):
        et.RMH(temper=1.5)


def test_settings_are_kept_with_the_posterior(tmp_path: Any) -> None:
    engine = et.RMH(chains=2, burn_in=10, starts=5, proposals=et.IC(ByHand({"r": near})).as_kernel(0.3))
    post = et.posterior(et.Model(branching), {"obs0": 6}, engine, num_traces=20, seed=3)
    post.save(tmp_path / "post")
    assert et.Posterior.load(tmp_path / "post").info["settings"]["chains"] == 2
