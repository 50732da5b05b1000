"""Diagnoses: good chains and weights pass, bad ones are flagged, each for its own reason."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Bernoulli, Categorical, Exponential, Normal
from etalumis.inference import InferenceError, diagnostics
from etalumis.inference.address_values import address_values
from etalumis.inference.by_address import chain_columns
from etalumis.inference.mixing import mixing
from etalumis.inference.pareto import smooth
from etalumis.simulators.classics import gaussian
from inference_checks import OBSERVED

LENGTH = 800


def branching() -> None:
    """A category, a number, and a draw without a name that only one category has."""
    kind = et.sample(Categorical([0.5, 0.3, 0.2]), name="kind")
    mu = et.sample(Normal(float(kind), 1.0), name="mu")
    if kind == 1:
        mu = mu + et.sample(Exponential(1.0))
    et.observe(Normal(mu, 1.0), name="y")


def apart() -> None:
    """Two categories that single-site moves can't cross: the number after it fits one of them only."""
    side = et.sample(Bernoulli(0.5), name="side")
    x = et.sample(Normal(0.0, 10.0), name="x")
    et.observe(Normal(x - (20.0 if side else -20.0), 0.05), name="y")


@pytest.fixture(scope="module")
def prior() -> et.Posterior:
    return et.prior(et.Model(branching), num_traces=500, seed=2)


@pytest.fixture(scope="module")
def good() -> et.Posterior:
    engine = et.LMH(chains=4, burn_in=200)
    return et.posterior(et.Model(branching), {"y": 1.2}, engine, num_traces=8000, seed=1)


@pytest.fixture(scope="module")
def weighted() -> et.Posterior:
    return et.posterior(et.Model(branching), {"y": 1.2}, num_traces=2000, seed=1)


