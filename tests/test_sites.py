"""What a network needs to know of data, without reading it: equal to what reading tells."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import etalumis as et
from etalumis.datamodules.sources import JoinedDatasets
from etalumis.datamodules.traces import TracesDataModule
from etalumis.distributions import Categorical, Normal, Uniform
from etalumis.networks import InferenceNetwork, Row, rows_of
from etalumis.storage import Dataset, simulate, sort
from etalumis.storage.sites import NAMED, Sites, join_observed, observed
from etalumis.storage.validate import validate

CONFIG = {"core": {"kind": "lstm", "hidden": 8}, "head": {"kind": "film", "hidden": 8}, "observation_embedding": 8}


def model() -> et.Model:
    def simulator() -> None:
        x = et.sample(Uniform(0.0, 1.0), name="x")
        categories = 2 + int(4 * x)
        et.sample(Categorical(np.full(categories, 1 / categories)), address="kind")
        et.sample(Normal(np.zeros(2), 1.0), address="pair")  # no scalar: proposed by nobody
        et.sample(Normal(0.0, 1.0), address="maybe", control=x > 0.9)
        for place in range(40):
            if x < 0.5**place:
                et.sample(Normal(0.0, 1.0), address=f"level {place}")  # rarer and rarer
                et.observe(Normal(np.zeros(3), 1.0), name="hits")
        et.observe(Normal(x, 1.0), name="y")

    return et.Model(simulator, name="levels")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sites")
    for seed in (0, 1):
        simulate(model, path / f"{seed}", 600, model="levels", seed=seed, workers=0, chunk_size=100, shard_traces=200)
    sort([path / "0", path / "1"], path / "sorted", workers=0, chunk_size=70)
    return path


def by_reading(datamodule: TracesDataModule, ahead: bool) -> tuple[dict[str, tuple[int, ...]], list[Row]]:
    """Shapes, and rows in the order of the dictionaries, from every trace."""
    book = datamodule.train_data.addresses
    batches = list(datamodule.train_data.batches() if ahead else datamodule.training_batches())
    network = InferenceNetwork.for_batches(CONFIG, batches)
    rows = sorted({row for batch in batches for row in rows_of(batch)}, key=lambda r: (book.find(r.address), r[1]))
    return network.layout.observations, rows


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("folders", [["0"], ["0", "1"], ["sorted"]])
@pytest.mark.parametrize("part", [{}, {"limit": 40}, {"valid_fraction": 0.4}, {"valid_fraction": 0.0}])
def test_what_the_index_tells_is_what_reading_tells(
    data: Path, folders: list[str], part: dict[str, Any], ahead: bool
) -> None:
    datamodule = TracesDataModule([data / name for name in folders], workers=0, seed=2, **part)
    told = datamodule.tell(ahead)
    observations, rows = by_reading(datamodule, ahead)
    assert told.rows == rows
    if ahead or part == {"valid_fraction": 0.0}:
        assert told.observations == observations
    assert {row.categories for row in told.rows} >= {0, 2, 3, 4, 5}
    assert not [row for row in told.rows if row.address.base == "pair"]


def test_a_new_network_is_the_one_that_reading_makes(data: Path) -> None:
    """Of an unsorted dataset: rows in the same order, the same shapes."""
    datamodule = TracesDataModule(str(data / "0"), valid_fraction=0.0, workers=0)
    told = datamodule.tell()
    read = InferenceNetwork.for_batches(CONFIG, [et.TraceBatch.concatenate(list(datamodule.training_batches()))])
    assert (told.observations, told.rows) == (read.layout.observations, read.layout.rows)


def test_nothing_is_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datamodule = TracesDataModule(str(data / "0"), valid_fraction=0.0, workers=0)
    monkeypatch.setattr(JoinedDatasets, "read", lambda *_: pytest.fail("a chunk was read"))
    assert datamodule.tell(ahead=True).rows == datamodule.tell(ahead=False).rows


@pytest.mark.parametrize("name", ["0", "1", "sorted"])
def test_the_index_is_that_of_all_traces(data: Path, name: str) -> None:
    dataset = Dataset(data / name)
    whole = et.TraceBatch.concatenate(list(dataset.batches()))
    expected = Sites.of(whole)
    for key, array in vars(expected).items():
        np.testing.assert_array_equal(getattr(dataset.sites, key), array, key)
    assert (expected.traces > NAMED).any()
    assert (expected.traces < NAMED).any()
    assert dataset.manifest.observes == join_observed([observed(whole)])
    assert dataset.manifest.observes["hits"]["most"] > 5
    for site in range(len(expected)):
        first, last = expected.offsets[site : site + 2]
        has = [
            int(expected.address[site]) in whole.address[whole.offsets[trace] : whole.offsets[trace + 1]]
            for trace in expected.named[first:last].tolist()
        ]
        assert all(has)


def test_ids_of_another_dictionary_and_back(data: Path) -> None:
    sites = Dataset(data / "0").sites
    ids = np.random.default_rng(0).permutation(int(sites.address.max()) + 1).astype(np.int32)
    moved = sites.remap(ids)
    assert (np.diff(moved.address) >= 0).all()
    again = Sites.from_text(moved.to_text()).remap(np.argsort(ids).astype(np.int32))
    for key, array in vars(sites).items():
        np.testing.assert_array_equal(getattr(again, key), array, key)
    nothing = Sites.of(et.TraceBatch.empty(et.Model(print).addresses))
    assert len(Sites.concatenate([nothing, nothing], [0, 0])) == len(Sites.from_text(nothing.to_text())) == 0


def test_validate_compares_sites_and_observations(data: Path) -> None:
    assert not list(validate(data / "sorted", workers=0))
    dataset = Dataset(data / "0")
    batch, sites = dataset.read(1), dataset.sites
    assert sites.holds(Sites.of(batch), 100, 100)
    assert not sites.holds(Sites.of(batch), 0, 100), "other traces"
    assert not sites.holds(Sites.of(batch.select(batch.lengths > 4)), 100, 100) or (batch.lengths > 4).all()
    rare = int(np.argmin(sites.traces))
    one = int(sites.named[sites.offsets[rare]])
    chunk, row = divmod(one, 100)
    without = dataset.read(chunk).select(np.arange(100) != row)
    assert not sites.holds(Sites.of(without), 100 * chunk, 100), "a named trace lacks the draw"
