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
from etalumis.inference import chain_files
from etalumis.inference.errors import InferenceError
from etalumis.inference.predictive import predictive_check
from etalumis.simulators.classics import branching, gaussian
from inference_checks import LINEAR, OBSERVED, ByHand, linear


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
    network = et.IC(ByHand({"k": near})).as_kernel(share=0.2)
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


def test_on_disk_equals_in_memory(tmp_path: Path) -> None:
    same(run(Counting(math.inf), tmp_path / "chains"), run(Counting(math.inf), None))


@pytest.mark.parametrize("after", [30, 260, 700, 1000])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_files, "_SECONDS", 0.0)  # save whenever it may
    monkeypatch.setattr(chain_files, "_BLOCK", 1)
    with pytest.raises(StopError):
        run(Counting(after), tmp_path / "chains")
    same(run(Counting(math.inf), tmp_path / "chains"), run(Counting(math.inf), None))


def test_states_on_both_sides_of_a_save_keep_their_observes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_files, "_BLOCK", 1)  # save whenever it may
    engine = et.RMH(chains=1, burn_in=0, starts=20, keep_observes=True, folder=tmp_path / "chains")
    post = et.posterior(et.Model(gaussian), OBSERVED, engine, 900)
    assert np.diff(post.rows).min() == 0
    assert len(np.unique(post.chain_values("mu"))) < len(post.traces), "a state was stored in two blocks"
    assert [len(column) for column in post.traces.observes] == 2 * [len(post.traces)]
    assert predictive_check(post, "obs1", num_draws=200)["value"].observed == 9.0


def test_a_finished_run_goes_on_with_more_traces_and_costs_nothing_with_as_many(tmp_path: Path) -> None:
    first = run(Counting(math.inf), tmp_path / "chains", 200)
    same(run(Counting(4), tmp_path / "chains", 200), first)  # the present states are executed again, no more
    same(run(Counting(math.inf), tmp_path / "chains", 400), run(Counting(math.inf), None, 400))
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


@pytest.mark.parametrize("renames", [3, 6, 9, 10])
def test_a_run_killed_while_it_saves_goes_on(tmp_path: Path, renames: int) -> None:
    """Killed before some renaming of a folder: whatever it was, the state before it is there."""
    program = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import math
from etalumis.inference import chain_files
from test_inference_chain_files import Counting, run
chain_files._SECONDS, chain_files._BLOCK = 0.0, 1
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
    same(run(again, tmp_path / "chains"), run(Counting(math.inf), None))


def test_a_damaged_chain_is_named(tmp_path: Path) -> None:
    run(Counting(math.inf), tmp_path / "chains", 50)
    block = tmp_path / "chains" / "chain-001" / "block-000000"
    victim = next(file for file in block.iterdir() if "value" in file.name)
    victim.write_bytes(victim.read_bytes()[:-9])
    with pytest.raises(InferenceError, match="block-000000 is damaged"):
        run(Counting(math.inf), tmp_path / "chains", 50)
