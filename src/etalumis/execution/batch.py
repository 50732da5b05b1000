"""TraceBatch: traces in columns, the one data structure from the simulator to disk, network and posterior.

N traces with D draws in all are stored ragged (CSR): trace n owns draws ``offsets[n]:offsets[n + 1]``.
Addresses are ids of an :class:`AddressBook`; distributions are rows of a table that holds each distinct one
once. There is no Python object per draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import BY_CODE
from etalumis.execution.addresses import AddressBook
from etalumis.execution.columns import Column, ObserveColumn, concatenate_columns
from etalumis.execution.distribution_table import DistributionTable
from etalumis.execution.ragged import gather, offsets_of
from etalumis.execution.trace import FINISHED, Trace

_DRAW_COLUMNS = ("address", "name", "distribution", "controlled", "conditioned", "log_prob", "log_q")
_TRACE_COLUMNS = ("index", "log_prior", "log_likelihood", "log_proposal", "finished")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class TraceBatch:
    """Columns of N traces, D draws and V numbers.

    Attributes:
        addresses: what the address ids mean.
        names: what the name ids mean; ``names[0]`` is "" (unnamed).
        distributions: what the distribution ids mean, T rows.
        index: trace index in its run, int64 (N,).
        offsets: first draw of each trace, int64 (N + 1,).
        address, name, distribution: ids, int32 (D,).
        controlled, conditioned: bool (D,).
        value: float64 (V,); ``value_offsets``: int64 (D + 1,): draw d owns ``value[value_offsets[d]:…]``.
        log_prob, log_q: prior and proposal log densities of the draws, 0 where conditioned, float64 (D,).
        log_prior, log_likelihood, log_proposal: float64 (N,).
        finished: bool (N,); False where the execution was rejected.
        observes, tags, result: columns with the positions of the traces that have them.
    """

    addresses: AddressBook
    names: tuple[str, ...]
    distributions: DistributionTable
    index: NDArray[np.int64]
    offsets: NDArray[np.int64]
    address: NDArray[np.int32]
    name: NDArray[np.int32]
    distribution: NDArray[np.int32]
    controlled: NDArray[np.bool_]
    conditioned: NDArray[np.bool_]
    value: NDArray[np.float64]
    value_offsets: NDArray[np.int64]
    log_prob: NDArray[np.float64]
    log_q: NDArray[np.float64]
    log_prior: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]
    log_proposal: NDArray[np.float64]
    finished: NDArray[np.bool_]
    observes: tuple[ObserveColumn, ...]
    tags: tuple[Column, ...]
    result: Column

    # --- shape ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.index)

    @property
    def num_traces(self) -> int:
        return len(self.index)

    @property
    def num_draws(self) -> int:
        return len(self.address)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Draws per trace, shape (N,)."""
        return np.diff(self.offsets)

    @property
    def log_weight(self) -> NDArray[np.float64]:
        """Log importance weights, shape (N,)."""
        return self.log_likelihood + self.log_prior - self.log_proposal

    @property
    def trace_of_draw(self) -> NDArray[np.int64]:
        """The position of the trace that owns each draw, shape (D,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def controlled_scalars(self) -> NDArray[np.int64]:
        """The draws that a network may propose, in order."""
        scalar = np.array([shape == () for shape in self.distributions.shapes], dtype=np.bool_)
        return np.flatnonzero(self.controlled & scalar[self.distribution])

    def trace_types(self) -> NDArray[np.uint64]:
        """A 64-bit hash of each trace's sequence of controlled addresses, shape (N,); equal on every machine."""
        draws = np.flatnonzero(self.controlled)
        owner = self.trace_of_draw[draws]
        counts = np.bincount(owner, minlength=len(self))
        first = np.concatenate([[0], np.cumsum(counts)])
        place = np.arange(len(draws)) - first[owner]
        mixed = _mix(self.addresses.hashes()[self.address[draws]] + (place.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
        return _mix(running[first[1:]] - running[first[:-1]] + counts.astype(np.uint64))

    def draws(self, name: str, instance: int | None = None) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Trace positions and values of the draws of a name.

        Args:
            name: a draw's name.
            instance: which one (from 0) within each trace, where traces have several; None takes all.

        Returns:
            positions, shape (M,), and values, shape (M, *shape).
        """
        if name not in self.names:
            raise KeyError(f"no draw is named {name!r}; the names are {sorted(filter(None, self.names))}")
        found = np.flatnonzero(self.name == self.names.index(name))
        owner = self.trace_of_draw[found]
        if instance is not None:
            first = np.concatenate([[True], owner[1:] != owner[:-1]])[: len(owner)]
            place = np.arange(len(owner)) - np.maximum.accumulate(np.where(first, np.arange(len(owner)), 0))
            found, owner = found[place == instance], owner[place == instance]
        shapes = {self.distributions.shapes[i] for i in np.unique(self.distribution[found])}
        if len(shapes) > 1:
            raise ValueError(f"draws named {name!r} have different shapes: {sorted(shapes)}")
        shape = shapes.pop() if shapes else ()
        values = gather(self.value, self.value_offsets, found)[0]
        discrete = all(BY_CODE[c].discrete for c in np.unique(self.distributions.code[self.distribution[found]]))
        return owner, values.reshape(-1, *shape).astype(np.int64 if discrete and len(found) else np.float64)

    # --- building ---------------------------------------------------------------------------------------------

    @classmethod
    def from_traces(cls, traces: Sequence[Trace], addresses: AddressBook, keep_observes: bool = True) -> TraceBatch:
        """Columns of executed traces, whose address ids belong to ``addresses``.

        Without their observes (detector images and the like) they are far smaller.
        """
        names: dict[str, int] = {"": 0}
        table: dict[tuple[Any, ...], int] = {}  # what tells distributions apart, cheaper than their own hash
        lengths = [len(trace.addresses) for trace in traces]
        count = sum(lengths)
        values = list(chain.from_iterable(t.values for t in traces))
        distributions = list(chain.from_iterable(t.distributions for t in traces))
        if any(d.shape for d in distributions):
            sizes = [int(np.size(v)) for v in values]
            value = np.concatenate([np.ravel(np.asarray(v, dtype=np.float64)) for v in values])
            value_offsets = offsets_of(sizes)
        else:
            value = np.array(values, dtype=np.float64)
            value_offsets = np.arange(count + 1, dtype=np.int64)

        def column(attribute: str, dtype: Any) -> NDArray[Any]:
            return np.fromiter(chain.from_iterable(getattr(t, attribute) for t in traces), dtype, count)

        def each(attribute: str, dtype: Any) -> NDArray[Any]:
            return np.fromiter((getattr(t, attribute) for t in traces), dtype, len(traces))

        name = [names.setdefault(n, len(names)) for n in chain.from_iterable(t.names for t in traces)]
        distribution = [table.setdefault((d.code, d.shape, d.pack()), len(table)) for d in distributions]
        return cls(
            addresses=addresses,
            names=tuple(names),
            distributions=DistributionTable.from_packed(list(table)),
            index=each("index", np.int64),
            offsets=offsets_of(lengths),
            address=column("addresses", np.int32),
            name=np.array(name, dtype=np.int32),
            distribution=np.array(distribution, dtype=np.int32),
            controlled=column("controlled", np.bool_),
            conditioned=column("conditioned", np.bool_),
            value=value,
            value_offsets=value_offsets,
            log_prob=column("log_priors", np.float64),
            log_q=column("log_proposals", np.float64),
            log_prior=each("log_prior", np.float64),
            log_likelihood=each("log_likelihood", np.float64),
            log_proposal=each("log_proposal", np.float64),
            finished=np.fromiter((t.ended == FINISHED for t in traces), np.bool_, len(traces)),
            observes=ObserveColumn.from_statements([t.observes for t in traces]) if keep_observes else (),
            tags=Column.from_named([[(tag.name, tag.value) for tag in t.tags] for t in traces]),
            result=Column.from_values("result", [(n, t.result) for n, t in enumerate(traces) if t.result is not None]),
        )

    @classmethod
    def empty(cls, addresses: AddressBook) -> TraceBatch:
        """A batch of no traces."""
        return cls.from_traces([], addresses)

    @classmethod
    def concatenate(cls, batches: Sequence[TraceBatch]) -> TraceBatch:
        """One batch of all traces in order. All batches must share one address book (see :meth:`remap`)."""
        if not batches:
            raise ValueError("nothing to concatenate: give at least one batch")
        first = batches[0]
        if len(batches) == 1:
            return first
        if any(b.addresses is not first.addresses for b in batches):
            raise ValueError("batches with different address books: remap them to one first")
        names: dict[str, int] = {"": 0}
        name = [np.array([names.setdefault(n, len(names)) for n in b.names], dtype=np.int32)[b.name] for b in batches]
        table, ids = DistributionTable.merge([b.distributions for b in batches])
        starts = np.concatenate([[0], np.cumsum([len(b) for b in batches])])
        plain = {
            key: np.concatenate([getattr(b, key) for b in batches])
            for key in (*_DRAW_COLUMNS, *_TRACE_COLUMNS, "value")
            if key not in ("name", "distribution")
        }
        return cls(
            addresses=first.addresses,
            names=tuple(names),
            distributions=table,
            offsets=offsets_of(np.concatenate([b.lengths for b in batches])),
            value_offsets=offsets_of(np.concatenate([np.diff(b.value_offsets) for b in batches])),
            name=np.concatenate(name),
            distribution=np.concatenate([i[b.distribution] for i, b in zip(ids, batches, strict=True)]),
            observes=ObserveColumn.concatenate([b.observes for b in batches], starts),
            tags=concatenate_columns([b.tags for b in batches], starts),
            result=Column.concatenate([b.result for b in batches], starts),
            **plain,
        )

    def select(self, rows: NDArray[Any] | Sequence[int]) -> TraceBatch:
        """The traces at these positions, in this order; a position may come several times."""
        rows = np.asarray(rows)
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        rows = rows.astype(np.int64)
        draws, offsets = gather(np.arange(self.num_draws), self.offsets, rows)
        if len(self.value) == self.num_draws:  # scalars all
            value, value_offsets = self.value[draws], np.arange(len(draws) + 1)
        else:
            value, value_offsets = gather(self.value, self.value_offsets, draws)
        columns = {key: getattr(self, key)[draws] for key in _DRAW_COLUMNS}
        columns |= {key: getattr(self, key)[rows] for key in _TRACE_COLUMNS}
        return replace(
            self,
            offsets=offsets,
            value=value,
            value_offsets=value_offsets,
            observes=tuple(o.select(rows, len(self)) for o in self.observes),
            tags=tuple(t.select(rows, len(self)) for t in self.tags),
            result=self.result.select(rows, len(self)),
            **columns,
        )

    def remap(self, mapping: NDArray[np.int32], addresses: AddressBook) -> TraceBatch:
        """The same traces under another address book; ``mapping[our id]`` is the id there."""
        observes = tuple(replace(o, address=int(mapping[o.address])) for o in self.observes)
        return replace(self, address=mapping[self.address], addresses=addresses, observes=observes)

    # --- plain arrays -----------------------------------------------------------------------------------------

    def to_arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays by name and a JSON-like description: what shards and posteriors store.

        Raises:
            TypeError: naming a tag or result that holds an object which is neither numbers nor JSON.
        """
        arrays = {key: getattr(self, key) for key in (*_DRAW_COLUMNS, *_TRACE_COLUMNS)}
        arrays |= {"lengths": self.lengths, "value": self.value}
        scalar = len(self.value) == self.num_draws
        if not scalar:
            arrays["sizes"] = np.diff(self.value_offsets)
        arrays |= {f"distributions.{key}": array for key, array in self.distributions.to_arrays().items()}
        meta: dict[str, Any] = {
            "names": list(self.names),
            "shapes": [list(shape) for shape in self.distributions.shapes],
            "observes": [o.to_arrays(f"observe{k}", arrays) for k, o in enumerate(self.observes)],
            "tags": [t.to_arrays(f"tag{k}", arrays) for k, t in enumerate(self.tags)],
            "result": self.result.to_arrays("result", arrays),
        }
        return arrays, meta

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any], addresses: AddressBook) -> TraceBatch:
        """The inverse of :meth:`to_arrays`.

        Raises:
            ValueError: where columns are missing or don't fit together.
        """
        dtypes: dict[str, Any] = {"address": np.int32, "name": np.int32, "distribution": np.int32, "index": np.int64}
        dtypes |= dict.fromkeys(("controlled", "conditioned", "finished"), np.bool_)
        try:
            columns = {
                key: np.asarray(arrays[key]).astype(dtypes.get(key, np.float64), copy=False)
                for key in (*_DRAW_COLUMNS, *_TRACE_COLUMNS)
            }
            value = arrays["value"].astype(np.float64, copy=False)
            sizes = arrays.get("sizes")
            batch = cls(
                addresses=addresses,
                names=tuple(meta["names"]),
                distributions=DistributionTable.from_arrays(arrays, [tuple(shape) for shape in meta["shapes"]]),
                offsets=offsets_of(arrays["lengths"]),
                value=value,
                value_offsets=np.arange(len(value) + 1) if sizes is None else offsets_of(sizes),
                observes=tuple(ObserveColumn.from_arrays(o, arrays) for o in meta["observes"]),
                tags=tuple(Column.from_arrays(t, arrays) for t in meta["tags"]),
                result=Column.from_arrays(meta["result"], arrays),
                **columns,
            )
        except KeyError as error:
            raise ValueError(f"trace columns lack {error}") from None
        batch.check()
        return batch

    def check(self) -> None:
        """Raise a ValueError where columns don't fit together; for data that comes from outside."""
        draws, traces = self.num_draws, len(self)
        facts = {
            "columns of draws have different lengths": all(len(getattr(self, k)) == draws for k in _DRAW_COLUMNS),
            "columns of traces have different lengths": all(len(getattr(self, k)) == traces for k in _TRACE_COLUMNS),
            "trace lengths do not add up": len(self.offsets) == traces + 1 and self.offsets[-1] == draws,
            "draw sizes do not add up": len(self.value_offsets) == draws + 1
            and self.value_offsets[-1] == len(self.value),
            "an address id is unknown": _within(self.address, len(self.addresses)),
            "a name id is unknown": _within(self.name, len(self.names)),
            "a distribution id is unknown": _within(self.distribution, len(self.distributions)),
            "a column refers to a trace that is not there": all(
                _within(rows, traces)
                for rows in (*(o.rows for o in self.observes), *(t.rows for t in self.tags), self.result.rows)
            ),
        }
        broken = [message for message, holds in facts.items() if not holds]
        if broken:
            raise ValueError("; ".join(broken))


def _within(ids: NDArray[Any], count: int) -> bool:
    return not len(ids) or (ids.min() >= 0 and ids.max() < count)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
