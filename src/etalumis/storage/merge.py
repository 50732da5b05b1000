"""Several datasets of one model as one: one address dictionary, and no trace index twice.

Ids of addresses are met by the addresses' text. A trace keeps its index where only one dataset is given; the traces
of each further dataset are numbered on from where those before end, as fresh noise is keyed by the index alone
and two traces of one index would get the same. Where they were is written into ``origin.sources``.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import AddressBook, TraceBatch
from etalumis.storage.chunk import Encoding
from etalumis.storage.dataset import Dataset
from etalumis.storage.errors import DatasetError
from etalumis.storage.failures import join
from etalumis.storage.manifest import MANIFEST, Origin
from etalumis.storage.sites import join_observed


class Place(NamedTuple):
    """A storage chunk among those of all sources, and the position of its first trace among all traces."""

    source: int
    chunk: int
    position: int


class Sources:
    """Datasets read as one.

    Args:
        directories: their folders, in the order in which their traces are numbered.
        shifts: what is added to the indices of each one's traces, where that is known already: finding it reads the
            index of every dataset.

    Attributes:
        datasets, addresses: them, and the dictionary of all.
        shifts: what is added to the indices of each one's traces.
        places: their storage chunks in order.

    Raises:
        DatasetError: a dataset is not whole, or they are of different models.
    """

    def __init__(self, directories: Sequence[str | Path], shifts: Sequence[int] | None = None) -> None:
        if not directories:
            raise DatasetError("no dataset is given: input=FOLDER, or input=[FOLDER,FOLDER]")
        self.datasets = [Dataset(directory) for directory in directories]
        names = {dataset.name: dataset.directory for dataset in self.datasets}
        if len(names) > 1:
            raise DatasetError(
                "datasets of different models can't become one: "
                + ", ".join(f"{directory} is of {name!r}" for name, directory in names.items())
            )
        self.addresses = AddressBook()
        self._ids = [self.addresses.merge(dataset.addresses) for dataset in self.datasets]
        self.shifts = list(shifts) if shifts is not None else self._number()
        self.places: list[Place] = []
        position = 0
        for number, dataset in enumerate(self.datasets):
            for chunk, entry in enumerate(dataset.chunks):
                self.places.append(Place(number, chunk, position))
                position += entry.traces

    def __len__(self) -> int:
        """Number of traces."""
        return sum(map(len, self.datasets))

    @property
    def observes(self) -> dict[str, dict[str, Any]]:
        """What is observed, as in a manifest."""
        return join_observed(dataset.manifest.observes for dataset in self.datasets)

    @property
    def failures(self) -> dict[str, Any]:
        """What is said of the executions that failed, as in a manifest, with indices of the merged dataset."""
        return join((d.manifest.failures, shift) for d, shift in zip(self.datasets, self.shifts, strict=True))

    def index(self) -> NDArray[np.int64]:
        """The index of every trace in the merged dataset."""
        pieces = [d.index.index + shift for d, shift in zip(self.datasets, self.shifts, strict=True)]
        return np.concatenate(pieces)

    def read(self, place: Place) -> TraceBatch:
        """A storage chunk with ids and indices of the merged dataset."""
        batch = self.datasets[place.source].read(place.chunk).remap(self._ids[place.source], self.addresses)
        shift = self.shifts[place.source]
        return replace(batch, index=batch.index + shift) if shift else batch

    def origin(self, chunk_size: int | None, shard_bytes: float, encoding: Mapping[str, Any]) -> Origin:
        """What a dataset made of all this says that it is made from.

        Args:
            chunk_size: traces to a storage chunk; None keeps the sources'.
            shard_bytes: about how large its shards become.
            encoding: settings that differ from the sources'.

        Raises:
            DatasetError: the sources hold the same traces, or differ in a setting that is to be kept.
        """
        sources = [o for d, shift in zip(self.datasets, self.shifts, strict=True) for o in runs_of(d, shift)]
        refuse_doubles(sources)
        origins = [dataset.manifest.origin for dataset in self.datasets]
        first = origins[0]
        kept: dict[str, Any] = {}
        for key in Encoding().to_json():
            values = {json.dumps(Encoding(**origin.encoding).to_json()[key]) for origin in origins}
            if encoding.get(key) is None and len(values) > 1:
                raise DatasetError(
                    f"the datasets are stored with different encoding.{key}: {', '.join(sorted(values))}; say which: "
                    f"encoding.{key}=..."
                )
            if key == "observes" and encoding.get(key) == "both" and any(json.loads(v) != "both" for v in values):
                raise DatasetError(
                    "encoding.observes=both can't be had: values that were drawn were not kept; sort without it, or "
                    "simulate anew with encoding.observes=both"
                )
            kept[key] = encoding[key] if encoding.get(key) is not None else json.loads(values.pop())
        counts = [_executions(dataset) for dataset in self.datasets]
        known = all(
            o.num_traces is not None or len(d) + d.manifest.failures.get("count", 0) == count
            for o, d, count in zip(origins, self.datasets, counts, strict=True)
        )
        return Origin(
            model=first.model,
            seed=first.seed,
            num_traces=sum(counts) if known else None,
            chunk_size=chunk_size
            or max(o.chunk_size or c.traces for o, d in zip(origins, self.datasets, strict=True) for c in d.chunks[:1]),
            simulator=dict(first.simulator),
            encoding=Encoding(**kept).to_json(),
            sources=sources,
            shard_bytes=round(shard_bytes),
        )

    def _number(self) -> list[int]:
        """What is added to the indices of each dataset's traces so that none comes twice."""
        shifts: list[int] = []
        following = 0
        for dataset in self.datasets:
            shifts.append(following)
            following += _executions(dataset)
        return shifts


