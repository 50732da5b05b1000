"""``validate`` names everything that is wrong with a dataset, and nothing that is not."""

import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import etalumis as et
from etalumis import cli
from etalumis.distributions import Categorical, Normal
from etalumis.execution import run
from etalumis.simulators.classics import marsaglia
from etalumis.storage import Dataset, DatasetError, Encoding, Origin, ShardWriter, simulate
from etalumis.storage.chunk import address_entry, decode, encode_chunk
from etalumis.storage.codec import decode_arrays, encode_arrays, npy
from etalumis.storage.tar import unpack_span
from etalumis.storage.validate import validate

pytestmark = pytest.mark.timeout(60)


def model() -> et.Model:
    return et.Model(marsaglia)


def make(path: Path, seed: int = 0) -> Path:
    simulate(model, path, 400, model="marsaglia", seed=seed, workers=0, chunk_size=40, shard_traces=80)
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("validate") / "good")


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def problems(path: Path, full: bool = False) -> list[str]:
    return list(validate(path, workers=0, full=full))


def rewrite(path: Path, **changes: object) -> None:
    """Change fields of a manifest."""
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(("workers", "full"), [(0, True), (2, False)])
def test_nothing_is_wrong_with_a_good_dataset(good: Path, workers: int, full: bool) -> None:
    seen: list[int] = []
    assert list(validate(good, workers=workers, full=full, report=seen.append)) == []
    assert seen == list(range(11))


@pytest.mark.parametrize("position", [0, 600, 5_000, -1_030, -1])
def test_any_flipped_byte_is_found(copy: Path, position: int) -> None:
    path = copy / "shard-000002.tar"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    found = problems(copy)
    assert len(found) == 1
    assert "shard-000002.tar" in found[0]
    assert "chunk" in found[0] if position != -1 else "does not end as a tar archive" in found[0]


