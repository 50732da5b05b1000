"""The demo from end to end at a size that teaches nothing, its verdict, and how it goes on after an interruption."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from etalumis import demo
from etalumis.conf.build import build_model
from etalumis.conf.compose import compose, plain
from etalumis.report import Event, Sample
from etalumis.report.summary import summarise
from etalumis.report.verdict import Check, judge
from launching import mpirun, needs_mpi, run

TINY = (
    "simulator.detector.shape=[4,6,6]",
    "demo=quick",
    "demo.num_traces=300",
    "demo.valid_traces=60",
    "demo.ic.num_traces=60",
    "demo.rmh.steps=120",
    "demo.rmh.burn_in=20",
    "demo.prior_traces=200",
    "workers=1",
)


def settings(output: Path, *overrides: str) -> dict[str, Any]:
    return dict(plain(compose("demo", [f"output={output}", *TINY, *overrides])))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo that ran from beginning to end."""
    folder = tmp_path_factory.mktemp("demo") / "tau"
    demo.run(settings(folder))
    return folder


# --- the whole --------------------------------------------------------------------------------------------------------


def test_demo_leaves_a_figure_numbers_and_everything_they_were_made_of(finished: Path) -> None:
    written = {path.name for path in finished.iterdir()}
    assert written == {
        *("demo.json", "event.npz", "network", "post_ic", "post_is", "post_rmh", "prior", "train", "valid"),
        *("posterior.pdf", "posterior.png", "posterior.svg", "report.json", "report.md"),
    }
    assert (finished / "posterior.png").stat().st_size > 20_000


