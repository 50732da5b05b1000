"""Minibatches of traces for the inference network, read from datasets of ``etalumis simulate``."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.datamodules.deal import EpochPlan, EpochPosition, Order
from etalumis.datamodules.loader import Loader, quick_start
from etalumis.datamodules.minibatches import Rows, Stock, TrainingOrder, ValidationOrder
from etalumis.datamodules.reading import Minibatches, Reader
from etalumis.datamodules.sampler import RankSampler
from etalumis.datamodules.sources import JoinedDatasets
from etalumis.datamodules.split import Side, Split, limited
from etalumis.datamodules.tracked import AS_MANY, Resumed, Told, TrackedDataModule
from etalumis.execution import TraceBatch
from etalumis.execution.pool import cores
from etalumis.networks.layout import Row, row_of
from etalumis.storage import DatasetError
from etalumis.storage.sites import Sites, join_observed

Folders = str | Path | Sequence[str | Path]

_SAMPLE = 4096  # traces from which a network takes the constants that standardise observations
_MIXING = (8, 64)  # chunks whose minibatches are mixed: of random traces, and of one type each
_NOISE = ("auto", "loader", "device")


class TracesDataModule(TrackedDataModule):
    """Training, validation and test minibatches.

    Minibatches are packed in loader processes, so that the training process only computes. Where a dataset keeps
    likelihoods instead of observed values, training draws fresh observation noise in every epoch, seeded by
    (seed, epoch, trace); validation noise is always the same.

    Args:
        train: folder of the dataset to train with, or several, whose address dictionaries are merged by name.
        valid: folders to validate with; None takes ``valid_fraction`` of each chunk of ``train`` away.
        batch_size: traces to a minibatch at most, on each rank.
        valid_fraction: see ``valid``; not used with it.
        test_fraction: of each chunk of ``train`` that is neither trained nor validated with.
        limit: train with so many of the traces only, or below 1 with such a share, chosen by seed.
        weights: for each dataset of ``train`` the share of it that an epoch takes, chosen anew in each; None takes
            all of all.
        buckets: into how many groups by length to divide the traces; an iteration's minibatches are of one.
        max_draws: controlled draws to a minibatch, exceeded by one trace at most; None does not count them.
        mixing: storage chunks whose minibatches are mixed; None takes 8, or 64 where datasets are sorted by type.
        fresh_noise: draw new observation noise in every epoch.
        noise: where normal noise of training minibatches is drawn: ``"loader"``, the processes that read;
            ``"device"``, where the network runs (other numbers of the same law); ``"auto"``: on a GPU ``"device"``.
        workers: loader processes; 0 reads in the training process, None takes one where there is a core for it.
        cache_mb: MiB of decoded storage chunks that each reading process keeps.
        seed: of split, order and noise.

    Attributes:
        training_rows: positions of the traces to train with in each chunk of ``train_data``.
        position: how far training is.

    Raises:
        DatasetError: a folder holds no whole dataset, the datasets come from different models, or two of them hold
            the same traces.
    """

    def __init__(
        self,
        train: Folders,
        valid: Folders | None = None,
        batch_size: int = 256,
        valid_fraction: float = 0.05,
        test_fraction: float = 0.0,
        limit: int | float | None = None,
        weights: Sequence[float] | None = None,
        buckets: int = 1,
        max_draws: int | None = None,
        mixing: int | None = None,
        fresh_noise: bool = True,
        noise: str = "auto",
        workers: int | None = None,
        cache_mb: float = 512.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if noise not in _NOISE:
            raise ValueError(f"noise is one of {_NOISE}; got {noise!r}")
        self.train_data = JoinedDatasets(_several(train))
        self.valid_data = self.train_data if valid is None else JoinedDatasets(_several(valid))
        if self.valid_data.name != self.train_data.name:
            raise DatasetError(
                f"{train} holds traces of {self.train_data.name!r}, {valid} of {self.valid_data.name!r}; train and "
                "validate with datasets of one simulator"
            )
        self.train_data.refuse_doubles(*([] if valid is None else [self.valid_data]))
        self.batch_size = batch_size
        self.workers = self.workers_on(cores()) if workers is None else workers
        self._seed = seed
        self._fresh_noise = fresh_noise
        self._noise = noise
        self._cache_mb = cache_mb
        self._context = quick_start() if self.workers else None
        split = Split(seed, valid_fraction if valid is None else 0.0, test_fraction)
        rows = _rows(self.train_data, split, "train")
        if not sum(map(len, rows)):
            raise DatasetError(f"{train} leaves no traces to train with: lower valid_fraction, or simulate more")
        if limit is not None:
            rows = limited(rows, limit, seed)
        self.training_rows = rows
        by_type = self.train_data.by_type
        self.order = TrainingOrder(
            _stocks(self.train_data, rows, weights, buckets > 1 or max_draws is not None),
            batch_size,
            seed,
            buckets=buckets,
            max_draws=max_draws,
            by_type=by_type,
            mixing=mixing or _MIXING[by_type],
        )
        if valid is None:
            held_out = _rows(self.valid_data, split, "valid")
        else:
            held_out = [np.arange(chunk.traces) for chunk in self.valid_data.chunks]
        self.valid_order = ValidationOrder(held_out, batch_size)
        self.test_order = ValidationOrder(_rows(self.train_data, split, "test"), batch_size)
        self.position = self._resumed_at = EpochPosition()
        self._minibatches = 0
        settings = (batch_size, valid is None and valid_fraction, test_fraction, limit, weights, buckets, max_draws)
        contents = [(chunk.crc32, chunk.traces) for chunk in self.train_data.chunks]
        self._fingerprint = zlib.crc32(repr((settings, seed, mixing, by_type, contents)).encode())

    @property
    def model(self) -> str:
        return self.train_data.name

    @property
    def test_traces(self) -> int:
        return self.test_order.traces

    def batches(self) -> Iterator[TraceBatch]:
        """Every storage chunk of all datasets; before them traces drawn from all over the training data."""
        yield self.sample()
        yield from self.train_data.batches()
        if self.valid_data is not self.train_data:
            yield from self.valid_data.batches()

    def sample(self) -> TraceBatch:
        return self.train_data.sample(_SAMPLE, self._seed)

    def training_batches(self) -> Iterator[TraceBatch]:
        for number, rows in enumerate(self.training_rows):
            if len(rows):
                yield self.train_data.read(number).select(rows)

    def tell(self, ahead: bool = False) -> Told:
        """What a network has to know of the data, from what the datasets say of themselves.

        Shapes of observations are those of whole datasets. Rows come in the order of the datasets' dictionaries. Traces
        are read only for addresses that few of them have, where none of the traces that are named in the dataset's
        index is trained with.
        """
        trained = self.train_data
        if not ahead:
            return Told.of(trained.observes, _rows_in(trained, np.flatnonzero(self._trained_sites())))
        everything = [trained] if self.valid_data is trained else [trained, self.valid_data]
        rows = [row for sources in everything for row in _rows_in(sources, np.arange(len(sources.sites)))]
        return Told.of(join_observed(sources.observes for sources in everything), rows)

    def _trained_sites(self) -> NDArray[np.bool_]:
        """Which sites occur in the traces to train with."""
        sites = self.train_data.sites
        trained = np.zeros(len(self.train_data), dtype=np.bool_)
        starts = np.cumsum([0, *(chunk.traces for chunk in self.train_data.chunks)]).tolist()
        for start, rows in zip(starts, self.training_rows, strict=False):
            trained[start + rows] = True
        met, unknown = sites.within(trained)
        left = {(int(sites.address[n]), int(sites.parameters[n])): n for n in np.flatnonzero(unknown).tolist()}
        for batch in self.training_batches() if left else ():
            found = Sites.of(batch)
            for pair in zip(found.address.tolist(), found.parameters.tolist(), strict=True):
                if (site := left.pop(pair, None)) is not None:
                    met[site] = True
            if not left:
                break
        return met

    # --- ranks and position -----------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return self.position.epoch

    @property
    def epoch_length(self) -> int:
        return len(self._sampler())

    def finished(self, epoch: int, minibatches: int, last: bool) -> None:
        start, before = self._resumed_at, self.resumed.minibatches
        if start.epoch != epoch:
            start, before = EpochPosition(epoch), 0
        self.position = EpochPosition(epoch + 1) if last else start.after(self.world_size, minibatches - before)
        self._minibatches = 0 if last else minibatches

    def state_dict(self) -> dict[str, Any]:
        """The position; equal on all ranks."""
        now = {"minibatches": self._minibatches, "world_size": self.world_size, "data": self._fingerprint}
        return self.position.to_json() | now

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a position, maybe with another number of ranks.

        Raises:
            DatasetError: it is within an epoch of other data, or of another order.
        """
        position = EpochPosition.from_json(state_dict)
        if position.dealt and state_dict["data"] != self._fingerprint:
            raise DatasetError(
                f"the checkpoint stands in the middle of epoch {position.epoch + 1} of other data, or of the same in "
                f"another order: give the datasets, batch_size, fractions, buckets and seed it was made with{AS_MANY}"
            )
        self.position = self._resumed_at = position
        # Minibatches are counted from the end of the epoch, so that it is as long as all others.
        done = (
            self.epoch_length - len(EpochPlan(self.order, self.world_size, self._seed, position))
            if position.dealt
            else 0
        )
        self.resumed = Resumed(state_dict["world_size"], state_dict["minibatches"], done)
        self._minibatches = done

    # --- loaders ----------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Loader:
        reader = Reader(self.train_data, self._cache_mb)
        data = Minibatches(reader, self._layout, self._seed, self._fresh_noise, self._noise_on_device())
        return self._loader(data, self._sampler())

    def val_dataloader(self) -> Loader | list[Loader]:
        return self._fixed(self.valid_data, self.valid_order)

    def test_dataloader(self) -> Loader | list[Loader]:
        return self._fixed(self.train_data, self.test_order)

    def _noise_on_device(self) -> bool:
        if self._noise == "auto":
            return self.trainer is not None and self.trainer.strategy.root_device.type != "cpu"
        return self._noise == "device"

    def _sampler(self) -> RankSampler:
        return RankSampler(self.order, self._seed, self.rank, self.world_size, self._resumed_at)

    def _fixed(self, sources: JoinedDatasets, order: Order) -> Loader | list[Loader]:
        """The same minibatches with the same noise whenever they are read."""
        places = list(RankSampler(order, self._seed, self.rank, self.world_size))
        if not places:
            return []
        # Another seed than the training noise's: the same traces may be in both in other runs.
        data = Minibatches(Reader(sources, self._cache_mb), self._layout, ~self._seed, False)
        return self._loader(data, places)

    def _loader(self, data: Minibatches, places: Any) -> Loader:
        return Loader.of(data, places, self.workers, self._context)


