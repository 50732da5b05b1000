"""What ``inspect`` says of a dataset is what its traces say."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import etalumis as et
from etalumis import cli
from etalumis.distributions import Normal
from etalumis.simulators.classics import marsaglia
from etalumis.storage import Dataset, simulate, sort
from etalumis.storage.failures import FailurePolicy
from etalumis.storage.inspect import inspect, lengths

pytestmark = pytest.mark.timeout(60)


def tagging() -> float:
    """Of varying length, with tags, a result, and observations given and drawn; fails at times."""
    value = marsaglia()
    extra = et.sample(Normal(value, 1.0), name="extra", control=False)
    if extra > 5.5:
        raise ArithmeticError("too far")
    et.observe(Normal(extra, 1.0), 0.5, name="seen")
    et.observe(Normal([extra, 0.0, 0.0], [1.0, 2.0, 3.0]), name="image")
    et.tag(extra**2, name="square")
    et.tag("high" if extra > 1.0 else "low", name="label")
    return extra


def make_model() -> et.Model:
    return et.Model(tagging)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("inspect") / "d"
    simulate(
        make_model,
        path,
        600,
        model="tagging",
        workers=0,
        chunk_size=100,
        failures=FailurePolicy("skip"),
        simulator={"_target_": "here", "detector": {"shape": [3]}},
    )
    return Dataset(path)


def test_counts_are_those_of_the_traces(dataset: Dataset) -> None:
    found = inspect(dataset, top=5)
    batch = et.TraceBatch.concatenate(list(dataset.batches()))
    assert json.loads(json.dumps(found)) == found
    assert found["traces"] == len(batch) == 600 - found["failed"]
    assert 0 < found["failed"] < 60
    assert found["failures"]["messages"][0]["message"].startswith("ArithmeticError: too far")
    counts = Counter(batch.trace_types().tolist()).most_common()
    assert [entry["traces"] for entry in found["types"]["top"]] == [count for _, count in counts[:5]]
    assert found["types"]["top"][0]["type"] == f"{counts[0][0]:016x}"
    assert found["types"]["top"][0]["share"] == counts[0][1] / len(batch)
    assert found["types"]["single"] == sum(count == 1 for _, count in counts)
    assert found["lengths"] == {
        "min": batch.lengths.min(),
        "median": np.median(batch.lengths),
        "max": batch.lengths.max(),
    }
    assert sum(row["traces"] for row in found["histogram"]) == len(batch)
    assert found["sampled"] == {"chunks": 6, "traces": len(batch)}
    visits = np.bincount(batch.address, minlength=len(dataset.addresses))
    assert found["visited"][0]["visits"] == visits.max()
    assert found["visited"][0]["per_trace"] == visits.max() / len(batch)
    assert found["families"]["Uniform"] == sum(a.family == "Uniform" for a in dataset.addresses)
    assert found["sorted"] == {"sorted": False, "chunks_of_one_type": 0}
    assert found["origin"]["simulator"]["detector"] == {"shape": [3]}


def test_columns_are_described(dataset: Dataset) -> None:
    found = inspect(dataset)
    assert found["observes"]["seen"] | {"traces": 0} == {
        "traces": 0,
        "family": "Normal",
        "shape": [],
        "dtype": found["observes"]["seen"]["dtype"],
        "given": True,
        "drawn_when_read": False,
    }
    assert found["observes"]["image"]["drawn_when_read"]
    assert found["observes"]["image"]["shape"] == [3]
    assert found["tags"]["square"]["dtype"] == "float64"
    assert found["tags"]["label"]["dtype"] == "json"
    assert found["tags"]["result"]["traces"] == found["traces"]
    assert sum(found["members"].values()) == sum(chunk.size for chunk in dataset.chunks)


def test_sorted_datasets_say_so(dataset: Dataset, tmp_path: Path) -> None:
    sort([dataset.directory], tmp_path / "sorted", workers=0)
    found = inspect(Dataset(tmp_path / "sorted"))
    assert found["sorted"]["sorted"]
    assert found["sorted"]["chunks_of_one_type"] > 0
    assert found["types"] == inspect(dataset)["types"]


@pytest.mark.parametrize("most", [3, 7, 500, 100_000])
def test_histograms_hold_every_length_once(most: int) -> None:
    found = np.random.default_rng(most).integers(2, most + 1, size=1000)
    rows = lengths(found)
    assert len(rows) <= 20
    assert sum(row["traces"] for row in rows) == 1000
    assert rows[0]["from"] == found.min()
    assert rows[-1]["to"] == found.max()
    for row, following in pairwise(rows):
        assert row["to"] + 1 == following["from"]
    for row in rows:
        assert row["traces"] == np.count_nonzero((found >= row["from"]) & (found <= row["to"]))


def test_the_command(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "figure.png"
    assert cli.main(["inspect", str(dataset.directory), f"figure={figure}", "top=3"]) == 0
    said = capsys.readouterr().out
    assert f"{len(dataset):,} traces of tagging" in said
    assert "ArithmeticError: too far" in said
    assert "seed 0" in said
    assert "drawn anew when read" in said
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["inspect", str(dataset.directory), "format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["traces"] == len(dataset)
    assert cli.main(["inspect", str(dataset.directory), "format=xml"]) == 1
    assert "format is text or json" in capsys.readouterr().err


def test_a_folder_with_a_strange_name(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "it's, a [set]"
    place.symlink_to(dataset.directory)
    assert cli.main(["inspect", str(place), "format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "tagging"