def test_a_finished_demo_is_not_run_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [*finished.glob("post_*/*"), *finished.glob("network/*.pt"), finished / "event.npz"]
    before = {path: path.stat().st_mtime_ns for path in parts}
    demo.run(settings(finished))
    assert {path: path.stat().st_mtime_ns for path in parts} == before
    said = capsys.readouterr().out
    for word in ("Quality and cost", "Agreement", "Does it stand?", "IC", "RMH", "posterior.png"):
        assert word in said


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_demo_on_two_ranks(tmp_path: Path) -> None:
    """All ranks simulate and train, rank 0 does the rest: each step once, and it alone speaks."""
    needs_mpi()
    words = ["-m", "etalumis", "demo", f"output={tmp_path / 'd'}", *TINY, "demo.num_traces=400"]
    said = run([*mpirun(2), *words], timeout=200.0)
    for text in ("1/6", "6/6", "Does it stand?", "d/train: 400 traces", "posterior.png"):
        assert said.count(text) == 1, text
    assert {path.name for path in (tmp_path / "d").glob("post_*")} == {"post_ic", "post_is", "post_rmh"}
    state = torch.load(tmp_path / "d" / "network" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["TracesDataModule"]["world_size"] == 2
    assert state["global_step"] == 2, "ranks share the minibatches of 256 that one process takes"


def test_other_settings_need_another_folder(finished: Path) -> None:
    with pytest.raises(demo.DemoError, match="another output"):
        demo.run(settings(finished, "seed=7"))


def test_the_process_in_the_background_ends_with_the_demo(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "event.npz").write_bytes((finished / "event.npz").read_bytes())
    config = settings(tmp_path, "demo.rmh.steps=1000000")
    with demo.markov_chains(config, tmp_path) as chains:
        process = chains._process
        assert process is not None
        assert process.is_alive()
    assert not process.is_alive()
    assert not (tmp_path / "post_rmh").exists()


def test_a_failure_in_the_background_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with demo.markov_chains(settings(tmp_path), tmp_path) as chains, pytest.raises(demo.DemoError, match="exit code 1"):
        chains.wait()
    assert "there is no event file" in capfd.readouterr().err


# --- the event --------------------------------------------------------------------------------------------------------


def test_the_event_is_the_first_that_fulfils_the_rule(tmp_path: Path) -> None:
    config = settings(tmp_path)
    model, rule = build_model(config["simulator"]), config["demo"]["event"]
    event = demo.held_out_event(model, rule, tmp_path / "event.npz")
    labels = event.labels["decay_channel"]
    assert labels[int(event.truth["decay_channel"])] == "pi"
    assert event.truth["visible_energy"] >= 20.0
    for index in range(10_000):
        earlier = demo.simulate_event(model, rule["seed"], index)
        if earlier.truth == event.truth:
            break
        assert not (labels[int(earlier.truth["decay_channel"])] == "pi" and earlier.truth["visible_energy"] >= 20.0)
    assert Event.load(tmp_path / "event.npz").truth == event.truth


def test_an_unknown_channel_is_refused_with_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_MOST_EVENTS", 3)
    config = settings(tmp_path)
    rule = config["demo"]["event"] | {"channel": "no such"}
    with pytest.raises(demo.DemoError, match="'pi pi0'"):
        demo.held_out_event(build_model(config["simulator"]), rule, tmp_path / "event.npz")


# --- the verdict ------------------------------------------------------------------------------------------------------


def posterior(label: str, seed: int, markov: bool, px: tuple[float, float] = (0.0, 1.0)) -> Sample:
    rng = np.random.default_rng(seed)
    values = {"px": rng.normal(*px, 8000), "decay_channel": rng.choice(3, 8000, p=[0.7, 0.2, 0.1])}
    chains = np.repeat(np.arange(4), 2000) if markov else None
    return Sample(label, values, np.zeros(8000) if markov else rng.normal(0.0, 0.5, 8000), chains)


def verdict(ic: Sample, rmh: Sample) -> dict[str, bool]:
    prior = posterior("prior", 9, False, (0.0, 2.0))
    return {check.what: check.passed for check in judge(summarise([ic, rmh], ["px", "decay_channel"], prior))}


def test_posteriors_that_agree_pass() -> None:
    passed = verdict(posterior("IC", 1, False), posterior("RMH", 2, True))
    assert len(passed) == 9
    assert all(passed.values())


@pytest.mark.parametrize(
    ("px", "failing"),
    [
        ((0.4, 1.0), {"px: |Δ mean| / sd"}),
        ((0.0, 1.5), {"px: ratio of sds, largest"}),
        ((0.0, 0.6), {"px: ratio of sds, smallest"}),
    ],
)
def test_posteriors_that_differ_fail_where_they_differ(px: tuple[float, float], failing: set[str]) -> None:
    passed = verdict(posterior("IC", 1, False), posterior("RMH", 2, True, px))
    assert {what for what, fine in passed.items() if not fine} == failing


def test_an_event_that_says_nothing_fails() -> None:
    passed = verdict(posterior("IC", 1, False, (0.0, 2.0)), posterior("RMH", 2, True, (0.0, 2.0)))
    assert {what for what, fine in passed.items() if not fine} == {"sd of px over the prior's"}


@pytest.mark.parametrize(("value", "comparison", "passed"), [(1.0, "<", False), (1.0, ">=", True), (None, "<", False)])
def test_a_number_at_its_limit(value: float | None, comparison: str, passed: bool) -> None:
    assert Check("x", value, comparison, 1.0).passed == passed


# --- as users meet it -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("simulator", ["tau", "pythia_tau"])
def test_quick_demo_on_the_command_line(simulator: str, tmp_path: Path) -> None:
    if simulator == "pythia_tau":
        pytest.importorskip("pythia8mc")
    channel = plain(compose("demo", [f"simulator={simulator}"]))["demo"]["event"]["channel"]
    words = [f"simulator={simulator}", "demo=quick", f"demo.event.channel={channel}", f"output={tmp_path / 'demo'}"]
    command = [sys.executable, "-m", "etalumis.cli", "demo", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6/6  compare" in done.stdout
    assert (tmp_path / "demo" / "posterior.png").exists()
