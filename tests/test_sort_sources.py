"""What a sort knows of its sources: that they changed, which of their executions failed, what they can't give."""

import json
import re
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Normal, Uniform
from etalumis.execution import run
from etalumis.storage import Dataset, DatasetError, Encoding, Origin, ShardWriter, simulate, sort
from etalumis.storage.chunk import encode_chunk
from etalumis.storage.failures import FailedTrace, FailurePolicy
from etalumis.storage.inspect import failed, inspect
from etalumis.storage.plan import BASE_MB
from etalumis.storage.validate import validate

pytestmark = pytest.mark.timeout(60)
MEMORY_MB = 160


def shifted(by: float) -> Callable[[], et.Model]:
    def simulator() -> float:
        u = et.sample(Uniform(0.0, 1.0), name="u")
        if by < 0.0 and u > 0.9:
            raise RuntimeError("above 0.9")
        et.observe(Normal(u + by, 1.0), name="y")
        return float(u)

    return lambda: et.Model(simulator, "shifted")


def make(path: Path, by: float = 0.0, count: int = 40, seed: int = 0, **settings: Any) -> Path:
    simulate(shifted(by), path, count, model="shifted", seed=seed, workers=0, chunk_size=10, **settings)
    return path


def test_a_complete_sort_of_other_traces_is_refused(tmp_path: Path) -> None:
    """The inputs were made anew, with other code and the same settings."""
    make(tmp_path / "a", 0.0)
    sort(tmp_path / "a", tmp_path / "s", workers=0, memory_mb=MEMORY_MB)
    make(tmp_path / "b", 1.0)
    for path in (tmp_path / "a").iterdir():
        path.write_bytes((tmp_path / "b" / path.name).read_bytes())
    with pytest.raises(DatasetError, match=r"other settings \(sources\)"):
        sort(tmp_path / "a", tmp_path / "s", workers=0, memory_mb=MEMORY_MB)


def test_a_complete_sort_with_other_shards_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a")
    sort(tmp_path / "a", tmp_path / "s", workers=0, memory_mb=MEMORY_MB)
    with pytest.raises(DatasetError, match=r"other settings \(shard_bytes\)"):
        sort(tmp_path / "a", tmp_path / "s", workers=0, memory_mb=MEMORY_MB, shard_bytes=5000)


def test_an_unfinished_sort_of_other_traces_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a", 0.0)

    def stop(step: str, total: int) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sort(tmp_path / "a", tmp_path / "s", workers=0, memory_mb=MEMORY_MB, progress=stop)
    make(tmp_path / "b", 1.0)
    for path in (tmp_path / "a").iterdir():
        path.write_bytes((tmp_path / "b" / path.name).read_bytes())
    with pytest.raises(DatasetError, match=r"unfinished sort with other settings \(origin, inputs\)"):
        sort(tmp_path / "a", tmp_path / "s", workers=0, memory_mb=MEMORY_MB)


# --- failures -------------------------------------------------------------------------------------

SKIP = FailurePolicy("skip", 0.5)


def lacking(path: Path) -> dict[str, Any]:
    return dict(Dataset(path).manifest.failures)


