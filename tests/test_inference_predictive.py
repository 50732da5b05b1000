"""Posterior predictive checks with controls that must fail, and the trace graph by hand."""

from pathlib import Path
from shutil import which

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Bernoulli, Normal
from etalumis.inference.errors import InferenceError
from etalumis.inference.graph import END, START, trace_graph
from etalumis.inference.predictive import predictive_check, replicate
from etalumis.simulators.classics import gaussian, marsaglia


def spectrum() -> None:
    """Twenty measurements of one level with unit noise."""
    level = et.sample(Normal(0.0, 2.0), name="level")
    et.observe(Normal(np.full(20, level), 1.0), name="y")


def inferred(y: np.ndarray) -> et.Posterior:
    return et.posterior(
        et.Model(spectrum),
        {"y": y},
        et.ImportanceSampling({"level": Normal(float(np.mean(y)), 0.4)}, keep_observes=True),
        2000,
        seed=1,
    )


def test_replicates_have_the_predictive_distribution() -> None:
    """Given 20 values of mean m, the next has mean m s and variance 1 + s / 20 with s = 20 / (20 + 1/4)."""
    y = np.random.default_rng(0).normal(1.5, 1.0, 20)
    drawn = replicate(inferred(y), "y", 4000, seed=2)
    assert drawn.shape == (4000, 20)
    shrink = 20.0 / 20.25
    assert drawn.mean() == pytest.approx(y.mean() * shrink, abs=5.0 * np.sqrt((1 / 20.25 + 1 / 20) / 2000))
    assert drawn.var() == pytest.approx(1.0 + 1.0 / 20.25, abs=0.05)
    assert np.unique(drawn).size == drawn.size


def twins() -> None:
    """Two independent observations that look alike."""
    et.sample(Normal(0.0, 1.0), name="x")
    for name in ("a", "b"):
        et.observe(Normal(np.zeros(4), 1.0), name=name)


def test_replicates_share_no_noise_with_each_other_or_with_the_simulator() -> None:
    drawn = et.prior(et.Model(twins), 500, seed=0)
    simulated = next(column.values for column in drawn.traces.observes if column.name == "a")
    assert simulated is not None
    replicates = [replicate(drawn, name, 500, seed=0) for name in ("a", "b")]
    for one, other in ((*replicates,), (replicates[0], simulated)):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5.0 / np.sqrt(2000)


def test_data_of_the_model_pass_and_others_fail() -> None:
    generator = np.random.default_rng(5)
    right = predictive_check(inferred(generator.normal(0.7, 1.0, 20)), "y", seed=1)
    assert set(right) == {"mean", "std", "min", "max"}
    assert min(check.p_value for check in right.values()) > 0.02
    too_wide = predictive_check(inferred(generator.normal(0.7, 3.0, 20)), "y", seed=1)
    assert too_wide["std"].p_value < 0.01
    outlier = np.append(generator.normal(0.0, 1.0, 19), 9.0)
    assert predictive_check(inferred(outlier), "y", seed=1)["max"].p_value < 0.01
    drifting = {"trend": lambda x: float(np.corrcoef(x, np.arange(20))[0, 1])}
    assert predictive_check(inferred(np.linspace(-1.5, 1.5, 20)), "y", drifting, seed=1)["trend"].p_value < 0.01


def test_a_single_number_is_its_own_statistic() -> None:
    post = et.posterior(
        et.Model(gaussian), {"obs0": 8.0, "obs1": 9.0}, et.ImportanceSampling(keep_observes=True), 3000, seed=1
    )
    check = predictive_check(post, "obs0")["value"]
    assert check.observed == 8.0
    assert check.replicated.mean() == pytest.approx(7.25, abs=0.3)


def test_errors_name_the_remedy() -> None:
    post = et.posterior(et.Model(gaussian), {"obs0": 8.0, "obs1": 9.0}, num_traces=50, seed=1)
    with pytest.raises(InferenceError, match="keep_observes=True"):
        replicate(post, "obs0")
    kept = et.prior(et.Model(gaussian), 50, seed=1)
    with pytest.raises(InferenceError, match="not observed"):
        predictive_check(kept, "obs0")
    with pytest.raises(InferenceError, match="'nothing'"):
        replicate(kept, "nothing")


def coin_then_walk() -> None:
    heads = et.sample(Bernoulli(0.25), name="heads")
    while heads:
        et.sample(Normal(0.0, 1.0), name="step")
        heads = et.sample(Bernoulli(0.5), name="again")


def test_the_graph_has_the_transition_probabilities() -> None:
    graph = trace_graph(et.prior(et.Model(coin_then_walk), 40_000, seed=1).traces)
    assert set(graph.nodes) == {START, "heads", "step", "again", END}
    assert graph.nodes["heads"] == pytest.approx(1.0)
    assert graph.nodes["step"] == pytest.approx(0.25 * 2.0, abs=0.02)  # a geometric number of passes, two on average
    assert graph.edges[START, "heads"] == pytest.approx(1.0)
    assert graph.edges["heads", "step"] == pytest.approx(0.25, abs=0.012)
    assert graph.edges["again", "step"] == pytest.approx(0.5, abs=0.018)
    assert graph.edges["again", END] == pytest.approx(0.5, abs=0.018)
    assert ("step", END) not in graph.edges


def test_weights_count_and_instances_unroll() -> None:
    traces = et.prior(et.Model(coin_then_walk), 2000, seed=1).traces
    no_heads = np.array([length == 1 for length in traces.lengths], dtype=np.float64)
    graph = trace_graph(traces, no_heads / no_heads.sum())
    assert graph.edges == {(START, "heads"): pytest.approx(1.0), ("heads", END): pytest.approx(1.0)}
    unrolled = trace_graph(traces, instances=True)
    assert "step #2" in unrolled.nodes
    assert unrolled.edges["step", "again"] == pytest.approx(1.0)


def test_the_graph_is_written(tmp_path: Path) -> None:
    graph = trace_graph(et.prior(et.Model(marsaglia), 200, seed=1).traces)
    graph.save(tmp_path / "graph.dot")
    text = (tmp_path / "graph.dot").read_text()
    assert text.startswith("digraph")
    assert '"start" -> ' in text
    if which("dot"):
        graph.save(tmp_path / "graph.svg")
        assert "<svg" in (tmp_path / "graph.svg").read_text()
    else:
        with pytest.raises(InferenceError, match="apt install graphviz"):
            graph.save(tmp_path / "graph.svg")
