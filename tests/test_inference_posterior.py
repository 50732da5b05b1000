"""Posterior: reading by name, weights, statistics."""

import math

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Bernoulli, Normal, Uniform
from etalumis.inference import InferenceError
from etalumis.inference.diagnostics import ess_tail
from etalumis.simulators.classics import gaussian
from inference_checks import OBSERVED
from posterior_models import varied


@pytest.fixture(scope="module")
def varied_prior() -> et.Posterior:
    return et.prior(et.Model(varied), num_traces=300, seed=1)


@pytest.fixture(scope="module")
def weighted() -> et.Posterior:
    return et.posterior(et.Model(gaussian), OBSERVED, num_traces=2000, seed=1)


@pytest.fixture(scope="module")
def chains() -> et.Posterior:
    return et.posterior(et.Model(gaussian), OBSERVED, et.RMH(chains=3, burn_in=100), num_traces=500, seed=1)


# --- names --------------------------------------------------------------------------------------------------------


def test_names_are_draws_and_tags(varied_prior: et.Posterior) -> None:
    assert set(varied_prior.names) == {
        "count", "step", "three", "pair", "flag", "sometimes", "double", "parity", "any",
    }  # fmt: skip
    assert set(varied_prior.numbers) == {"count", "flag", "double", "any"}


def test_values_of_draws_and_tags(varied_prior: et.Posterior) -> None:
    counts = varied_prior.values("count")
    assert counts.shape == (300,)
    assert counts.dtype.kind == "i"
    assert varied_prior.values("double").tolist() == (2 * counts).tolist()
    assert varied_prior.values("parity").tolist() == ["odd" if c % 2 else "even" for c in counts]
    assert varied_prior.values("any").tolist() == [bool(c) for c in counts]
    assert varied_prior.values("pair").shape == (300, 2)


def test_unknown_name_is_an_error_that_lists_names(varied_prior: et.Posterior) -> None:
    with pytest.raises(KeyError, match=r"no draw or tag is named 'cuont'.*'count'"):
        varied_prior.values("cuont")


def test_missing_values_need_an_answer(varied_prior: et.Posterior) -> None:
    with pytest.raises(ValueError, match=r"'sometimes' is missing in \d+ of 300 samples.*missing="):
        varied_prior.values("sometimes")
    values = varied_prior.values("sometimes", missing=-1)
    assert ((values == -1) == (varied_prior.values("flag") == 0)).all()
    assert values.dtype.kind == "i"
    assert np.isnan(varied_prior.values("sometimes", missing=math.nan)).sum() == (values == -1).sum()
    assert varied_prior.values("sometimes", missing=None)[values == -1].tolist() == [None] * (values == -1).sum()
    assert varied_prior.mean("sometimes", missing=0) == pytest.approx(np.where(values < 0, 0, values).mean())


def test_repeated_names_by_index(varied_prior: et.Posterior) -> None:
    three = varied_prior.values("three")
    assert three.shape == (300, 3)
    assert varied_prior.mean("three") == pytest.approx(three.mean(axis=0))
    for k in range(3):
        assert varied_prior.values("three", index=k).tolist() == three[:, k].tolist()
        assert varied_prior.values(f"three[{k}]").tolist() == three[:, k].tolist()
    assert varied_prior.mean("three[2]") == pytest.approx(three[:, 2].mean())
    assert varied_prior.std("three[-1]") == pytest.approx(three[:, 2].std())


def test_repeated_name_of_varying_number(varied_prior: et.Posterior) -> None:
    counts = varied_prior.values("count")
    with pytest.raises(ValueError, match=r"'step' is met 0 to \d times in a trace"):
        varied_prior.values("step")
    steps = varied_prior.values("step", missing=math.nan)
    assert (np.isfinite(steps).sum(axis=1) == counts).all()
    last = varied_prior.values("step", index=-1, missing=math.nan)
    for row in range(300):
        assert counts[row] == 0 or last[row] == steps[row, counts[row] - 1]


