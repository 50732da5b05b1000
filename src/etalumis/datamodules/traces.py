"""Minibatches of traces for the inference network, read from datasets of ``etalumis simulate``."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver
from typing import Any

import numpy as np
from pytorch_lightning import LightningDataModule
from torch.utils.data import Sampler

from etalumis.datamodules import reading
from etalumis.datamodules.loader import Loader
from etalumis.datamodules.minibatches import Rows, Split, TrainingOrder, ValidationOrder
from etalumis.datamodules.reading import Minibatches, Parcel, Reader
from etalumis.execution import TraceBatch
from etalumis.networks.layout import Layout
from etalumis.storage import Dataset, DatasetError


class EpochSampler(Sampler):
    """The places (epoch, 0), (epoch, 1), … of one epoch; Lightning says which through :meth:`set_epoch`."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self._epoch, step) for step in range(self._steps))


class TracesDataModule(LightningDataModule):
    """Training and validation minibatches.

    Minibatches are packed in loader processes, so that the training process only computes. Where a dataset keeps
    likelihoods instead of observed values, training draws fresh observation noise in every epoch, seeded by
    (seed, epoch, trace); validation noise is always the same.

    Args:
        train: folder of the dataset to train with.
        valid: folder of another to validate with; None takes ``valid_fraction`` of each chunk of ``train`` away.
        batch_size: traces to a minibatch at most.
        valid_fraction: see ``valid``; not used with it.
        fresh_noise: draw new observation noise in every epoch.
        workers: loader processes; 0 reads in the training process, None takes one where there is a core for it.
        cache_mb: MiB of decoded storage chunks that each reading process keeps.
        seed: of split, order and noise.

    Raises:
        DatasetError: a folder holds no whole dataset, or the two come from different models.
    """

    def __init__(
        self,
        train: str,
        valid: str | None = None,
        batch_size: int = 256,
        valid_fraction: float = 0.05,
        fresh_noise: bool = True,
        workers: int | None = None,
        cache_mb: float = 512.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.train_data = Dataset(train)
        self.valid_data = self.train_data if valid is None else Dataset(valid)
        if self.valid_data.name != self.train_data.name:
            raise DatasetError(
                f"{train} holds traces of {self.train_data.name!r}, {valid} of {self.valid_data.name!r}; train and "
                "validate with datasets of one simulator"
            )
        self.batch_size = batch_size
        self.workers = int(_cores() > 1) if workers is None else workers
        self._seed = seed
        self._fresh_noise = fresh_noise
        self._cache_mb = cache_mb
        self._context = _quick_start() if self.workers else None
        split = Split(seed, valid_fraction if valid is None else 0.0)
        self.order = TrainingOrder(_rows(self.train_data, split, validate=False), batch_size, seed)
        if valid is None:
            held_out = _rows(self.valid_data, split, validate=True)
        else:
            held_out = [np.arange(chunk.traces) for chunk in self.valid_data.chunks]
        self.valid_order = ValidationOrder(held_out, batch_size)
        if not self.order.traces:
            raise DatasetError(f"{train} leaves no traces to train with: lower valid_fraction, or simulate more")

    @property
    def model(self) -> str:
        """The model's name."""
        return self.train_data.name

    def batches(self) -> Iterator[TraceBatch]:
        """Every storage chunk of all datasets, for a network to learn its addresses from."""
        yield from self.train_data.batches()
        if self.valid_data is not self.train_data:
            yield from self.valid_data.batches()

    def attach(self, layout: Layout) -> None:
        """Say which network minibatches are packed for; before any loader is made."""
        self._layout = layout

    def train_dataloader(self) -> Loader:
        reader = Reader(self.train_data, self._cache_mb)
        data = Minibatches(reader, self.order.epoch, self._layout, self._seed, self._fresh_noise)
        return self._loader(data, EpochSampler(len(self.order)))

    def val_dataloader(self) -> Loader | list[Loader]:
        if not len(self.valid_order):
            return []
        reader = Reader(self.valid_data, self._cache_mb)
        # Another seed than the training noise's: the same traces may be in both in other runs.
        data = Minibatches(reader, self.valid_order.epoch, self._layout, ~self._seed, False)
        return self._loader(data, [(0, step) for step in range(len(self.valid_order))])

    def _loader(self, data: Minibatches, places: Sequence[tuple[int, int]] | EpochSampler) -> Loader:
        return Loader(
            data,
            batch_size=None,
            sampler=places,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            prefetch_factor=4 if self.workers else None,
            multiprocessing_context=self._context,
            worker_init_fn=reading.ignore_interrupts if self.workers else None,
            collate_fn=Parcel.wrap if self.workers else None,  # type: ignore[arg-type]  # gets no lists here
        )


def _quick_start() -> Any:
    """Loader processes are forked from one that has imported what they need, and has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([reading.__name__])
    forkserver.ensure_running()
    return context


def _rows(dataset: Dataset, split: Split, validate: bool) -> list[Rows]:
    return [split.rows(number, chunk.traces, validate) for number, chunk in enumerate(dataset.chunks)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
