"""What a dataset holds: from its manifest, dictionary and index, and, for what only chunks know, from a few of them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import AddressBook, ObserveColumn, TraceBatch
from etalumis.execution.addresses import SAMPLE
from etalumis.storage.dataset import Dataset
from etalumis.storage.manifest import Manifest
from etalumis.storage.tar import BLOCK

_CHUNKS = 16  # that are looked into
_BINS = 20
_NUMBERED = re.compile(r"\d+")


def facts(dataset: Dataset) -> dict[str, Any]:
    """What a dataset holds, in numbers."""
    m, lengths = dataset.manifest, dataset.index.length
    return {
        "model": m.origin.model,
        "traces": m.traces,
        "trace_types": m.trace_types,
        "addresses": len(dataset.addresses),
        "draws": m.draws,
        "controlled": m.controlled,
        "lengths": {"min": m.shortest, "median": float(np.median(lengths)), "max": m.longest},
        "bytes": m.bytes,
        "bytes_per_trace": m.bytes / m.traces,
        "chunks": len(m.chunks),
        "shards": len(m.shards),
        "failed": failed(m),
    }


def failed(manifest: Manifest) -> int:
    """Executions that a dataset lacks."""
    made = manifest.origin.num_traces
    return int(manifest.failures.get("count", 0)) if made is None else max(made - manifest.traces, 0)


def inspect(dataset: Dataset, top: int = 10) -> dict[str, Any]:
    """All that is worth knowing of a dataset, as plain JSON.

    Counts of traces, types and lengths are exact. Visits of addresses, tags, and bytes by member are those of at most
    sixteen chunks, evenly spread; ``sampled`` says how many.

    Args:
        dataset: read without changing it.
        top: how many trace types and addresses to list.
    """
    if top < 1:
        raise ValueError(f"top is how many trace types and addresses to list, at least 1; got {top}")
    origin = dataset.manifest.origin
    count = len(dataset.chunks)
    numbers = np.unique(np.linspace(0, count - 1, min(count, _CHUNKS)).astype(np.int64)).tolist()
    looked_into = _Sample(dataset, numbers)
    return {
        **facts(dataset),
        "origin": {
            "seed": origin.seed,
            "num_traces": origin.num_traces,
            "chunk_size": origin.chunk_size,
            "simulator": dict(origin.simulator),
            "encoding": dict(origin.encoding),
        },
        "sorted": sorting(dataset),
        "failures": dict(dataset.manifest.failures),
        "types": types(dataset, top),
        "histogram": lengths(dataset.index.length),
        "families": dict(Counter(a.family for a in dataset.addresses if a.kind == SAMPLE).most_common()),
        "sampled": {"chunks": len(numbers), "traces": looked_into.traces},
        **looked_into.to_json(dataset.addresses, top),
    }


def sorting(dataset: Dataset) -> dict[str, Any]:
    """Whether like traces stand together."""
    single = sum(chunk.types == 1 for chunk in dataset.chunks)
    return {"sorted": bool(dataset.manifest.origin.sources), "chunks_of_one_type": single}


def types(dataset: Dataset, top: int) -> dict[str, Any]:
    """The histogram of trace types."""
    index = dataset.index
    counts = np.bincount(index.type, minlength=len(index.types))
    order = np.argsort(-counts, kind="stable")[:top]
    return {
        "single": int(np.count_nonzero(counts == 1)),
        "top": [
            {
                "type": f"{int(index.types[row]):016x}",
                "traces": int(counts[row]),
                "share": float(counts[row] / counts.sum()),
                "controlled": int(index.controlled[row]),
            }
            for row in order.tolist()
        ],
    }


def lengths(found: NDArray[np.int64]) -> list[dict[str, int]]:
    """Traces by their number of draws: each number of its own where there are few, else bins that grow."""
    least, most = int(found.min()), int(found.max())
    edges = np.arange(least, most + 2)
    if len(edges) > _BINS + 1:
        steps = np.geomspace(1, most + 2 - least, _BINS + 1) - 1
        edges = np.unique(np.round(least + steps).astype(np.int64))
    counts, _ = np.histogram(found, np.append(edges[:-1], most + 1))
    return [
        {"from": int(low), "to": int(high) - 1, "traces": int(n)}
        for low, high, n in zip(edges[:-1], [*edges[1:-1], most + 1], counts, strict=True)
    ]


class _Sample:
    """What some chunks of a dataset hold."""

    def __init__(self, dataset: Dataset, numbers: list[int]) -> None:
        self.traces = 0
        self._visits = np.zeros(len(dataset.addresses), dtype=np.int64)
        self._observes: dict[str, dict[str, Any]] = {}
        self._tags: dict[str, dict[str, Any]] = {}
        self._members: Counter[str] = Counter()
        for number in numbers:
            batch = dataset.read(number)
            self.traces += len(batch)
            self._visits += np.bincount(batch.address, minlength=len(self._visits))
            self._columns(batch)
            for field, content in dataset.members(number).items():
                self._members[_NUMBERED.sub("", field.split(".npy")[0])] += len(content)
                self._members["(tar headers)"] += BLOCK + -len(content) % BLOCK

    def _columns(self, batch: TraceBatch) -> None:
        for column in batch.observes:
            entry = self._observes.setdefault(column.name or "(unnamed)", {"traces": 0, **_kind(column)})
            entry["traces"] += len(column)
        for tag in (*batch.tags, *([batch.result] if len(batch.result) else [])):
            values = tag.values
            plain = isinstance(values, np.ndarray)
            entry = self._tags.setdefault(
                tag.name,
                {
                    "traces": 0,
                    "dtype": values.dtype.name if isinstance(values, np.ndarray) else "json",
                    "shape": list(np.shape(values)[1:]) if plain else [],
                },
            )
            entry["traces"] += len(tag)

    def to_json(self, addresses: AddressBook, top: int) -> dict[str, Any]:
        order = np.argsort(-self._visits, kind="stable")[:top].tolist()
        visited = [
            {
                "address": str(addresses[row]),
                "family": addresses[row].family,
                "visits": int(self._visits[row]),
                "per_trace": float(self._visits[row] / self.traces),
            }
            for row in order
            if self._visits[row]
        ]
        return {
            "visited": visited,
            "observes": self._observes,
            "tags": self._tags,
            "members": dict(self._members.most_common()),
        }


def _kind(column: ObserveColumn) -> dict[str, Any]:
    """How an observation is stored. One whose values are not kept is drawn anew each time it is read."""
    return {
        "family": column.family,
        "shape": [int(n) for n in column.shape],
        "dtype": column.parameters[0].dtype.name,
        "given": column.observed,
        "drawn_when_read": column.values is None,
    }
