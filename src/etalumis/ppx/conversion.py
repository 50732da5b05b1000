"""Scripted executions, read and checked, as a trace batch or as one trace."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import Column, ObserveColumn, Trace, TraceBatch
from etalumis.execution import trace as ends
from etalumis.execution.addresses import TAG
from etalumis.execution.ragged import offsets_of
from etalumis.execution.trace import Mark, Observed, Tagged, is_mark
from etalumis.ppx import scripted as s
from etalumis.ppx.columns import Table, orderly
from etalumis.ppx.errors import ProtocolError
from etalumis.ppx.ragged import (
    column,
    first_use,
    in_order,
    owners,
    parameters_of,
    rows_of,
    scalar,
    shapes_of,
    totals,
    value_column,
    value_of,
)


class Answer(NamedTuple):
    """Scripted executions as a batch.

    Attributes:
        traces: those that ended as they should.
        lost: indices of executions that ran into a budget.
        failed: index of the execution that the model itself broke off, if one did.
        error: what the model said then.
        names: names that statements could be conditioned by.
        used: names of conditioned draws and of scored observes: how often one execution met each at most, and the
            shape there.
    """

    traces: TraceBatch
    lost: tuple[int, ...]
    failed: int | None
    error: str
    names: frozenset[str]
    used: dict[str, tuple[int, tuple[int, ...]]]


@orderly()
def to_batch(told: Table, keep_observes: bool = True) -> Answer:
    """All executions as a batch."""
    names, name = in_order(told.name, told.reader.names.texts)
    used_rows, distribution = first_use(told.distribution)
    table = rows_of(told.table, used_rows)
    likelihood = np.where(told.ended == s.REJECTED, -np.inf, told.log_likelihood)
    log_prior = totals(told.owner, told.log_prob, told.traces)
    batch = TraceBatch(
        addresses=told.reader.addresses,
        names=names,
        distributions=table,
        index=told.index,
        offsets=offsets_of(told.lengths),
        address=told.address,
        name=name,
        distribution=distribution,
        controlled=told.control & ~told.conditioned,
        conditioned=told.conditioned,
        value=told.value,
        value_offsets=told.value_offsets,
        log_prob=told.log_prob,
        log_q=told.log_q,
        log_prior=log_prior,
        log_likelihood=likelihood,
        log_proposal=log_prior if told.log_q is told.log_prob else totals(told.owner, told.log_q, told.traces),
        finished=(told.ended == s.FINISHED) | (told.ended == s.STOPPED),
        observes=_observe_columns(told) if keep_observes else (),
        tags=_tag_columns(told),
        result=_result_column(told),
    )
    texts = told.reader.names.texts
    met = {texts[n] for n in np.unique(np.concatenate([told.name, told.observe_name])).tolist()}
    good = told.ended < s.EXHAUSTED
    failed = int(told.index[-1]) if told.traces and told.ended[-1] == s.FAILED else None
    return Answer(
        batch if good.all() else batch.select(good),
        tuple(told.index[told.ended == s.EXHAUSTED].tolist()),
        failed,
        told.columns.error or "",
        frozenset(met - {""}),
        _used(told),
    )


def _used(told: Table) -> dict[str, tuple[int, tuple[int, ...]]]:
    forced, scored = told.conditioned, told.observed
    name = np.concatenate([told.name[forced], told.observe_name[scored]])
    owner = np.concatenate([told.owner[forced], told.observe_owner[scored]])
    row = np.concatenate([told.distribution[forced], told.observe_distribution[scored]])
    texts = told.reader.names.texts
    used: dict[str, tuple[int, tuple[int, ...]]] = {}
    for number in np.unique(name).tolist():
        here = np.flatnonzero(name == number)
        used[texts[number]] = (int(np.bincount(owner[here]).max()), told.table.shapes[int(row[here[0]])])
    return used


def _observe_columns(told: Table) -> tuple[ObserveColumn, ...]:
    rows = told.observe_distribution
    if not len(rows):
        return ()
    sizes = np.diff(told.observe_offsets)
    packed = np.diff(told.table.offsets)[rows]
    shape_of = {shape: n for n, shape in enumerate(dict.fromkeys(told.table.shapes))}
    shapes = np.array([shape_of[shape] for shape in told.table.shapes] if len(shape_of) > 1 else [0])
    shape = shapes[rows] if len(shape_of) > 1 else np.zeros(len(rows), dtype=np.int64)
    group = np.zeros(len(rows), dtype=np.int64)
    for facet in (told.observe_address, told.observe_name, told.observed, sizes == 0, packed, shape):
        distinct, part = np.unique(facet, return_inverse=True)
        group = np.unique(group * len(distinct) + part, return_inverse=True)[1]
    firsts = np.unique(group, return_index=True)[1]
    texts = told.reader.names.texts
    columns = []
    for first in np.sort(firsts).tolist():
        members = np.flatnonzero(group == group[first])
        family = told.reader.addresses[int(told.observe_address[first])].family
        extent = told.table.shapes[int(rows[first])]
        values = None
        if sizes[first]:
            places = told.observe_offsets[members][:, None] + np.arange(sizes[first])
            values = told.observe_value[places].reshape(len(members), *extent)
        places = told.table.offsets[rows[members]][:, None] + np.arange(packed[first])
        columns.append(
            ObserveColumn(
                int(told.observe_address[first]),
                texts[int(told.observe_name[first])],
                family,
                told.observe_owner[members],
                parameters_of(family, told.table.parameters[places], extent),
                values,
                bool(told.observed[first]),
            )
        )
    return tuple(columns)


def _tag_columns(told: Table) -> tuple[Column, ...]:
    tags = s.Values(*(told.columns.tags or ()))
    _, owner = owners(tags.lengths, told.traces)
    names = told.names_of(tags.name, len(owner))
    values, shapes = _values(tags, len(owner))
    bases = told.reader.bases.texts
    base = column(tags.address, np.int64, len(owner))
    if len(base) and base.max() >= len(bases):
        raise ProtocolError("an address was never introduced")
    used, where = np.unique(base, return_inverse=True)
    names = np.where(np.array([is_mark(bases[b]) for b in used.tolist()], dtype=bool)[where], -1, names)
    columns = []
    for first in np.sort(np.unique(names, return_index=True)[1]).tolist():
        if names[first] < 0:
            continue  # markers of loops: of use to engines only
        members = np.flatnonzero(names == names[first])
        name = told.reader.names.texts[int(names[first])]
        columns.append(value_column(name, owner[members], values, shapes, members))
    return tuple(columns)


def _tags(told: Table) -> tuple[list[Tagged], list[Mark]]:
    """The tags and the markers of the only execution."""
    tags = s.Values(*(told.columns.tags or ()))
    count = int(owners(tags.lengths, told.traces)[0].sum())
    values, shapes = _values(tags, count)
    base, instance = column(tags.address, np.int64, count), column(tags.instance, np.int64, count)
    address = told.reader.identify(base, np.zeros(count, dtype=np.int64), instance, TAG).tolist()
    names = [told.reader.names.texts[n] for n in told.names_of(tags.name, count).tolist()]
    starts = offsets_of(np.array([math.prod(shape) for shape in shapes], dtype=np.int64))
    found = [values[starts[k] : starts[k + 1]].reshape(shapes[k]) for k in range(count)]
    tagged: list[Tagged] = []
    marks: list[Mark] = []
    for a, name, value in zip(address, names, found, strict=True):
        place = told.reader.addresses[a]
        if is_mark(place.base) and value.size == 2:
            marks.append(Mark(place.base, place.instance, int(value[0]), float(value[1])))
        else:
            tagged.append(Tagged(a, name, scalar(value)))
    if any(not 0 <= mark.position <= len(told.address) for mark in marks):
        raise ProtocolError("a marker of a loop stands behind the last draw")
    return tagged, marks


def _result_column(told: Table) -> Column:
    r = s.Values(*(told.columns.results or ()))
    _, owner = owners(r.lengths, told.traces)
    values, shapes = _values(r, len(owner))
    return value_column("result", owner, values, shapes, np.arange(len(owner)))


def _values(v: s.Values, count: int) -> tuple[NDArray[np.float64], tuple[tuple[int, ...], ...]]:
    shapes = shapes_of(v.ranks, v.shapes, count)
    total = sum(math.prod(shape) for shape in shapes) if any(shapes) else count
    return column(v.values, np.float64, total), shapes


@orderly()
def to_trace(told: Table) -> Trace:
    """The only execution as a trace; "failed" where the simulator did not come to its end."""
    assert told.traces == 1
    trace = Trace(int(told.index[0]))
    texts = told.reader.names.texts
    table = [told.table.distribution(row) for row in range(len(told.table))]
    trace.addresses = told.address.tolist()
    trace.distributions = [table[row] for row in told.distribution.tolist()]
    trace.names = [texts[n] for n in told.name.tolist()]
    if len(told.value) == len(trace.addresses):
        pairs = zip(told.value.tolist(), trace.distributions, strict=True)
        trace.values = [d.cast(v) if not d.shape else value_of(np.array([v]), d) for v, d in pairs]
    else:
        trace.values = [told.draw(d)[1] for d in range(len(trace.addresses))]
    trace.log_priors = told.log_prob.tolist()
    trace.log_proposals = told.log_q.tolist()
    trace.conditioned = told.conditioned.tolist()
    trace.controlled = (told.control & ~told.conditioned).tolist()
    for o, (address, name, row) in enumerate(
        zip(
            told.observe_address.tolist(),
            told.observe_name.tolist(),
            told.observe_distribution.tolist(),
            strict=True,
        )
    ):
        value = told.observation(o)[1]
        observed, log_prob = bool(told.observed[o]), float(told.observe_log_prob[o])
        trace.observes.append(Observed(address, texts[name], table[row], value, observed, log_prob))
    trace.tags, trace.marks = _tags(told)
    result = _result_column(told)
    trace.result = scalar(result.values[0]) if len(result) else None
    trace.log_likelihood = float(told.log_likelihood[0])
    if told.ended[0] == s.REJECTED:
        trace.ended, trace.log_likelihood = ends.REJECTED, -math.inf
    elif told.ended[0] >= s.EXHAUSTED:
        trace.ended, trace.log_likelihood = ends.FAILED, -math.inf
    return trace
