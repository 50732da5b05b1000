"""The engine's side of scripted runs: a simulator's columns become trace batches, or one trace.

Columns come from outside, so everything in them is checked: lengths, ids, shapes; and since nobody wants to score
every draw twice, the log densities of a few draws of each answer are computed again here.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import BY_CODE, DISTRIBUTIONS, Distribution
from etalumis.execution import AddressBook, Column, DensityError, DistributionTable, ObserveColumn, Trace, TraceBatch
from etalumis.execution import trace as ends
from etalumis.execution.addresses import OBSERVE, SAMPLE, TAG
from etalumis.execution.columns import gather
from etalumis.execution.trace import Observed, Tagged
from etalumis.ppx import scripted as s
from etalumis.ppx.errors import ProtocolError

_CHECKED = 8  # draws of each answer whose density is computed again
_TOLERANCE = 1e-6
_MOST_BASES, _MOST_INSTANCES = 1 << 22, 1 << 30
_KINDS = {kind: number for number, kind in enumerate((SAMPLE, OBSERVE, TAG))}


class Answer(NamedTuple):
    """Scripted executions as a batch.

    Attributes:
        traces: those that ended as they should.
        lost: indices of executions that ran into a budget.
        failed: index of the execution that the model itself broke off, if one did.
        error: what the model said then.
        names: names that statements could be conditioned by.
        used: names of conditioned draws and of scored observes.
    """

    traces: TraceBatch
    lost: tuple[int, ...]
    failed: int | None
    error: str
    names: frozenset[str]
    used: frozenset[str]


class Interpreter:
    """Reads the columns of one connection, whose numbering of addresses and names it keeps.

    Args:
        addresses: the model's address book; new addresses are interned in it.
    """

    def __init__(self, addresses: AddressBook) -> None:
        self.addresses = addresses
        self.bases, self.names = s.Numbering(), s.Numbering()
        self._keys: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._ids: NDArray[np.int32] = np.zeros(0, dtype=np.int32)

    def read(self, row: tuple[Any, ...], first: int, count: int) -> _Table:
        """Check an answer to a request for ``count`` executions from index ``first``.

        Raises:
            ProtocolError: the columns don't fit together.
        """
        try:
            columns = s.Columns(*row)
            self.bases.hear(columns.new_addresses or ())
            self.names.hear(columns.new_names or ())
            return _Table(self, columns, first, count)
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            if isinstance(error, ProtocolError):
                raise
            raise ProtocolError(f"columns of a scripted run that do not fit together: {error}") from error

    def identify(self, base: NDArray[Any], code: NDArray[Any], instance: NDArray[Any], kind: str) -> NDArray[np.int32]:
        """Ids of full addresses by the connection's numbers, (n,) each."""
        if not len(base):
            return np.zeros(0, dtype=np.int32)
        if base.max() >= len(self.bases.texts) or len(self.bases.texts) > _MOST_BASES:
            raise ProtocolError("an address was never introduced")
        if instance.max() >= _MOST_INSTANCES or instance.min() < 1:
            raise ProtocolError("an instance out of range")
        keys = (base.astype(np.int64) * 3 + _KINDS[kind]) * 256 + code.astype(np.int64)
        keys = keys * _MOST_INSTANCES + instance.astype(np.int64)
        if len(self._keys):
            places = np.searchsorted(self._keys, keys)
            places[places == len(self._keys)] = 0
            if (self._keys[places] == keys).all():
                return np.asarray(self._ids[places])
        distinct, where = np.unique(keys, return_index=True)
        for place in np.sort(where).tolist():  # in order of appearance, so that equal runs intern alike
            family = BY_CODE[int(code[place])].family if kind != TAG else "Tag"
            self.addresses.intern(self.bases.texts[int(base[place])], family, int(instance[place]), kind)
        ids = [
            self.addresses.intern(
                self.bases.texts[int(base[p])],
                BY_CODE[int(code[p])].family if kind != TAG else "Tag",
                int(instance[p]),
                kind,
            )
            for p in where.tolist()
        ]
        everything = np.concatenate([self._keys, distinct])
        self._keys, order = np.unique(everything, return_index=True)
        self._ids = np.concatenate([self._ids, np.array(ids, dtype=np.int32)])[order]
        return np.asarray(self._ids[np.searchsorted(self._keys, keys)])


