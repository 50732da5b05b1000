"""Trainings that are stopped, killed or damaged, and go on: nothing is lost that was saved, nothing comes out other."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from etalumis import cli
from etalumis.callbacks import Paused
from etalumis.callbacks.requests import StopRequests, seconds_of
from etalumis.conf.build import ConfigError
from etalumis.lit_models.fit import fit
from etalumis.networks import CheckpointError, checkpoint
from etalumis.storage import simulate
from training_runs import SMALL, assert_equal_state, gaussian_model, settings, tau_model

pytestmark = [
    pytest.mark.timeout(100),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

KEPT = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "callbacks")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    for make, count in ((gaussian_model, 600), (tau_model, 200)):
        name = make().name
        simulate(make, path / name, count, model=name, workers=0, chunk_size=50)
    return path


class SignalAt(Callback):
    """Sends this process a signal when an iteration is at work, as a job manager would."""

    def __init__(self, minibatch: int, number: int = signal.SIGTERM) -> None:
        self._left = minibatch
        self._signal = number

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, number: int) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._signal)


def stopped(config: dict[str, Any], minibatch: int, number: int = signal.SIGTERM) -> str:
    """Train up to a signal; returns what it says."""
    what = {"_target_": f"{__name__}.SignalAt", "minibatch": minibatch, "number": int(number)}
    with pytest.raises((Paused, KeyboardInterrupt)) as caught:
        fit({**config, "callbacks": config["callbacks"] | {"signal": what}})
    return str(caught.value)


def last(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def without_times(callbacks: dict[str, Any]) -> dict[str, Any]:
    """States of callbacks but for seconds and paths."""
    kept = {key: state for key, state in callbacks.items() if "ModelCheckpoint" not in key}
    return {key: {k: v for k, v in state.items() if k not in ("seconds", "waited")} for key, state in kept.items()}


def assert_same_training(one: Path, other: Path) -> None:
    a, b = last(one), last(other)
    assert a["global_step"] > 0
    for key in KEPT[:-1]:
        assert_equal_state(a[key], b[key], key)
    assert_equal_state(without_times(a["callbacks"]), without_times(b["callbacks"]), "callbacks")
    best = [torch.load(path / "checkpoints" / "best.ckpt", weights_only=True) for path in (one, other)]
    assert_equal_state(best[0]["state_dict"], best[1]["state_dict"], "best")
    results = [json.loads((path / "result.json").read_text()) for path in (one, other)]
    for result in results:
        del result["seconds"], result["traces_per_s"]
    assert results[0] == results[1]


# --- resumed = uninterrupted ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "stops"),
    [
        ([], (2, 3)),  # in the first epoch, then in the second
        (["trainer.accumulate_grad_batches=3"], (2, 4)),
        (["trainer.val_check_interval=0.5"], (2, 4)),
        (["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=0.25", "data.workers=1"], (5,)),
        (["trainer.max_steps=7"], (3,)),
    ],
    ids=["plain", "accumulated", "validated", "all", "max_steps"],
)
def test_stopped_anywhere_equals_uninterrupted(data: Path, tmp_path: Path, words: list[str], stops: tuple[int]) -> None:
    """In float64 to the last bit: weights, moments, schedules, counts, losses."""
    words = ["trainer.precision=64-true", "trainer.max_epochs=3", "data.batch_size=32", *words]
    fit(settings(data / "tau", tmp_path / "whole", *words))
    config = settings(data / "tau", tmp_path / "pieces", *words)
    steps = [0]
    for minibatch in stops:
        said = stopped(config, minibatch)
        steps.append(last(tmp_path / "pieces")["global_step"])
        assert re.fullmatch(rf"stopped by SIGTERM after {steps[-1]} steps, saved in .*: the same command goes on", said)
        assert steps[-1] > steps[-2]
        assert not (tmp_path / "pieces" / "network.pt").exists()
        assert not (tmp_path / "pieces" / "result.json").exists()
    fit(config)
    assert_same_training(tmp_path / "whole", tmp_path / "pieces")


def test_more_steps_than_before_go_on_within_the_epoch(data: Path, tmp_path: Path) -> None:
    """max_steps cuts an epoch short, validates, and a longer training goes on in its middle."""
    words = ["trainer.precision=64-true", "scheduler=constant", "data.batch_size=32", "trainer.max_epochs=-1"]
    fit(settings(data / "tau", tmp_path / "whole", *words, "trainer.max_steps=10"))
    fit(settings(data / "tau", tmp_path / "pieces", *words, "trainer.max_steps=4"))
    assert last(tmp_path / "pieces")["epoch"] == 0
    assert json.loads((tmp_path / "pieces" / "result.json").read_text())["steps"] == 4
    fit(settings(data / "tau", tmp_path / "pieces", *words, "trainer.max_steps=10"))
    for key in ("state_dict", "optimizer_states", "epoch", "global_step"):
        assert_equal_state(last(tmp_path / "whole")[key], last(tmp_path / "pieces")[key], key)
