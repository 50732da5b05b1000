"""Searches over settings, and the range test of learning rates."""

import copy
import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etalumis import cli
from etalumis.callbacks import Paused
from etalumis.conf.build import ConfigError, build
from etalumis.conf.help import choices
from etalumis.conf.sweep import Point, expand, quoted
from etalumis.lit_models.fit import make_module
from etalumis.lit_models.lr_finder import range_test, suggest
from etalumis.lit_models.search import Running, SearchError, _failure, folder_of, search
from etalumis.report.training import draw_search
from etalumis.storage import simulate
from training_runs import SMALL, assert_equal_state, gaussian_model, settings

pytestmark = [
    pytest.mark.timeout(100),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

TUNE = ["tune=lr", "tune.steps=40", "tune.start=1e-5", "tune.end=10"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "gaussian"
    simulate(gaussian_model, path, 600, model="gaussian", workers=0, chunk_size=100)
    return path


# --- range test -----------------------------------------------------------------------------------


def test_suggestion_lies_where_the_loss_falls_fastest() -> None:
    rates = np.geomspace(1e-6, 1.0, 121)
    falls = 5.0 - 3.0 / (1.0 + np.exp(-4.0 * (np.log10(rates) + 3.0))) + 40.0 * rates
    found = suggest(rates.tolist(), [*falls.tolist()[:-1], float("inf")])
    assert 3e-4 < found.suggestion < 1e-2
    assert len(found.rates) == len(found.losses) == len(found.smooth) == 120
    with pytest.raises(ConfigError, match=r"rises from the first steps on.*lower tune\.start"):
        suggest(rates.tolist(), np.linspace(1.0, 2.0, 121).tolist())


@pytest.mark.parametrize("after", [[50.0], [float("inf")] * 4])
def test_losses_that_blow_up_after_a_few_steps_are_too_few(after: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"too few .* more tune\.steps"):
        suggest(np.geomspace(1e-3, 1.0, 10).tolist(), [5.0, 4.0, 3.0, 2.0, 1.5, *after])


def test_losses_that_are_not_finite_do_not_count_as_steps() -> None:
    rates, falls = np.geomspace(1e-3, 1.0, 40).tolist(), np.linspace(9.0, 1.0, 9).tolist()
    assert suggest(rates, falls).suggestion == suggest(rates, [*falls, *[float("inf")] * 31]).suggestion


def test_range_test_leaves_the_network_alone(data: Path, tmp_path: Path) -> None:
    config = settings(data, tmp_path, *TUNE, "trainer.accumulate_grad_batches=2")
    module, datamodule = make_module(config)
    before = copy.deepcopy(dict(module.network.state_dict()))
    found = range_test(module.network, datamodule, config)
    after = module.network.state_dict()
    assert_equal_state(before, dict(after))
    assert all(bank.gradient is None for bank in banks(module))
    assert 1e-4 < found.suggestion < 1.0
    assert min(found.smooth) < found.smooth[0] - 0.1, "it did train"
    assert not list(tmp_path.iterdir())
    # the loss is that of whole iterations, whatever they are divided into
    whole = settings(data, tmp_path, *TUNE, "data.batch_size=128")
    assert abs(range_test(module.network, build_data(whole, module), whole).losses[0] - found.losses[0]) < 0.5


def banks(module: Any) -> Any:
    from etalumis.networks import banks_of

    return banks_of(module.network).values()


def build_data(config: dict[str, Any], module: Any) -> Any:
    datamodule = build(config["data"])
    datamodule.attach(module.network.layout)
    return datamodule


def test_range_test_from_the_command_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"data.train={data}", f"output={tmp_path}", *SMALL, *TUNE]
    assert cli.main(["train", *words]) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lr_finder.json", "lr_finder.png"]
    found = json.loads((tmp_path / "lr_finder.json").read_text())
    assert f"suggestion: optimizer.lr={found['suggestion']:.2g}" in said
    assert cli.main(["train", *words, "tune.start=3"]) == 0 or "tune" in capsys.readouterr().err
    assert cli.main(["train", *words, "tune.end=1e-9"]) == 1
    assert "needs 0 < start < end" in capsys.readouterr().err


# --- which points ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "count"), [("lstm", 4 * 3 * 4), ("learning_rate", 7 * 4)])
def test_presets_are_the_papers(preset: str, count: int) -> None:
    config, points = expand([f"search={preset}", "data.train=data", "network=tau"])
    assert len(points) == len({point.name for point in points}) == count
    assert all(re.fullmatch(r"[\w.+-]+", point.name) for point in points)
    if preset == "lstm":
        assert points[0].values == {"network.core.layers": 1, "network.core.hidden": 128, "network.components": 5}
        assert f"trainer.max_steps={round(1_000_000 / 256)}" in points[0].overrides
    else:
        assert {point.values["optimizer.lr"] for point in points} == {10.0**k for k in range(-7, 0)}
        assert {point.values["minibatch"] for point in points} == {64, 2048, 32768, 131072}
        assert config["trainer"]["max_epochs"] == 1


def test_what_is_given_goes_before_the_preset() -> None:
    _, points = expand(
        ["search=lstm", "data.train=d", "network.core.layers=1,2", "network.core.hidden=32", "network.components=5",
         "search.num_traces=5120", "optimizer.lr=1e-2"]
    )  # fmt: skip
    assert [point.values for point in points] == [{"network.core.layers": 1}, {"network.core.layers": 2}]
    for point in points:
        assert {"network.core.hidden=32", "trainer.max_steps=20", "logger=none"} <= set(point.overrides)
        assert not [word for word in point.overrides if word.startswith(("search", "output"))]
    _, free = expand(["data.train=d", "optimizer=adam,sgd", "+network.observations.detector.kind=mlp,cnn3d_small"])
    assert free[0].name == "optimizer-adam_kind-mlp"
    assert len(free) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.train=d"], "nothing to search: give settings several values"),
        (["data.train=d", "seed=1,2", "resume=true"], "leave resume=true out"),
        (["data.train=d", "seed=1,1"], "points that differ"),
    ],
)
def test_searches_that_are_none(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        expand(words)


def test_quoted() -> None:
    _, points = expand(["data.train=d", "seed=1,2", quoted("data.valid", 'a=b "c"\\d,e')])
    assert quoted("data.valid", 'a=b "c"\\d,e') in points[0].overrides


def test_figures(tmp_path: Path) -> None:
    rows = [
        {"name": f"{a}{b}", "a": a, "b": b, "parameters": 10 * a, "seconds": 1.0, "loss/valid": loss}
        for a, b, loss in ((1, "x", 3.0), (1, "y", 2.0), (2, "x", 1e9), (2, "y", None), (3, "y", float("nan")))
    ]
    for across, lines in ((["parameters", "seconds"], None), (["a"], "b"), (["a"], None)):
        figure = draw_search(rows, across, ["a", "b"], lines, "loss/valid")
        assert len(figure.axes) == len(across)
        figure.savefig(tmp_path / "figure.png")
    draw_search([{"name": "x", "a": 1}], ["a"], ["a"], None, "loss/valid").savefig(tmp_path / "empty.png")


# --- points are trained ---------------------------------------------------------------------------


def words_of(data: Path, output: Path) -> list[str]:
    return [
        f"data.train={data}", f"output={output}", *SMALL, "trainer.max_epochs=1", "search.workers=2", "threads=1",
        "optimizer.lr=1e-3,1e-2",
    ]  # fmt: skip


@pytest.mark.slow
def test_points_are_trained_once_and_failures_named(data: Path, tmp_path: Path) -> None:
    """Two points, one of which can't be trained; the search goes on, draws, and tries that one again."""
    words = [*words_of(data, tmp_path), "data.batch_size=64"]
    search_words = [word for word in words if not word.startswith("optimizer.lr")] + ["network.components=5,-1"]
    with pytest.raises(
        SearchError, match=r"1 of 2 points failed, .*again: components--1 \(etalumis train: .*components"
    ):
        search(["search=custom", *search_words])
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["state"] for row in rows] == ["done", "failed"]
    assert rows[0]["traces"] == 570
    assert (tmp_path / "figure.png").exists()
    with (tmp_path / "table.csv").open() as file:
        assert [row["network.components"] for row in csv.DictReader(file)] == ["5", "-1"]
    result = tmp_path / "points" / "components-5" / "result.json"
    made = result.stat().st_mtime_ns
    with pytest.raises(SearchError, match="1 of 2 points failed"):
        search(["search=custom", *search_words])
    assert result.stat().st_mtime_ns == made
    with pytest.raises(ConfigError, match=r"a search with other settings \(.*optimizer\.lr=1\)"):
        search(["search=custom", *search_words, "optimizer.lr=1"])


