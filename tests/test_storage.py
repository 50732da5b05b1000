"""Datasets on disk: what is written comes back, and damage is found and named."""

import gc
import io
import json
import math
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import etalumis as et
from etalumis.distributions import Categorical, Normal, Poisson, Uniform
from etalumis.execution import Column, ObserveColumn, run
from etalumis.simulators.classics import marsaglia
from etalumis.storage import Dataset, DatasetError, Encoding, Origin, ShardWriter, decode, encode
from etalumis.storage.codec import decode_arrays, encode_arrays

CHUNKS, SIZE = 5, 40


def rich() -> str:
    """A model that uses all there is to store."""
    n = et.sample(Poisson(2.0), name="n")
    for _ in range(n):
        et.sample(Uniform(-1.0, 1.0), name="step", control=False)
    vector = et.sample(Normal(np.arange(3.0), 1.0), name="vector", address="here")
    kind = et.sample(Categorical([0.2, 0.3, 0.5]))
    if kind:
        et.observe(Normal(np.zeros((4, 5)) if n else np.ones((4, 5)), 0.5 + kind), name="image")
    et.observe(Normal(float(n), 2.0), 1.5, name="given")
    et.tag(vector, name="vector_tag")
    et.tag(n > 2, name="many")
    if n > 1:
        et.tag(math.inf, name="sometimes")
    return "odd" if n % 2 else "even"


def batches(model: et.Model, chunks: int = CHUNKS) -> Iterator[et.TraceBatch]:
    for k in range(chunks):
        traces = run(model, indices=range(k * SIZE, (k + 1) * SIZE), seed=3)
        yield et.TraceBatch.from_traces(list(traces), model.addresses)


def write(directory: Path, shard_bytes: int = 1, **encoding: Any) -> list[et.TraceBatch]:
    """Write a dataset with a shard per chunk; returns what went in."""
    model = et.Model(rich)
    origin = Origin("rich", seed=3, encoding=Encoding(**encoding).to_json())
    with ShardWriter(directory, origin, shard_bytes) as writer:
        given_batches = list(batches(model))
        for batch in given_batches:
            writer.write(batch)
    return given_batches


def plain(batch: et.TraceBatch) -> dict[str, Any]:
    """Everything in a batch, addresses spelled out, for comparison."""
    arrays, meta = batch.to_arrays()
    arrays["address"] = np.array([str(batch.addresses[i]) for i in batch.address])
    for observe in meta["observes"]:
        observe["address"] = str(batch.addresses[observe["address"]])
    return {**arrays, "meta": meta}


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, other[name], err_msg=name, strict=value.dtype.kind != "i")
        else:
            assert value == other[name]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train"
    write(path)
    return path


@pytest.fixture
def copy(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / "copy"))


# --- arrays ---------------------------------------------------------------------------------------


@given(
    st.dictionaries(
        st.sampled_from(["a", "b.c", "d0"]),
        hnp.arrays(
            st.sampled_from(["<i4", "<i8", "<u8", "|u1", "|b1", "<f4", "<f8"]),
            hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=40),
            fill=st.just(0),
        ),
        min_size=1,
    )
)
def test_arrays_come_back_bit_for_bit(arrays: dict[str, np.ndarray]) -> None:
    back, meta = decode_arrays(encode_arrays(arrays, {"x": [1, None, "τ"]}))
    assert meta == {"x": [1, None, "τ"]}
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        if array.dtype.kind == "f":  # constants go through decimal text, which knows one NaN only
            assert back[name][~np.isnan(array)].tobytes() == array[~np.isnan(array)].tobytes()
            assert np.isnan(back[name][np.isnan(array)]).all()
        else:
            assert back[name].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("array", "members", "size"),
    [
        (np.arange(1000) * 3 + 10**12, 0, 0),
        (np.full(1000, -np.inf), 0, 0),
        (np.full(1000, -0.0), 0, 0),
        (np.repeat([0.0, 1.5], [900, 100]), 2, 800 + 125),
        (np.repeat([0.0, 1.5], [400, 600]), 1, 8000),
        (np.arange(1000) ** 2 % 301, 1, 2000),
        (np.arange(1000) % 7 == 0, 1, 125),
    ],
)
def test_compact_forms(array: np.ndarray, members: int, size: int) -> None:
    encoded = encode_arrays({"x": array, "same": array.copy()}, None)
    assert len(encoded) == 1 + members
    assert sum(map(len, encoded.values())) < size + 300 * (1 + members)
    back, _ = decode_arrays(encoded)
    assert back["x"].tobytes() == back["same"].tobytes() == array.tobytes()
    assert not np.shares_memory(back["x"], back["same"])