def test_everything_is_listed_not_the_first_alone(copy: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", seed=1)
    (copy / "shard-000000.tar").unlink()
    with (copy / "shard-000001.tar").open("r+b") as file:
        file.truncate(3000)
    shutil.copy(other / "shard-000002.tar", copy / "shard-000002.tar")  # of another dataset
    shutil.copy(other / "shard-000003.tar", copy / "shard-000077.tar")  # of none
    (copy / "shard-000004.tar.part").touch()
    (copy / "unfinished.jsonl").touch()
    found = "\n".join(problems(copy))
    for expected in (
        r"shard-000000.tar is missing (5 shards in all)",
        r"shard-000001.tar has 3000 bytes",
        r"shard-000001.tar does not end as a tar archive does",
        r"shard-000001.tar is damaged: chunk 2",
        r"shard-000001.tar is damaged: chunk 3",
        r"shard-000002.tar is damaged: chunk 4",
        r"shard-000002.tar is damaged: chunk 5",
        r"shard-000077.tar is not in the manifest",
        r"shard-000004.tar.part was left",
        r"unfinished.jsonl was left",
    ):
        assert expected in found
    assert "shard-000003" not in found


def test_a_manifest_that_disagrees(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    chunks = manifest["chunks"]
    chunks["draws"][3] += 1
    chunks["longest"][4] = 9999
    rewrite(copy, chunks=chunks, trace_types=manifest["trace_types"] + 1)
    found = "\n".join(problems(copy))
    assert f"manifest.json says draws {manifest['draws']}, but its chunks make {manifest['draws'] + 1}" in found
    assert "but its chunks make 9999" in found
    assert f"holds {manifest['trace_types']} trace types" in found
    assert "chunk 3: it has draws" in found
    assert "chunk 4: it has longest" in found


@pytest.mark.parametrize("name", ["addresses.json", "index.tar", "manifest.json"])
def test_damaged_companions(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content.replace(b"marsaglia", b"marsaglja") if name != "index.tar" else content[:-1024])
    if name == "manifest.json":
        (copy / name).write_bytes(content[: len(content) // 2])
    found = problems(copy)
    assert any(name in problem for problem in found)


def test_ids_out_of_range(copy: Path) -> None:
    """A chunk whose checksum is right and whose address ids are not."""
    dataset = Dataset(copy)
    chunk = dataset.chunks[1]
    path = copy / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    span = bytes(content[chunk.offset : chunk.offset + chunk.size])
    count = len(np.unique(dataset.read(1).address)) + 2
    entry = address_entry(1, np.arange(count, dtype=np.int32) + 1000)
    assert span[-len(entry) :][:512] == entry[:512], "the last member of a chunk"
    content[chunk.offset + chunk.size - len(entry) : chunk.offset + chunk.size] = entry
    path.write_bytes(content)
    chunks = json.loads((copy / "manifest.json").read_text())["chunks"]
    chunks["crc32"][1] = zlib.crc32(bytes(content[chunk.offset : chunk.offset + chunk.size]))
    rewrite(copy, chunks=chunks)
    (problem,) = problems(copy)
    assert "chunk 1" in problem
    assert "uses address" in problem


def test_negative_ids() -> None:
    """They would count from the dictionary's end."""
    made = model()
    batch = et.TraceBatch.from_traces(list(run(made, indices=range(2), seed=0)), made.addresses)
    chunk = encode_chunk(0, batch, Encoding())
    ids = np.arange(len(chunk.addresses), dtype=np.int32) - 1
    with pytest.raises(DatasetError, match="uses address -1,"):
        decode(unpack_span("000000000", bytearray(address_entry(0, ids) + chunk.span)), made.addresses)
    with pytest.raises(DatasetError, match="addresses"):
        decode(unpack_span("000000000", bytearray(address_entry(0, ids[:1] + 1) + chunk.span)), made.addresses)


def test_booleans_that_are_too_few() -> None:
    """Bits that are not there would be read as False."""
    arrays = {"flags": np.arange(500) % 3 == 0, "rarely": np.where(np.arange(500) % 7, 0.0, np.arange(500.0))}
    members = encode_arrays(arrays, None)
    for name in ("flags.npy", "rarely.mask.npy"):
        with pytest.raises(DatasetError, match="1 bytes"):
            decode_arrays({**members, name: npy(np.ones(1, dtype=np.uint8))})


def test_observations_of_other_families_than_the_manifest_says(copy: Path) -> None:
    observes = json.loads((copy / "manifest.json").read_text())["observes"]
    assert {tuple(entry["families"]) for entry in observes.values()} == {("Normal",)}
    rewrite(copy, observes={name: {**entry, "families": ["Poisson"]} for name, entry in observes.items()})
    assert sum("its observations are not those of the manifest" in problem for problem in problems(copy)) == 10


def with_array(path: Path, **columns: float) -> list[str]:
    """Problems of a dataset whose second chunk has a number changed in a column."""
    made = model()
    traces = list(run(made, indices=range(40), seed=3))
    with ShardWriter(path, Origin("marsaglia", seed=3, num_traces=40)) as writer:
        for first in (0, 20):
            batch = et.TraceBatch.from_traces(traces[first : first + 20], made.addresses)
            if first:
                for name, value in columns.items():
                    array = getattr(batch, name).copy()
                    array[5] = value
                    batch = replace(batch, **{name: array})
            writer.write(batch)
    return [*problems(path), *(f"full: {problem}" for problem in problems(path, full=True))]


@pytest.mark.parametrize(
    ("columns", "message", "sampled"),
    [
        ({"log_prob": float("nan")}, "log_prob is not finite", True),
        ({"log_likelihood": float("nan")}, "log_likelihood is NaN", True),
        ({"value": float("inf")}, "value is not finite", True),
        ({"value": 7.5}, "lies outside the support", False),
        ({"value": 0.123}, "", False),
        ({"log_prior": 1.0}, "log_prior of trace 25 is not the sum over its draws", True),
        ({"log_proposal": 3.0}, "log_proposal of trace 25 is not the sum over its draws", True),
    ],
)
def test_wrong_numbers(tmp_path: Path, columns: dict[str, float], message: str, sampled: bool) -> None:
    found = with_array(tmp_path / "d", **columns)
    assert any(problem.startswith("full: ") and message in problem for problem in found) == bool(message)
    assert any(not problem.startswith("full: ") and message in problem for problem in found) == sampled


def test_traces_that_come_twice_or_are_not_accounted_for(tmp_path: Path) -> None:
    made = model()
    traces = list(run(made, indices=[0, 1, 2, 2, 9], seed=3))
    with ShardWriter(tmp_path / "d", Origin("marsaglia", seed=3, num_traces=5)) as writer:
        writer.write(et.TraceBatch.from_traces(traces, made.addresses))
    rewrite(tmp_path / "d", failures={"count": 2, "indices": [1, 4], "messages": []})
    found = "\n".join(problems(tmp_path / "d"))
    assert "1 trace indices come twice: 2" in found
    assert "outside 0 to 4: 9" in found
    assert "counts traces as failed that are stored: 1" in found
    assert "4 traces stored and 2 failed do not make 5" in found


def test_folders_that_hold_no_dataset(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path / "nowhere")
    assert "does not exist" in problem
    writer = ShardWriter(tmp_path / "d", Origin("m"))
    writer.suspend()
    (problem,) = problems(tmp_path / "d")
    assert "unfinished" in problem


def test_the_command(good: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", str(good), "workers=0", "full=true"]) == 0
    assert "nothing wrong in 400 traces" in capsys.readouterr().out
    (copy / "shard-000000.tar").unlink()
    (copy / "shard-000001.tar").unlink()
    assert cli.main(["validate", f"dataset={copy}", "workers=0"]) == 1
    said = capsys.readouterr()
    assert said.out.count("is missing") == 2
    assert "2 problems" in said.err


def test_other_families_and_shapes(tmp_path: Path) -> None:
    def mixed() -> None:
        et.sample(Normal([0.0, 1.0], 2.0), name="v")
        k = et.sample(Categorical([0.2, 0.3, 0.5]), name="k")
        et.sample(Normal(float(k), 1.0), name="x", control=False)
        et.observe(Normal([0.0, float(k)], 1.0), name="y")

    simulate(lambda: et.Model(mixed, "mixed"), tmp_path / "d", 100, model="mixed", workers=0, chunk_size=30)
    assert problems(tmp_path / "d", full=True) == []