def copied(source: Path, path: Path) -> Path:
    """The same dataset as training with a copy writes it: of no known number of traces."""
    dataset = Dataset(source)
    failed = lacking(source)["indices"]
    origin = Origin("shifted", dataset.manifest.origin.seed + 100, None, 10, encoding=Encoding().to_json())
    with ShardWriter(path, origin) as writer:
        for number, batch in enumerate(dataset.batches()):
            here = [index for index in failed if index // 10 == number]
            writer.append(
                encode_chunk(number, batch, Encoding()), tuple(FailedTrace(index, "copied") for index in here)
            )
    return path


def test_failures_are_carried_through_a_sort(tmp_path: Path) -> None:
    """Also that of the last trace of the first dataset, which the next one's traces must not take the index of."""
    count = last_fails(range(30, 45))
    make(tmp_path / "a", -1.0, count, failures=SKIP)
    make(tmp_path / "b", -1.0, seed=1, failures=SKIP)
    before = lacking(tmp_path / "a")
    assert before["indices"][-1] == count - 1
    sort([tmp_path / "a", tmp_path / "b"], tmp_path / "s", workers=0, memory_mb=MEMORY_MB)
    after = lacking(tmp_path / "s")
    expected = [*before["indices"], *(count + index for index in lacking(tmp_path / "b")["indices"])]
    assert after["indices"] == expected
    assert after["count"] == len(expected)
    assert after["messages"] == [
        {"message": "RuntimeError: above 0.9", "count": len(expected), "first": before["indices"][0]}
    ]
    assert failed(Dataset(tmp_path / "s").manifest) == len(expected)
    assert list(validate(tmp_path / "s", workers=0)) == []
    sort(tmp_path / "s", tmp_path / "again", workers=0, memory_mb=MEMORY_MB)
    assert lacking(tmp_path / "again") == after


def last_fails(counts: range) -> int:
    """A number of traces of which the last fails."""
    draws = [trace.values[0] for trace in run(shifted(0.0)(), indices=range(counts.stop), seed=0)]
    return next(count for count in counts if draws[count - 1] > 0.9)


def test_a_writer_keeps_failures(tmp_path: Path) -> None:
    make(tmp_path / "a", -1.0, failures=SKIP)
    copied(tmp_path / "a", tmp_path / "c")
    assert lacking(tmp_path / "c")["indices"] == lacking(tmp_path / "a")["indices"]
    assert failed(Dataset(tmp_path / "c").manifest) == len(lacking(tmp_path / "a")["indices"])
    sort([tmp_path / "c", tmp_path / "a"], tmp_path / "s", workers=0, memory_mb=MEMORY_MB)
    assert {entry["message"] for entry in lacking(tmp_path / "s")["messages"]} == {"copied", "RuntimeError: above 0.9"}
    assert Dataset(tmp_path / "s").manifest.origin.num_traces == 80
    assert list(validate(tmp_path / "s", workers=0)) == []


def test_a_writer_that_goes_on_keeps_failures(tmp_path: Path) -> None:
    model = shifted(0.0)()
    writer = ShardWriter(tmp_path / "d", Origin("shifted"))
    traces = list(run(model, indices=range(1, 4), seed=0))
    encoded = encode_chunk(0, et.TraceBatch.from_traces(traces, model.addresses), Encoding())
    writer.append(encoded, (FailedTrace(0, "why"),))
    writer.suspend()
    ShardWriter(tmp_path / "d", Origin("shifted")).close()
    assert lacking(tmp_path / "d") == {
        "count": 1,
        "indices": [0],
        "messages": [{"message": "why", "count": 1, "first": 0}],
    }


def test_missing_traces_are_found(tmp_path: Path) -> None:
    make(tmp_path / "a", shard_traces=10)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    manifest["origin"]["num_traces"] = 50
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    (problem,) = validate(tmp_path / "a", workers=0)
    assert "40 traces stored and 0 failed do not make 50" in problem


# --- sizes ----------------------------------------------------------------------------------------


def rarely_large() -> float:
    """One trace in twenty is hundreds of times as large."""
    u = et.sample(Uniform(0.0, 1.0), name="u")
    if u < 0.05:
        et.sample(Uniform(0.0, 1.0), name="large")
        et.observe(Normal(np.random.default_rng(int(u * 1e9)).normal(size=8000), 1.0), name="image")
    else:
        et.observe(Normal(u, 1.0), name="y")
    return float(u)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixed") / "d"
    simulate(lambda: et.Model(rarely_large), path, 1600, model="rarely_large", workers=0, chunk_size=16)
    return path


def test_a_rare_type_of_large_traces_is_sorted_in_the_memory_allowed(mixed: Path, tmp_path: Path) -> None:
    """They are one group, which was thought to be small."""
    tracemalloc.start()
    sort(mixed, tmp_path / "s", workers=0, memory_mb=BASE_MB + 4.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (4 + 2) * 2**20  # what BASE_MB is for has a part in it
    sort(mixed, tmp_path / "t", workers=0, memory_mb=BASE_MB + 200.0)
    for path in (tmp_path / "t").iterdir():
        assert (tmp_path / "s" / path.name).read_bytes() == path.read_bytes()


def test_a_chunk_that_is_too_large_is_found_when_it_was_read_and_more_memory_goes_on(
    mixed: Path, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=r"memory_mb=100 is too little: .* needs (\d+)") as raised:
        sort(mixed, tmp_path / "s", workers=0, memory_mb=BASE_MB + 4.0, chunk_size=80)
    needed = re.search(r"needs (\d+)", str(raised.value))
    assert needed is not None
    assert int(needed[1]) > BASE_MB + 4.0
    runs = sorted((tmp_path / "s" / "sorting").glob("run-*.tar"))
    written = [path.stat().st_mtime_ns for path in runs]
    seen: list[int] = []

    @contextmanager
    def progress(step: str, total: int) -> Iterator[Callable[[int], None]]:
        seen.extend(path.stat().st_mtime_ns for path in runs if step == "write")
        yield lambda done: None

    sort(mixed, tmp_path / "s", workers=0, memory_mb=float(needed[1]), chunk_size=80, progress=progress)
    assert seen == written
    assert list(validate(tmp_path / "s", workers=0)) == []


def test_values_that_were_not_kept_are_not_promised(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(DatasetError, match=r"encoding\.observes=both .* simulate anew with encoding\.observes=both"):
        sort(tmp_path / "a", tmp_path / "s", workers=0, memory_mb=MEMORY_MB, encoding={"observes": "both"})
    make(tmp_path / "b", encoding=Encoding(observes="both"))
    sort(tmp_path / "b", tmp_path / "s", workers=0, memory_mb=MEMORY_MB, encoding={"observes": "parameters"})


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="force_dtype is true or false; got 'maybe'"):
        Encoding(force_dtype="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sparse_above is a share"):
        Encoding(sparse_above=-5.0)
    make(tmp_path / "a")
    for top in (0, -1):
        with pytest.raises(ValueError, match="top is how many"):
            inspect(Dataset(tmp_path / "a"), top)
    with pytest.raises(ValueError, match="workers is a number"):
        sort(tmp_path / "a", tmp_path / "s", workers=-3)
    with pytest.raises(ValueError, match="workers is a number"):
        list(validate(tmp_path / "a", workers=-3))
    with pytest.raises(ValueError, match="workers is a number"):
        simulate(shifted(0.0), tmp_path / "b", 5, model="shifted", workers=-3)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    """A limit on the size of files stands in for it."""
    make(tmp_path / "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(DatasetError, match=r"while .*s was written: .*free some space"):
            sort(tmp_path / "a", tmp_path / "s", workers=0, memory_mb=MEMORY_MB)
        with pytest.raises(DatasetError, match=r"while .*b was written: .*free some space"):
            make(tmp_path / "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    sort(tmp_path / "a", tmp_path / "s", workers=0, memory_mb=MEMORY_MB)
    assert len(Dataset(make(tmp_path / "b"))) == 40