class _Table:
    """One answer, checked."""

    def __init__(self, reader: Interpreter, c: s.Columns, first: int, count: int) -> None:
        self._reader = reader
        self._columns = c
        self.ended = _array(c.ended, np.uint8)
        self.traces = len(self.ended)
        failed = bool(self.traces) and self.ended[-1] == s.FAILED
        if not (self.traces == count or (failed and self.traces <= count)) or (self.ended > s.FAILED).any():
            raise ProtocolError(f"{count} executions were asked for, {self.traces} were answered")
        self.index = np.arange(first, first + self.traces, dtype=np.int64)
        self.lengths, self.owner = _rows(c.lengths, self.traces)
        draws = len(self.owner)
        self._read_distributions(c)
        self.distribution = _array(c.distribution, np.int64, draws)
        self._check_rows(self.distribution)
        self.sizes = np.ones(draws, dtype=np.int64) if c.sizes is None else _array(c.sizes, np.int64, draws)
        self.value = _array(c.values, np.float64, int(self.sizes.sum()))
        self.value_offsets = _offsets(self.sizes)
        if not np.array_equal(self.sizes, self._volume[self.distribution]):
            raise ProtocolError("a value does not have the size of its distribution")
        self.name = self._names(c.name, draws)
        self.control = _array(c.control, np.bool_, draws)
        self.conditioned = _array(c.conditioned, np.bool_, draws)
        self.log_prob = _array(c.log_prob, np.float64, draws)
        self.log_q = self.log_prob if c.log_q is None or not len(c.log_q) else _array(c.log_q, np.float64, draws)
        self.log_likelihood = _array(c.log_likelihood, np.float64, self.traces)
        base, instance = _array(c.address, np.int64, draws), _array(c.instance, np.int64, draws)
        self.address = reader.identify(base, self.table.code[self.distribution], instance, SAMPLE)
        self._read_observes(s.Observed(*(c.observes or ())))
        self._check_densities()

    # --- reading ----------------------------------------------------------------------------------------------

    def _read_distributions(self, c: s.Columns) -> None:
        code = _array(c.codes, np.uint8)
        rows = len(code)
        sizes = _array(c.parameter_sizes, np.int64, rows)
        parameters = _array(c.parameters, np.float64, int(sizes.sum()))
        if not set(np.unique(code).tolist()) <= set(BY_CODE):
            raise ProtocolError(f"unknown family among the codes {np.unique(code).tolist()}")
        shapes = _shapes(c.ranks, c.shapes, rows)
        self._volume = np.array([math.prod(shape) for shape in shapes] if any(shapes) else [1] * rows, dtype=np.int64)
        for family in map(BY_CODE.__getitem__, np.unique(code).tolist()):
            here = code == family.code
            if not family.parameter_axes and (sizes[here] != len(family.parameter_names) * self._volume[here]).any():
                raise ProtocolError(f"a {family.family} has the wrong number of parameters")
        self.table = DistributionTable(code, _offsets(sizes), parameters, shapes)

    def _read_observes(self, o: s.Observed) -> None:
        _, self.observe_owner = _rows(o.lengths, self.traces)
        count = len(self.observe_owner)
        self.observe_distribution = _array(o.distribution, np.int64, count)
        self._check_rows(self.observe_distribution)
        sizes = np.ones(count, dtype=np.int64) if o.sizes is None else _array(o.sizes, np.int64, count)
        volume = self._volume[self.observe_distribution]
        if ((sizes != volume) & (sizes != 0)).any():
            raise ProtocolError("an observed value does not have the size of its distribution")
        self.observe_offsets = _offsets(sizes)
        self.observe_value = _array(o.values, np.float64, int(sizes.sum()))
        self.observed = _array(o.observed, np.bool_, count)
        if (self.observed & (sizes == 0) & (volume != 0)).any():
            raise ProtocolError("an observed value is missing")
        self.observe_log_prob = _array(o.log_prob, np.float64, count)
        self.observe_name = self._names(o.name, count)
        base, instance = _array(o.address, np.int64, count), _array(o.instance, np.int64, count)
        self.observe_address = self._reader.identify(
            base, self.table.code[self.observe_distribution], instance, OBSERVE
        )

    def _names(self, numbers: Any, count: int) -> NDArray[np.int64]:
        names = _array(numbers, np.int64, count)
        if count and names.max() >= len(self._reader.names.texts):
            raise ProtocolError("a name was never introduced")
        return names

    def _check_rows(self, rows: NDArray[np.int64]) -> None:
        if len(rows) and rows.max() >= len(self.table):
            raise ProtocolError("a distribution is missing from the table")

    def _check_densities(self) -> None:
        """No log density may be NaN, and a few are computed again."""
        bad = np.flatnonzero(np.isnan(self.log_prob) | np.isnan(self.log_q))
        if len(bad):
            raise self._not_a_number(self.address[bad[0]], self._draw(int(bad[0])))
        bad = np.flatnonzero(np.isnan(self.observe_log_prob))
        if len(bad):
            raise self._not_a_number(self.observe_address[bad[0]], self._observation(int(bad[0])))
        if np.isnan(self.log_likelihood).any():
            raise DensityError("the simulator's log likelihood is not a number")
        for d in _few(len(self.log_prob)):
            if not self.conditioned[d]:
                self._check(self.address[d], *self._draw(d), self.log_prob[d])
        for o in _few(len(self.observe_log_prob)):
            if self.observed[o]:
                self._check(self.observe_address[o], *self._observation(o), self.observe_log_prob[o])

    def _check(self, address: int, distribution: Distribution, value: Any, log_prob: float) -> None:
        expected = distribution.log_prob(value)
        if expected != log_prob and not abs(expected - log_prob) <= _TOLERANCE * (1.0 + abs(expected)):
            raise ProtocolError(
                f"the simulator says that the log density of {value!r} under {distribution!r} is {log_prob:.9g}, but "
                f"it is {expected:.9g} (at {self._reader.addresses[address]})"
            )

    def _not_a_number(self, address: int, statement: tuple[Distribution, Any]) -> DensityError:
        return DensityError(
            f"log density is not a number at address {self._reader.addresses[address]}: {statement[0]!r} at value "
            f"{statement[1]!r}; look for a NaN among the parameters or the data there"
        )

    def _draw(self, d: int) -> tuple[Distribution, Any]:
        distribution = self.table.distribution(int(self.distribution[d]))
        return distribution, _value(self.value[self.value_offsets[d] : self.value_offsets[d + 1]], distribution)

    def _observation(self, o: int) -> tuple[Distribution, Any]:
        distribution = self.table.distribution(int(self.observe_distribution[o]))
        flat = self.observe_value[self.observe_offsets[o] : self.observe_offsets[o + 1]]
        return distribution, _value(flat, distribution) if len(flat) else None

    # --- as a batch -------------------------------------------------------------------------------------------

    def batch(self, keep_observes: bool = True) -> Answer:
        """All executions as a batch."""
        names, name = _in_order(self.name, self._reader.names.texts)
        used_rows, distribution = _first_use(self.distribution)
        table = _rows_of(self.table, used_rows)
        likelihood = np.where(self.ended == s.REJECTED, -np.inf, self.log_likelihood)
        log_prior = _totals(self.owner, self.log_prob, self.traces)
        batch = TraceBatch(
            addresses=self._reader.addresses,
            names=names,
            distributions=table,
            index=self.index,
            offsets=_offsets(self.lengths),
            address=self.address,
            name=name,
            distribution=distribution,
            controlled=self.control & ~self.conditioned,
            conditioned=self.conditioned,
            value=self.value,
            value_offsets=self.value_offsets,
            log_prob=self.log_prob,
            log_q=self.log_q,
            log_prior=log_prior,
            log_likelihood=likelihood,
            log_proposal=log_prior if self.log_q is self.log_prob else _totals(self.owner, self.log_q, self.traces),
            finished=(self.ended == s.FINISHED) | (self.ended == s.STOPPED),
            observes=self._observe_columns() if keep_observes else (),
            tags=self._tag_columns(),
            result=self._result_column(),
        )
        texts = self._reader.names.texts
        met = {texts[n] for n in np.unique(np.concatenate([self.name, self.observe_name])).tolist()}
        scored = {texts[n] for n in np.unique(self.observe_name[self.observed]).tolist()}
        forced = {texts[n] for n in np.unique(self.name[self.conditioned]).tolist()}
        good = self.ended < s.EXHAUSTED
        failed = int(self.index[-1]) if self.traces and self.ended[-1] == s.FAILED else None
        return Answer(
            batch if good.all() else batch.select(good),
            tuple(self.index[self.ended == s.EXHAUSTED].tolist()),
            failed,
            self._columns.error or "",
            frozenset(met - {""}),
            frozenset(scored | forced),
        )

    def _observe_columns(self) -> tuple[ObserveColumn, ...]:
        rows = self.observe_distribution
        if not len(rows):
            return ()
        sizes = np.diff(self.observe_offsets)
        packed = np.diff(self.table.offsets)[rows]
        shape_of = {shape: n for n, shape in enumerate(dict.fromkeys(self.table.shapes))}
        shapes = np.array([shape_of[shape] for shape in self.table.shapes] if len(shape_of) > 1 else [0])
        shape = shapes[rows] if len(shape_of) > 1 else np.zeros(len(rows), dtype=np.int64)
        group = np.zeros(len(rows), dtype=np.int64)
        for facet in (self.observe_address, self.observe_name, self.observed, sizes == 0, packed, shape):
            distinct, part = np.unique(facet, return_inverse=True)
            group = np.unique(group * len(distinct) + part, return_inverse=True)[1]
        firsts = np.unique(group, return_index=True)[1]
        texts = self._reader.names.texts
        columns = []
        for first in np.sort(firsts).tolist():
            members = np.flatnonzero(group == group[first])
            family = self._reader.addresses[int(self.observe_address[first])].family
            extent = self.table.shapes[int(rows[first])]
            values = None
            if sizes[first]:
                places = self.observe_offsets[members][:, None] + np.arange(sizes[first])
                values = self.observe_value[places].reshape(len(members), *extent)
            places = self.table.offsets[rows[members]][:, None] + np.arange(packed[first])
            columns.append(
                ObserveColumn(
                    int(self.observe_address[first]),
                    texts[int(self.observe_name[first])],
                    family,
                    self.observe_owner[members],
                    _parameters(family, self.table.parameters[places], extent),
                    values,
                    bool(self.observed[first]),
                )
            )
        return tuple(columns)

    def _tag_columns(self) -> tuple[Column, ...]:
        t = s.Values(*(self._columns.tags or ()))
        _, owner = _rows(t.lengths, self.traces)
        names = self._names(t.name, len(owner))
        values, shapes = self._values(t, len(owner))
        columns = []
        for first in np.sort(np.unique(names, return_index=True)[1]).tolist():
            members = np.flatnonzero(names == names[first])
            name = self._reader.names.texts[int(names[first])]
            columns.append(_column(name, owner[members], values, shapes, members))
        return tuple(columns)

    def _tags(self) -> list[Tagged]:
        """The tags of the only execution."""
        t = s.Values(*(self._columns.tags or ()))
        count = int(_rows(t.lengths, self.traces)[0].sum())
        values, shapes = self._values(t, count)
        base, instance = _array(t.address, np.int64, count), _array(t.instance, np.int64, count)
        address = self._reader.identify(base, np.zeros(count, dtype=np.int64), instance, TAG).tolist()
        names = [self._reader.names.texts[n] for n in self._names(t.name, count).tolist()]
        starts = _offsets(np.array([math.prod(shape) for shape in shapes], dtype=np.int64))
        found = [values[starts[k] : starts[k + 1]].reshape(shapes[k]) for k in range(count)]
        return [Tagged(a, name, _scalar(v)) for a, name, v in zip(address, names, found, strict=True)]

    def _result_column(self) -> Column:
        r = s.Values(*(self._columns.results or ()))
        _, owner = _rows(r.lengths, self.traces)
        values, shapes = self._values(r, len(owner))
        return _column("result", owner, values, shapes, np.arange(len(owner)))

    def _values(self, v: s.Values, count: int) -> tuple[NDArray[np.float64], tuple[tuple[int, ...], ...]]:
        shapes = _shapes(v.ranks, v.shapes, count)
        total = sum(math.prod(shape) for shape in shapes) if any(shapes) else count
        return _array(v.values, np.float64, total), shapes

    # --- as one trace -----------------------------------------------------------------------------------------

    def trace(self) -> Trace:
        """The only execution as a trace; "failed" where the simulator did not come to its end."""
        assert self.traces == 1
        trace = Trace(int(self.index[0]))
        texts = self._reader.names.texts
        table = [self.table.distribution(row) for row in range(len(self.table))]
        trace.addresses = self.address.tolist()
        trace.distributions = [table[row] for row in self.distribution.tolist()]
        trace.names = [texts[n] for n in self.name.tolist()]
        if len(self.value) == len(trace.addresses):
            pairs = zip(self.value.tolist(), trace.distributions, strict=True)
            trace.values = [d.cast(v) if not d.shape else _value(np.array([v]), d) for v, d in pairs]
        else:
            trace.values = [self._draw(d)[1] for d in range(len(trace.addresses))]
        trace.log_priors = self.log_prob.tolist()
        trace.log_proposals = self.log_q.tolist()
        trace.conditioned = self.conditioned.tolist()
        trace.controlled = (self.control & ~self.conditioned).tolist()
        for o, (address, name, row) in enumerate(
            zip(
                self.observe_address.tolist(),
                self.observe_name.tolist(),
                self.observe_distribution.tolist(),
                strict=True,
            )
        ):
            value = self._observation(o)[1]
            observed, log_prob = bool(self.observed[o]), float(self.observe_log_prob[o])
            trace.observes.append(Observed(address, texts[name], table[row], value, observed, log_prob))
        trace.tags = self._tags()
        result = self._result_column()
        trace.result = _scalar(result.values[0]) if len(result) else None
        trace.log_likelihood = float(self.log_likelihood[0])
        if self.ended[0] == s.REJECTED:
            trace.ended, trace.log_likelihood = ends.REJECTED, -math.inf
        elif self.ended[0] >= s.EXHAUSTED:
            trace.ended, trace.log_likelihood = ends.FAILED, -math.inf
        return trace

    @property
    def error(self) -> str:
        """Why the last execution failed."""
        return self._columns.error or ("a budget was exhausted" if s.EXHAUSTED in self.ended else "")