# --- batches --------------------------------------------------------------------------------------


def test_members_hold_a_batch_exactly() -> None:
    batch = next(batches(et.Model(rich)))
    members = encode(batch, Encoding(observes="both", observe_dtype="float64"))
    assert all(name.endswith((".json", ".npy")) for name in members)
    assert_equal(plain(batch), plain(decode(members, batch.addresses)))


def test_dataset_comes_back(tmp_path: Path) -> None:
    written = write(tmp_path / "d", observes="both", observe_dtype="float64")
    dataset = Dataset(tmp_path / "d")
    assert len(dataset) == CHUNKS * SIZE
    assert len(dataset.chunks) == len(dataset.manifest.shards) == CHUNKS
    for one, other in zip(written, dataset.batches(), strict=True):
        assert_equal(plain(one), plain(other))
        np.testing.assert_array_equal(one.trace_types(), other.trace_types())
    types = np.unique(np.concatenate([b.trace_types() for b in written]))
    lengths = np.concatenate([b.lengths for b in written])
    manifest = dataset.manifest
    assert (manifest.trace_types, manifest.draws) == (len(types), lengths.sum())
    assert (manifest.shortest, manifest.longest) == (lengths.min(), lengths.max())
    assert manifest.controlled == sum(int(b.controlled.sum()) for b in written)
    assert manifest.observes["image"] == {"families": ["Normal"], "shapes": [[4, 5]], "most": 1}


def test_drawn_values_are_dropped_and_given_ones_kept(directory: Path) -> None:
    def column(batch: et.TraceBatch, name: str) -> ObserveColumn:
        return next(o for o in batch.observes if o.name == name)

    batch = Dataset(directory).read(0)
    image, supplied = column(batch, "image"), column(batch, "given")
    assert image.values is None
    assert image.parameters[0].dtype == np.float32
    assert supplied.values is not None
    assert (supplied.values == 1.5).all()


def test_ids_are_the_dataset_s_in_order_of_first_use(directory: Path) -> None:
    dataset = Dataset(directory)
    used = np.concatenate([b.address for b in dataset.batches()])
    _, first = np.unique(used, return_index=True)
    kinds = [a.kind for a in dataset.addresses]
    assert (np.sort(first) == first).all()
    assert set(kinds) == {"sample", "observe"}


