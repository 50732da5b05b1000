"""The dataset format as docs/data.md states it: a reader of a page, from tar, JSON and .npy alone, sees the same."""

import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Categorical, Gamma, Normal
from etalumis.storage import Dataset, Encoding, simulate


def mixed() -> float:
    n = et.sample(Categorical([0.3, 0.3, 0.4]), name="n")
    weights = et.sample(Gamma([1.0, 2.0], 1.5), name="weights", control=False)
    total = float(weights[0])
    for _ in range(n):
        total += et.sample(Normal(total, 1.0), name="walk")
    image = np.zeros((6, 7))
    image[n, n] = round(total)
    et.observe(Normal(image, 0.5), name="image")
    et.observe(Normal(total, 1.0), 0.25)
    et.tag(["low", "high"][n > 0], name="label")
    et.tag(total * 2.0, name="double")
    return total


def array(name: str, spec: dict[str, Any], members: dict[str, bytes], arrays: dict[str, Any]) -> np.ndarray:
    """One array of a chunk, by the table in docs/data.md."""
    dtype, size = np.dtype(spec["dtype"]), int(np.prod(spec["shape"], dtype=np.int64))

    def stored(field: str) -> np.ndarray:
        found = np.load(io.BytesIO(members[f"{field}.npy"]), allow_pickle=False).ravel()
        if spec.get("half") == "bfloat16" and field == name:
            return (found.astype(np.uint32) << 16).view(np.float32)
        return found

    if "alias" in spec:
        return arrays[spec["alias"]]
    if "constant" in spec:
        flat = np.full(size - ("delta" in spec), float(spec["constant"])).astype(dtype)
    elif "bits" in spec:
        flat = np.unpackbits(stored(name))[:size].astype(bool)
    elif "sparse" in spec:
        flat = np.zeros(size, dtype)
        flat[np.unpackbits(stored(f"{name}.mask"))[:size] == 1] = stored(name)
    else:
        flat = stored(name).astype(np.int64 if "delta" in spec else dtype)
    if "delta" in spec:
        flat = spec["delta"] + np.concatenate([[0], np.cumsum(flat)])
    return flat.astype(dtype).reshape(spec["shape"])


def read(folder: Path, number: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and meta of a chunk, by one positioned read."""
    chunks = json.loads((folder / "manifest.json").read_text())["chunks"]
    with (folder / f"shard-{chunks['shard'][number]:06d}.tar").open("rb") as file:
        file.seek(chunks["offset"][number])
        span = file.read(chunks["size"][number])
    assert zlib.crc32(span) == chunks["crc32"][number]
    members = {}
    with tarfile.open(fileobj=io.BytesIO(span + bytes(1024))) as tar:
        for member in tar:
            key, _, field = member.name.partition(".")
            assert int(key) == number
            content = tar.extractfile(member)
            assert content is not None
            members[field] = content.read()
    document = json.loads(members["meta.json"])
    arrays: dict[str, np.ndarray] = {}
    for name, spec in document["arrays"].items():
        arrays[name] = array(name, spec, members, arrays)
    arrays["addresses"] = np.load(io.BytesIO(members["addresses.npy"]))
    return arrays, document["meta"]


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_a_reader_written_from_the_document_sees_the_same(tmp_path: Path, precision: str) -> None:
    encoding = Encoding(observe_dtype=precision, force_dtype=True)  # type: ignore[arg-type]
    simulate(lambda: et.Model(mixed), tmp_path, 250, model="m", workers=0, chunk_size=100, encoding=encoding)
    dataset = Dataset(tmp_path)
    book = json.loads((tmp_path / "addresses.json").read_text())
    for number in range(3):
        batch = dataset.read(number)
        arrays, meta = read(tmp_path, number)
        np.testing.assert_array_equal(arrays["lengths"], batch.lengths)
        for name in ("index", "log_prior", "log_likelihood", "controlled", "log_prob", "log_q", "value", "finished"):
            np.testing.assert_array_equal(arrays[name], getattr(batch, name))
        rows = [book["addresses"][i] for i in arrays["addresses"][arrays["address"]]]
        said = [(book["bases"][base], family, instance, kind) for base, family, instance, kind in rows]
        assert said == [tuple(dataset.addresses[i]) for i in batch.address.tolist()]
        assert [meta["names"][i] for i in arrays["name"]] == [batch.names[i] for i in batch.name]
        code = arrays["distributions.code"][arrays["distribution"]]
        np.testing.assert_array_equal(code, batch.distributions.code[batch.distribution])
        np.testing.assert_array_equal(np.cumsum(arrays["sizes"]), batch.value_offsets[1:])
        for observation, column in zip(meta["observes"], batch.observes, strict=True):
            assert observation["name"] == column.name
            for k, parameter in enumerate(column.parameters):
                np.testing.assert_array_equal(arrays[f"{observation['key']}.parameter{k}"], parameter)
        tags = {entry["name"]: entry for entry in meta["tags"]}
        columns = {column.name: column for column in batch.tags}
        assert tags["label"]["values"] == columns["label"].values
        np.testing.assert_array_equal(arrays[f"{tags['double']['key']}.values"], columns["double"].values)
        np.testing.assert_array_equal(arrays["result.values"], batch.result.values)