def refuse_doubles(runs: Iterable[Mapping[str, Any]]) -> None:
    """The same trace from two datasets would count twice in every mean over the traces.

    Args:
        runs: those that the traces come from, as :func:`runs_of` describes them.

    Raises:
        DatasetError: two of them have traces of one model, seed (modulo 2⁶⁴, as random numbers take it) and index.
    """
    seen: dict[str, list[tuple[int, int]]] = {}
    for run in runs:
        key = json.dumps([run["model"], run["seed"] % 2**64, run["simulator"]], sort_keys=True)
        span = (run["first"], run["last"])
        if any(span[0] <= last and first <= span[1] for first, last in seen.setdefault(key, [])):
            raise DatasetError(
                f"two datasets hold the same traces: of {run['model']!r} with seed {run['seed']}, in indices "
                f"{span[0]} to {span[1]}; simulate one of them with another seed"
            )
        seen[key].append(span)


def checksum(dataset: Dataset) -> int:
    """Of a dataset's manifest: datasets that share it are equal."""
    return zlib.crc32((dataset.directory / MANIFEST).read_bytes())


def _executions(dataset: Dataset) -> int:
    """How many a dataset is of, those that failed included; where it does not say so, those up to its last."""
    last = max(int(dataset.index.index.max()), *dataset.manifest.failures.get("indices", ()), -1)
    return int(max(dataset.manifest.origin.num_traces or 0, last + 1))


def runs_of(dataset: Dataset, shift: int = 0) -> list[dict[str, Any]]:
    """Where the traces of a dataset come from: a run's seed and simulator, its indices, and what was added to them.

    The checksum of the run's manifest, which has those of all its files, tells it from one of the same settings that
    other code made.
    """
    origin = dataset.manifest.origin
    if origin.sources:
        return [{**source, "shift": source["shift"] + shift} for source in origin.sources]
    indices = dataset.index.index
    return [
        {
            "model": origin.model,
            "seed": origin.seed,
            "simulator": dict(origin.simulator),
            "first": int(indices.min()),
            "last": int(indices.max()),
            "shift": shift,
            "manifest_crc32": checksum(dataset),
        }
    ]
