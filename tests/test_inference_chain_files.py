"""Chains on disk: interrupted ones equal uninterrupted ones, finished ones go on, others are refused."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Bernoulli, Normal, Poisson
from etalumis.execution import FAILED
from etalumis.inference import chain_files
from etalumis.inference.errors import InferenceError
from etalumis.inference.predictive import predictive_check
from etalumis.networks import checkpoint
from etalumis.simulators.classics import branching, gaussian
from inference_checks import LINEAR, OBSERVED, ByHand, linear
from network_models import shake, small, traces


class StopError(Exception):
    """What ends a run in the middle."""


class Counting:
    """A model that gives up after so many executions."""

    def __init__(self, most: float) -> None:
        self.left = most

    def __call__(self) -> int:
        self.left -= 1
        if self.left < 0:
            raise StopError
        x = et.sample(Normal(np.zeros(2), 1.0), name="x", address="x")
        k = et.sample(Poisson(3.0), name="k")
        if et.sample(Bernoulli(0.5), name="more"):
            et.sample(Normal(0.0, 1.0), name="extra", control=False)
        et.observe(Normal(float(x.sum()) + k, 1.0), name="y")
        et.tag(k * k, name="square")
        return k


def near(prior: Any) -> Any:
    return Poisson(4.0)


def settings(folder: Path | None, **more: Any) -> et.RMH:
    network = et.IC(ByHand({"k": near})).as_kernel(share=0.3)
    return et.RMH(chains=2, burn_in=150, thinning=2, starts=20, suffix_share=0.2, temper=0.3, proposals=network,
                  folder=folder, **more)  # fmt: skip


def same(one: et.Posterior, other: et.Posterior) -> None:
    for name in ("x", "k", "square"):
        assert np.array_equal(one.values(name), other.values(name))
    assert np.array_equal(
        one.values("extra", missing=math.nan), other.values("extra", missing=math.nan), equal_nan=True
    )
    assert one.results.tolist() == other.results.tolist()
    assert one.acceptance == other.acceptance
    assert one.info["executions"] == other.info["executions"]


def run(model: Counting, folder: Path | None, num_traces: int = 400) -> et.Posterior:
    return et.posterior(et.Model(model, name="counting"), {"y": 4.0}, settings(folder), num_traces, seed=3)


class Clock:
    """A second goes by whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


def save_every(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_files, "time", Clock())
    monkeypatch.setattr(chain_files, "_SECONDS", float(steps))


@pytest.fixture(scope="module")
def whole() -> et.Posterior:
    """An uninterrupted run in memory."""
    return run(Counting(math.inf), None)


def test_on_disk_equals_in_memory(tmp_path: Path, whole: et.Posterior) -> None:
    same(run(Counting(math.inf), tmp_path / "chains"), whole)


@pytest.mark.parametrize("after", [21, 60, 260, 700, 1000])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, after: int, whole: et.Posterior, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_every(25, monkeypatch)
    with pytest.raises(StopError):
        run(Counting(after), tmp_path / "chains")
    same(run(Counting(math.inf), tmp_path / "chains"), whole)


