"""Minibatches: every trace once per epoch, in an order that depends on (seed, epoch) alone."""

import gc
import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import etalumis as et
from etalumis.datamodules.loader import Ahead
from etalumis.datamodules.minibatches import Minibatch, Piece, Rows, ValidationOrder
from etalumis.datamodules.reading import Minibatches, Parcel, Reader
from etalumis.datamodules.sources import JoinedDatasets
from etalumis.datamodules.split import Side, Split, limited
from etalumis.datamodules.traces import TracesDataModule
from etalumis.networks.layout import Layout, rows_of
from etalumis.networks.noise import Noisy, realised
from etalumis.networks.packing import TrainingBatch, pack
from etalumis.simulators.classics import branching, gaussian
from etalumis.simulators.detector import Detector
from etalumis.simulators.tau import Tau
from etalumis.storage import Dataset, DatasetError, decode, simulate
from etalumis.storage.sort import sort


def traces(minibatches: list[Minibatch]) -> Counter[tuple[int, int]]:
    return Counter((piece.chunk, row) for m in minibatches for piece in m for row in piece.rows.tolist())


def sizes(minibatches: list[Minibatch]) -> list[int]:
    return [sum(len(piece.rows) for piece in m) for m in minibatches]


def flat(minibatches: list[Minibatch]) -> list[tuple[int, int]]:
    return [(p.chunk, row) for m in minibatches for p in m for row in p.rows.tolist()]


def everything(chunks: list[int]) -> list[Rows]:
    return [np.arange(n) for n in chunks]


CHUNKS = st.lists(st.integers(1, 50), min_size=1, max_size=25)
SIDES: tuple[Side, ...] = ("train", "valid", "test")


# --- which traces ---------------------------------------------------------------------------------


@given(CHUNKS, st.integers(1, 40))
def test_validation_goes_through_all_in_order(chunks: list[int], batch_size: int) -> None:
    order = ValidationOrder(everything(chunks), batch_size)
    (minibatches,) = order.epoch(0)
    assert len(minibatches) == len(order)
    assert order.traces == sum(chunks)
    places = [(p.chunk, row) for m in minibatches for p in m for row in p.rows.tolist()]
    assert places == [(c, r) for c, n in enumerate(chunks) for r in range(n)]
    assert all(size == batch_size for size in sizes(minibatches)[:-1])
    assert 0 < sizes(minibatches)[-1] <= batch_size


@given(CHUNKS, st.floats(0.0, 0.6), st.floats(0.0, 0.39), st.integers(0, 3))
def test_the_split_takes_every_trace_to_one_side(chunks: list[int], valid: float, test: float, seed: int) -> None:
    split = Split(seed, valid, test)
    for number, count in enumerate(chunks):
        rows = {side: split.rows(number, count, side) for side in SIDES}
        assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(count))
        assert abs(len(rows["valid"]) - valid * count) < 1.0
        assert abs(len(rows["test"]) - test * count) < 1.0 + 1e-9
        assert all(len(rows[side]) == 0 for side, share in (("valid", valid), ("test", test)) if share == 0.0)


