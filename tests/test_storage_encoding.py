"""Half precisions, compression, and bounded decoding."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import etalumis as et
from etalumis.distributions import Normal, Poisson
from etalumis.execution import Model, ObserveColumn, Observed, run
from etalumis.storage import Dataset, DatasetError, Encoding, Origin, ShardWriter, decode, encode, sort
from etalumis.storage.codec import decode_arrays, encode_arrays, npy
from etalumis.storage.precision import HALVES, TOLERANCE, narrow, to_half

zstandard = pytest.importorskip("zstandard")
IMAGE = np.random.default_rng(0).exponential(2.0, (4, 6, 6)) * (np.arange(144).reshape(4, 6, 6) % 3 == 0)
COARSE = 5_000.0  # a noise that half precision does not show through


def seen(noise: float = 0.2) -> Any:
    def model() -> float:
        n = et.sample(Poisson(3.0), name="n")
        et.observe(Normal(IMAGE * n, noise), name="image")
        return float(n)

    return Model(model, "seen")


def batch_of(model: Model, count: int = 20, **options: Any) -> et.TraceBatch:
    traces = list(run(model, indices=range(count), seed=0, **options))
    return et.TraceBatch.from_traces(traces, model.addresses)


def image(batch: et.TraceBatch) -> ObserveColumn:
    (column,) = batch.observes
    return column


def size(members: dict[str, bytes]) -> int:
    return sum(map(len, members.values()))


# --- half precisions ------------------------------------------------------------------------------


@settings(deadline=None)  # a busy machine is no error
@given(hnp.arrays(np.float32, 100, elements=st.floats(width=32, allow_nan=False)), st.sampled_from(HALVES))
def test_rounding_is_to_the_nearest(array: np.ndarray, name: str) -> None:
    half = to_half(array, name)
    epsilon, smallest = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}[name]
    finite = np.isfinite(half)
    exact = array[finite].astype(np.float64)
    assert (np.abs(half[finite] - exact) <= np.maximum(epsilon * np.abs(exact), smallest)).all()
    assert (np.abs(array[~finite]) > 6e4).all()
    np.testing.assert_array_equal(to_half(half, name), half)


def test_bfloat16_is_torch_s() -> None:
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    numbers = bits.view(np.float32)
    ours, theirs = to_half(numbers, "bfloat16"), torch.from_numpy(numbers).bfloat16().float().numpy()
    np.testing.assert_array_equal(ours, theirs)


@settings(deadline=None)  # a busy machine is no error
@given(hnp.arrays(np.float32, 80, elements=st.floats(width=32)), st.sampled_from([*HALVES, None]))
def test_halves_come_back_bit_for_bit(array: np.ndarray, name: str | None) -> None:
    if name:
        array = to_half(array, name)
    back, _ = decode_arrays(encode_arrays({"x": array}, None))
    assert back["x"].dtype == np.float32
    nan = np.isnan(array)
    assert back["x"][~nan].tobytes() == array[~nan].tobytes()
    assert np.isnan(back["x"][nan]).all()


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("sparse_above", [0.5, 1.0])
def test_halves_take_half_the_bytes(name: str, sparse_above: float) -> None:
    numbers = np.random.default_rng(0).exponential(size=5000).astype(np.float32) * (np.arange(5000) % 3 == 0)
    count = 1667 if sparse_above < 1 else 5000
    members = encode_arrays({"x": to_half(numbers, name)}, None, sparse_above)
    stored = np.load(io.BytesIO(members["x.npy"]), allow_pickle=False)
    assert stored.nbytes == 2 * count
    assert stored.dtype == {"float16": np.float16, "bfloat16": np.uint16}[name]
    assert json.loads(members["meta.json"])["arrays"]["x"]["half"] == name


@pytest.mark.parametrize("name", HALVES)
def test_half_only_where_the_likelihood_cannot_tell(name: str) -> None:
    for noise, coarse_enough in ((0.2, False), (COARSE, True)):
        before = image(batch_of(seen(noise)))
        after = narrow(before, name)
        assert {p.dtype for p in after.parameters} == {np.dtype(np.float32)}, "float32 is the next to be tried"
        halved = np.array_equal(to_half(after.parameters[0], name), after.parameters[0])
        assert halved == coarse_enough
        y = before.parameters[0] + noise
        np.testing.assert_allclose(after.log_likelihood(y), before.log_likelihood(y), atol=0.02)


@pytest.mark.parametrize("name", HALVES)
def test_forced(name: str) -> None:
    after = narrow(image(batch_of(seen())), name, forced=True)
    np.testing.assert_array_equal(to_half(after.parameters[0], name), after.parameters[0])
    assert after.parameters[1][0] == np.float32(0.2), "what is there once is not rounded"
    far = [[Observed(0, "y", Normal(1e300 * (1.0 + IMAGE), 1e299), None, False, 0.0)]]
    before = ObserveColumn.from_statements(far)[0]
    assert narrow(before, name, forced=True).parameters[0].dtype == np.float64, "infinite in float32"


@pytest.mark.parametrize("name", ["float32", *HALVES])
def test_means_that_are_nothing_beside_the_noise_are_zeros(name: str) -> None:
    least = TOLERANCE * 0.2
    means = np.where(np.arange(144).reshape(4, 6, 6) % 2, 0.9 * least, 1.1 * least)
    before = ObserveColumn.from_statements([[Observed(0, "y", Normal(means, 0.2), None, False, 0.0)]] * 2)[0]
    after = narrow(before, name).parameters[0]
    np.testing.assert_array_equal(after == 0.0, np.broadcast_to(np.arange(144).reshape(4, 6, 6) % 2 == 1, after.shape))
    assert (narrow(before, "float64").parameters[0] > 0.0).all()


def test_values_kept_in_half(tmp_path: Path) -> None:
    batch = batch_of(seen(COARSE), draw_observations=True)
    whole = size(encode(batch, Encoding(observes="both")))
    for name in HALVES:
        encoding = Encoding(observes="both", observe_dtype=name)
        assert size(encode(batch, encoding)) < whole, "means, if not values"
        forced = replace(encoding, force_dtype=True)
        members = encode(batch, forced)
        back = image(decode(members, batch.addresses))
        assert back.values is not None
        np.testing.assert_array_equal(back.values, to_half(image(batch).values.astype(np.float32), name))


# --- compression ----------------------------------------------------------------------------------


@pytest.mark.parametrize("observes", ["parameters", "both"])
def test_compressed_members_come_back(observes: Any, tmp_path: Path) -> None:
    model = seen()
    batch = batch_of(model, 200, draw_observations=True)
    plain = encode(batch, Encoding(observes=observes))
    small = encode(batch, Encoding(observes=observes, compression="zstd"))
    assert size(small) < size(plain)
    assert {name.removesuffix(".zst") for name in small} == set(plain)
    assert all(name.endswith((".json", ".npy", ".npy.zst")) for name in small)
    assert any(name.endswith(".npy.zst") for name in small)
    for name, payload in small.items():
        if name.endswith(".zst"):
            assert len(payload) < len(plain[name.removesuffix(".zst")])
            assert zstandard.decompress(payload) == plain[name.removesuffix(".zst")]
    one, other = (decode(members, batch.addresses).to_arrays() for members in (plain, small))
    assert one[1] == other[1]
    for name, array in one[0].items():
        np.testing.assert_array_equal(array, other[0][name])
        assert other[0][name].flags.writeable
    origin = Origin("seen", chunk_size=200, encoding=Encoding(compression="zstd").to_json())
    with ShardWriter(tmp_path / "d", origin) as writer:
        writer.write(batch)
    sort(tmp_path / "d", tmp_path / "s", workers=0)
    dataset = Dataset(tmp_path / "s")
    assert dataset.manifest.origin.encoding["compression"] == "zstd"
    dataset.verify(0)


@pytest.mark.parametrize(("key", "value"), [("observe_dtype", "float8"), ("compression", "gzip"), ("observes", "all")])
def test_unknown_encodings_are_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"encoding\.{key} is .*{value}"):
        Encoding(**{key: value})


# --- nothing takes memory beyond what it may ------------------------------------------------------


def bomb(count: int) -> bytes:
    return bytes(zstandard.compress(npy(np.zeros(count))))


def test_bombs_are_refused() -> None:
    """A few kilobytes that ask for gigabytes are found before any of them is taken."""
    members = encode_arrays({"x": np.arange(100.0)}, None)
    document = json.loads(members["meta.json"])
    large = {**document, "arrays": {"x": {"dtype": "<f8", "shape": [10**11], "constant": 1.0}}}
    with pytest.raises(DatasetError, match="would take 800,000,000,000 bytes"):
        decode_arrays({"meta.json": json.dumps(large).encode()})
    with pytest.raises(DatasetError, match=r"x\.npy\.zst would take 8,000,\d+ bytes, and 4,896 are allowed"):
        decode_arrays({"meta.json": members["meta.json"], "x.npy.zst": bomb(10**6)})
    with pytest.raises(DatasetError, match="would take 800 bytes, and 799 are allowed"):
        decode_arrays(members, limit=799)
    decode_arrays(members, limit=800)
    # A frame without its size, one cut short, and no frame at all.
    endless = zstandard.ZstdCompressor(write_content_size=False).compress(npy(np.arange(100.0)))
    for payload in (endless, bomb(100)[:20], b"?" * 50):
        with pytest.raises(DatasetError, match=r"x\.npy\.zst"):
            decode_arrays({"meta.json": members["meta.json"], "x.npy.zst": payload})


@settings(deadline=None)  # a busy machine is no error
@given(st.binary(max_size=300), st.sampled_from(["x.npy", "meta.json"]))
def test_rubbish_is_refused(payload: bytes, member: str) -> None:
    members = encode_arrays({"x": np.arange(100.0)}, None)
    for content in (payload, members[member][: len(payload)] + payload):
        with pytest.raises(DatasetError):
            decode_arrays({**members, member: content[: len(members[member]) - 1]})


def test_other_npy_files_are_refused() -> None:
    members = encode_arrays({"x": np.arange(100.0)}, None)
    for array, options in (
        (np.array([object()] * 100), {"allow_pickle": True}),
        (np.asfortranarray(np.ones((10, 10))), {}),
        (np.ones(100, dtype=">f8"), {}),
        (np.ones(100, dtype="M8[s]"), {}),
    ):
        file = io.BytesIO()
        np.save(file, array, **options)
        with pytest.raises(DatasetError, match="another form"):
            decode_arrays({**members, "x.npy": file.getvalue()})


# --- verify ---------------------------------------------------------------------------------------


def rewritten(directory: Path, batch: et.TraceBatch, **changes: Any) -> Dataset:
    """A dataset whose one chunk was written as it is, so that its checksum is right."""
    with ShardWriter(directory, Origin("seen", encoding=Encoding(observe_dtype="float64").to_json())) as writer:
        writer.write(replace(batch, **changes))
    return Dataset(directory)


def test_whole_chunks_pass(tmp_path: Path) -> None:
    rewritten(tmp_path / "d", batch_of(seen(), draw_observations=True)).verify(0)


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("value", 3, -1.0, r"trace 3, address .*Poisson.*: value -1.0 lies outside the support of Poisson\(rate=3.0\)"),
        ("value", 3, 77.0, "does not have the stored log density"),
        ("value", 3, np.nan, "value is not finite"),
        ("log_prob", 5, np.inf, "log_prob is not finite"),
        ("log_q", 5, np.nan, "log_q is not finite"),
        ("log_prior", 7, 1.0, "log_prior of trace 7 is not the sum over its draws"),
        ("log_likelihood", 7, np.nan, "log_likelihood is NaN or infinite"),
        ("log_proposal", 7, -np.inf, "log_proposal is not finite"),
    ],
)
def test_wrong_numbers_are_found(column: str, row: int, value: float, message: str, tmp_path: Path) -> None:
    batch = batch_of(seen())
    changed = getattr(batch, column).copy()
    changed[row] = value
    with pytest.raises(DatasetError, match=rf"shard-000000\.tar, chunk 0: .*{message}"):
        rewritten(tmp_path / "d", batch, **{column: changed}).verify(0)


def test_zero_weights_are_legal(tmp_path: Path) -> None:
    batch = batch_of(seen())
    rewritten(tmp_path / "d", batch, log_likelihood=np.full(len(batch), -np.inf)).verify(0)


def test_wrong_observations_are_found(tmp_path: Path) -> None:
    batch = batch_of(seen())
    means = image(batch).parameters[0].copy()
    means[2, 1, 1, 1] = np.nan
    observes = (replace(image(batch), parameters=(means, image(batch).parameters[1])),)
    with pytest.raises(DatasetError, match="observation 'image' holds NaN"):
        rewritten(tmp_path / "d", batch, observes=observes).verify(0)


def test_an_index_or_manifest_of_other_traces_is_found(tmp_path: Path) -> None:
    dataset = rewritten(tmp_path / "d", batch_of(seen()))
    index = dataset.index
    dataset.__dict__["_index"] = (replace(index, index=index.index[::-1]), dataset.sites)
    with pytest.raises(DatasetError, match="not those of the dataset's index"):
        dataset.verify(0)
    dataset.__dict__["_index"] = (index, dataset.sites)
    entry = replace(dataset.chunks[0], draws=19)
    dataset.manifest = replace(dataset.manifest, chunks=(entry,))
    with pytest.raises(DatasetError, match="it has draws 20, the manifest says 19"):
        dataset.verify(0)