# --- ragged arrays --------------------------------------------------------------------------------------------------


def _array(numbers: Any, dtype: Any, count: int | None = None) -> NDArray[Any]:
    array = np.zeros(0, dtype) if numbers is None else np.asarray(numbers).astype(dtype, copy=False)
    if count is not None and len(array) != count:
        raise ProtocolError(f"a column has {len(array)} entries instead of {count}")
    return array


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    out = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=out[1:])
    return out


def _totals(owner: NDArray[np.int64], terms: NDArray[np.float64], traces: int) -> NDArray[np.float64]:
    """Sums over the entries of each trace, added one by one as the loop adds them."""
    return np.bincount(owner, terms, traces).astype(np.float64, copy=False)


def _rows(lengths: Any, traces: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths, and the trace that owns each entry."""
    counts = np.zeros(traces, dtype=np.int64) if lengths is None else _array(lengths, np.int64, traces)
    if counts.sum() > 1 << 28:
        raise ProtocolError("more entries than a message can hold")
    return counts, np.repeat(np.arange(traces), counts)


def _shapes(ranks: Any, extents: Any, count: int) -> tuple[tuple[int, ...], ...]:
    if ranks is None or not len(ranks):
        return ((),) * count
    sizes, flat = _array(ranks, np.int64, count), _array(extents, np.int64)
    if sizes.sum() != len(flat) or (flat < 0).any():
        raise ProtocolError("shapes that do not add up")
    numbers, starts = flat.tolist(), _offsets(sizes).tolist()
    return tuple([tuple(numbers[a:b]) for a, b in pairwise(starts)])


def _first_use(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Distinct ids in order of first use, and the place of each entry among them."""
    distinct, first, place = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return distinct[order], rank[place]


def _in_order(ids: NDArray[np.int64], texts: list[str]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Names in order of first use after "", and their ids."""
    used, place = _first_use(ids)
    names = {"": 0}
    mapping = np.array([names.setdefault(texts[n], len(names)) for n in used.tolist()], dtype=np.int32)
    return tuple(names), mapping[place] if len(place) else place.astype(np.int32)


def _rows_of(table: DistributionTable, rows: NDArray[np.int64]) -> DistributionTable:
    if len(rows) == len(table) and (rows == np.arange(len(rows))).all():
        return table
    parameters, offsets = gather(table.parameters, table.offsets, rows)
    shapes = tuple([table.shapes[row] for row in rows.tolist()])
    return DistributionTable(table.code[rows], offsets, parameters, shapes)


def _parameters(family: str, packed: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[NDArray[Any], ...]:
    """Packed parameters (M, P) of one family and shape as arrays in wire order; what is constant is kept once."""
    kind = DISTRIBUTIONS[family]
    count = len(packed)
    if kind.parameter_axes:
        columns = [packed.reshape(count, *shape, -1)]
    else:
        split = packed.reshape(count, len(kind.parameter_names), *shape)
        columns = [split[:, k] for k in range(len(kind.parameter_names))]
        if shape:
            flat = [c.reshape(count, -1) for c in columns]
            same = [bool((f == f[:, :1]).all()) for f in flat]
            columns = [f[:, 0] if one else c for c, f, one in zip(columns, flat, same, strict=True)]
            if all(same):  # one parameter must tell the shape
                columns[0] = split[:, 0]
    return tuple([c[:1].copy() if count > 1 and bool((c == c[:1]).all()) else np.ascontiguousarray(c) for c in columns])


def _column(
    name: str,
    rows: NDArray[np.int64],
    values: NDArray[np.float64],
    shapes: tuple[tuple[int, ...], ...],
    members: NDArray[np.int64],
) -> Column:
    if not any(shapes):
        return Column(name, rows, values[members])
    starts = _offsets(np.array([math.prod(shape) for shape in shapes], dtype=np.int64))
    found = [values[starts[m] : starts[m + 1]].reshape(shapes[m]) for m in members.tolist()]
    return Column.from_values(name, list(zip(rows.tolist(), map(_scalar, found), strict=True)))


def _value(flat: NDArray[np.float64], distribution: Distribution) -> Any:
    if not distribution.shape:
        return distribution.cast(float(flat[0]))
    array = flat.reshape(distribution.shape)
    return array.astype(np.int64) if distribution.discrete and bool((array % 1 == 0).all()) else array


def _scalar(value: Any) -> Any:
    return value if np.ndim(value) else float(value)


def _few(count: int) -> list[int]:
    """Positions spread over a column, elsewhere for each length."""
    if count <= _CHECKED:
        return list(range(count))
    step = count / _CHECKED
    return [min(int(step * (k + (count * 0.618 + k * 0.381) % 1.0)), count - 1) for k in range(_CHECKED)]
