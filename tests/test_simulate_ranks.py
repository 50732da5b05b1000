"""Simulating under MPI: the same files whatever the number of ranks and workers, and whoever is killed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import etalumis as et
from etalumis.simulators.classics import HiddenMarkov
from etalumis.storage import Dataset, DatasetError, simulate
from launching import ENVIRONMENT, mpirun, needs_mpi

pytestmark = pytest.mark.timeout(100)

TRACES, CHUNK = 3000, 50
SETTINGS = ("simulator=hidden_markov", f"num_traces={TRACES}", f"chunk_size={CHUNK}", "shard_traces=200")


def command(output: Path, ranks: int, workers: int, *settings: str) -> list[str]:
    program = ["-m", "etalumis.cli", "simulate", *SETTINGS, f"workers={workers}", f"output={output}"]
    return [*(mpirun(ranks) if ranks > 1 else [sys.executable]), *program, *settings]


def run(output: Path, ranks: int, workers: int, *settings: str, code: int | None = 0) -> str:
    done = subprocess.run(
        command(output, ranks, workers, *settings), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert code is None or (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    return done.stdout + done.stderr


def files(directory: Path) -> dict[str, bytes]:
    """All of a dataset but the summary, which tells how long it took."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "summary.json"}


def hidden_markov() -> et.Model:
    return et.Model(HiddenMarkov(), "hidden_markov")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset as one process makes it, without interruption."""
    path = tmp_path_factory.mktemp("ranks") / "whole"
    run(path, 1, 0)
    return path


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (2, 2)])
def test_equal_files_whatever_the_ranks_and_workers(whole: Path, tmp_path: Path, ranks: int, workers: int) -> None:
    needs_mpi()
    said = run(tmp_path / "d", ranks, workers)
    assert files(tmp_path / "d") == files(whole)
    assert said.count("3,000 traces of hidden_markov") == 1, "rank 0 alone speaks"
    assert len(Dataset(tmp_path / "d").manifest.shards) == 15


def test_a_job_that_fails_on_one_rank_ends_and_says_why(tmp_path: Path) -> None:
    """Trace 2750 belongs to rank 1: the other, which waits for it, is ended too."""
    needs_mpi()
    (tmp_path / "breaks.py").write_text(
        "import etalumis as et\n"
        "from etalumis.distributions import Normal\n"
        "count = 0\n"
        "def model():\n"
        "    global count\n"
        "    count += 1\n"
        "    et.sample(Normal(0.0, 1.0), name='x')\n"
        "    assert count < 900, 'the beam was dumped'\n"
    )
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    settings = ["simulator=custom", "simulator._target_=breaks:model", "num_traces=1700", "shard_traces=900"]
    words = [*command(tmp_path / "d", 2, 0), *settings]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "the beam was dumped" in done.stderr
    assert "execution of trace 899" in done.stderr
    with pytest.raises(DatasetError, match="unfinished"):
        Dataset(tmp_path / "d")


def test_failures_are_the_same_whatever_the_ranks(tmp_path: Path) -> None:
    needs_mpi()
    (tmp_path / "fails.py").write_text(
        "import etalumis as et\n"
        "from etalumis.distributions import Normal\n"
        "def model():\n"
        "    x = et.sample(Normal(0.0, 1.0), name='x')\n"
        "    if x > 1.8:\n"
        "        raise ArithmeticError(f'{x:.1f} is too far')\n"
    )
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    settings = ["simulator=custom", "simulator._target_=fails:model", "failures=skip", "num_traces=900"]
    for ranks in (1, 2):
        words = [*command(tmp_path / f"d{ranks}", ranks, 0), *settings]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "executions failed and were left out" in done.stdout
        assert "is too far (first in trace" in done.stdout
    assert files(tmp_path / "d1") == files(tmp_path / "d2")


def test_several_ranks_without_mpi4py(tmp_path: Path) -> None:
    (tmp_path / "mpi4py.py").write_text("raise ImportError('not here')\n")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path), "OMPI_COMM_WORLD_SIZE": "2"}
    done = subprocess.run(command(tmp_path / "d", 1, 0), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'etalumis[mpi]'" in done.stderr


def test_a_launcher_that_mpi_knows_nothing_of(tmp_path: Path) -> None:
    needs_mpi()
    environment = {**ENVIRONMENT, "SLURM_STEP_NUM_TASKS": "4"}
    done = subprocess.run(command(tmp_path / "d", 1, 0), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "4 ranks were launched, but each sees itself alone" in done.stderr
    assert not (tmp_path / "d").exists()


def descendants(pid: int) -> list[int]:
    """Process ids below one, by reading /proc."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 1)])
def test_killed_at_random_moments_and_gone_on_with(whole: Path, tmp_path: Path, ranks: int, workers: int) -> None:
    """The main process, a rank, a worker or the launcher, by whatever signal: in the end the files are equal."""
    if ranks > 1:
        needs_mpi()
    dice = random.Random(ranks)
    output = tmp_path / "d"
    kills = 0
    for _ in range(6):
        with subprocess.Popen(
            command(output, ranks, workers),
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            started = set(output.glob("shard-*.jsonl"))
            deadline = time.monotonic() + 20.0
            while process.poll() is None and set(output.glob("shard-*.jsonl")) == started:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(dice.uniform(0.0, 0.3))
            victims = [process.pid, *descendants(process.pid)]
            if process.poll() is None:
                kills += 1
                os.kill(dice.choice(victims), dice.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            try:
                process.wait(30.0)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if (output / "manifest.json").exists():
            break
    assert kills
    before = {path.name: path.stat().st_size for path in output.glob("shard-*.tar")}
    run(output, ranks, workers, code=None)
    if not (output / "manifest.json").exists():  # the last of a killed job may still hold the folder
        time.sleep(2.0)
        run(output, 1, workers)
    assert files(output) == files(whole)
    assert {name: (output / name).stat().st_size for name in before} == before
    shutil.rmtree(output)


def test_layouts_are_those_of_the_library(whole: Path, tmp_path: Path) -> None:
    """The command's dataset is that of the function, but for the configuration that it remembers."""
    manifest = Dataset(whole).manifest
    simulate(
        hidden_markov,
        tmp_path / "d",
        TRACES,
        model="hidden_markov",
        workers=0,
        chunk_size=CHUNK,
        shard_traces=200,
        simulator=manifest.origin.simulator,
    )
    assert files(tmp_path / "d") == files(whole)
