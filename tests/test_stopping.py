"""Trainings that are asked to stop: by signals at any moment, by Ctrl-C, at the limit of their time."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

import etalumis as et
from etalumis import cli
from etalumis.callbacks import Paused
from etalumis.callbacks.requests import StopRequests, seconds_of
from etalumis.conf.build import ConfigError
from etalumis.distributions import Normal
from etalumis.execution.signals import JOB_SIGNALS
from etalumis.lit_models.fit import fit
from etalumis.storage import simulate
from training_runs import SMALL, assert_equal_state, gaussian_model, settings, tau_model

pytestmark = [
    pytest.mark.timeout(100),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    for make, count in ((gaussian_model, 300), (tau_model, 200)):
        name = make().name
        simulate(make, path / name, count, model=name, workers=0, chunk_size=50)
    return path


class Ask(Callback):
    """Sends this process a signal, as a job manager would.

    Args:
        number: of the signal.
        moment: the hook in which.
        after: how many times that hook is called before.
    """

    def __init__(self, number: int = signal.SIGTERM, moment: str = "on_train_batch_start", after: int = 0) -> None:
        self._number, self._left = number, after
        setattr(self, moment, self._count)

    def _count(self, trainer: Trainer, module: LightningModule, *rest: Any, **more: Any) -> None:
        self._left -= 1
        if self._left == -1:
            os.kill(os.getpid(), self._number)


def asked(config: dict[str, Any], **how: Any) -> str:
    """Train up to a signal; returns what it says."""
    ask = {"_target_": f"{__name__}.Ask", **how}
    with pytest.raises((Paused, KeyboardInterrupt)) as caught:
        fit({**config, "callbacks": {"ask": ask, **config["callbacks"]}})
    return str(caught.value)


def last(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
    return content


# --- requests -----------------------------------------------------------------------------------------------------


def test_requests() -> None:
    requests = StopRequests()
    assert requests.reason == ""
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    requests.listen()
    os.kill(os.getpid(), signal.SIGINT)
    assert requests.reason == "Ctrl-C"
    os.kill(os.getpid(), signal.SIGTERM)
    assert requests.reason == "Ctrl-C"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    requests.close()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == handlers
    requests.listen()
    other = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    requests.close()
    assert signal.signal(signal.SIGUSR1, handlers[1]) is signal.SIG_IGN, "another's by now"
    assert other == requests._note
    assert StopRequests(1e-9).reason == "the time limit"


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:12:30:05", 45005), ("01:00:00:00", 86400), ("1:30", 90), (7, 7), (None, None)]
)
def test_durations(text: str | int | None, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["1h", "1:2:3:4:5", "-1:00", "", "0", ":"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"DD:HH:MM:SS|longer than nothing"):
        seconds_of(text)


def test_signals_have_an_exit_code(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"data.train={data / 'gaussian'}", f"output={tmp_path}", *SMALL, "trainer.max_epochs=2"]
    for number, code in ((signal.SIGUSR1, 75), (signal.SIGINT, 130), (signal.SIGTERM, 75)):
        words += [f"++callbacks.ask._target_={__name__}.Ask", "++callbacks.ask.after=1"]
        assert cli.main(["train", *words, f"++callbacks.ask.number={int(number)}"]) == code
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert f"saved in {tmp_path}/checkpoints/last.ckpt: the same command goes on" in said
    assert last(tmp_path)["global_step"] == 6


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (*JOB_SIGNALS, signal.SIGINT)]


def test_signals_are_given_back(data: Path, tmp_path: Path) -> None:
    """Whoever trains in a program of its own can end it by a signal afterwards."""
    before = handlers()
    config = settings(data / "gaussian", tmp_path, "trainer.max_epochs=1")
    asked(config)
    assert handlers() == before
    for number in (1, 2):
        fit({**config, "trainer": {**config["trainer"], "max_epochs": number}})
        assert handlers() == before
    with pytest.raises(ConfigError):
        fit({**config, "seed": -1})
    assert handlers() == before


# --- moments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["settings", "data", "setup", "on_fit_start"])
def test_before_the_first_step(data: Path, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to save; the exit code is that of any other time."""
    config = settings(data / "gaussian", tmp_path, "trainer.max_epochs=1")
    function = {"settings": "with_minibatch", "data": "start"}.get(moment)
    how = {"moment": moment, "number": int(signal.SIGUSR2)}
    if function is not None:
        name = f"etalumis.lit_models.fit.{function}"
        meant: Any = getattr(sys.modules["etalumis.lit_models.fit"], function)

        def asks(*arguments: Any) -> Any:
            os.kill(os.getpid(), signal.SIGUSR2)
            return meant(*arguments)

        monkeypatch.setattr(name, asks)
        how["moment"] = "on_train_batch_start"  # too late
    assert asked(config, **how) == "stopped by SIGUSR2 before the first step of this run: the same command goes on"
    assert not (tmp_path / "checkpoints").exists()
    monkeypatch.undo()
    assert fit(config).trainer.global_step > 0


