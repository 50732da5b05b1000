"""Making datasets with real worker processes: equal files whatever the layout, and whatever interrupts them."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Normal
from etalumis.execution import run
from etalumis.execution.pool import Pool
from etalumis.execution.pool_worker import OwnDesk, PoolError
from etalumis.simulators.classics import HiddenMarkov, marsaglia
from etalumis.storage import Dataset, DatasetError, Encoding, Origin, SimulationError, simulate
from etalumis.storage.failures import FailurePolicy
from etalumis.storage.growing import GrowingDataset, GrowingShard
from etalumis.storage.journal import Layout, read_journal
from etalumis.storage.worker import ChunkRunner, ChunkTask, Made

# Worker processes import this file by name.
pytestmark = pytest.mark.timeout(60)


def model() -> et.Model:
    return et.Model(marsaglia)


def failing_at(count: int, how: str) -> et.Model:
    """A model that fails in its execution number ``count`` within a process."""
    executed = 0

    def fails() -> None:
        nonlocal executed
        executed += 1
        et.sample(Normal(0.0, 1.0), name="x")
        if executed > count:
            if how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("the beam was dumped")

    return et.Model(fails)


def not_made() -> et.Model:
    raise RuntimeError("no licence for this simulator")


class Held(et.Model):
    """A model that holds something, as simulator processes, and says when it lets go."""

    def __init__(self, sign: Path, slow: bool) -> None:
        super().__init__(lambda: time.sleep(60.0) if slow else et.sample(Normal(0.0, 1.0)), "held")
        self._sign = sign
        sign.with_suffix(".made").touch()

    def close(self) -> None:
        self._sign.touch()


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset as this process makes it."""
    path = tmp_path_factory.mktemp("simulate") / "whole"
    make(path, workers=0)
    return path


def make(path: Path, workers: int = 2, **changes: object) -> et.storage.Manifest:
    settings = {"num_traces": 500, "model": "marsaglia", "seed": 5, "chunk_size": 64, "shard_traces": 200}
    return simulate(model, path, workers=workers, **(settings | changes))


@pytest.mark.parametrize("workers", [1, 3])
def test_equal_files_whatever_the_workers(whole: Path, tmp_path: Path, workers: int) -> None:
    seen: list[int] = []
    manifest = make(tmp_path / "d", workers, progress=seen.append)
    assert files(tmp_path / "d") == files(whole)
    assert manifest.traces == 500
    assert len(manifest.shards) > 1
    assert seen == [0, *range(64, 500, 64), 500]


def test_traces_are_those_of_the_direct_runner(whole: Path) -> None:
    dataset = Dataset(whole)
    batch = et.TraceBatch.concatenate(list(dataset.batches()))
    np.testing.assert_array_equal(batch.index, np.arange(500))
    one = model()
    for trace in run(one, indices=[0, 63, 64, 499], seed=5):
        stored = batch.select([trace.index])
        np.testing.assert_array_equal(stored.value, trace.values)
        assert [str(dataset.addresses[i]) for i in stored.address] == [str(one.addresses[i]) for i in trace.addresses]
        assert stored.log_prior[0] == trace.log_prior
        assert stored.result.values[0] == trace.result


def test_other_seed_other_traces(whole: Path, tmp_path: Path) -> None:
    make(tmp_path / "d", 0, seed=6)
    assert not np.array_equal(Dataset(whole).read(0).log_prior, Dataset(tmp_path / "d").read(0).log_prior)


def test_a_complete_dataset_is_left_alone(whole: Path) -> None:
    before = files(whole)
    assert make(whole).traces == 500
    assert files(whole) == before
    with pytest.raises(DatasetError, match=r"other settings \(seed, num_traces\)"):
        make(whole, seed=1, num_traces=7)


def test_failed_execution_is_named_and_the_rest_kept(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=r"(?s)execution of trace 37 \(seed 0\) of 'm' failed.*beam was dumped"):
        simulate(partial(failing_at, 37, "raise"), tmp_path / "d", 64, model="m", workers=1, chunk_size=16)
    seen: list[int] = []
    simulate(partial(failing_at, 99, "raise"), tmp_path / "d", 64, model="m", chunk_size=16, progress=seen.append)
    assert seen[0] == 32, "two finished chunks were kept"
    assert Dataset(tmp_path / "d").manifest.traces == 64


