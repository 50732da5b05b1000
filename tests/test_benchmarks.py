"""The benchmark harness: its arithmetic, its output, and the peer's isolation."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402
from benchmarks.common import Result, Settings, compare, significant, single  # noqa: E402
from benchmarks.pyprob_peer import PeerUnavailableError, PyprobPeer, install  # noqa: E402

QUICK = Settings(quick=True)


def sequence(*values: float) -> Callable[[], float]:
    """A measure that yields these values in turn; the first is the warm-up."""
    numbers = iter(values)
    return lambda: next(numbers)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")))
def test_every_benchmark_can_be_loaded(name: str) -> None:
    if name == "pyprob_driver":
        pytest.skip("runs in an environment of its own")
    pytest.importorskip("torch")
    importlib.import_module(f"benchmarks.{name}")


def test_medians_are_taken_after_a_warm_up() -> None:
    result = single("latency_us", sequence(99.0, 1.0, 5.0, 2.0), unit="us", target=6.0, settings=QUICK)
    assert (result.ours, result.repeats, result.ratio, result.theirs) == (2.0, 3, None, None)


def test_measures_alternate() -> None:
    calls: list[str] = []

    def measure(name: str) -> Callable[[], float]:
        return lambda: calls.append(name) or 1.0  # type: ignore[func-returns-value]

    compare("x_vs_y", measure("a"), measure("b"), unit="1/s", target=None, settings=QUICK, rounds=2)
    assert calls == ["a", "b"] * 7


@pytest.mark.parametrize(("smaller_is_better", "ratio"), [(False, 4.0), (True, 0.25)])
def test_larger_ratios_are_better(smaller_is_better: bool, ratio: float) -> None:
    result = compare(
        "x_vs_y", lambda: 8.0, lambda: 2.0, unit="", target=1.0, settings=QUICK, smaller_is_better=smaller_is_better
    )
    assert result.ratio == ratio


def test_without_a_peer_ours_is_measured_and_the_note_says_why() -> None:
    result = compare("x_vs_y", lambda: 8.0, None, unit="1/s", target=10.0, settings=QUICK, note="no network")
    assert (result.ours, result.theirs, result.ratio, result.note) == (8.0, None, None, "no network")


def test_numbers_keep_four_significant_digits() -> None:
    assert significant(123456.0) == 123500.0
    assert significant(0.000123456) == 0.0001235


def test_the_last_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    def results(settings: Settings) -> Iterator[Result]:
        yield single("a_us", lambda: 1.5, unit="us", target=2.0, settings=settings)
        print("chatter of a library")

    assert common.main("example", results, ["--json", "--quick"], pinned=False) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == "example"
    assert {"processor", "cores", "python", "numpy", "torch"} <= set(report["machine"])
    assert report["results"] == [
        {
            "name": "a_us",
            "ratio": None,
            "target": 2.0,
            "ours": 1.5,
            "theirs": None,
            "unit": "us",
            "repeats": 3,
            "note": "",
        }
    ]


def test_a_peer_that_cannot_be_installed_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(PeerUnavailableError, match="pyprob"):
        install(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".gitignore"]


@pytest.mark.slow
def test_pyprob_runs_the_same_model_outside_of_this_process() -> None:
    """Its posterior is that of two observations 8 and 9: mean 7.25, standard deviation 0.913."""
    pytest.importorskip("torch")
    try:
        peer = PyprobPeer()
    except PeerUnavailableError as error:
        pytest.skip(str(error))
    with peer:
        prior, rmh = peer.ask("prior", num_traces=2000), peer.ask("rmh", num_traces=4000)
        with pytest.raises(RuntimeError, match="no_such_job"):
            peer.ask("no_such_job")
    assert prior["mean"] == pytest.approx(1.0, abs=0.3)
    assert prior["std"] == pytest.approx(5**0.5, abs=0.3)
    assert rmh["mean"] == pytest.approx(7.25, abs=0.6)
    assert rmh["rate"] > 0.0
    assert "pyprob" not in sys.modules


@pytest.mark.slow
def test_tracing_reports_what_outside_checks_read() -> None:
    command = [sys.executable, "-m", "benchmarks.tracing", "--json", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    results = {r["name"]: r for r in json.loads(done.stdout.splitlines()[-1])["results"]}
    assert set(results) == {"prior_vs_pyprob", "rmh_vs_pyprob", "sample_overhead_us"}
    assert results["prior_vs_pyprob"]["target"] == 10.0
    assert 0.0 < results["sample_overhead_us"]["ours"] < 30.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("benchmark", "targets"),
    [
        ("metropolis", {"rmh_vs_pyprob": 15.0}),
        (
            "ic_inference",
            {"lockstep64_vs_one": 10.0, "lockstep64_vs_one_end_to_end": None, "lockstep_vs_pyprob": 50.0},
        ),
    ],
)
def test_engines_report_what_outside_checks_read(benchmark: str, targets: dict[str, float | None]) -> None:
    pytest.importorskip("torch")
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--json", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    results = json.loads(done.stdout.splitlines()[-1])["results"]
    assert {r["name"]: r["target"] for r in results} == targets
    assert all(r["ours"] > 0.0 for r in results)


@pytest.mark.slow
def test_posteriors_are_those_of_a_public_benchmark() -> None:
    """Where its wheel can be had: a classifier hardly tells them from the reference."""
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "benchmarks.sbibm_tasks", "--json", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    results = json.loads(done.stdout.splitlines()[-1])["results"]
    tasks, engines = ("gaussian_linear", "gaussian_mixture"), ("rmh", "ic")
    assert [r["name"] for r in results] == [f"{task}_{engine}_c2st" for task in tasks for engine in engines]
    if results[0]["ours"] is None:
        pytest.skip(results[0]["note"])
    assert all(r["ours"] < 0.65 for r in results)


@pytest.mark.slow
def test_conv3d_reports_what_outside_checks_read() -> None:
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "benchmarks.conv3d", "--json", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    results = {r["name"]: r for r in json.loads(done.stdout.splitlines()[-1])["results"]}
    assert set(results) == {"fp32_vs_matmul", "bf16_vs_fp32"}
    assert results["fp32_vs_matmul"]["target"] == 0.85
    assert results["fp32_vs_matmul"]["ratio"] > 0.5


def test_gpu_says_so_where_there_is_none() -> None:
    """No CUDA: null results with a note, and no failure."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu", "--json", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True, env=environment)
    results = json.loads(done.stdout.splitlines()[-1])["results"]
    assert {r["name"] for r in results} == {"traces_per_s", "share_of_matmul"}
    assert all(r["ours"] is None and "no CUDA" in r["note"] for r in results)