def chained(posterior: et.Posterior, order: np.ndarray) -> et.Posterior:
    """Its samples as two chains, in an order of ours."""
    chains = np.repeat(np.arange(2), len(order) // 2)
    return et.Posterior(posterior.traces, np.zeros(len(order)), posterior.rows[order], chains, markov=True)


# --- chains -----------------------------------------------------------------------------------------------------------


def test_good_chains_pass(good: et.Posterior) -> None:
    found = good.diagnose()
    assert found.ok, found
    assert [row["name"] for row in found.table] == ["kind", "mu", "(log density)"]
    assert all(row["rhat"] < 1.05 for row in found.table)
    assert found.numbers["chains"] == 4
    assert found.numbers["ess"] == good.ess
    assert "no fault found" in repr(found)
    row = found.table[1]
    assert row["mean"] == good.mean("mu")
    assert row["ess_tail"] == good.summary(["mu"])[0]["ess_tail"]
    assert row["autocorrelation_time"] == pytest.approx(len(good) / diagnostics.ess_mean(good.chain_values("mu")))


def test_chains_in_different_places_are_flagged(good: et.Posterior) -> None:
    """Independent draws, dealt so that one chain has the lower values."""
    found = chained(good, np.argsort(good.values("mu"), kind="stable")).diagnose()
    assert not found.ok
    assert "chains disagree" in found.problems[0]
    assert "mu" in found.problems[0]
    rhat = found.numbers["largest_rhat"]
    # The same draws dealt at random are no problem of mixing.
    mixed = chained(good, np.random.default_rng(0).permutation(len(good)))
    assert mixed.diagnose().ok
    assert mixed.diagnose().numbers["largest_rhat"] < 1.02 < rhat


def test_categories_that_chains_do_not_share_are_flagged_though_the_numbers_mix(good: et.Posterior) -> None:
    found = chained(good, np.argsort(good.values("kind"), kind="stable")).diagnose()
    assert "kind (= " in found.problems[0]
    assert found.table[0]["category"] is not None


def test_a_discrete_variable_that_never_moves() -> None:
    """Sides that can't be crossed: every chain stays in its own, which single chains look well on."""
    post = et.posterior(
        et.Model(apart), {"y": 0.0}, et.RMH(chains=4, burn_in=300, starts=30), num_traces=2000, seed=3, progress=False
    )
    sides = post.chain_values("side").mean(axis=1)
    assert set(sides.tolist()) == {0.0, 1.0}  # the seed's chains sit on both sides
    found = post.diagnose()
    assert not found.ok
    assert any("stands still" in text and "side" in text for text in found.problems)
    assert any("discrete variables never moved" in text for text in found.notes)
    only = et.Posterior(post.traces, np.zeros(500), post.rows[:500], np.zeros(500, dtype=np.int64), markov=True)
    notes = " ".join(only.diagnose().notes)
    assert "side never moved" in notes
    assert "one chain" in notes


def test_chains_that_never_moved_or_are_too_short_are_no_success(good: et.Posterior) -> None:
    still = chained(good, np.zeros(200, dtype=np.int64))
    short = chained(good, np.arange(4))
    for post in (still, short):
        found = post.diagnose()
        assert not found.ok
        assert "nothing can be judged" in found.problems[0]


def test_slow_chains_have_few_independent_draws(good: et.Posterior) -> None:
    """Every state held for 50 steps."""
    slow = chained(good, np.repeat(np.arange(0, 8000, 500), 50)).diagnose()
    assert any("bulk ESS" in text or "disagree" in text for text in slow.problems)
    row = next(row for row in slow.table if row["name"] == "mu")
    assert row["autocorrelation_time"] > 25.0


def test_few_visits_to_the_tails_are_a_problem_though_the_bulk_mixes(good: et.Posterior) -> None:
    """Each half of a chain goes through its lowest and its highest twentieth at one go."""
    order = np.argsort(good.values("mu"), kind="stable")[::4]
    random = np.random.default_rng(0)
    low, middle, high = (random.permutation(part).reshape(4, -1) for part in np.split(order, [100, 1900]))
    found = chained(good, np.concatenate([low, middle, high], axis=1).ravel()).diagnose()
    row = next(row for row in found.table if row["name"] == "mu")
    assert row["ess_tail"] < 100.0 < row["ess"]
    (problem,) = found.problems
    assert "tail ESS down to" in problem
    assert "mu" in problem


def test_unnamed_draws_are_judged(good: et.Posterior) -> None:
    order = np.argsort(good.traces.lengths[good.rows], kind="stable")
    found = chained(good, order).diagnose()
    assert any("unnamed draws disagree" in text for text in found.problems)


def test_mixing_of_numbers_and_of_categories() -> None:
    rng = np.random.default_rng(0)
    assert mixing(rng.normal(size=(4, LENGTH)), discrete=False).rhat < 1.01
    assert mixing(rng.normal(size=(4, LENGTH)) + np.arange(4)[:, None], discrete=False).rhat > 1.2
    # Means and ranks agree, the category in the middle does not.
    middle = np.where(
        rng.random((4, LENGTH)) < np.array([0.2, 0.2, 0.8, 0.8])[:, None], 1, rng.choice([0, 2], (4, LENGTH))
    )
    found = mixing(middle.astype(np.float64), discrete=True)
    assert found.rhat > 1.1
    assert found.value == 1
    counts = rng.poisson(400.0, (4, LENGTH)).astype(np.float64)
    assert mixing(counts, discrete=True).value is None  # spread over many values: a number
    assert math.isnan(mixing(np.ones((4, LENGTH)), discrete=True).rhat)


def test_gelman_rubin_against_iteration() -> None:
    """Equal to its textbook formula; falls towards 1 for chains that forget where they began."""
    rng = np.random.default_rng(1)
    chains = rng.normal(size=(4, LENGTH)) + 8.0 * np.arange(4)[:, None] * np.exp(-np.arange(LENGTH) / 30.0) + 1e6
    lengths = np.array([10, 100, LENGTH])
    curve = diagnostics.gelman_rubin(chains, lengths)
    for n, value in zip(lengths.tolist(), curve.tolist(), strict=True):
        part = chains[:, :n]
        within, between = part.var(axis=1, ddof=1).mean(), part.mean(axis=1).var(ddof=1)
        assert value == pytest.approx(math.sqrt((n - 1) / n + between / within), rel=1e-6)
    assert curve[0] > 2.0 > curve[1] > curve[2]
    standing = np.arange(4.0)[:, None] * np.ones(10)
    assert diagnostics.gelman_rubin(standing, [10]) == math.inf


def test_autocorrelation_and_its_time() -> None:
    """An autoregression of lag 1 with coefficient 0.8 has ρ(t) = 0.8 ** t and τ = (1 + 0.8) / (1 − 0.8) = 9."""
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(4, 20_000))
    chains = np.zeros_like(noise)
    for t in range(1, noise.shape[1]):
        chains[:, t] = 0.8 * chains[:, t - 1] + noise[:, t]
    assert diagnostics.autocorrelation(chains, 6) == pytest.approx(0.8 ** np.arange(6), abs=0.03)
    assert diagnostics.autocorrelation_time(chains) == pytest.approx(9.0, rel=0.1)
    # Chains apart never forget.
    assert diagnostics.autocorrelation(chains + 10.0 * np.arange(4)[:, None], 200)[-1] > 0.8