def test_dead_worker_is_named_and_the_rest_kept(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=r"worker process died \(exit code -9\) while it ran trace 37"):
        simulate(partial(failing_at, 37, "die"), tmp_path / "d", 64, model="m", workers=1, chunk_size=16)
    with pytest.raises(DatasetError, match="unfinished"):
        Dataset(tmp_path / "d")
    simulate(partial(failing_at, 99, "die"), tmp_path / "d", 64, model="m", workers=1, chunk_size=16)
    assert len(Dataset(tmp_path / "d")) == 64


def test_models_are_closed(tmp_path: Path) -> None:
    simulate(partial(Held, tmp_path / "closed", False), tmp_path / "d", 50, model="held", workers=1)
    assert (tmp_path / "closed").exists()


def test_models_are_closed_when_the_work_is_given_up(tmp_path: Path) -> None:
    """A worker in the middle of an execution that takes a minute is ended, and still lets go."""
    origin = Origin("held", num_traces=5, chunk_size=5, encoding=Encoding().to_json())
    make = partial(ChunkRunner, partial(Held, tmp_path / "closed", True), origin, FailurePolicy(timeout=1.0))
    with (
        Pool[ChunkTask, Made](make, 1, timeout=1.0) as pool,
        pytest.raises(PoolError, match="hung for 1 s"),
    ):
        list(pool.run([ChunkTask(0)]))
    assert (tmp_path / "closed").exists()


def test_model_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=r"(?s)'m' can't be made.*no licence"):
        simulate(not_made, tmp_path / "d", 64, model="m", workers=2)


def test_nothing_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_traces ≥ 1"):
        simulate(model, tmp_path / "d", 0, model="m")


PROGRAM = """
import sys, time
from functools import partial
import etalumis as et
from etalumis.simulators.classics import HiddenMarkov
from etalumis.storage import simulate

def make():
    return et.Model(HiddenMarkov(), name="hmm")

if __name__ == "__main__":
    simulate(make, sys.argv[1], 4000, model="hmm", workers=int(sys.argv[2]), chunk_size=50, shard_traces=500,
             progress=lambda done: print(done, flush=True))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_gone_on_with(tmp_path: Path, how: signal.Signals) -> None:
    """The main process of a real run is killed; what it reported as done is there, and the files end up equal."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(tmp_path / "d"), "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        reported = 0
        for line in process.stdout:
            reported = int(line)
            if reported >= 600:
                break
        process.send_signal(how)
        reported = int([str(reported), *process.stdout.read().split()][-1])
    assert process.returncode != 0
    with pytest.raises(DatasetError, match="unfinished"):
        Dataset(tmp_path / "d")
    seen: list[int] = []
    settings = {"model": "hmm", "chunk_size": 50, "shard_traces": 500}
    simulate(hidden_markov, tmp_path / "d", 4000, progress=seen.append, **settings)
    assert reported <= seen[0] < 4000
    simulate(hidden_markov, tmp_path / "whole", 4000, workers=0, **settings)
    assert files(tmp_path / "d") == files(tmp_path / "whole")


def hidden_markov() -> et.Model:
    return et.Model(HiddenMarkov(), name="hmm")