def test_the_split_is_fair_to_small_chunks() -> None:
    split = Split(0, 0.1, 0.2)
    for side, share in (("valid", 0.1), ("test", 0.2)):
        held_out = sum(len(split.rows(number, 1, side)) for number in range(4000))  # type: ignore[arg-type]
        assert abs(held_out - share * 4000) < 5 * (4000 * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("fractions", [(-0.1, 0.0), (1.0, 0.0), (0.5, 0.5), (0.1, -0.1)])
def test_impossible_split(fractions: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="fraction"):
        Split(0, *fractions)


@given(CHUNKS, st.integers(1, 300), st.integers(0, 3))
def test_a_limit_takes_so_many_traces_of_all_chunks(chunks: list[int], limit: int, seed: int) -> None:
    few = limited(everything(chunks), limit, seed)
    total, wanted = sum(chunks), min(limit, sum(chunks))
    assert sum(map(len, few)) == wanted
    for rows, count in zip(few, chunks, strict=True):
        assert len(set(rows.tolist())) == len(rows) <= count
        assert abs(len(rows) - count * wanted / total) < 1.0
    assert sum(map(len, limited(everything([10, *chunks]), 0.5, seed))) == round(0.5 * (total + 10))


def test_a_limit_of_nothing() -> None:
    with pytest.raises(ValueError, match="leaves none of 3 traces"):
        limited(everything([3]), 0.1, 0)


# --- from disk to the network ---------------------------------------------------------------------


def tau() -> et.Model:
    return et.Model(Tau(Detector(shape=(3, 4, 5))), name="tau")


def small(function: object, name: str) -> et.Model:
    return et.Model(function, name)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    simulate(tau, path / "train", 300, model="tau", workers=0, chunk_size=64)
    simulate(tau, path / "valid", 90, model="tau", seed=1, workers=0, chunk_size=50)
    for function in (gaussian, branching):
        make = partial(small, function, function.__name__)
        simulate(make, path / function.__name__, 40, model=function.__name__, workers=0)
    return path


def layout_of(module: TracesDataModule) -> Layout:
    layout = Layout({"detector": (3, 4, 5)})
    for batch in module.batches():
        layout.grow(rows_of(batch))
    return layout


def ready(path: Path, **settings: object) -> TracesDataModule:
    module = TracesDataModule(str(path / "train"), batch_size=32, **settings)  # type: ignore[arg-type]
    module.attach(layout_of(module))
    return module


def epoch_of(module: TracesDataModule, epoch: int) -> list[TrainingBatch]:
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)  # as Lightning does
    return list(loader)


def validation_of(module: TracesDataModule) -> list[TrainingBatch]:
    loader = module.val_dataloader()
    return list(loader)


def assert_same(one: TrainingBatch, other: TrainingBatch) -> None:
    assert (one.batch_sizes, one.unknown_draws) == (other.batch_sizes, other.unknown_draws)
    assert torch.equal(one.observations["detector"], other.observations["detector"])
    assert torch.equal(one.address, other.address)
    for a, b in zip(one.groups, other.groups, strict=True):
        assert a.groups == b.groups
        assert all(torch.equal(a.columns[name], b.columns[name]) for name in a.columns)


def test_loader_processes_make_the_same_minibatches(data: Path) -> None:
    here, there = ready(data, workers=0), ready(data, workers=1)
    for one, other in zip(epoch_of(here, 1), epoch_of(there, 1), strict=True):
        assert_same(one, other)
    for one, other in zip(validation_of(here), validation_of(there), strict=True):
        assert_same(one, other)


def test_epochs_take_all_training_traces_in_another_order(data: Path) -> None:
    module = ready(data, workers=0, valid_fraction=0.2)
    epochs = [epoch_of(module, epoch) for epoch in (0, 1)]
    draws = [sum(batch.num_draws for batch in batches) for batches in epochs]
    assert [sum(batch.num_traces for batch in batches) for batches in epochs] == [module.order.traces] * 2
    assert draws[0] == draws[1]
    assert module.order.traces + module.valid_order.traces == 300
    assert [batch.num_draws for batch in epochs[0]] != [batch.num_draws for batch in epochs[1]]
    everything = sum(int(batch.controlled.sum()) for batch in Dataset(data / "train").batches())
    assert draws[0] + sum(batch.num_draws for batch in validation_of(module)) == everything


