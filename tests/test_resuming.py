"""Trainings that are stopped, killed or damaged, and go on: nothing is lost that was saved, nothing comes out other."""

import errno
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

from etalumis.callbacks import Paused
from etalumis.conf.build import ConfigError
from etalumis.lit_models.fit import fit
from etalumis.lit_models.lock import locked
from etalumis.networks import CheckpointError, checkpoint
from etalumis.storage import simulate
from training_runs import SMALL, assert_equal_state, gaussian_model, settings, tau_model

pytestmark = [
    pytest.mark.timeout(100),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

DOUBLE = ["trainer.precision=64-true", "data.batch_size=32", "+network.observations.detector.kind=mlp"]
LONG = ["trainer.max_epochs=12", "data.batch_size=8", "trainer.accumulate_grad_batches=4", DOUBLE[-1]]
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
    others = ("seconds", "waited", "best_k_models", "dirpath")
    return {
        key: {k: v for k, v in state.items() if k not in others and not k.endswith("_path")}
        for key, state in callbacks.items()
    }


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
        (["trainer.max_steps=7", "callbacks.average.decay=0.9"], (3,)),
    ],
    ids=["plain", "accumulated", "validated", "all", "max_steps and average"],
)
def test_stopped_anywhere_equals_uninterrupted(data: Path, tmp_path: Path, words: list[str], stops: tuple[int]) -> None:
    """In float64 to the last bit: weights, moments, schedules, counts, losses."""
    words = [*DOUBLE, "trainer.max_epochs=2", *words]
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
    words = [*DOUBLE, "scheduler=constant", "trainer.max_epochs=-1"]
    fit(settings(data / "tau", tmp_path / "whole", *words, "trainer.max_steps=10"))
    fit(settings(data / "tau", tmp_path / "pieces", *words, "trainer.max_steps=4"))
    assert last(tmp_path / "pieces")["epoch"] == 0
    assert json.loads((tmp_path / "pieces" / "result.json").read_text())["steps"] == 4
    fit(settings(data / "tau", tmp_path / "pieces", *words, "trainer.max_steps=10"))
    for key in ("state_dict", "optimizer_states", "epoch", "global_step"):
        assert_equal_state(last(tmp_path / "whole")[key], last(tmp_path / "pieces")[key], key)


def test_a_schedule_taken_up_after_a_constant_rate_is_where_the_training_is(data: Path, tmp_path: Path) -> None:
    fit(settings(data / "gaussian", tmp_path, "scheduler=constant", "trainer.max_epochs=2"))
    made = last(tmp_path)["global_step"]
    module = fit(settings(data / "gaussian", tmp_path, "scheduler=polynomial", "trainer.max_epochs=3"))
    assert isinstance(module.trainer, Trainer)
    content = last(tmp_path)
    assert content["global_step"] == made // 2 * 3
    assert content["lr_schedulers"][0]["last_epoch"] == content["global_step"]
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(2e-5), "end_lr"


def test_a_checkpoint_within_an_epoch_after_some_time(data: Path, tmp_path: Path) -> None:
    """Every few minutes, whatever happens then: here the process breaks."""
    config = settings(data / "tau", tmp_path, "checkpoint_minutes=1e-6", "data.batch_size=32", "trainer.max_epochs=1")
    what = {"_target_": f"{__name__}.SignalAt", "minibatch": 5, "number": int(signal.SIGALRM)}
    before = signal.signal(signal.SIGALRM, broken)
    try:
        with pytest.raises(OSError, match="broken"):
            fit({**config, "callbacks": config["callbacks"] | {"signal": what}})
    finally:
        signal.signal(signal.SIGALRM, before)
    assert last(tmp_path)["global_step"] == 4


def broken(number: int, frame: Any) -> None:
    raise OSError("broken")


# --- what is there already ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training."""
    output = tmp_path_factory.mktemp("run")
    fit(settings(data / "gaussian", output, "trainer.max_epochs=2"))
    return output


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """One to spoil."""
    for path in run.rglob("*.*"):
        target = tmp_path / path.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path