def test_workers_end_with_their_main_process(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(tmp_path / "d"), "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline(), process.stdout.readline()  # nothing done yet; the first chunk
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert len(children) >= 2
    deadline = time.monotonic() + 10.0
    while any(alive(pid) for pid in children):
        assert time.monotonic() < deadline, "a worker outlived the main process by ten seconds"
        time.sleep(0.05)


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- whatever was left behind -------------------------------------------------------------------------------------


def in_the_making(path: Path, chunks: int) -> GrowingDataset:
    """The dataset ``whole`` after so many chunks, as a killed process leaves it."""
    origin = Origin("marsaglia", seed=5, num_traces=500, chunk_size=64, encoding=Encoding().to_json())
    growing = GrowingDataset(path, origin, Layout.of(500, 64, 200))
    runner = ChunkRunner(model, origin, FailurePolicy())
    for shard in range(growing.layout.shards):
        with GrowingShard(path, shard, growing.layout.of_shard(shard)) as open_shard:
            for number in growing.layout.of_shard(shard):
                if number < chunks:
                    open_shard.append(*runner(ChunkTask(number), OwnDesk()))
    return growing


@pytest.mark.parametrize("torn", ["journal", "shard", "header"])
def test_what_a_killed_process_tore_is_cut(whole: Path, tmp_path: Path, torn: str) -> None:
    in_the_making(tmp_path / "d", 6).suspend()
    assert (tmp_path / "d" / "shard-000000.tar").exists()
    assert (tmp_path / "d" / "shard-000001.tar.part").exists()
    if torn == "journal":
        journal = tmp_path / "d" / "shard-000001.jsonl"
        journal.write_bytes(journal.read_bytes()[:-10])
    elif torn == "shard":
        with (tmp_path / "d" / "shard-000001.tar.part").open("ab") as file:
            file.write(b"half a chunk")
    else:
        (tmp_path / "d" / "unfinished.jsonl").write_text('{"format": "eta')
    make(tmp_path / "d", workers=0)
    assert files(tmp_path / "d") == files(whole)


def test_a_shard_that_lost_bytes_is_named(tmp_path: Path) -> None:
    in_the_making(tmp_path / "d", 6).suspend()
    (tmp_path / "d" / "shard-000001.tar.part").write_bytes(b"")
    with pytest.raises(DatasetError, match="shorter than its journal"):
        make(tmp_path / "d", workers=0)


def test_killed_while_it_finished(whole: Path, tmp_path: Path) -> None:
    """Before, within and after the step that puts the dataset's ids into the shards, and before tidying up."""
    growing = in_the_making(tmp_path / "d", 8)
    lines, _ = read_journal(tmp_path / "d", 0)
    list(growing._settle(0, lines, et.AddressBook()))
    growing.suspend()
    journals = {path.name: path.read_bytes() for path in (tmp_path / "d").glob("*.jsonl")}
    make(tmp_path / "d", workers=0)
    assert files(tmp_path / "d") == files(whole)
    for name, content in journals.items():
        (tmp_path / "d" / name).write_bytes(content)
    make(tmp_path / "d", workers=0)
    assert files(tmp_path / "d") == files(whole)


def test_a_folder_in_use_or_of_others_is_refused(tmp_path: Path) -> None:
    growing = in_the_making(tmp_path / "d", 2)
    with pytest.raises(DatasetError, match="another process is writing"):
        make(tmp_path / "d", workers=0)
    growing.suspend()
    with pytest.raises(DatasetError, match=r"unfinished dataset made with other settings \(seed\)"):
        make(tmp_path / "d", workers=0, seed=6)
    (tmp_path / "d" / "unfinished.jsonl").unlink()
    with pytest.raises(DatasetError, match=r"shards without a manifest\.json"):
        make(tmp_path / "d", workers=0)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_quiet_and_leaves_no_process(tmp_path: Path, how: signal.Signals) -> None:
    """To the whole process group, as a terminal sends it."""
    words = [sys.executable, "-m", "etalumis.cli", "simulate", "simulator=hidden_markov", "num_traces=100000"]
    words += ["workers=2", "chunk_size=20", f"output={tmp_path / 'd'}"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60.0
        while not any(path.stat().st_size for path in tmp_path.glob("d/shard-*.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.killpg(process.pid, how)
        said = process.communicate(timeout=30.0)[1]
    assert process.returncode == 130
    assert said.splitlines()[-1].endswith("what was finished is kept; the same command again goes on")
    assert "Traceback" not in said
    assert children
    # Workers are gone by now. What Python itself runs beside them sees the end of this process, and ends a bit later.
    deadline = time.monotonic() + 20.0
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children if alive(pid)}
    assert not left


def test_shards_depend_on_the_number_of_traces_alone() -> None:
    assert Layout.of(10_000, 1024) == Layout(10, 1)
    assert Layout.of(100_000, 1024) == Layout(98, 7)
    assert Layout.of(10_000_000, 1024) == Layout(9766, 64)
    assert Layout.of(10_000_000, 1024).shards == 153
    assert Layout.of(1000, 64, 100) == Layout(16, 2)
    layout = Layout.of(100_000, 1024)
    assert [n for shard in range(layout.shards) for n in layout.of_shard(shard)] == list(range(98))