def test_a_name_shared_by_draw_and_tag_is_an_error() -> None:
    def model() -> None:
        et.tag(et.sample(Normal(0.0, 1.0), name="x"), name="x")

    with pytest.raises(ValueError, match="a draw and a tag are both named 'x'"):
        et.prior(et.Model(model), 10).values("x")


def test_names_that_stand_for_no_one_column_are_left_out_of_tables() -> None:
    def model() -> None:
        et.sample(Normal(0.0, 1.0), name="good")
        if et.sample(Bernoulli(0.5), name="flag"):
            et.sample(Normal(np.zeros(2), 1.0), name="varying")
        else:
            et.sample(Normal(0.0, 1.0), name="varying")
        et.tag(et.sample(Normal(0.0, 1.0), name="shared"), name="shared")
        et.observe(Normal(0.0, 1.0), name="y")

    for engine in (et.ImportanceSampling(), et.RMH(chains=1, burn_in=5, starts=5)):
        post = et.posterior(et.Model(model), {"y": 0.5}, engine, num_traces=100)
        assert post.numbers == ("good", "flag")
        assert post.ess > 1.0
        assert [row["name"] for row in post.summary()] == ["good", "flag"]
        assert "and: " in repr(post)
        assert "varying" in repr(post)
        with pytest.raises(ValueError, match="'varying' have different shapes"):
            post.values("varying")


# --- weights and statistics ---------------------------------------------------------------------------------------


def test_statistics_are_weighted(weighted: et.Posterior) -> None:
    mu, w = weighted.values("mu"), weighted.weights
    assert w.sum() == pytest.approx(1.0)
    assert weighted.mean("mu") == pytest.approx(w @ mu)
    assert weighted.std("mu") == pytest.approx(math.sqrt(w @ (mu - w @ mu) ** 2))
    assert weighted.expectation(lambda mu: mu**2) == pytest.approx(weighted.mean("mu_squared"))
    assert weighted.expectation(lambda mu: [mu, 1.0]) == pytest.approx([w @ mu, 1.0])
    assert weighted.expectation(math.sqrt, name="mu_squared") == pytest.approx(w @ abs(mu))
    assert weighted.ess == pytest.approx(1.0 / (w @ w))
    assert weighted.log_evidence == pytest.approx(np.logaddexp.reduce(weighted.log_weights) - math.log(2000))
    assert weighted.results.tolist() == mu.tolist()


def test_quantiles_are_weighted(weighted: et.Posterior) -> None:
    mu, w = weighted.values("mu"), weighted.weights
    for q in (0.05, 0.5, 0.95):
        value = weighted.quantile("mu", q)
        assert w[mu <= value].sum() >= q - 1e-12
        assert w[mu < value].sum() < q
    assert weighted.quantile("mu", [0.1, 0.9]).shape == (2,)
    with pytest.raises(ValueError, match="between 0 and 1"):
        weighted.quantile("mu", 5)


def test_quantiles_of_equal_weights(varied_prior: et.Posterior) -> None:
    counts = np.sort(varied_prior.values("count"))
    assert varied_prior.quantile("count", 0.5) == counts[149]
    assert varied_prior.quantile("count", [0.0, 1.0]).tolist() == [counts[0], counts[-1]]
    assert varied_prior.quantile("three", [0.1, 0.9]).shape == (2, 3)


def test_probabilities(varied_prior: et.Posterior) -> None:
    table = varied_prior.probabilities("parity")
    assert list(table) == ["even", "odd"]
    assert sum(table.values()) == pytest.approx(1.0)
    with pytest.raises(TypeError, match="'parity' holds no numbers"):
        varied_prior.mean("parity")


def test_results_that_are_no_numbers(varied_prior: et.Posterior) -> None:
    assert varied_prior.results[3] == {"count": varied_prior.values("count")[3]}
    assert varied_prior.expectation(lambda r: r["count"]) == pytest.approx(varied_prior.mean("count"))


