"""Sorting: the same traces come out, by type, whatever the layout of processes, memory and interruptions."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import etalumis as et
from etalumis.distributions import Categorical, Normal, Poisson, Uniform
from etalumis.execution import Model, run
from etalumis.simulators.classics import marsaglia
from etalumis.storage import Dataset, DatasetError, Encoding, Origin, ShardWriter, sort
from etalumis.storage.index import TraceIndex
from etalumis.storage.tidy import tidy
from launching import mpirun, needs_mpi
from launching import run as launch

MEMORY_MB = 160  # enough for anything here
CHUNK = 32


def varied() -> Any:
    """Many trace types, and everything that there is to store."""
    n = et.sample(Poisson(2.0), name="n")
    for _ in range(n):
        et.sample(Uniform(-1.0, 1.0), name="step")
        et.sample(Normal(0.0, 1.0), name="aside", control=False)
    kind = et.sample(Categorical([0.2, 0.3, 0.5]), name="kind")
    if kind:
        et.sample(Normal(np.arange(3.0), 1.0 + kind), name="vector")
        et.observe(Normal(np.zeros((4, 5)) if n else np.ones((4, 5)), 0.5 + kind), name="image")
    et.observe(Normal(float(n), 2.0), 1.5, name="given")
    et.tag(n > 2, name="many")
    if n > 1:
        et.tag(math.inf, name="sometimes")
        et.tag(float(n), name="count")
    return "odd" if n % 2 else "even"


def write(
    directory: Path, model: Model, indices: list[range], seed: int = 3, shard_bytes: int = 20_000, **encoding: Any
) -> None:
    """A dataset with a chunk per range of indices."""
    origin = Origin(model.name, seed=seed, chunk_size=CHUNK, encoding=Encoding(**encoding).to_json())
    with ShardWriter(directory, origin, shard_bytes) as writer:
        for some in indices:
            traces = list(run(model, indices=some, seed=seed))
            writer.write(et.TraceBatch.from_traces(traces, model.addresses))


def ranges(count: int, size: int = CHUNK) -> list[range]:
    return [range(k, min(k + size, count)) for k in range(0, count, size)]


def multiset(directory: Path) -> Counter[str]:
    """Every trace as text, with all that it holds."""
    return Counter(text for batch in Dataset(directory).batches() for text in texts(batch))


def texts(batch: et.TraceBatch) -> list[str]:
    out = []
    for row in range(len(batch)):
        one = tidy(batch.select([row]))
        arrays, meta = one.to_arrays()
        arrays["address"] = np.array([str(one.addresses[i]) for i in one.address])
        for observe in meta["observes"]:
            observe["address"] = str(one.addresses[observe["address"]])
        for key in ("observes", "tags"):  # in the order of ids, which differ between datasets
            meta[key] = sorted(
                [
                    {
                        **c,
                        "arrays": {
                            k.partition(".")[2]: arrays.pop(k).tolist()
                            for k in list(arrays)
                            if k.partition(".")[0] == c["key"]
                        },
                        "key": "",
                    }
                    for c in meta[key]
                ],
                key=lambda c: (c["name"], str(c)),
            )
        out.append(json.dumps([{k: v.tolist() for k, v in sorted(arrays.items())}, meta], sort_keys=True))
    return out


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def unsorted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "unsorted"
    write(path, et.Model(varied), ranges(600))
    return path


@pytest.fixture(scope="module")
def expected(unsorted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sorted, in this process."""
    path = tmp_path_factory.mktemp("data") / "sorted"
    sort(unsorted, path, workers=0, memory_mb=MEMORY_MB, shard_bytes=20_000)
    return path


# --- what comes out -------------------------------------------------------------------------------


def test_the_same_traces_come_out(unsorted: Path, expected: Path) -> None:
    assert multiset(expected) == multiset(unsorted)
    before, after = Dataset(unsorted).manifest, Dataset(expected).manifest
    for key in ("traces", "draws", "controlled", "trace_types", "shortest", "longest", "observes"):
        assert getattr(before, key) == getattr(after, key), key
    assert len(after.shards) > 2
    assert after.origin.sources[0]["seed"] == 3