def test_equal_batches_give_equal_files(directory: Path, tmp_path: Path) -> None:
    write(tmp_path / "again")
    names = sorted(p.name for p in directory.iterdir())
    assert names == sorted(p.name for p in (tmp_path / "again").iterdir())
    for name in names:
        assert (directory / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_read_arrays_can_be_written_to(directory: Path) -> None:
    arrays, _ = Dataset(directory).read(1).to_arrays()
    assert all(array.flags.writeable for array in arrays.values())


def test_a_dataset_travels_to_other_processes(directory: Path) -> None:
    dataset = Dataset(directory)
    dataset.read(0)
    state = dataset.__getstate__()
    assert state["_files"] == {}, "open files must not travel"
    other = Dataset.__new__(Dataset)
    other.__dict__.update(state)
    assert_equal(plain(dataset.read(2)), plain(other.read(2)))


# --- other readers --------------------------------------------------------------------------------


def test_plain_tar_and_numpy_read_it(directory: Path) -> None:
    with tarfile.open(directory / "shard-000000.tar") as archive:
        content = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}  # type: ignore[union-attr]
    assert "000000000.meta.json" in content
    assert all(name.startswith("000000000.") for name in content)
    values = np.load(io.BytesIO(content["000000000.value.npy"]), allow_pickle=False)
    np.testing.assert_array_equal(values, Dataset(directory).read(0).value)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_it(directory: Path) -> None:
    wds = pytest.importorskip("webdataset")
    urls = [str(directory / f"shard-{k:06d}.tar") for k in range(CHUNKS)]
    samples = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    gc.collect()  # it leaves its files to the garbage collector
    assert [s["__key__"] for s in samples] == [f"{k:09d}" for k in range(CHUNKS)]
    dataset = Dataset(directory)
    for k, sample in enumerate(samples):
        np.testing.assert_array_equal(sample["value.npy"], dataset.read(k).value)
        assert sample["meta.json"]["meta"]["names"][1] == "n"


# --- damage ---------------------------------------------------------------------------------------


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds no dataset.*etalumis simulate"):
        Dataset(tmp_path)
    with pytest.raises(DatasetError, match="does not exist"):
        Dataset(tmp_path / "nowhere")


def test_truncated_shard(copy: Path) -> None:
    path = copy / "shard-000003.tar"
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(DatasetError, match=r"shard-000003\.tar has \d+ bytes.*truncated"):
        Dataset(copy)


def test_shard_truncated_after_opening(copy: Path) -> None:
    dataset = Dataset(copy)
    (copy / "shard-000003.tar").write_bytes(b"")
    dataset.read(2)
    with pytest.raises(DatasetError, match=r"shard-000003\.tar is damaged: chunk 3"):
        dataset.read(3)


def test_missing_shard(copy: Path) -> None:
    (copy / "shard-000001.tar").unlink()
    with pytest.raises(DatasetError, match=r"shard-000001\.tar is missing"):
        Dataset(copy)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit(directory: Path, place: float, bit: int) -> None:
    dataset = Dataset(directory)
    chunk = dataset.chunks[1]
    path = directory / "shard-000001.tar"
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[chunk.offset + int(place * chunk.size)] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        with pytest.raises(DatasetError, match=r"shard-000001\.tar is damaged: chunk 1"):
            dataset.read(1)
        dataset.read(0)
    finally:
        path.write_bytes(content)


def test_swapped_shards(copy: Path) -> None:
    one, other = copy / "shard-000001.tar", copy / "shard-000002.tar"
    one.replace(copy / "x")
    other.replace(one)
    (copy / "x").replace(other)
    with pytest.raises(DatasetError, match=r"shard-00000\d\.tar"):
        Dataset(copy).read(1)


