"""Ranks that fail, die, hang or are asked to stop: the job ends at once, says why, and goes on from its checkpoint."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from etalumis.lit_models.fit import fit
from etalumis.storage import simulate
from launching import ENVIRONMENT, mpirun, needs_mpi, run, torchrun
from training_runs import SMALL, assert_equal_state, gaussian_model, settings

pytestmark = [
    pytest.mark.timeout(500),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

HERE = Path(__file__).parent
TRAIN = ["-m", "etalumis.cli", "train"]
LAUNCHERS = {"mpi": mpirun, "ddp_rows": torchrun}
SOON = 20.0  # seconds within which a job ends after a rank has died; one to three where nothing else runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "gaussian"
    simulate(gaussian_model, path, 400, model="gaussian", workers=0, chunk_size=50)
    return path


def command(strategy: str, ranks: int, train: Path, output: Path, *words: str) -> list[str]:
    small = [word for word in SMALL if not word.startswith("data.batch_size")]
    given = [f"data.train={train}", f"output={output}", f"strategy={strategy}", *small, "data.batch_size=8", *words]
    return [*LAUNCHERS[strategy](ranks), *TRAIN, *given]


def at(rank: int, what: str, note: Path | None = None, **more: object) -> list[str]:
    """Something happens to a rank; see :class:`failing_callbacks.At`."""
    arguments = {"_target_": "failing_callbacks.At", "rank": rank, "what": what, **more}
    if note is not None:
        arguments["note"] = note
    return [f"++callbacks.at.{key}={value}" for key, value in arguments.items()]


def fails(words: list[str], code: int | None = None) -> str:
    """What a job says that ends with an error."""
    return run(words, code, timeout=300.0, cwd=HERE)


def since(note: Path) -> float:
    """Seconds since something happened."""
    return time.time() - float(note.read_text())


def last(output: Path) -> dict[str, object]:
    content: dict[str, object] = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
    return content


# --- a rank is gone -------------------------------------------------------------------------------


def test_mpi_a_killed_rank_ends_the_job(data: Path, tmp_path: Path) -> None:
    needs_mpi()
    said = fails(command("mpi", 2, data, tmp_path / "out", *at(1, "SIGKILL", tmp_path / "note")))
    assert since(tmp_path / "note") < SOON
    assert re.search(r"process rank 1 .*exited on\s+signal 9", said, re.DOTALL)


def test_torchrun_a_killed_rank_ends_the_job(data: Path, tmp_path: Path) -> None:
    said = fails(command("ddp_rows", 2, data, tmp_path / "out", *at(1, "SIGKILL", tmp_path / "note")))
    assert since(tmp_path / "note") < SOON
    assert re.search(r"^rank 0 of 2 lost another in an? [a-z-]+: it failed or was killed", said, re.MULTILINE)
    assert re.search(r"rank *: 1 .*\n *exitcode *: -9", said)


def test_mpi_an_error_on_one_rank_ends_the_job(data: Path, tmp_path: Path) -> None:
    needs_mpi()
    words = at(1, "error", tmp_path / "note", moment="validation", step=1)
    said = fails(command("mpi", 2, data, tmp_path / "out", *words, "data.batch_size=64"))
    assert since(tmp_path / "note") < SOON
    assert said.count("rank 1 of 2: something is wrong here") == 1
    assert said.count("Traceback") == 1
    assert "rank 0 of 2" not in said


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mpi", "ddp_rows"])
def test_a_killed_reader_ends_the_job(data: Path, tmp_path: Path, strategy: str) -> None:
    words = [*at(1, "loader", tmp_path / "note"), "data.workers=1", "trainer.max_epochs=1000"]
    said = fails(command(strategy, 2, data, tmp_path / "out", *words))
    assert since(tmp_path / "note") < 3 * SOON  # the reader's end is seen by looking every five seconds
    assert said.count("rank 1 of 2: a process that reads minibatches was killed") == 1


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_ends_the_job(data: Path, tmp_path: Path) -> None:
    """By the background, later than it was asked for; the file before is whole."""
    words = [*at(0, "full", tmp_path / "note"), "checkpoint_minutes=1e-6", "trainer.max_epochs=1000"]
    said = fails(command("mpi", 2, data, tmp_path / "out", *words))
    assert since(tmp_path / "note") < SOON
    assert re.search(r"rank 0 of 2: .*last\.ckpt can't be written: .*too large\. If the disk is full", said)
    assert last(tmp_path / "out")["global_step"] in (1, 2)
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_what_all_ranks_find_is_said_once(data: Path, tmp_path: Path) -> None:
    for strategy in LAUNCHERS:
        said = fails(command(strategy, 2, tmp_path / "none", tmp_path / "out"), 1)
        assert said.count("none does not exist; make one with") == 1, strategy
        assert said.count("rank 0 of 2: ") == 1, strategy
        assert "rank 1 of 2" not in said, strategy


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(data: Path, tmp_path: Path) -> None:
    words = [*at(2, "SIGSTOP", tmp_path / "note"), "strategy.timeout=20", "trainer.max_epochs=1000"]
    said = fails(command("mpi", 4, data, tmp_path / "out", *words))
    assert since(tmp_path / "note") < 20.0 + SOON
    assert re.search(r"rank [01] of 4 waited 20 s in vain for rank 2 to join in an? [a-z-]+: it is gone or busy", said)


HANGING = """
import os, signal, threading, torch
from etalumis.strategies.mpi import MPICollective
ranks = MPICollective(timeout=5.0)
many = torch.ones(1 << 25)
ranks.barrier()
if ranks.rank == 1:
    threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGSTOP)).start()