def test_wherever_it_stops_the_executions_told_are_those_of_an_uninterrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though what the network thought of the present state is asked again."""
    save_every(10, monkeypatch)
    network = et.IC(ByHand({"k": near})).as_kernel(share=0.7)

    def go(model: Counting, folder: Path | None) -> et.Posterior:
        engine = et.RMH(chains=1, burn_in=20, starts=5, proposals=network, folder=folder)
        return et.posterior(et.Model(model, name="counting"), {"y": 4.0}, engine, 60, seed=3)

    alone = go(Counting(math.inf), None)
    for after in range(20, 85, 16):
        with pytest.raises(StopError):
            go(Counting(after), tmp_path / f"{after}")
        same(go(Counting(math.inf), tmp_path / f"{after}"), alone)


def test_a_chain_is_saved_after_its_start_and_by_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_every(10, monkeypatch)
    engine = et.RMH(chains=1, burn_in=100, starts=20, folder=tmp_path / "chains")

    def go(most: int) -> et.Posterior:
        return et.posterior(et.Model(Counting(most), name="counting"), {"y": 4.0}, engine, 50, seed=3)

    with pytest.raises(StopError):
        go(20)
    with pytest.raises(StopError):
        go(1 + 65)  # the start is executed again, no more of them
    (state,) = (tmp_path / "chains" / "chain-000").glob("state-*")
    done = int(state.name.removeprefix("state-"))
    assert 50 < done <= 65
    assert len(go(1 + 150 - done)) == 50


class Dropping(et.Model):
    """Breaks down in its first executions, which its policy drops."""

    def __init__(self, lost: int) -> None:
        super().__init__(Counting(math.inf), "counting")
        self._lost = lost

    def execute(self, controller: Any, observations: Any, stream: Any, index: int, **options: Any) -> et.Trace:
        self._lost -= 1
        if self._lost < 0:
            return super().execute(controller, observations, stream, index, **options)
        trace = et.Trace(index)
        trace.ended, trace.log_likelihood = FAILED, -math.inf
        return trace


def test_a_present_state_that_is_dropped_is_executed_again(tmp_path: Path, whole: et.Posterior) -> None:
    run(Counting(math.inf), tmp_path / "chains", 200)
    engine = settings(tmp_path / "chains")
    with pytest.raises(InferenceError, match=r"chain-000 can't go on: each of 5 executions .* failed"):
        et.posterior(Dropping(5), {"y": 4.0}, engine, 400, seed=3)
    went_on = et.posterior(Dropping(4), {"y": 4.0}, engine, 400, seed=3)
    same(went_on, whole)
    assert went_on.info["failed"] == 0


def test_states_on_both_sides_of_a_save_keep_their_observes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_every(10, monkeypatch)
    engine = et.RMH(chains=1, burn_in=0, starts=20, keep_observes=True, folder=tmp_path / "chains")
    post = et.posterior(et.Model(gaussian), OBSERVED, engine, 200)
    assert len(np.unique(post.chain_values("mu"))) < len(post.traces), "a state was stored in two blocks"
    assert [len(column) for column in post.traces.observes] == 2 * [len(post.traces)]
    assert predictive_check(post, "obs1", num_draws=200)["value"].observed == 9.0


def test_a_finished_run_goes_on_with_more_traces_and_costs_nothing_with_as_many(
    tmp_path: Path, whole: et.Posterior
) -> None:
    first = run(Counting(math.inf), tmp_path / "chains", 200)
    same(run(Counting(4), tmp_path / "chains", 200), first)  # the present states are executed again, no more
    same(run(Counting(math.inf), tmp_path / "chains", 400), whole)
    fewer = run(Counting(4), tmp_path / "chains", 100)
    assert np.array_equal(fewer.chain_values("k"), first.chain_values("k")[:, :50])


def test_other_settings_data_and_models_are_refused(tmp_path: Path) -> None:
    model = et.Model(branching)
    engine = et.LMH(chains=1, burn_in=10, starts=5, folder=tmp_path / "chains")
    et.posterior(model, {"obs0": 6}, engine, 20, seed=1)
    with pytest.raises(InferenceError, match="other observations"):
        et.posterior(model, {"obs0": 5}, engine, 20, seed=1)
    with pytest.raises(InferenceError, match="other seed"):
        et.posterior(model, {"obs0": 6}, engine, 20, seed=2)
    other = et.LMH(chains=1, burn_in=20, starts=5, folder=tmp_path / "chains")
    with pytest.raises(InferenceError, match="other settings"):
        et.posterior(model, {"obs0": 6}, other, 20, seed=1)
    with pytest.raises(InferenceError, match="model"):
        et.posterior(et.Model(linear), LINEAR, engine, 20, seed=1)


def simulator(
    mean: Any = 0.0, spread: float = 0.1, name: str = "x", address: str = "x", more: bool = False
) -> et.Model:
    def model() -> None:
        x = et.sample(Normal(mean, 1.0), name=name, address=address)
        if more:
            et.sample(Normal(0.0, 1.0), address="more")
        et.observe(Normal(float(np.sum(x)), spread), name="y")

    return et.Model(model, name="model")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"address": "z"}, r"draw 0 was x__Normal__1 'x', and is z__Normal__1 'x'"),
        ({"name": "z"}, r"draw 0 was x__Normal__1 'x', and is x__Normal__1 'z'"),
        ({"more": True}, r"draw 1 was none, and is more__Normal__1 ''"),
        ({"mean": 0.01}, "its log prior was .*, and is "),
        ({"mean": np.zeros(3)}, "its log prior was .*, and is "),
        ({"spread": 0.101}, "its log likelihood was .*, and is "),
    ],
)
def test_a_changed_simulator_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    engine = et.RMH(chains=1, burn_in=10, starts=5, folder=tmp_path / "chains")
    et.posterior(simulator(), {"y": 1.0}, engine, 20)
    with pytest.raises(InferenceError, match=f"chain-000 can't go on: the simulator is not the one .*{words}.* folder"):
        et.posterior(simulator(**change), {"y": 1.0}, engine, 30)
    rounded = simulator(spread=0.1 * (1.0 + 1e-14))  # as by another machine
    assert len(et.posterior(rounded, {"y": 1.0}, engine, 30)) == 30


def test_a_network_trained_anew_is_refused(tmp_path: Path) -> None:
    for seed in (1, 2):
        network = small(traces(gaussian, 20)).float()
        network.simulator = "gaussian"
        shake(network, seed=seed)
        checkpoint.save(tmp_path / "network.pt", network)
        proposals = et.IC(tmp_path / "network.pt").as_kernel()
        engine = et.RMH(chains=1, burn_in=5, starts=5, proposals=proposals, folder=tmp_path / "chains")
        if seed == 1:
            et.posterior(et.Model(gaussian), OBSERVED, engine, 10)
            et.posterior(et.Model(gaussian), OBSERVED, engine, 20)
        else:
            with pytest.raises(InferenceError, match="a chain with other network"):
                et.posterior(et.Model(gaussian), OBSERVED, engine, 30)


@pytest.mark.parametrize("renames", [3, 6, 9, 10])
def test_a_run_killed_while_it_saves_goes_on(tmp_path: Path, renames: int, whole: et.Posterior) -> None:
    """Killed before some renaming of a folder: whatever it was, the state before it is there."""
    program = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import math
from etalumis.inference import chain_files
from test_inference_chain_files import Counting, run
chain_files._BLOCK = 1
left, rename = {renames}, Path.rename
def last(self, target):
    global left
    left -= 1
    if not left:
        os._exit(9)
    return rename(self, target)
Path.rename = last
run(Counting(math.inf), Path({str(tmp_path)!r}) / "chains")
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    again = Counting(math.inf)
    same(run(again, tmp_path / "chains"), whole)


def test_a_damaged_chain_is_named(tmp_path: Path) -> None:
    run(Counting(math.inf), tmp_path / "chains", 50)
    block = tmp_path / "chains" / "chain-001" / "block-000000"
    victim = next(file for file in block.iterdir() if "value" in file.name)
    victim.write_bytes(victim.read_bytes()[:-9])
    with pytest.raises(InferenceError, match="block-000000 is damaged"):
        run(Counting(math.inf), tmp_path / "chains", 50)