def test_a_finished_training_is_left_as_it_is(data: Path, copied: Path) -> None:
    before = {path.name: path.read_bytes() for path in copied.rglob("*.json")}
    module = fit(settings(data / "gaussian", copied, "trainer.max_epochs=2"))
    assert module.trainer.global_step == last(copied)["global_step"]
    assert {path.name: path.read_bytes() for path in copied.rglob("*.json")} == before


def test_a_trial_in_its_folder_changes_nothing(data: Path, copied: Path) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*.*")}
    fit(settings(data / "tau", copied, "debug=fast"))
    assert {path: path.read_bytes() for path in copied.rglob("*.*")} == before


def test_another_training_never_overwrites(data: Path, copied: Path, tmp_path: Path) -> None:
    simulate(gaussian_model, data / "other", 20, model="gaussian", seed=1, workers=0)
    before = {path: path.read_bytes() for path in copied.rglob("*.*")}
    for words, said in (
        ([f"data.valid={data / 'other'}"], r"another training: data\.valid=.* \(was None\); give another output="),
        (["seed=3"], r"another training: seed=3 \(was 0\)"),
        (["network.components=2"], r"another network: components=2"),
    ):
        with pytest.raises(ConfigError, match=said):
            fit(settings(data / "gaussian", copied, *words, "trainer.max_epochs=3"))
    with pytest.raises(ConfigError, match="another network: simulator=tau"):
        fit(settings(data / "tau", copied))
    assert {path: path.read_bytes() for path in copied.rglob("*.*")} == before
    (copied / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(ConfigError, match=r"holds a network\.pt, but no checkpoint"):
        fit(settings(data / "gaussian", copied))


def test_begun_anew_where_that_is_asked_for(data: Path, copied: Path) -> None:
    config = settings(data / "tau", copied, "resume=false", "trainer.max_epochs=1", "data.valid_fraction=0.0")
    stopped(config, 2)
    assert sorted(path.name for path in copied.rglob("*.*")) == ["last.ckpt"]  # nothing of the other training
    fit(settings(data / "tau", copied, "trainer.max_epochs=1", "data.valid_fraction=0.0"))
    assert checkpoint.load(copied / "network.pt")[0].simulator == "tau"


def test_a_damaged_checkpoint_names_what_to_take(data: Path, run: Path, copied: Path) -> None:
    path = copied / "checkpoints" / "last.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    config = settings(data / "gaussian", copied, "trainer.max_epochs=3")
    with pytest.raises(CheckpointError, match=r"last\.ckpt is .*damaged.*best\.ckpt is whole: .* resume=.*best\.ckpt"):
        fit(config)
    fit({**config, "resume": str(path.with_name("best.ckpt"))})
    assert last(copied)["epoch"] == 2
    best = json.loads((copied / "result.json").read_text())["best loss/valid"]
    assert best <= json.loads((run / "result.json").read_text())["best loss/valid"]  # the folder was moved
    path.write_bytes(content[: len(content) // 2])
    path.with_name("best.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"last\.ckpt is .*damaged(?!.*best\.ckpt)"):
        fit(config)


@pytest.mark.parametrize("best", [True, False])
def test_going_on_in_another_folder(
    data: Path, copied: Path, tmp_path_factory: pytest.TempPathFactory, best: bool
) -> None:
    """With no better validation after it, the best network is the one from before; where that is lost, a later one."""
    output = tmp_path_factory.mktemp("elsewhere")
    source = copied / "checkpoints" / "last.ckpt"
    if not best:
        source.with_name("best.ckpt").unlink()
    worse = ["optimizer.lr=3.0", "scheduler=constant", "trainer.max_epochs=3"]
    fit(settings(data / "gaussian", output, f"resume={source}", *worse))
    (network, extra), (before, kept) = checkpoint.load(output / "network.pt"), checkpoint.load(copied / "network.pt")
    same = all(torch.equal(p, q) for p, q in zip(network.parameters(), before.parameters(), strict=True))
    assert same is best
    assert (extra["loss/valid"] == kept["loss/valid"]) is best
    assert (output / "checkpoints" / "best.ckpt").is_file()
    # nothing left to train: exported again
    (output / "network.pt").unlink()
    fit(settings(data / "gaussian", output, *worse))
    assert checkpoint.load(output / "network.pt")[1] == extra


def test_the_checkpoint_is_read_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be large, and all ranks read it."""
    words = ["minibatch=64", "trainer.max_epochs=1"]
    fit(settings(data / "gaussian", tmp_path, *words))
    read: list[Path] = []
    whole = checkpoint.read

    def counted(path: Path) -> dict[str, Any]:
        read.append(Path(path))
        return whole(path)

    monkeypatch.setattr(checkpoint, "read", counted)
    module = fit(settings(data / "gaussian", tmp_path, *words[:1], "trainer.max_epochs=2"))
    assert module.trainer.current_epoch == 2
    assert [path.name for path in read].count("last.ckpt") == 1


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with (
        pytest.raises(ConfigError, match=r"a file system without locks .*Lustre: -o flock"),
        locked(tmp_path / "lock", "taken"),
    ):
        pass


def test_one_training_at_a_time(data: Path, tmp_path: Path) -> None:
    config = settings(data / "gaussian", tmp_path, "trainer.max_epochs=1")
    held = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=rf"another training is at work in {tmp_path}; wait for it"):
            fit(config)
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
        fit({**config, "trainer": {**config["trainer"], "fast_dev_run": True}})  # writes nothing
    finally:
        held.kill()
        held.communicate()
    assert (tmp_path / "lock").exists()
    fit(config)  # what dead processes leave locks nothing
    assert (tmp_path / "network.pt").exists()


HOLDER = """
import sys
from pathlib import Path
from etalumis.lit_models.lock import locked
with locked(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_patience_is_what_is_given(data: Path, tmp_path: Path) -> None:
    """Not what the checkpoint was made with; a training that has ended early stays so."""
    words = ["trainer.max_epochs=30", "optimizer.lr=0.0", "scheduler=constant"]
    assert fit(settings(data / "gaussian", tmp_path, *words, "callbacks.early_stopping.patience=2")).current_epoch == 3
    again = fit(settings(data / "gaussian", tmp_path, *words, "callbacks.early_stopping.patience=2"))
    assert again.current_epoch == 3
    more = fit(settings(data / "gaussian", tmp_path, *words, "callbacks.early_stopping.patience=4"))
    assert more.current_epoch == 5


def plain_only(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) in (str, int) and plain_only(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(plain_only, value))
    return value is None or type(value) in (bool, int, float, str, torch.Tensor)


def test_checkpoints_hold_plain_things_only(run: Path) -> None:
    for name in ("last", "best"):
        content = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        for key, value in content.items():
            assert plain_only(value), key


# --- real processes -------------------------------------------------------------------------------


@pytest.fixture
def command(data: Path, tmp_path: Path) -> list[str]:
    small = [word for word in SMALL if not word.startswith("data.workers")]
    words = [f"data.train={data / 'tau'}", f"output={tmp_path}", *small, "data.workers=1"]
    return [sys.executable, "-m", "etalumis.cli", "train", *words, *LONG, "checkpoint_minutes=1e-4"]


def begun(process: subprocess.Popen[str], output: Path) -> Iterator[int]:
    """Yields the step of last.ckpt again and again while the process runs."""
    while process.poll() is None:
        time.sleep(0.05)
        if (output / "checkpoints" / "last.ckpt").exists():
            yield last(output)["global_step"]


@pytest.mark.slow
def test_killed_at_random_moments(data: Path, command: list[str], tmp_path: Path) -> None:
    """What a checkpoint holds is never lost, the file is whole at any moment, and the end is the same."""
    seed = int(np.random.default_rng().integers(2**31))
    moments = random.Random(seed)
    most = 0
    for _ in range(2):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
            end = time.monotonic() + moments.uniform(0.0, 1.5)
            for step in begun(process, tmp_path):
                assert step >= most, seed
                most = step
                if time.monotonic() > end and step > 0:
                    break
            os.killpg(process.pid, signal.SIGKILL)
    for output in (tmp_path, tmp_path / "whole"):
        fit(settings(data / "tau", output, *LONG))
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert_equal_state(last(tmp_path)[key], last(tmp_path / "whole")[key], f"{seed} {key}")