def test_like_traces_are_together(expected: Path) -> None:
    dataset = Dataset(expected)
    index = dataset.index
    controlled = index.controlled[index.type]
    counts = np.bincount(index.type)
    start = 0
    for number, (chunk, batch) in enumerate(zip(dataset.chunks, dataset.batches(), strict=True)):
        dataset.verify(number)
        assert chunk.traces <= CHUNK
        types = index.type[start : start + chunk.traces]
        np.testing.assert_array_equal(batch.trace_types(), index.types[types])
        if (4 * counts[types] >= CHUNK).any():
            assert chunk.types == 1, "a type with traces enough shares a chunk"
        assert (np.diff(controlled[start : start + chunk.traces]) >= 0).all()
        for kind in np.unique(types):
            assert (np.diff(batch.index[types == kind]) > 0).all()
        start += chunk.traces
    alone = [counts[i] for i in range(len(counts)) if 4 * counts[i] >= CHUNK]
    assert sum(chunk.types == 1 for chunk in dataset.chunks) >= sum(-(-c // CHUNK) for c in alone)


def test_sorting_again_changes_nothing(expected: Path, tmp_path: Path) -> None:
    sort(expected, tmp_path / "a", workers=0, memory_mb=MEMORY_MB)
    sort(tmp_path / "a", tmp_path / "b", workers=0, memory_mb=MEMORY_MB)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_complete_sort_is_left_alone(unsorted: Path, expected: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in expected.iterdir()}
    sort(unsorted, expected, workers=0, memory_mb=MEMORY_MB, shard_bytes=20_000)
    assert before == {path.name: path.stat().st_mtime_ns for path in expected.iterdir()}


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layout_of_the_input(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Write → sort → shuffle → read gives the same multiset; the order depends on the traces alone."""
    count = data.draw(st.integers(1, 70), label="traces")
    cuts = data.draw(st.sets(st.integers(1, 69), max_size=6), label="cuts")
    bounds = [0, *sorted(c for c in cuts if c < count), count]
    memory = data.draw(st.sampled_from([97.0, 97.3, 98.0, 200.0]), label="memory_mb")
    shards = data.draw(st.sampled_from([1, 3000, 10**9]), label="shard_bytes")
    size = data.draw(st.sampled_from([1, 8, CHUNK]), label="chunk_size")
    folder = tmp_path_factory.mktemp("layout")
    write(folder / "a", et.Model(varied), list(map(range, bounds[:-1], bounds[1:])))
    write(folder / "b", et.Model(varied), ranges(count))
    sort(folder / "a", folder / "as", workers=0, memory_mb=memory, shard_bytes=shards, chunk_size=size)
    sort(folder / "b", folder / "bs", workers=0, memory_mb=MEMORY_MB, chunk_size=size)
    one, other = (et.TraceBatch.concatenate(list(Dataset(folder / name).batches())) for name in ("as", "bs"))
    assert texts(one) == texts(other)
    shuffled = np.random.default_rng(count).permutation(count)
    assert Counter(texts(one.select(shuffled))) == multiset(folder / "b")


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers(workers: int, unsorted: Path, expected: Path, tmp_path: Path) -> None:
    sort(unsorted, tmp_path / "s", workers=workers, memory_mb=MEMORY_MB, shard_bytes=20_000)
    assert content(tmp_path / "s") == content(expected)


@pytest.mark.parametrize("memory_mb", [97.5, 99.0])
def test_any_memory(memory_mb: float, unsorted: Path, expected: Path, tmp_path: Path) -> None:
    """Little memory: many runs, many groups."""
    sort(unsorted, tmp_path / "s", workers=0, memory_mb=memory_mb, shard_bytes=20_000)
    assert content(tmp_path / "s") == content(expected)


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (3, 1)])
def test_any_number_of_ranks(ranks: int, workers: int, unsorted: Path, expected: Path, tmp_path: Path) -> None:
    needs_mpi()
    words = ["sort", f"input={unsorted}", f"output={tmp_path / 's'}", f"workers={workers}"]
    words += [f"memory_mb={MEMORY_MB}", f"shard_mb={20_000 / 2**20}"]
    said = launch([*mpirun(ranks), "-m", "etalumis.cli", *words])
    assert said.count("trace types") == 1, "one rank speaks"
    assert content(tmp_path / "s") == content(expected)


def test_a_failure_on_any_rank_ends_all(unsorted: Path, tmp_path: Path) -> None:
    needs_mpi()
    damaged = Path(shutil.copytree(unsorted, tmp_path / "damaged"))
    path = damaged / "shard-000003.tar"
    path.write_bytes(path.read_bytes()[:2000] + b"?" + path.read_bytes()[2001:])
    words = ["sort", f"input={damaged}", f"output={tmp_path / 's'}", "memory_mb=97.5", "debug=true"]
    said = launch([*mpirun(2), "-m", "etalumis.cli", *words], code=None)
    assert "shard-000003.tar is damaged" in said
    assert "Traceback" in said, "of the rank that failed, before it ends the job"
    with pytest.raises(DatasetError, match="unfinished sort"):
        Dataset(tmp_path / "s")


_INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
from etalumis import cli

def interrupt():
    while not Path(sys.argv[2], "sorting", "plan.json").exists():
        time.sleep(0.001)
    os.kill(os.getpid(), int(sys.argv[3]))

if (os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"]) == "1":
    threading.Thread(target=interrupt, daemon=True).start()
command = ["sort", f"input={sys.argv[1]}", f"output={sys.argv[2]}", "memory_mb=97.5", "workers=0"]
sys.exit(cli.main([*command, f"shard_mb={20_000 / 2**20}"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_of_one_rank_ends_all(
    number: signal.Signals, unsorted: Path, expected: Path, tmp_path: Path
) -> None:
    needs_mpi()
    said = launch([*mpirun(2), "-c", _INTERRUPTED, unsorted, tmp_path / "s", str(int(number))], code=None)
    assert "the same command again goes on" in said
    sort(unsorted, tmp_path / "s", workers=0, memory_mb=97.5, shard_bytes=20_000)
    assert content(tmp_path / "s") == content(expected)


# --- several datasets -----------------------------------------------------------------------------


def test_datasets_become_one(tmp_path: Path) -> None:
    """Addresses were met in different orders, and indices overlap."""
    write(tmp_path / "a", et.Model(varied), ranges(100), seed=1)
    write(tmp_path / "b", et.Model(varied), ranges(150), seed=2)
    a, b = Dataset(tmp_path / "a"), Dataset(tmp_path / "b")
    assert [str(x) for x in a.addresses] != [str(x) for x in b.addresses]
    sort([tmp_path / "a", tmp_path / "b"], tmp_path / "c", workers=0, memory_mb=MEMORY_MB)
    both = Dataset(tmp_path / "c")
    indices = np.concatenate([batch.index for batch in both.batches()])
    assert sorted(indices) == list(range(250))
    assert [(s["seed"], s["shift"], s["last"]) for s in both.manifest.origin.sources] == [(1, 0, 99), (2, 100, 149)]
    plain = multiset(tmp_path / "a")
    for batch in b.batches():
        shifted = et.TraceBatch(**{**vars(batch), "index": batch.index + 100})
        plain.update(texts(shifted))
    assert multiset(tmp_path / "c") == plain
    # And on: what was joined can be joined again.
    write(tmp_path / "d", et.Model(varied), ranges(40), seed=5)
    sort([tmp_path / "d", tmp_path / "c"], tmp_path / "e", workers=0, memory_mb=MEMORY_MB)
    origin = Dataset(tmp_path / "e").manifest.origin
    assert [(s["seed"], s["shift"]) for s in origin.sources] == [(5, 0), (1, 40), (2, 140)]
    assert origin.num_traces == 290


def test_what_does_not_fit_together_is_refused(unsorted: Path, tmp_path: Path) -> None:
    write(tmp_path / "again", et.Model(varied), [range(599, 700)])
    with pytest.raises(DatasetError, match="hold the same traces"):
        sort([unsorted, tmp_path / "again"], tmp_path / "s", workers=0)
    write(tmp_path / "other", et.Model(marsaglia), ranges(10))
    with pytest.raises(DatasetError, match="different models"):
        sort([unsorted, tmp_path / "other"], tmp_path / "s", workers=0)
    write(tmp_path / "wide", et.Model(varied), ranges(10), seed=8, observe_dtype="float64")
    with pytest.raises(DatasetError, match=r"encoding.observe_dtype=\.\.\."):
        sort([unsorted, tmp_path / "wide"], tmp_path / "s", workers=0)
    sort([unsorted, tmp_path / "wide"], tmp_path / "s", workers=0, encoding={"observe_dtype": "float32"})
    assert len(Dataset(tmp_path / "s")) == 610
    with pytest.raises(DatasetError, match="no dataset is given"):
        sort([], tmp_path / "t")
    with pytest.raises(DatasetError, match="is an input"):
        sort(unsorted, unsorted / ".." / unsorted.name, workers=0, chunk_size=7)
    with pytest.raises(DatasetError, match=r"already holds a dataset made with other settings \(chunk_size\)"):
        sort(
            [unsorted, tmp_path / "wide"],
            tmp_path / "s",
            workers=0,
            encoding={"observe_dtype": "float32"},
            chunk_size=7,
        )


def test_too_little_memory_is_said(unsorted: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"memory_mb=96 is too little: the largest storage chunk needs \d+"):
        sort(unsorted, tmp_path / "s", workers=0, memory_mb=96)


# --- interruptions --------------------------------------------------------------------------------

_SORT = "import sys; from etalumis.storage import sort; "
_SORT += "sort(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]), memory_mb=97.5, shard_bytes=20_000)"


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_any_moment(workers: int, unsorted: Path, expected: Path, tmp_path: Path) -> None:
    """kill −9, again and again at later moments: each attempt goes on, and the last gives the same files."""
    output, longest = tmp_path / "s", 0
    moments = np.random.default_rng(workers).uniform(0.0, 0.25, 8)
    for pause in moments:
        process = subprocess.Popen([sys.executable, "-c", _SORT, unsorted, output, str(workers)])
        while process.poll() is None and not (output / "sorting" / "plan.json").exists():
            time.sleep(0.002)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = finished_chunks(output)
        assert done >= longest, "chunks that were listed are gone"
        longest = done
        if (output / "manifest.json").exists():
            break
    sort(unsorted, output, workers=workers, memory_mb=97.5, shard_bytes=20_000)
    assert content(output) == content(expected)


def finished_chunks(output: Path) -> int:
    if (output / "manifest.json").exists():
        return len(Dataset(output).chunks)
    return sum(path.read_bytes().count(b"\n") for path in (output / "sorting").glob("shard-*.jsonl"))


@pytest.mark.parametrize("step", range(0, 32, 4))
def test_interrupted_after_any_step(step: int, unsorted: Path, expected: Path, tmp_path: Path) -> None:
    """As above without chance: stopped after so many reports of progress, with torn files behind what is listed."""
    count = 0

    def report(done: int) -> None:
        nonlocal count
        count += 1
        if count > step:
            raise KeyboardInterrupt

    class Reporting:
        def __init__(self, name: str, total: int) -> None:
            assert name in ("read", "write")
            assert total == 600

        def __enter__(self) -> Any:
            return report

        def __exit__(self, *_: object) -> None:
            pass

    output = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        sort(unsorted, output, workers=0, memory_mb=97.5, shard_bytes=20_000, progress=Reporting)
    with pytest.raises(DatasetError, match="unfinished sort: run the same sort command again"):
        Dataset(output)
    for path in (*output.glob("*.part"), *(output / "sorting").glob("shard-*.jsonl")):
        with path.open("ab") as file:
            file.write(b"{" * 700)
    with pytest.raises(DatasetError, match=r"unfinished sort with other settings \(memory_mb\)"):
        sort(unsorted, output, workers=0, memory_mb=97.2, shard_bytes=20_000)
    sort(unsorted, output, workers=0, memory_mb=97.5 if step % 8 else MEMORY_MB, shard_bytes=20_000)
    assert content(output) == content(expected)


def test_a_killed_worker_is_noticed(unsorted: Path, expected: Path, tmp_path: Path) -> None:
    """Damage to a run file is, too."""
    runs: list[Path] = []

    def progress(name: str, total: int) -> Any:
        if name == "write":
            runs.extend((tmp_path / "s" / "sorting").glob("run-*.tar"))
            damaged = bytearray(runs[0].read_bytes())
            damaged[700] ^= 1
            runs[0].write_bytes(damaged)
        return _Quiet()

    with pytest.raises(DatasetError, match=r"run-\d+\.tar is damaged"):
        sort(unsorted, tmp_path / "s", workers=1, memory_mb=97.5, shard_bytes=20_000, progress=progress)


class _Quiet:
    def __enter__(self) -> Any:
        return lambda done: None

    def __exit__(self, *_: object) -> None:
        pass


# --- memory and bytes -----------------------------------------------------------------------------

_MEASURE = """
import pathlib, re, sys
from etalumis.storage import sort
sort(sys.argv[1], sys.argv[2], workers=0, memory_mb=float(sys.argv[3]))
# Not ru_maxrss: it begins with the peak of the process that started this one.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """227 MiB of decoded traces, sorted in 160 MiB with all of Python, and in 400."""

    def images() -> None:
        for _ in range(et.sample(Poisson(3.0), name="n")):
            et.sample(Uniform(0.0, 1.0))
        et.observe(Normal(np.random.default_rng(0).normal(size=(20, 35, 35)), 1.0), name="image")

    model = et.Model(images)
    traces = list(run(model, indices=range(64), seed=0))
    origin = Origin(model.name, chunk_size=64, encoding=Encoding().to_json())
    with ShardWriter(tmp_path / "d", origin) as writer:
        for first in range(0, 2432, 64):
            batch = et.TraceBatch.from_traces(traces, model.addresses)
            noise = np.random.default_rng(first).normal(size=(64, 20, 35, 35))
            image = batch.observes[0]
            image = type(image)(**{**vars(image), "parameters": (noise, image.parameters[1])})
            writer.write(et.TraceBatch(**{**vars(batch), "index": batch.index + first, "observes": (image,)}))
    memory = sum(chunk.memory for chunk in Dataset(tmp_path / "d").chunks)
    assert memory > 1.4 * 160 * 2**20
    for limit in (160, 400):
        command = [sys.executable, "-c", _MEASURE, str(tmp_path / "d"), str(tmp_path / f"s{limit}"), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert float(done.stdout) < limit
    assert content(tmp_path / "s160") == content(tmp_path / "s400")


def test_the_encoding_can_be_changed(unsorted: Path, tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    sort(unsorted, tmp_path / "z", workers=0, memory_mb=MEMORY_MB, encoding={"compression": "zstd"})
    sort(unsorted, tmp_path / "p", workers=0, memory_mb=MEMORY_MB)
    assert Dataset(tmp_path / "z").manifest.bytes < Dataset(tmp_path / "p").manifest.bytes
    assert multiset(tmp_path / "z") == multiset(unsorted)


# --- the index ------------------------------------------------------------------------------------


def test_the_index_says_what_the_traces_are(unsorted: Path) -> None:
    dataset = Dataset(unsorted)
    index = dataset.index
    batches = list(dataset.batches())
    np.testing.assert_array_equal(index.types[index.type], np.concatenate([b.trace_types() for b in batches]))
    np.testing.assert_array_equal(index.length, np.concatenate([b.lengths for b in batches]))
    np.testing.assert_array_equal(index.index, np.arange(600))
    controlled = [np.bincount(b.trace_of_draw, b.controlled, len(b)) for b in batches]
    np.testing.assert_array_equal(index.controlled[index.type], np.concatenate(controlled))
    again = TraceIndex.from_text(index.to_text())
    for key in vars(index):
        np.testing.assert_array_equal(getattr(again, key), getattr(index, key))


def test_traces_without_draws() -> None:
    batch = et.TraceBatch.from_traces(
        list(run(et.Model(lambda: None), indices=range(3), seed=0)), et.Model(print).addresses
    )
    index = TraceIndex.of(batch)
    assert (index.counts()["controlled"], index.counts()["draws"], len(index.types)) == (0, 0, 1)