@pytest.mark.slow
def test_gpu_runs_through_on_a_cpu(tmp_path: Path) -> None:
    table = tmp_path / "profile.txt"
    command = [sys.executable, "-m", "benchmarks.gpu", "--json", "--quick", "--device", "cpu", "--profile", str(table)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    results = {r["name"]: r for r in json.loads(done.stdout.splitlines()[-1])["results"]}
    assert results["traces_per_s"]["target"] == 28_000.0
    assert min(r["ours"] for r in results.values()) > 0.0
    assert "convolution" in table.read_text(encoding="utf-8")


@pytest.mark.slow
def test_optimizer_reports_what_outside_checks_read() -> None:
    torch = pytest.importorskip("torch")
    optimizer = importlib.import_module("benchmarks.optimizer")
    size, ids = optimizer.Size(30, 5, 32, 24, 8), torch.arange(0, 30, 6)
    dense = optimizer.rows_against_dense(size, ids, QUICK)
    assert (dense.name, dense.unit) == ("row_sparse_vs_dense", "ms")
    assert dense.theirs is not None
    assert dense.ratio == pytest.approx(dense.theirs / dense.ours, rel=1e-3)
    names = [result.name for result in optimizer.rows_against_modules(size, ids, QUICK)]
    assert names == ["rows_vs_bandwidth", "rows_vs_modules", "rows_vs_modules_fused"]


@pytest.mark.slow
def test_three_events_get_the_checks_of_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is done is not done again: a second run prints the same numbers."""
    pytest.importorskip("torch")
    output, figure = tmp_path / "events", tmp_path / "events.png"
    sizes = ("demo.num_traces=400", "demo.ic.num_traces=100", "demo.rmh.steps=400", "workers=1")
    words = ["--json", "--quick", "--output", str(output), "--figure", str(figure), *sizes]
    command = [sys.executable, "-m", "benchmarks.events", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    results = {r["name"]: r for r in json.loads(done.stdout.splitlines()[-1])["results"]}
    events = ("pi_pi0", "e", "pi")
    each = {f"{event}_{what}" for event in events for what in ("agreement", "rmh_vs_ic")}
    assert set(results) == each | {"rmh_vs_ic", "rmh_vs_ic_with_training", "training_pays"}
    assert all(results[f"{event}_agreement"]["target"] == 9 for event in events)
    assert results["rmh_vs_ic_with_training"]["ratio"] < results["rmh_vs_ic"]["ratio"]
    assert done.stderr.count("Does it stand?") == len(events)
    assert figure.stat().st_size > 50_000
    assert importlib.import_module("benchmarks.events").main(words) == 0
    again = {r["name"]: r for r in json.loads(capsys.readouterr().out.splitlines()[-1])["results"]}
    assert all(again[name] == results[name] for name in (*each, "rmh_vs_ic"))


@pytest.mark.slow
def test_rounds_of_chains_and_of_executions_are_one_posterior_each(tmp_path: Path) -> None:
    """Neither engine stands at such sizes, so both go on for as many rounds as they may."""
    pytest.importorskip("torch")
    demo, events = importlib.import_module("etalumis.demo"), importlib.import_module("benchmarks.events")
    conf, posterior = importlib.import_module("etalumis.conf.compose"), importlib.import_module("etalumis.inference")
    words = ["simulator=tau", "simulator.detector.shape=[4,6,6]", "demo=quick", f"output={tmp_path}", "workers=1"]
    sizes = ["num_traces=60", "valid_traces=20", "ic.num_traces=16", "rmh.steps=60", "rmh.burn_in=20"]
    config = conf.plain(conf.compose("demo", [*words, *(f"demo.{size}" for size in sizes)]))
    model = events.build_model(config["simulator"])
    demo.simulate(config, "train", 60, seed=0)
    demo.simulate(config, "valid", 20, seed=1)
    demo.train(config)
    event = demo.held_out_event(model, config["demo"]["event"], tmp_path / "pi" / "event.npz")
    events.infer_ic(config, model, event, tmp_path / "pi", rounds=2)
    events.infer_rmh(config, model, event, tmp_path / "pi", rounds=3)
    ic, rmh = (posterior.Posterior.load(tmp_path / "pi" / name) for name in ("post_ic", "post_rmh"))
    assert (len(ic) + ic.num_dropped, ic.info["executions"]) == (32, 32)
    assert len(set(ic.log_weights.tolist())) == len(ic)  # other random numbers in each round
    assert rmh.info["steps"] == 180
    assert len(rmh) == demo.kept_states(config["demo"]["rmh"], 180)
    assert rmh.info["core_seconds"] == events.costs(tmp_path / "pi")["RMH"]["core"]


def test_costs_of_a_step_add_up_over_interruptions(tmp_path: Path) -> None:
    events = pytest.importorskip("benchmarks.events")

    def interrupted() -> None:
        with events.costing(tmp_path, "train"):
            sum(range(3_000_000))
            raise KeyboardInterrupt

    spent = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        spent.append(events.costs(tmp_path)["train"]["core"])
    with events.costing(tmp_path, "simulate"):
        pass
    assert 0.0 < spent[0] < spent[1]
    assert events.costs(tmp_path)["train"]["core"] == spent[1]
    assert events.costs(tmp_path)["simulate"]["core"] < spent[0]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_scaling_reports_what_outside_checks_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One and two real ranks, and a thousand on paper, from few traces."""
    pytest.importorskip("mpi4py")
    scaling = importlib.import_module("benchmarks.scaling")
    if not Path(sys.executable).with_name("mpirun").exists():
        pytest.skip("no mpirun beside the interpreter: pip install 'etalumis[mpi]'")
    sizes = {
        "QUICK_TRACES": 300,
        "QUICK_STEPS": 15,
        "QUICK_MOST": 4,
        "RANKS": (1, 2, 1024, 2048),
        "LEAST": 10,
        "MINIBATCHES": 1024,
    }
    for name, size in sizes.items():
        monkeypatch.setattr(scaling, name, size)
    results = {r.name: r for r in scaling.results(QUICK, tmp_path / "scaling.png")}
    assert {"efficiency_2", "predicted_efficiency_1024", "predicted_plain_1024"} <= set(results)
    assert results["predicted_efficiency_1024"].target == 0.85
    assert all(0.0 < result.ratio < 1.5 for result in results.values())
    assert (tmp_path / "scaling.png").exists()
