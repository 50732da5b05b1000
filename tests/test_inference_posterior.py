"""Posterior: reading by name, weights, statistics, resampling, saving, conversion."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Bernoulli, Categorical, Normal, Poisson, Uniform
from etalumis.inference import InferenceError
from etalumis.inference.diagnostics import ess_tail
from etalumis.simulators.classics import gaussian
from inference_checks import OBSERVED


def varied() -> dict[str, Any]:
    """Names that are missing, repeated, arrays; tags of every storable kind."""
    count = et.sample(Poisson(2.0), name="count")
    for _ in range(count):
        et.sample(Normal(0.0, 1.0), name="step")
    for k in range(3):
        et.sample(Normal(float(k), 1.0), name="three")
    et.sample(Normal(np.zeros(2), 1.0), name="pair")
    if et.sample(Bernoulli(0.5), name="flag"):
        et.sample(Categorical([0.2, 0.8]), name="sometimes")
    et.tag(2.0 * count, name="double")
    et.tag("even" if count % 2 == 0 else "odd", name="parity")
    et.tag(bool(count), name="any")
    return {"count": count}


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


def test_repr_is_a_table(weighted: et.Posterior, chains: et.Posterior, varied_prior: et.Posterior) -> None:
    assert "log evidence" in repr(weighted)
    assert "mu_squared" in repr(weighted)
    assert "rhat" in repr(chains)
    assert "and: step" in repr(varied_prior)
    assert len(repr(chains).splitlines()) == 4


# --- other forms --------------------------------------------------------------------------------------------------


def test_resampling_keeps_expectations_and_evidence(weighted: et.Posterior) -> None:
    even = weighted.resample(5000, seed=3)
    assert len(even) == 5000
    assert np.ptp(even.log_weights) == 0.0
    assert even.mean("mu") == pytest.approx(weighted.mean("mu"), abs=0.02)
    assert even.log_evidence == pytest.approx(weighted.log_evidence)
    assert even.ess < 1.1 * weighted.ess  # copies of one trace are not independent
    assert even.mcse("mu") == pytest.approx(weighted.mcse("mu"), rel=0.1)
    assert weighted.resample(seed=3).values("mu").tolist() == weighted.resample(seed=3).values("mu").tolist()


def test_resampling_chains_thins_them(chains: et.Posterior) -> None:
    thinned = chains.resample(100)
    assert len(thinned) == 100
    assert thinned.markov
    assert set(thinned.values("mu")) <= set(chains.values("mu"))
    assert np.bincount(thinned.chains).min() >= 33


@pytest.mark.parametrize("which", ["weighted", "chains", "varied_prior"])
def test_save_and_load(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    post: et.Posterior = request.getfixturevalue(which)
    post.save(tmp_path / "deep" / "post")
    back = et.Posterior.load(tmp_path / "deep" / "post")
    assert back.log_weights.tolist() == post.log_weights.tolist()
    assert back.names == post.names
    for name in post.numbers:
        assert back.values(name).tolist() == post.values(name).tolist()
        assert back.values(name).dtype == post.values(name).dtype
    assert list(back.results) == list(post.results)
    assert (back.markov, back.info, back.num_chains) == (post.markov, post.info, post.num_chains)
    assert repr(back) == repr(post)
    assert [str(a) for a in back.traces.addresses] == [str(a) for a in post.traces.addresses]
    files = {path.suffix for path in (tmp_path / "deep" / "post").iterdir()}
    assert files == {".npy", ".json"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["post"]  # nothing temporary is left


def test_saving_again_replaces(weighted: et.Posterior, chains: et.Posterior, tmp_path: Path) -> None:
    weighted.save(tmp_path / "post")
    chains.save(tmp_path / "post")
    assert et.Posterior.load(tmp_path / "post").markov


def test_the_earlier_posterior_comes_back_where_replacing_it_fails(
    weighted: et.Posterior, chains: et.Posterior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighted.save(tmp_path / "post")
    rename, asked = Path.rename, []

    def full(path: Path, target: Path) -> Path:
        asked.append(target)
        if len(asked) == 2:
            raise OSError("the disk has gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="the disk has gone"):
        chains.save(tmp_path / "post")
    assert not et.Posterior.load(tmp_path / "post").markov
    assert [path.name for path in tmp_path.iterdir()] == ["post"]


def test_saving_does_not_replace_other_folders(weighted: et.Posterior, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(InferenceError, match="holds no posterior"):
        weighted.save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_saving_refuses_objects_by_name(tmp_path: Path) -> None:
    def model() -> None:
        et.sample(Normal(0.0, 1.0), name="x")
        et.tag(object(), name="thing")

    post = et.prior(et.Model(model), 5)
    assert len(post.values("thing")) == 5
    with pytest.raises(TypeError, match="'thing' holds <object"):
        post.save(tmp_path / "post")
    assert not list(tmp_path.iterdir())


def test_loading_says_what_is_wrong(weighted: et.Posterior, tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="holds no posterior"):
        et.Posterior.load(tmp_path / "nothing")
    weighted.save(tmp_path / "post")
    (tmp_path / "post" / "traces.value.npy").unlink()
    with pytest.raises(InferenceError, match="is damaged"):
        et.Posterior.load(tmp_path / "post")


def test_loading_refuses_newer_versions(weighted: et.Posterior, tmp_path: Path) -> None:
    weighted.save(tmp_path / "post")
    meta = tmp_path / "post" / "meta.json"
    document = json.loads(meta.read_text())
    document["meta"]["version"] = 99
    meta.write_text(json.dumps(document))
    with pytest.raises(InferenceError, match="format version 99"):
        et.Posterior.load(tmp_path / "post")


def test_to_arviz(weighted: et.Posterior, chains: et.Posterior) -> None:
    arviz = pytest.importorskip("arviz")
    data = chains.to_arviz()
    assert data.posterior["mu"].shape == (3, 166)
    assert float(arviz.rhat(data)["mu"]) == pytest.approx(chains.rhat("mu"))
    assert float(arviz.ess(data)["mu"]) == pytest.approx(chains.ess_of("mu"))
    assert data.sample_stats["lp"].shape == (3, 166)
    assert type(data).__name__ == ("InferenceData" if arviz.__version__.startswith("0.") else "DataTree")
    resampled = weighted.to_arviz(num_draws=500)
    assert resampled.posterior["mu"].shape == (1, 500)
    assert float(resampled.posterior["mu"].mean()) == pytest.approx(weighted.mean("mu"), abs=0.1)


def test_to_arviz_keeps_arrays(varied_prior: et.Posterior) -> None:
    pytest.importorskip("arviz")
    data = varied_prior.to_arviz(num_draws=300)
    assert data.posterior["three"].shape == (1, 300, 3)
    assert data.posterior["pair"].shape == (1, 300, 2)
    assert "step" not in data.posterior
