"""From storage chunks to packed minibatches: what loader processes do.

Nothing here imports Lightning, so that these processes start quickly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from etalumis.datamodules.minibatches import Minibatch
from etalumis.datamodules.sources import Held, JoinedDatasets
from etalumis.execution import TraceBatch
from etalumis.execution.signals import leave_to_parent
from etalumis.networks.layout import Layout
from etalumis.networks.packing import TrainingBatch, pack
from etalumis.storage.memory import keep_memory

Place = tuple[int, Minibatch]  # epoch and traces


class Reader:
    """Traces by minibatch; the storage chunks read last are kept decoded.

    Args:
        sources: where the chunks lie.
        cache_mb: MiB of decoded chunks to keep, in each process that reads.
    """

    def __init__(self, sources: JoinedDatasets | Held, cache_mb: float) -> None:
        self.sources = sources
        self._room = int(cache_mb * 2**20)
        self._cache: OrderedDict[int, tuple[TraceBatch, int]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": OrderedDict()}

    def minibatch(self, pieces: Minibatch) -> TraceBatch:
        """The traces of a minibatch."""
        return TraceBatch.concatenate([self._chunk(chunk).select(rows) for chunk, rows in pieces])

    def _chunk(self, number: int) -> TraceBatch:
        found = self._cache.get(number)
        if found is not None:
            self._cache.move_to_end(number)
            return found[0]
        batch = self.sources.read(number)
        self._cache[number] = (batch, self.sources.chunks[number].memory)
        held = sum(size for _, size in self._cache.values())
        while held > self._room and len(self._cache) > 1:
            held -= self._cache.popitem(last=False)[1][1]
        return batch


class Minibatches(TorchDataset):
    """Packed minibatches by (epoch, traces). What they hold depends on nothing else, so any process can make any.

    Args:
        reader: of the traces.
        layout: of the network they are packed for.
        seed: of the observation noise.
        fresh_noise: draw new noise in every epoch; otherwise that of epoch 0.
        noise_on_device: leave normal noise to be drawn where the network runs.
    """

    def __init__(
        self, reader: Reader, layout: Layout, seed: int, fresh_noise: bool, noise_on_device: bool = False
    ) -> None:
        self._reader = reader
        self._layout = layout
        self._seed = seed
        self._fresh_noise = fresh_noise
        self._on_device = noise_on_device

    def __getitem__(self, place: Place) -> TrainingBatch:
        epoch, minibatch = place
        traces = self._reader.minibatch(minibatch)
        noise_of = epoch if self._fresh_noise else 0
        return pack(traces, self._layout, seed=self._seed, epoch=noise_of, noise_on_device=self._on_device)


def ignore_interrupts(worker: int = 0) -> None:
    """Leave signals to the training process, with which loader processes end."""
    leave_to_parent()
    keep_memory()


class Parcel(NamedTuple):
    """A minibatch on its way between processes: all its tensors in one, as sending many costs milliseconds.

    Attributes:
        contents: the bytes of every tensor, one after the other.
        form: the minibatch with a :class:`_Place` for each tensor.
    """

    contents: Tensor
    form: Any

    @classmethod
    def wrap(cls, batch: TrainingBatch) -> Parcel:
        """Put a minibatch together."""
        tensors: list[Tensor] = []
        places: list[_Place] = []
        end = 0

        def place(tensor: Tensor) -> _Place:
            nonlocal end
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            tensors.append(tensor)
            places.append(_Place(start, tensor.numel() * tensor.element_size(), tensor.dtype, tuple(tensor.shape)))
            end = start + places[-1].size
            return places[-1]

        form = _each(batch, Tensor, place)
        parcel = cls(torch.empty(end, dtype=torch.uint8), form)
        for tensor, here in zip(tensors, places, strict=True):
            parcel.tensor(here).copy_(tensor)
        return parcel

    def unwrap(self) -> TrainingBatch:
        """The minibatch, its tensors views of ``contents``."""

        batch = _each(self.form, _Place, self.tensor)
        assert isinstance(batch, TrainingBatch)
        return batch

    def tensor(self, place: _Place) -> Tensor:
        """The tensor that lies at a place of ``contents``."""
        return self.contents[place.start : place.start + place.size].view(place.dtype).view(place.shape)


class _Place(NamedTuple):
    start: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]


_ALIGNMENT = 64


def _each(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """The same nested dataclasses, dictionaries and tuples with ``function`` applied to what is of this kind."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {key: _each(item, kind, function) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: _each(getattr(value, f.name), kind, function) for f in fields(value)})
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        return tuple(_each(item, kind, function) for item in value)
    return value