@pytest.mark.parametrize(("code", "why"), [("sys.exit(75)", "train: stopped"), ("signal.raise_signal(15)", "SIGTERM")])
def test_a_point_that_stops_unasked_has_failed(tmp_path: Path, code: str, why: str) -> None:
    point = Point("one", {}, ())
    log = folder_of(tmp_path, point) / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("etalumis train: stopped by SIGTERM after 3 steps\n")
    with subprocess.Popen([sys.executable, "-c", f"import signal, sys; {code}"]) as process:
        process.wait()
    run = Running(point, process, 0.0)
    assert _failure(tmp_path, run, asked=True) is None
    assert why in str(_failure(tmp_path, run, asked=False))


@pytest.mark.slow
def test_a_search_with_points_that_were_killed_says_so(data: Path, tmp_path: Path) -> None:
    words = [*words_of(data, tmp_path)[:-1], "+callbacks.end._target_=signal.raise_signal"]
    with pytest.raises(SearchError, match=r"2 of 2 points failed, .*killed by SIGKILL"):
        search(["search=custom", *words, "+callbacks.end._args_=[9]", "optimizer.lr=1e-3,1e-2"])
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["state"] for row in rows] == ["failed", "failed"]


@pytest.mark.slow
def test_a_search_stops_and_goes_on(data: Path, tmp_path: Path) -> None:
    words = [word.replace("max_epochs=1", "max_epochs=60") for word in words_of(data, tmp_path)]
    command = [sys.executable, "-m", "etalumis.cli", "train", "--multirun", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        end = time.monotonic() + 60
        while not list(tmp_path.rglob("last.ckpt")) and time.monotonic() < end:
            time.sleep(0.1)
        with pytest.raises(ConfigError, match="another search, or a training that it left, is at work"):
            search([*words, "search=custom"])
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert re.search(r"stopped by SIGTERM with \d of 2 points done: the same command goes on", said)
    steps = [torch.load(path, weights_only=True)["global_step"] for path in tmp_path.rglob("last.ckpt")]
    assert steps
    assert max(steps) > 0
    with pytest.raises(Paused, match="stopped by the time limit with"):
        search([*words, "search=custom", "time_limit=0.01"])


def test_every_search_has_a_help() -> None:
    assert set(choices("search")) == {"custom", "learning_rate", "lstm"}