def test_chains(chains: et.Posterior) -> None:
    assert len(chains) == 500
    assert chains.num_chains == 3
    assert np.bincount(chains.chains).tolist() == [167, 167, 166]
    assert chains.chain_values("mu").shape == (3, 166)
    assert chains.ess_of("mu") == chains.ess == pytest.approx(min(chains.ess_of(n) for n in chains.numbers))
    assert chains.rhat("mu") < 1.2
    row = chains.summary(["mu"])[0]
    assert (row["ess"], row["rhat"]) == (chains.ess_of("mu"), chains.rhat("mu"))
    assert row["ess_tail"] == ess_tail(chains.chain_values("mu"))
    assert len(chains.traces) < 500  # states that were kept several times are held once
    with pytest.raises(InferenceError, match="does not estimate the evidence"):
        _ = chains.log_evidence


def test_weighted_samples_have_no_rhat(weighted: et.Posterior) -> None:
    with pytest.raises(InferenceError, match="pareto_k"):
        weighted.rhat("mu")


def test_mcse_is_the_spread_of_estimates() -> None:
    model = et.Model(gaussian)
    runs = [et.posterior(model, {"obs0": 2.0, "obs1": 3.0}, num_traces=400, seed=s) for s in range(40)]
    spread = np.std([run.mean("mu") for run in runs], ddof=1)
    assert np.mean([run.mcse("mu") for run in runs]) == pytest.approx(spread, rel=0.3)


def test_all_weights_zero() -> None:
    def model() -> None:
        x = et.sample(Uniform(0.0, 1.0), name="x")
        et.observe(Uniform(x, x + 1.0), name="y")

    post = et.posterior(et.Model(model), {"y": 5.0}, num_traces=50)
    assert post.ess == 0.0
    assert post.log_evidence == -math.inf
    assert "all 50 traces have weight zero" in post.info["warnings"][0]
    assert "every weight is zero" in repr(post)
    with pytest.raises(InferenceError, match="all 50 traces have weight zero"):
        post.mean("x")


def test_zero_weights_count() -> None:
    def model() -> None:
        x = et.sample(Uniform(0.0, 1.0), name="x")
        et.observe(Uniform(0.0, 1.0 if x < 0.25 else 0.5), name="y")

    post = et.posterior(et.Model(model), {"y": 0.75}, num_traces=4000, seed=2)
    assert len(post) == 4000
    assert math.exp(post.log_evidence) == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 4000))
    assert post.ess == pytest.approx(np.isfinite(post.log_weights).sum())


def test_values_of_impossible_traces_do_not_count() -> None:
    """What an execution of weight zero tags may be infinite or not a number: zero times infinity is not zero."""

    def model() -> None:
        x = et.sample(Uniform(0.0, 1.0), name="x")
        et.factor(0.0 if x < 0.5 else -math.inf)
        et.tag(x if x < 0.5 else math.inf, name="infinite")
        et.tag(np.array([x, 1.0 if x < 0.5 else math.nan]), name="array")

    post = et.posterior(et.Model(model), {}, num_traces=200, seed=1)
    assert 0 < np.isinf(post.values("infinite")).sum() < 200
    assert post.mean("infinite") == pytest.approx(post.expectation(float, "infinite"))
    assert post.summary(["infinite"])[0] == post.summary(["x"])[0] | {"name": "infinite"}
    assert post.mean("array") == pytest.approx([post.mean("x"), 1.0])
    assert post.std("array") == pytest.approx([post.std("x"), 0.0])


def test_repr_is_a_table(weighted: et.Posterior, chains: et.Posterior, varied_prior: et.Posterior) -> None:
    assert "log evidence" in repr(weighted)
    assert "mu_squared" in repr(weighted)
    assert "rhat" in repr(chains)
    assert "and: step" in repr(varied_prior)
    assert len(repr(chains).splitlines()) == 4