def test_noise_is_fresh_in_training_and_fixed_in_validation(data: Path) -> None:
    def noise(fresh: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The same two traces in two epochs."""
        module = ready(data, workers=0, fresh_noise=fresh)
        pieces = (Piece(1, np.array([3, 5])),)
        batches = Minibatches(Reader(JoinedDatasets([data / "train"]), 1.0), layout_of(module), 0, fresh)
        one, other = (batches[epoch, pieces].observations["detector"] for epoch in (0, 1))
        return one, other

    one, other = noise(fresh=True)
    difference = (one - other) / (2.0**0.5 * 0.2)
    assert abs(float(difference.std()) - 1.0) < 0.4, "two noises of σ = 0.2"
    assert torch.equal(*noise(fresh=False))
    module = ready(data, workers=0)
    for one_batch, other_batch in zip(validation_of(module), validation_of(module), strict=True):
        assert_same(one_batch, other_batch)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_noise_can_be_left_to_the_device(data: Path, workers: int) -> None:
    module = ready(data, workers=workers, noise="device")
    first, again, later = (epoch_of(module, epoch) for epoch in (0, 0, 1))
    assert all(isinstance(batch.observations["detector"], Noisy) for batch in first)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(*(realised(batch.observations)["detector"] for batch in (one, other)))
    sums = [sum(realised(b.observations)["detector"].double().sum().item() for b in e) for e in (first, later)]
    assert abs(sums[0] - sums[1]) > 1e-3
    assert not any(isinstance(batch.observations["detector"], Noisy) for batch in validation_of(module))
    for plain in (ready(data, workers=0), ready(data, workers=0, noise="loader")):
        assert not any(isinstance(batch.observations["detector"], Noisy) for batch in epoch_of(plain, 0))
    with pytest.raises(ValueError, match="noise is one of"):
        ready(data, noise="gpu")


def test_separate_validation_data(data: Path) -> None:
    module = TracesDataModule(str(data / "train"), str(data / "valid"), batch_size=32, workers=0)
    module.attach(layout_of(module))
    assert (module.order.traces, module.valid_order.traces) == (300, 90)
    assert [batch.num_traces for batch in validation_of(module)] == [32, 32, 26]


def test_the_same_traces_are_neither_validated_with_nor_trained_with_twice(data: Path, tmp_path: Path) -> None:
    make = partial(small, gaussian, "gaussian")
    one = data / "gaussian"
    for name, seed in (("same", 0), ("around", 2**64), ("other", 1)):
        simulate(make, tmp_path / name, 7, model="gaussian", seed=seed, workers=0)
    sort([tmp_path / "same"], tmp_path / "sorted", workers=0)
    for train, valid in (
        (one, one), (one, tmp_path / "same"), (one, tmp_path / "around"), (tmp_path / "sorted", one), ([one, one], None)
    ):  # fmt: skip
        with pytest.raises(DatasetError, match=r"hold the same traces: of 'gaussian' .* simulate one of them with"):
            TracesDataModule(train, valid, workers=0)
    TracesDataModule(one, tmp_path / "other", workers=0)


def test_no_validation(data: Path) -> None:
    assert ready(data, workers=0, valid_fraction=0.0).val_dataloader() == []


def test_reader_keeps_few_chunks(data: Path) -> None:
    reader = Reader(JoinedDatasets([data / "train"]), cache_mb=0.0)
    whole = et.TraceBatch.concatenate(list(reader.sources.batches()))
    pieces = tuple(Piece(chunk, np.array([1, 0])) for chunk in (0, 1, 0, 4))
    np.testing.assert_array_equal(reader.minibatch(pieces).index, [1, 0, 65, 64, 1, 0, 257, 256])
    assert len(reader._cache) == 1
    assert len(whole) == 300
    roomy = Reader(JoinedDatasets([data / "train"]), cache_mb=100.0)
    roomy.minibatch(pieces)
    assert list(roomy._cache) == [1, 0, 4], "the chunk used last goes last"
    assert roomy.__getstate__()["_cache"] == {}, "decoded chunks don't travel to other processes"


def test_fetching_ahead_changes_nothing() -> None:
    assert list(Ahead(range(20))) == list(range(20))
    assert list(Ahead([])) == []


def test_fetching_ahead_raises_where_items_are_used() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("damaged chunk")

    ahead = Ahead(items())
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="damaged chunk"):
            next(ahead)


def test_fetching_ahead_is_bounded_and_ends_when_told() -> None:
    fetched: list[int] = []

    def items() -> Iterator[int]:
        for number in itertools.count():
            fetched.append(number)
            yield number

    ahead = Ahead(items(), depth=2)
    assert next(ahead) == 0
    ahead.close()
    assert 1 <= len(fetched) <= 4
    assert not any(thread.name == "minibatches" for thread in threading.enumerate())


def test_loader_ends_early_and_starts_again(data: Path) -> None:
    module = ready(data, workers=1)
    loader = module.train_dataloader()
    assert loader.waited == 0.0
    for _ in range(2):
        batches = iter(loader)
        first = next(batches)
        batches.close()
    assert_same(first, next(iter(ready(data, workers=0).train_dataloader())))
    assert loader.waited > 0.0


def test_loader_starts_again_while_an_earlier_iteration_lives(data: Path) -> None:
    """As where a training was stopped within an epoch and something still holds its iterator."""
    loader = ready(data, workers=1).train_dataloader()
    expected = list(ready(data, workers=0).train_dataloader())
    earlier = [iter(loader) for _ in range(2)]
    assert_same(next(earlier[1]), expected[0])
    for _ in range(3):
        again = list(loader)
        assert len(again) == len(expected)
        for one, other in zip(again, expected, strict=True):
            assert_same(one, other)
    assert list(earlier[1]) == []
    assert not any(thread.name == "minibatches" for thread in threading.enumerate())


@pytest.mark.parametrize("rows", [slice(None), slice(0, 1), slice(0, 0)])
def test_parcels_hold_minibatches_exactly(data: Path, rows: slice) -> None:
    module = ready(data, workers=0)
    batch = pack(next(module.batches()).select(np.arange(64)[rows]), layout_of(module))
    parcel = Parcel.wrap(batch)
    assert parcel.contents.dtype == torch.uint8
    opened = parcel.unwrap()
    assert_same(batch, opened)
    assert opened.order.dtype == batch.order.dtype
    assert opened.order.tolist() == batch.order.tolist()
    assert opened.addresses.frames.tolist() == batch.addresses.frames.tolist()


@pytest.mark.parametrize("name", ["gaussian", "branching"])
def test_parcels_of_other_models(data: Path, name: str) -> None:
    """Columns that NumPy made by broadcasting (a prior shared by all traces) travel too."""
    batch = Dataset(data / name).read(0)
    shapes = {column.name: () for column in batch.observes}
    layout = Layout(shapes)
    layout.grow(rows_of(batch))
    packed = pack(batch, layout)
    opened = Parcel.wrap(packed).unwrap()
    for one, other in zip(packed.groups, opened.groups, strict=True):
        assert one.columns.keys() == other.columns.keys()
        assert all(torch.equal(one.columns[key], other.columns[key]) for key in one.columns)


# --- several datasets, and parts of them ----------------------------------------------------------


def test_datasets_are_mixed_with_one_dictionary(data: Path) -> None:
    """Addresses are met in another order in each dataset."""
    folders = [str(data / "train"), str(data / "valid")]
    module = TracesDataModule(folders, batch_size=32, valid_fraction=0.0, workers=0)
    assert len(module.train_data) == module.order.traces == 390
    assert len({batch.addresses for batch in module.train_data.batches()}) == 1
    alone = [Dataset(folder) for folder in folders]
    assert alone[0].addresses.entries != alone[1].addresses.entries
    mixed = list(module.train_data.batches())
    for one, other in zip(mixed, [b for d in alone for b in d.batches()], strict=True):
        assert [one.addresses[a] for a in one.address] == [other.addresses[a] for a in other.address]
        np.testing.assert_array_equal(one.value, other.value)
        np.testing.assert_array_equal(one.trace_types(), other.trace_types())
    indices = np.concatenate([batch.index for batch in mixed])
    assert len(set(indices.tolist())) == 390, "each trace has noise of its own"
    module.attach(layout_of(module))
    batches = epoch_of(module, 0)
    assert sum(batch.num_traces for batch in batches) == 390
    assert sum(batch.unknown_draws for batch in batches) == 0


def test_weights_are_shares_of_each_dataset_per_epoch(data: Path) -> None:
    folders = [str(data / "train"), str(data / "valid")]
    module = TracesDataModule(folders, batch_size=32, valid_fraction=0.0, weights=[1.0, 0.5], workers=0)
    for epoch in (0, 1):
        (minibatches,) = module.order.epoch(epoch)
        which = [module.train_data.dataset_of[chunk] for chunk, _ in flat(minibatches)]
        assert (which.count(0), which.count(1)) == (300, 45)
    for wrong in ([1.0], [1.0, 0.0], [1.0, 1.5]):
        with pytest.raises(ValueError, match="for each of the 2 datasets"):
            TracesDataModule(folders, weights=wrong, workers=0)


def test_a_limit_leaves_validation_alone(data: Path) -> None:
    whole, few = (TracesDataModule(str(data / "train"), limit=limit, workers=0) for limit in (None, 40))
    assert (few.order.traces, few.valid_order.traces) == (40, whole.valid_order.traces)
    assert sum(map(len, few.training_rows)) == 40


def test_traces_to_test_with_are_in_no_other_part(data: Path) -> None:
    module = TracesDataModule(str(data / "train"), valid_fraction=0.1, test_fraction=0.2, workers=0)
    module.attach(layout_of(module))
    orders = (module.order, module.valid_order, module.test_order)
    parts = [set(flat([m for bucket in order.epoch(0) for m in bucket])) for order in orders]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 300
    assert abs(len(parts[2]) - 60) < 5
    assert sum(batch.num_traces for batch in module.test_dataloader()) == len(parts[2])
    assert TracesDataModule(str(data / "train"), workers=0).test_dataloader() == []


def test_the_sample_is_drawn_from_all_chunks(data: Path) -> None:
    sources = JoinedDatasets([data / "train"])
    sample = sources.sample(60, seed=0)
    assert len(sample) == len(set(sample.index.tolist())) == 60
    assert {int(index) // 64 for index in sample.index} == set(range(5))
    assert sample.index.tolist() == sources.sample(60, seed=0).index.tolist()
    assert sample.index.tolist() != sources.sample(60, seed=1).index.tolist()
    assert len(sources.sample(10_000, seed=0)) == 300
    assert len(sources.sample(60, seed=0, chunks=2)) == 60


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_streams_traces_to_ranks(data: Path) -> None:
    """For sequential reading of shards that lie elsewhere; rank and number of ranks are given, not guessed."""
    wds = pytest.importorskip("webdataset")
    dataset = Dataset(data / "train")
    urls = [str(path) for path in sorted(dataset.directory.glob("shard-*.tar"))]
    seen: list[list[int]] = []
    for rank in range(2):
        stream = wds.WebDataset(
            urls, shardshuffle=False, empty_check=False, nodesplitter=lambda u, r=rank: itertools.islice(u, r, None, 2)
        )
        batches = [decode({k: v for k, v in s.items() if k[:2] != "__"}, dataset.addresses) for s in stream]
        seen.append([index for batch in batches for index in batch.index.tolist()])
    gc.collect()  # it leaves its files to the garbage collector
    assert sorted(seen[0] + seen[1]) == list(range(300))
    assert min(map(len, seen)) > 0


def test_ranks_validate_with_different_traces(data: Path) -> None:
    seen: list[int] = []
    for rank in range(3):
        module = ready(data, workers=0, valid_fraction=0.3)
        module.deal_to(rank, 3)
        seen.append(sum(batch.num_traces for batch in validation_of(module)))
    assert sum(seen) == module.valid_order.traces
    assert max(seen) - min(seen) <= 32


def test_buckets_and_budgets_read_lengths_from_the_index(data: Path) -> None:
    module = ready(data, workers=0, buckets=2, max_draws=150)
    draws = [batch.num_draws for batch in epoch_of(module, 0)]
    assert max(draws) <= 150 + 60
    assert len(module.order.sizes) == 2


def test_datasets_that_do_not_fit(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'gaussian'.*'branching'"):
        TracesDataModule(str(data / "gaussian"), str(data / "branching"), workers=0)
    with pytest.raises(DatasetError, match="holds no dataset"):
        TracesDataModule(str(tmp_path), workers=0)
    with pytest.raises(ValueError, match="batch_size"):
        TracesDataModule(str(data / "gaussian"), batch_size=0, workers=0)
