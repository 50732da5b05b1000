"""Posterior in other forms: resampled, saved and loaded, converted."""

import json
from pathlib import Path

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Normal
from etalumis.inference import InferenceError
from etalumis.inference.figures.samples import Sample
from etalumis.report.summary import quality
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


def test_resampling_keeps_expectations_and_evidence(weighted: et.Posterior) -> None:
    even = weighted.resample(5000, seed=3)
    assert len(even) == 5000
    assert np.ptp(even.log_weights) == 0.0
    assert even.mean("mu") == pytest.approx(weighted.mean("mu"), abs=0.02)
    assert even.log_evidence == pytest.approx(weighted.log_evidence)
    assert even.ess < 1.1 * weighted.ess  # copies of one trace are not independent
    assert even.mcse("mu") == pytest.approx(weighted.mcse("mu"), rel=0.1)
    assert weighted.resample(seed=3).values("mu").tolist() == weighted.resample(seed=3).values("mu").tolist()


def test_resampled_samples_look_no_more_certain_than_the_weights_were(tmp_path: Path) -> None:
    """Far in the prior's tail k̂ is too large; equal weights would have none, and no error of the evidence."""
    bad = et.posterior(et.Model(gaussian), {"obs0": 12.0, "obs1": 12.5}, num_traces=500, seed=1)
    even = bad.resample(2000)
    even.save(tmp_path / "post")
    for post in (even, even.resample(50), et.Posterior.load(tmp_path / "post")):
        assert post.pareto_k == bad.pareto_k > 0.7
        assert post.log_evidence_error == bad.log_evidence_error > 0.1
        assert post.log_evidence == pytest.approx(bad.log_evidence)
        assert post.num_weighed == 500
        found = post.diagnose()
        assert "can't be trusted" in found.problems[0]
        assert "of 500 traces" in found.problems[0]
        assert any("resampled" in note for note in found.notes)
        assert found.numbers["pareto_k"] == bad.pareto_k
        told = quality(Sample.of(post, "IS"), ["mu"])
        assert (told.pareto_k, told.ess) == (bad.pareto_k, pytest.approx(post.ess))
    assert even.ess == pytest.approx(bad.ess, rel=0.2)
    # k̂ that JSON can't say.
    equal = et.prior(et.Model(gaussian), 50).resample()
    equal.save(tmp_path / "post")
    assert et.Posterior.load(tmp_path / "post").pareto_k == -np.inf


def test_resampled_samples_have_no_figure_of_weights(weighted: et.Posterior) -> None:
    pytest.importorskip("matplotlib")
    assert list(weighted.resample(100).diagnose().figures) == ["marginals"]


def test_what_can_not_be_resampled(weighted: et.Posterior) -> None:
    dead = et.Posterior(weighted.traces, np.full(2000, -np.inf))
    with pytest.raises(InferenceError, match="all 2000 traces have weight zero"):
        dead.resample()
    with pytest.raises(ValueError, match="num_traces ≥ 1"):
        weighted.resample(0)
    pytest.importorskip("arviz")
    with pytest.raises(InferenceError, match="all 2000 traces have weight zero"):
        dead.to_arviz()


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