def test_while_the_network_is_tested(data: Path, tmp_path: Path) -> None:
    config = settings(data / "gaussian", tmp_path, "trainer.max_epochs=1", "data.test_fraction=0.5")
    said = asked(config, moment="on_test_batch_start")
    assert said == "stopped by SIGTERM while the network was tested: the same command goes on"
    before = json.loads((tmp_path / "result.json").read_text())
    assert "loss/test" not in before
    fit(config)
    result = json.loads((tmp_path / "result.json").read_text())
    assert "loss/test" in result
    assert result["steps"] == before["steps"]


@pytest.mark.parametrize(("interval", "after", "steps"), [(1.0, 3, 1), (4, 4, 2)])
def test_within_a_long_iteration(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: float, after: int, steps: int
) -> None:
    """It is begun anew, and what comes out is what nothing interrupted; not where it was validated in its middle."""
    words = ["trainer.precision=64-true", "data.batch_size=16", "trainer.accumulate_grad_batches=3"]
    words += ["trainer.max_epochs=1", f"trainer.val_check_interval={interval}"]
    fit(settings(data / "tau", tmp_path / "whole", *words))
    monkeypatch.setattr("etalumis.callbacks.last._LOOK_S", 0.0)
    config = settings(data / "tau", tmp_path / "pieces", *words)
    assert f"after {steps} steps, saved" in asked(config, after=after)
    assert last(tmp_path / "pieces")["global_step"] == steps
    fit(config)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert_equal_state(last(tmp_path / "pieces")[key], last(tmp_path / "whole")[key], key)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "pieces")]
    assert results[0]["loss/valid"] == results[1]["loss/valid"]
    assert results[0]["traces"] == results[1]["traces"]


def test_time_limit(data: Path, tmp_path: Path) -> None:
    config = settings(data / "tau", tmp_path, "time_limit=00:00:00:01", "trainer.max_epochs=1000")
    started = time.monotonic()
    with pytest.raises(Paused, match=r"stopped by the time limit after [\d,]+ steps"):
        fit(config)
    assert time.monotonic() - started < 60
    assert last(tmp_path)["global_step"] > 0
    with pytest.raises(ConfigError, match=r"trainer\.max_time .* give time_limit="):
        fit(settings(data / "tau", tmp_path, "+trainer.max_time=00:00:00:01"))


# --- real processes -----------------------------------------------------------------------------------------------


def slow() -> float:
    """A simulator that is at work at any moment."""
    time.sleep(0.01)
    x = float(et.sample(Normal(0.0, 1.0), name="x"))
    et.observe(Normal(x, 1.0), name="y")
    return x


ONLINE = [
    "data=online", "simulator=custom", f"simulator._target_={__name__}:slow", "data.chunk_size=32",
    "data.sample_traces=32", "data.valid_traces=0", "data.epoch_traces=100000",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["traces", "online"])
def test_everybody_is_asked_to_stop(data: Path, tmp_path: Path, kind: str) -> None:
    """As job managers do: every process of the job, those that read or simulate too, gets all kinds of signals."""
    words = [word for word in SMALL if not word.startswith("data.")]
    words += ["data.workers=1", "data.batch_size=8", "trainer.max_epochs=1000", "trainer.accumulate_grad_batches=4"]
    words += ONLINE if kind == "online" else [f"data.train={data / 'tau'}"]
    command = [sys.executable, "-m", "etalumis.cli", "train", *words, f"output={tmp_path}", "checkpoint_minutes=1e-4"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=Path(__file__).parent
    ) as process:
        while process.poll() is None and not (tmp_path / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.05)
        for number in sorted(JOB_SIGNALS):
            os.killpg(process.pid, number)  # what remains of the iteration needs the other processes
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "Traceback" not in said
    assert re.search(r"stopped by SIG(USR1|USR2|TERM) after [\d,]+ steps, saved in .*last\.ckpt", said)
    assert last(tmp_path)["global_step"] > 0