def test_reuse_is_counted(good: et.Posterior) -> None:
    """The draw that only one category has is fresh whenever a move brings it back."""
    shares = {address.rsplit("__", 2)[1]: reused / met for address, (met, reused) in good.reuse.items()}
    assert shares["Categorical"] == shares["Normal"] == 1.0
    assert 0.05 < shares["Exponential"] < 0.95
    moves = sum(proposed for proposed, _ in good.acceptance.values())
    kind = next(address for address in good.reuse if "Categorical" in address)
    assert good.reuse[kind][0] == moves - good.acceptance[kind][0]


# --- weights ----------------------------------------------------------------------------------------------------------


def test_good_weights_pass(weighted: et.Posterior) -> None:
    found = weighted.diagnose()
    assert found.ok, found
    assert found.numbers["pareto_k"] == weighted.pareto_k < found.numbers["pareto_k_limit"]
    assert found.numbers["log_evidence"] == weighted.log_evidence


def test_bad_weights_are_flagged_with_advice() -> None:
    """From the prior into its far tail."""
    post = et.posterior(et.Model(gaussian), {"obs0": 12.0, "obs1": 12.5}, num_traces=500, seed=1)
    found = post.diagnose()
    assert not found.ok
    assert "can't be trusted" in found.problems[0]
    assert "About" in found.problems[1]
    assert "DON'T TRUST IT" in repr(found)


def test_all_weights_zero_is_said_and_nothing_drawn() -> None:
    post = et.posterior(et.Model(gaussian), OBSERVED, num_traces=20, seed=1)
    dead = et.Posterior(post.traces, np.full(20, -np.inf))
    found = dead.diagnose()
    assert not found.ok
    assert "weight zero" in found.problems[0]
    assert found.figures == {}


@pytest.mark.parametrize("spread", [0.5, 1.5, 4.0])
def test_smoothed_weights_are_arviz_s(spread: float) -> None:
    pytest.importorskip("arviz")
    from arviz_versions import psislw

    log_weights = spread * np.random.default_rng(3).standard_normal(3000)
    theirs, k, tolerance = psislw(log_weights)
    ours = smooth(log_weights)
    assert diagnostics.pareto_k(log_weights) == pytest.approx(k, abs=tolerance)
    np.testing.assert_allclose(
        ours - np.logaddexp.reduce(ours), theirs - np.logaddexp.reduce(theirs), atol=max(1e-8, 5.0 * tolerance)
    )


def test_smoothing_tames_a_lucky_trace(weighted: et.Posterior) -> None:
    log_weights = weighted.log_weights.copy()
    log_weights[7] = log_weights.max() + 6.0
    lucky = et.Posterior(weighted.traces, log_weights, num_dropped=100)
    smoothed = lucky.smoothed()
    assert smoothed.weights.max() < lucky.weights.max()
    assert smoothed.num_dropped == 100
    assert np.array_equal(np.sort(smoothed.log_weights)[:1500], np.sort(log_weights)[:1500])  # the body stays
    assert smoothed.info["smoothed"]
    assert len(np.unique(smooth(np.repeat(np.arange(20.0), 100)))) == 20  # ties stay
    equal = et.Posterior(weighted.traces, np.zeros(2000))
    assert np.array_equal(equal.smoothed().log_weights, np.zeros(2000))


def test_chains_have_no_weights_to_smooth(good: et.Posterior) -> None:
    with pytest.raises(InferenceError, match="no importance weights"):
        good.smoothed()


# --- traces -----------------------------------------------------------------------------------------------------------


