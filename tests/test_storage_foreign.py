"""Datasets damaged or foreign in any form: a message that names the file, never a traceback."""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest

import etalumis as et
from etalumis.simulators.classics import marsaglia
from etalumis.storage import Dataset, DatasetError, simulate
from etalumis.storage.tar import END_OF_ARCHIVE, pack_span
from etalumis.storage.validate import validate

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "good"
    simulate(lambda: et.Model(marsaglia), path, 120, model="marsaglia", workers=0, chunk_size=20, shard_traces=40)
    return path


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def problems(path: Path) -> list[str]:
    return list(validate(path, workers=0))


def rewrite(path: Path, **changes: object) -> None:
    """Change fields of a manifest."""
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": None}, "format version None"),
        ({"failures": [1]}, "failures"),
        ({"failures": {"count": 1, "indices": ["x"]}}, "failures"),
        ({"observes": {"y": 3}}, "observes"),
        ({"traces": "many"}, "traces"),
        ({"shards": [1, "x"]}, "shards"),
        ({"shards": 7}, "is damaged"),
        ({"chunks": {"size": 10**15}}, "chunk 0"),
        ({"chunks": {"size": "x"}}, "chunk 0"),
        ({"chunks": {"offset": -5}}, "chunk 0"),
        ({"chunks": {"shard": 99}}, "chunk 0"),
        ({"chunks": {"memory": 1.5}}, "chunk 0"),
        ({"origin": {"num_traces": "x"}}, "num_traces"),
        ({"origin": {"encoding": 5}}, "encoding"),
        ({"origin": 5}, "is damaged"),
    ],
)
def test_manifests_of_any_other_form(copy: Path, change: dict[str, Any], message: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    for key, value in change.get("chunks", {}).items():
        manifest["chunks"][key][0] = value
    if isinstance(origin := change.get("origin"), dict):
        manifest["origin"] |= origin
        change = {}
    if "chunks" in change:
        change = {}
    (copy / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(DatasetError, match=message):
        Dataset(copy)
    (problem,) = problems(copy)
    assert message in problem


def test_a_manifest_without_version_or_nested_without_end(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["version"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (problem,) = problems(copy)
    assert "format version None" in problem
    (copy / "manifest.json").write_text("[" * 200_000)
    (problem,) = problems(copy)
    assert "not JSON" in problem


@pytest.mark.parametrize("content", ["[5]", "5", "[[]]", '[["a"]]', "[" * 100_000])
def test_dictionaries_of_any_other_form(copy: Path, content: str) -> None:
    (copy / "addresses.json").write_text(content)
    rewrite(copy, addresses_crc32=zlib.crc32(content.encode()))
    with pytest.raises(DatasetError, match=r"addresses\.json"):
        Dataset(copy)
    assert any("addresses.json" in problem for problem in problems(copy))


def test_a_folder_in_place_of_a_shard(copy: Path) -> None:
    (copy / "shard-000001.tar").unlink()
    (copy / "shard-000001.tar").mkdir()
    assert any("shard-000001.tar" in problem for problem in problems(copy))


def test_an_index_that_asks_for_all_memory(copy: Path) -> None:
    """A small file of constants: 8 GB if it is believed."""
    arrays = {"huge": {"dtype": "<i8", "shape": [10**9], "constant": 1}}
    content = pack_span("index", {"meta.json": json.dumps({"meta": None, "arrays": arrays}).encode()})
    content += END_OF_ARCHIVE
    (copy / "index.tar").write_bytes(content)
    rewrite(copy, index_crc32=zlib.crc32(content))
    with pytest.raises(DatasetError, match=r"index\.tar.*would take 8,000,000,000 bytes"):
        len(Dataset(copy).index)


def test_a_chunk_that_fails_in_any_way_is_one_problem(copy: Path) -> None:
    """Its members have the checksum of the manifest and make no sense: too few ids, JSON nested without end."""
    for number, members in enumerate(
        ({"meta.json": b"[" * 100_000}, {"meta.json": b'{"meta": 1, "arrays": {}}'}, {"meta.json": b"7"})
    ):
        replaced(copy, number, pack_span(f"{number:09d}", members))
    found = problems(copy)
    for number in range(3):
        assert sum(f"chunk {number}:" in problem for problem in found) == 1


def replaced(path: Path, number: int, span: bytes) -> None:
    """Another content of a chunk, padded to its size with a member that nobody reads."""
    chunk = Dataset(path, check=False).chunks[number]
    room = chunk.size - len(span) - 512
    assert room > 0 or len(span) > chunk.size
    manifest = json.loads((path / "manifest.json").read_text())
    shard = path / f"shard-{chunk.shard:06d}.tar"
    content = shard.read_bytes()
    if room > 0:
        span += pack_span(f"{number:09d}", {"rest": bytes(room)})
    grown = len(span) - chunk.size
    shard.write_bytes(content[: chunk.offset] + span + content[chunk.offset + chunk.size :])
    manifest["shards"][chunk.shard] += grown
    manifest["chunks"]["size"][number] = len(span)
    manifest["chunks"]["crc32"][number] = zlib.crc32(span)
    for later, shard_number in enumerate(manifest["chunks"]["shard"]):
        if shard_number == chunk.shard and later > number:
            manifest["chunks"]["offset"][later] += grown
    (path / "manifest.json").write_text(json.dumps(manifest))