def _several(folders: Folders) -> list[str | Path]:
    return [folders] if isinstance(folders, (str, Path)) else list(folders)


def _rows_in(sources: JoinedDatasets, which: NDArray[np.int64]) -> Iterator[Row]:
    """The network's rows for some sites."""
    sites = sources.sites
    for address, parameters in zip(sites.address[which].tolist(), sites.parameters[which].tolist(), strict=True):
        yield row_of(sources.addresses[address], parameters)


def _rows(sources: JoinedDatasets, split: Split, side: Side) -> list[Rows]:
    return [split.rows(number, chunk.traces, side) for number, chunk in enumerate(sources.chunks)]


def _stocks(
    sources: JoinedDatasets, rows: Sequence[Rows], weights: Sequence[float] | None, with_lengths: bool
) -> list[Stock]:
    """What of each chunk is trained with.

    Raises:
        ValueError: there is not one weight above 0, at most 1, for each dataset.
    """
    weights = [1.0] * len(sources.datasets) if weights is None else weights
    if len(weights) != len(sources.datasets) or not all(0.0 < w <= 1.0 for w in weights):
        raise ValueError(
            f"weights={list(weights)}: give for each of the {len(sources.datasets)} datasets the share that an epoch "
            "takes, above 0 and at most 1"
        )
    lengths = [of_chunk[r] for of_chunk, r in zip(sources.lengths(), rows, strict=True)] if with_lengths else None
    return [
        Stock(r, lengths[k] if lengths else None, chunk.types == 1, weights[sources.dataset_of[k]])
        for k, (chunk, r) in enumerate(zip(sources.chunks, rows, strict=True))
    ]