def test_trace_types_have_the_probabilities_of_what_tells_them_apart(
    good: et.Posterior, weighted: et.Posterior
) -> None:
    for post in (good, weighted):
        types = post.trace_types()
        assert [t.length for t in types] == [2, 3]
        assert types[1].probability == pytest.approx(post.probabilities("kind")[1])
        assert sum(t.probability for t in types) == pytest.approx(1.0)
        assert sum(t.num_traces for t in types) == len(post.traces)
        assert "Exponential" in types[1].addresses[-1]
    assert good.trace_types()[0].hash == weighted.trace_types()[0].hash


def test_addresses_before_and_after(good: et.Posterior, prior: et.Posterior) -> None:
    rows = {row["address"].rsplit("__", 2)[1]: row for row in good.by_address(prior)}
    assert rows["Normal"]["mean"] == pytest.approx(good.mean("mu"))
    assert rows["Normal"]["prior_std"] == pytest.approx(prior.std("mu"))
    assert rows["Exponential"]["name"] is None
    branch = address_values(good.traces)[rows["Exponential"]["address"]]
    worst = max(mixing(chains, discrete=False).rhat for chains in chain_columns(good, branch).values())
    assert rows["Exponential"]["rhat"] == worst, "of presence and values what mixes worse"
    assert rows["Exponential"]["probability"] == pytest.approx(good.probabilities("kind")[1])
    assert rows["Exponential"]["prior_probability"] == pytest.approx(prior.probabilities("kind")[1])
    assert rows["Normal"]["accepted"] == pytest.approx(
        good.acceptance[rows["Normal"]["address"]][1] / good.acceptance[rows["Normal"]["address"]][0]
    )
    assert len(good.by_address(most=1)) == 1


def test_the_graph_is_weighted(weighted: et.Posterior) -> None:
    graph = weighted.trace_graph()
    (node,) = [label for label in graph.nodes if "Exponential" in label]
    assert graph.nodes[node] == pytest.approx(weighted.probabilities("kind")[1])


# --- figures ----------------------------------------------------------------------------------------------------------


def test_a_diagnosis_is_written(good: et.Posterior, weighted: et.Posterior, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    small = et.Posterior(
        good.traces, np.zeros(400), good.rows[:400], np.repeat(np.arange(2), 200), markov=True, info=good.info
    )
    small.diagnose(tmp_path / "chains")
    weighted.diagnose(tmp_path / "weights")
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    chains = [
        f"chains/{name}" for name in ("chains.png", "diagnosis.json", "diagnosis.md", "marginals.png", "moves.png")
    ]
    weights = [f"weights/{name}" for name in ("diagnosis.json", "diagnosis.md", "marginals.png", "weights.png")]
    assert written == chains + weights
    numbers = json.loads((tmp_path / "chains" / "diagnosis.json").read_text())
    assert [row["name"] for row in numbers["table"]] == ["kind", "mu", "(log density)"]
    assert "![weights](weights.png)" in (tmp_path / "weights" / "diagnosis.md").read_text()


def test_plots(good: et.Posterior, weighted: et.Posterior, prior: et.Posterior, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    truth = {"mu": 1.0, "kind": 2.0}
    figure = weighted.plot(truth=truth, others=[good], prior=prior, labels={"kind": ("e", "mu", "pi")})
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["ImportanceSampling", "LMH", "prior", "true value"]
    assert "π ◂" in [text.get_text() for text in figure.axes[0].get_yticklabels()]
    pairs = weighted.plot(["kind", "mu"], truth, [good], prior, pairs=True, path=tmp_path / "pairs.png")
    assert [axes.get_visible() for axes in pairs.axes] == [True, False, True, True]
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")
    two = weighted.plot(["mu"], others=[weighted])
    assert [t.get_text() for t in two.legends[0].get_texts()] == ["ImportanceSampling 1", "ImportanceSampling 2"]
    with pytest.raises(ValueError, match=r"'nothing' is one number.*'kind', 'mu'"):
        weighted.plot(["nothing"])


def test_addresses_are_drawn(good: et.Posterior, prior: et.Posterior) -> None:
    pytest.importorskip("matplotlib")
    figure = good.plot_addresses(prior)
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels[:2] == ["kind", "mu"]
    assert "Exponential" in labels[2]
    assert figure.axes[2].get_title().startswith("met in ")
    with pytest.raises(ValueError, match="no trace met"):
        good.plot_addresses(addresses=["elsewhere"])