while True:
    ranks.all_reduce(many.fill_(1.0))
"""


@pytest.mark.slow
def test_a_rank_that_hangs_while_data_flows(tmp_path: Path) -> None:
    """Where MPI waits by itself, and no signal reaches Python."""
    needs_mpi()
    said = fails([*mpirun(2), "-c", HANGING])
    assert re.search(r"rank 0 of 2: an all-reduce did not end in 5 s|rank 0 of 2 waited 5 s in vain for rank 1", said)


# --- a job is asked to stop -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_signal_before_the_first_step_stops_all(data: Path, tmp_path: Path) -> None:
    said = fails(command("mpi", 2, data, tmp_path, *at(1, "SIGUSR1", moment="setup", step=1)), 75)
    assert said.count("stopped by SIGUSR1 before the first step of this run: the same command goes on") == 1
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mpi", "ddp_rows"])
def test_a_signal_to_one_rank_stops_all(data: Path, tmp_path: Path, strategy: str) -> None:
    words = at(1, "SIGTERM", step=5)
    said = fails(command(strategy, 2, data, tmp_path, *words), 75 if strategy == "mpi" else 1)  # torchrun's own code
    assert said.count("stopped by SIGTERM after 5 steps, saved in") == 1
    assert "rank 1 of 2" not in said
    assert last(tmp_path)["global_step"] == 5


@pytest.mark.slow
def test_mpirun_forwards_a_request(data: Path, tmp_path: Path) -> None:
    words = command("mpi", 2, data, tmp_path, "checkpoint_minutes=1e-3", "trainer.max_epochs=1000")
    with subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, cwd=HERE) as process:
        while process.poll() is None and not (tmp_path / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGUSR1)
        said = process.communicate(timeout=100)[1]
    assert process.returncode == 75, said
    assert said.count("stopped by SIGUSR1 after") == 1


# --- and goes on ----------------------------------------------------------------------------------


def met(path: Path) -> list[tuple[int, float]]:
    """Epoch and value of each trace that any rank has trained with."""
    files = path.parent.glob(f"{path.name}.*")
    words = [line.split() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted((int(epoch), float(value)) for epoch, value in words)


@pytest.mark.slow
def test_every_trace_once_whatever_the_ranks(data: Path, tmp_path: Path) -> None:
    """An epoch begun by four ranks of MPI, gone on with by two of torch.distributed and ended by one process."""
    output, path = tmp_path / "out", tmp_path / "met"
    looks = ["++callbacks.met._target_=failing_callbacks.Met", f"++callbacks.met.path={path}", "trainer.max_epochs=2"]
    fails(command("mpi", 4, data, output, *looks, *at(3, "SIGUSR1", step=4)), 75)
    first = met(path)
    assert 4 * 4 * 7 < len(first) <= 4 * 4 * 8, "some minibatches are smaller"
    fails(command("ddp_rows", 2, data, output, *looks, *at(0, "SIGUSR1", step=5)), 1)
    second = met(path)
    assert 2 * 5 * 7 < len(second) - len(first) <= 2 * 5 * 8
    small = [word for word in looks if "callbacks" not in word]
    config = settings(data, output, "data.batch_size=8", *small)
    callback = {"_target_": "failing_callbacks.Met", "path": str(path)}
    fit({**config, "callbacks": config["callbacks"] | {"met": callback}})
    epochs: dict[int, list[float]] = {}
    for epoch, value in met(path):
        epochs.setdefault(epoch, []).append(value)
    assert epochs.keys() == {0, 1}
    assert len(set(epochs[1])) == len(epochs[1]), "no trace twice"
    assert epochs[0] == epochs[1], "the same traces as in an epoch that nothing interrupted"


@pytest.mark.slow
def test_as_many_ranks_end_with_the_same_weights(data: Path, tmp_path: Path) -> None:
    words = [
        "trainer.precision=64-true",
        "trainer.max_epochs=2",
        "trainer.accumulate_grad_batches=2",
        "data.batch_size=16",
    ]
    for minibatch, step in ((1, 0), (6, 3)):  # the first within an iteration: ranks look at once how long parts are
        fails(command("mpi", 2, data, tmp_path / "pieces", *words, *at(0, "SIGTERM", step=minibatch)), 75)
        assert last(tmp_path / "pieces")["global_step"] == step
    for name in ("pieces", "whole"):
        run(command("mpi", 2, data, tmp_path / name, *words), timeout=300.0, cwd=HERE)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert_equal_state(last(tmp_path / "pieces")[key], last(tmp_path / "whole")[key], key)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("pieces", "whole")]
    assert results[0]["loss/valid"] == results[1]["loss/valid"]


@pytest.mark.slow
def test_torchrun_begins_again_after_a_death(data: Path, tmp_path: Path) -> None:
    """Its restarted ranks are the same command."""
    words = command("ddp_rows", 2, data, tmp_path / "out", *at(1, "SIGKILL", tmp_path / "note", step=8))
    words[3:3] = ["--max-restarts", "1"]
    run([*words, "checkpoint_minutes=1e-6", "trainer.max_epochs=1"], timeout=300.0, cwd=HERE)
    assert (tmp_path / "note").exists()
    assert (tmp_path / "out" / "result.json").exists()