def test_foreign_manifests(copy: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "other", Origin("marsaglia")) as writer:
        writer.write(next(batches(et.Model(marsaglia))))
    manifest = copy / "manifest.json"
    own = manifest.read_text()
    manifest.write_text((tmp_path / "other" / "manifest.json").read_text())
    with pytest.raises(DatasetError, match=r"addresses\.json does not belong to the manifest"):
        Dataset(copy)
    manifest.write_text('{"dependencies": {}}')
    with pytest.raises(DatasetError, match="not the manifest of an etalumis dataset"):
        Dataset(copy)
    manifest.write_text(own.replace('"version":3', '"version":99'))
    with pytest.raises(DatasetError, match="format version 99"):
        Dataset(copy)
    manifest.write_text(own[: len(own) // 2])
    with pytest.raises(DatasetError, match="not JSON"):
        Dataset(copy)
    document = json.loads(own)
    del document["chunks"]["offset"]
    manifest.write_text(json.dumps(document))
    with pytest.raises(DatasetError, match="damaged"):
        Dataset(copy)


def test_missing_dictionary(copy: Path) -> None:
    (copy / "addresses.json").unlink()
    with pytest.raises(DatasetError, match=r"addresses\.json is missing"):
        Dataset(copy)


# --- the writer -----------------------------------------------------------------------------------


def written_in_pieces(directory: Path, stops: list[int], shard_bytes: int, tear: int) -> None:
    """Write the dataset with interruptions after some chunks, each leaving ``tear`` bytes of a torn chunk."""
    every = list(batches(et.Model(rich)))
    origin = Origin("rich", seed=3, encoding=Encoding().to_json())
    for stop in [*stops, CHUNKS]:
        writer = ShardWriter(directory, origin, shard_bytes)
        for batch in every[len(writer.chunks) : stop]:
            writer.write(batch)
        if stop == CHUNKS:
            writer.close()
            return
        writer.suspend()
        with pytest.raises(DatasetError, match="unfinished dataset: run the same simulate command again"):
            Dataset(directory)
        for path in (*directory.glob("*.part"), directory / "unfinished.jsonl"):
            with path.open("ab") as file:
                file.write(b"{" * tear)


@pytest.mark.parametrize("shard_bytes", [1, 20_000, 10**9])
@pytest.mark.parametrize("tear", [0, 700])
def test_interrupted_writing_goes_on_to_the_same_files(tmp_path: Path, shard_bytes: int, tear: int) -> None:
    write(tmp_path / "whole", shard_bytes)
    written_in_pieces(tmp_path / "pieces", [0, 1, 1, 3, 4], shard_bytes, tear)
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "pieces").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "pieces" / name).read_bytes(), name


def test_interruption_between_closing_a_shard_and_listing_the_next_chunk(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    every = list(batches(et.Model(rich)))
    origin = Origin("rich", seed=3, encoding=Encoding().to_json())
    writer = ShardWriter(tmp_path / "d", origin, 1)
    writer.write(every[0])
    writer._close_shard()
    writer.suspend()
    writer = ShardWriter(tmp_path / "d", origin, 1)
    assert writer.traces == SIZE
    for batch in every[1:]:
        writer.write(batch)
    writer.close()
    first = "shard-000000.tar"
    assert (tmp_path / "whole" / first).read_bytes() == (tmp_path / "d" / first).read_bytes()


def test_writer_refuses_what_is_not_its_own(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(DatasetError, match="already holds a dataset"):
        ShardWriter(directory, Origin("rich"))
    writer = ShardWriter(tmp_path / "d", Origin("rich", seed=1))
    with pytest.raises(DatasetError, match="another process is writing"):
        ShardWriter(tmp_path / "d", Origin("rich", seed=1))
    writer.write(next(batches(et.Model(rich))))
    writer.suspend()
    with pytest.raises(DatasetError, match=r"other settings \(seed\)"):
        ShardWriter(tmp_path / "d", Origin("rich", seed=2))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "shard-000000.tar").touch()
    with pytest.raises(DatasetError, match="without a manifest"):
        ShardWriter(tmp_path / "e", Origin("rich"))


def test_an_exception_leaves_the_dataset_unfinished(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ShardWriter(tmp_path / "d", Origin("rich")) as writer:
            writer.write(next(batches(et.Model(rich))))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert not (tmp_path / "d" / "manifest.json").exists()
    with pytest.raises(DatasetError, match="no traces were written"), ShardWriter(tmp_path / "f", Origin("x")):
        pass


def test_objects_are_refused_by_name(tmp_path: Path) -> None:
    batch = next(batches(et.Model(marsaglia)))
    odd = Column("thing", np.array([0]), [object()])
    with (
        pytest.raises(TypeError, match="'thing' holds <object"),
        ShardWriter(tmp_path / "d", Origin("x")) as writer,
    ):
        writer.write(replace(batch, tags=(odd,)))
