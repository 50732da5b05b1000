"""Executions that a policy drops condition the model on finishing: every result says how many there were."""

from pathlib import Path
from typing import Any

import pytest

import etalumis as et
from etalumis.conf.simulation import summary
from etalumis.distributions import Normal
from etalumis.execution import FAILED
from etalumis.storage import Dataset, SimulationError, simulate
from inference_checks import ByHand

OBSERVED = {"y": 0.5}


def normal() -> None:
    x = et.sample(Normal(0.0, 1.0), name="x")
    et.observe(Normal(x, 1.0), name="y")


class Unreliable(et.Model):
    """Breaks down in every third execution, which its policy drops, or in all of an interval."""

    def __init__(self, lost: range | None = None) -> None:
        super().__init__(normal, "unreliable")
        self._lost = lost

    def execute(self, controller: Any, observations: Any, stream: Any, index: int, **options: Any) -> et.Trace:
        trace = super().execute(controller, observations, stream, index, **options)
        if index % 3 == 2 if self._lost is None else index in self._lost:
            trace.ended, trace.log_likelihood = FAILED, -float("inf")
        return trace


def stored(path: Path, count: int) -> Dataset:
    simulate(Unreliable, path, count, model="unreliable", workers=0, chunk_size=20)
    return Dataset(path)


def test_importance_sampling_says_so() -> None:
    post = et.posterior(Unreliable(), OBSERVED, num_traces=60)
    assert post.info["failed"] == 20
    assert "20 of 60 executions failed and were left out" in post.info["warnings"][0]
    prior = et.prior(Unreliable(), num_traces=60)
    assert "20 of 60 executions failed" in prior.info["warnings"][0]


@pytest.mark.parametrize("engine", [et.LMH, et.RMH])
def test_chains_say_so(engine: type[et.LMH]) -> None:
    post = et.posterior(Unreliable(), OBSERVED, engine(chains=2, burn_in=10, starts=20), num_traces=40)
    assert post.info["executions"] == 2 * (20 + 10 + 20)
    assert post.info["failed"] == 2 * (50 // 3)
    assert "32 of 100 executions failed and were left out" in post.info["warnings"][0]


class Flaky(et.Model):
    """Breaks down in every ninth execution, also of what it has executed before."""

    count = 0

    def execute(self, controller: Any, observations: Any, stream: Any, index: int, **options: Any) -> et.Trace:
        self.count += 1
        if self.count % 9:
            return super().execute(controller, observations, stream, index, **options)
        trace = et.Trace(index)
        trace.ended, trace.log_likelihood = FAILED, -float("inf")
        return trace


def test_chains_with_a_network_go_on_where_the_present_state_is_dropped() -> None:
    network = et.IC(ByHand({"x": lambda prior: Normal(0.3, 1.0)})).as_kernel(share=0.5)
    model = Flaky(normal)
    post = et.posterior(model, OBSERVED, et.RMH(chains=1, burn_in=10, starts=20, proposals=network), num_traces=200)
    assert 0 < post.info["failed"] < model.count // 9, "evaluations of the present state are not counted"
    assert model.count > post.info["executions"], "the network was asked for states that other moves made"


@pytest.mark.parametrize(("count", "failed"), [(None, 33), (50, 16), (500, 33)])
def test_stored_traces_say_so(tmp_path: Path, count: int | None, failed: int) -> None:
    dataset = stored(tmp_path / "d", 100)
    engine = et.ImportanceSampling(dataset=dataset)
    post = et.posterior(Unreliable(), OBSERVED, engine, num_traces=count)
    assert post.info["failed"] == failed
    assert f"{failed} of {min(count or 100, 100)} executions failed" in post.info["warnings"][0]


def test_the_summary_of_a_dataset_says_so(tmp_path: Path) -> None:
    assert "33 of 100 executions failed and were left out" in summary(stored(tmp_path / "d", 100))
    simulate(lambda: et.Model(normal), tmp_path / "whole", 20, model="normal", workers=0)
    assert "failed" not in summary(Dataset(tmp_path / "whole"))


def test_nothing_is_said_where_nothing_failed() -> None:
    for engine in (et.ImportanceSampling(), et.RMH(chains=1, burn_in=10, starts=20)):
        post = et.posterior(et.Model(normal), OBSERVED, engine, num_traces=40)
        assert post.info["failed"] == 0
        assert not any("failed" in warning for warning in post.info["warnings"])


def fails_at(index: int) -> et.Model:
    """Breaks down in trace ``index`` for good, after others that are dropped."""

    class Fails(Unreliable):
        def execute(self, controller: Any, observations: Any, stream: Any, number: int, **options: Any) -> et.Trace:
            if number == index:
                raise ZeroDivisionError("the beam was dumped")
            return super().execute(controller, observations, stream, number, **options)

    return Fails()


def test_simulate_names_the_trace_that_failed_though_others_were_dropped(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=r"(?s)the execution of trace 37 \(seed 0\).*the beam was dumped"):
        simulate(lambda: fails_at(37), tmp_path / "d", 60, model="m", workers=0, chunk_size=20)


def test_simulate_names_the_policy_where_it_left_nothing_of_a_chunk(tmp_path: Path) -> None:
    lost = range(20, 40)
    with pytest.raises(SimulationError, match=r'(?s)every one of traces 20 to 39 \(seed 0\).*policy \("drop"\)'):
        simulate(lambda: Unreliable(lost), tmp_path / "d", 60, model="m", workers=0, chunk_size=20)


def tags_an_object() -> et.Model:
    def model() -> None:
        et.sample(Normal(0.0, 1.0), name="x")
        et.tag(object(), name="thing")

    return et.Model(model)


@pytest.mark.parametrize("workers", [0, 1])
def test_simulate_tells_storing_from_executing(tmp_path: Path, workers: int) -> None:
    with pytest.raises(SimulationError, match=r"(?s)the storing of traces 0 to 19 \(seed 0\).*'thing' holds"):
        simulate(tags_an_object, tmp_path / "d", 60, model="m", workers=workers, chunk_size=20)
