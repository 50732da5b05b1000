"""The simulator's side of a scripted Run: executes a Python model by itself and answers in columns."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import BY_CODE, Distribution, Stream
from etalumis.execution import Answer, Controller, Model, Observations, Reject, Trace
from etalumis.execution import trace as ends
from etalumis.ppx import scripted as s
from etalumis.ppx.errors import ProtocolError

_MOST = 1 << 20  # executions of a request

Ask = Callable[[str, str, Distribution, int, int], Any]


class Runner:
    """Executes requests for one engine.

    Args:
        model: what to execute.
        ask: ``ask(base, name, distribution, instance, ordinal)`` gets a value from the engine.
    """

    def __init__(self, model: Model, ask: Ask) -> None:
        self._model = model
        self._ask = ask
        self._bases, self._names = s.Numbering(), s.Numbering()
        self._stream = Stream(0)

    def run(self, row: tuple[Any, ...]) -> s.Columns:
        """Execute a request; an exception of the model is told in the columns, and ends them.

        Raises:
            ProtocolError: it is for more than 2^20 executions.
        """
        request = s.Request(*row)
        if request.executions > _MOST:
            raise ProtocolError("a request is for more than a million executions")
        self._bases.hear(request.new_addresses or ())
        if self._stream.seed != request.seed:
            self._stream = Stream(request.seed)
        controller = _Script(self._model, self._bases.texts, request, self._ask)
        observations = _observations(request)
        traces: list[Trace] = []
        codes: list[int] = []
        error = None
        for index in range(request.first_index, request.first_index + request.executions):
            try:
                trace = self._model.execute(
                    controller, observations, self._stream, index, request.reject_zero, request.draw_observations
                )
            except Exception:
                error = traceback.format_exc()
                traces.append(Trace(index))
                codes.append(s.FAILED)
                break
            if controller.ended == s.STOPPED:
                trace.log_likelihood = sum(o.log_prob for o in trace.observes)
            traces.append(trace)
            codes.append(s.FINISHED if trace.ended == ends.FINISHED else controller.ended)
        return self._columns(traces, codes, error)

    def _columns(self, traces: Sequence[Trace], ended: Sequence[int], error: str | None) -> s.Columns:
        table: dict[Distribution, int] = {}
        address, instance = self._places([a for t in traces for a in t.addresses])
        values = [v for t in traces for v in t.values]
        sizes, flat = _ragged(values)
        draws = {
            "lengths": [len(t.addresses) for t in traces],
            "address": address,
            "instance": instance,
            "name": [self._names.number(name) for t in traces for name in t.names],
            "distribution": [table.setdefault(d, len(table)) for t in traces for d in t.distributions],
            "control": [c for t in traces for c in t.controlled],
            "conditioned": [c for t in traces for c in t.conditioned],
            "sizes": sizes,
            "values": flat,
            "log_prob": [x for t in traces for x in t.log_priors],
        }
        observes = self._observed(traces, table)
        tags, results = self._tags(traces), _results(traces)
        rows = list(table)
        packed = [d.pack() for d in rows]
        shaped = any(d.shape for d in rows)
        return s.Columns(
            new_addresses=self._bases.unsent(),
            new_names=self._names.unsent(),
            codes=[d.code for d in rows],
            parameter_sizes=[len(p) for p in packed],
            parameters=[x for p in packed for x in p],
            ranks=[len(d.shape) for d in rows] if shaped else None,
            shapes=[extent for d in rows for extent in d.shape] if shaped else None,
            observes=observes,
            tags=tags,
            results=results,
            log_likelihood=[t.log_likelihood for t in traces],
            ended=list(ended),
            error=error,
            **draws,
        )

    def _observed(self, traces: Sequence[Trace], table: dict[Distribution, int]) -> s.Observed:
        statements = [o for t in traces for o in t.observes]
        address, instance = self._places([o.address for o in statements])
        sizes, values = _ragged([() if o.value is None else o.value for o in statements])
        return s.Observed(
            lengths=[len(t.observes) for t in traces],
            address=address,
            instance=instance,
            name=[self._names.number(o.name) for o in statements],
            distribution=[table.setdefault(o.distribution, len(table)) for o in statements],
            sizes=sizes,
            values=values,
            observed=[o.observed for o in statements],
            log_prob=[o.log_prob for o in statements],
        )

    def _tags(self, traces: Sequence[Trace]) -> s.Values:
        """Tags, and the markers of loops as tags that hold the number of draws and the log likelihood before."""
        number, name, entries = self._bases.number, self._names.number, self._model.addresses.entries
        rows: list[tuple[int, int, int, Any]] = []
        lengths = []
        for trace in traces:
            before = len(rows)
            for tag in trace.tags:
                value, place = tensor(tag.value), entries[tag.address]
                if value is not None:
                    rows.append((number(place.base), place.instance, name(tag.name), value))
            for mark in trace.marks:
                so_far = np.array([mark.position, mark.log_likelihood])
                rows.append((number(mark.base), mark.instance, name(""), so_far))
            lengths.append(len(rows) - before)
        bases, instances, names, values = map(list, zip(*rows, strict=True)) if rows else ([], [], [], [])
        return s.Values(lengths, bases, instances, names, *_tensors(values))

    def _places(self, addresses: Sequence[int]) -> tuple[list[int], list[int]]:
        """The connection's numbers of base addresses, and the instances."""
        entries, number = self._model.addresses.entries, self._bases.number
        return [number(entries[a].base) for a in addresses], [entries[a].instance for a in addresses]


class _Script(Controller):
    """Answers from the script, from the engine where control goes back to it, else from the prior."""

    def __init__(self, model: Model, bases: Sequence[str], request: s.Request, ask: Ask) -> None:
        self._addresses = book = model.addresses
        self._request = request
        self._ask = ask

        def known(numbers: Any, families: Any, instances: Any) -> list[int]:
            rows = zip(_list(numbers), _list(families), _list(instances), strict=True)
            return [book.intern(bases[n], BY_CODE[code].family, instance) for n, code, instance in rows]

        places = known(request.script_address, request.script_family, request.script_instance)
        self._values = dict(zip(places, _pieces(request.script_sizes, request.script_values, len(places)), strict=True))
        self._listed = set(known(request.control_address, request.control_family, request.control_instance))
        self._limited = bool(request.stop_at is not None or request.max_draws or request.max_seconds)
        self.ended = s.REJECTED

    def begin(self, index: int) -> None:
        self.ended = s.REJECTED  # where it ends early, unless something else says why
        self._draws, self._started = 0, time.monotonic()

    def choose(self, address: int, name: str, distribution: Distribution, control: bool, stream: Stream) -> Answer:
        if self._limited:
            self._stay_within_limits(address)
        piece = self._values.get(address)
        if piece is not None:
            if not distribution.shape and len(piece) == 1:
                return distribution.cast(piece[0]), None
            if distribution.shape and len(piece) == math.prod(distribution.shape):
                return shaped(np.array(piece), distribution), None
        mode = self._request.control
        if mode and control and not distribution.shape and (mode == s.CONTROL_ALL or address in self._listed):
            entry = self._addresses[address]
            return self._ask(entry.base, name, distribution, entry.instance, stream.ordinal), None
        return distribution.draw(stream), None

    def marked(self, address: int) -> None:
        request, entry = self._request, self._addresses[address]
        if entry.base == request.stop_at and entry.instance == request.stop_instance:
            self.ended = s.STOPPED
            raise Reject

    def _stay_within_limits(self, address: int) -> None:
        self.marked(address)
        request = self._request
        self._draws += 1
        late = request.max_seconds and time.monotonic() - self._started > request.max_seconds
        if late or (request.max_draws and self._draws > request.max_draws):
            self.ended = s.EXHAUSTED
            raise Reject


class _FlatObservations(Observations):
    """Observed values as they come over the wire: flat, a list for a name given several times."""

    __slots__ = ()

    def value(self, name: str, count: int, shape: tuple[int, ...]) -> Any:
        if not shape:
            return super().value(name, count, shape)
        given = self.values[name]
        flat = given[count] if isinstance(given, list) and count < len(given) else given
        if math.prod(shape) != np.size(flat):
            return super().value(name, count, shape)  # says what is wrong
        self.note(name, count + 1, shape)
        return np.asarray(flat, dtype=np.float64).reshape(shape)


def _observations(request: s.Request) -> Observations:
    names = request.observe_names or ()
    given: dict[str, list[Any]] = {}
    for name, piece in zip(names, _pieces(request.observe_sizes, request.observe_values, len(names)), strict=True):
        given.setdefault(name, []).append(piece[0] if len(piece) == 1 else np.array(piece))
    values: Mapping[str, Any] = {name: v[0] if len(v) == 1 else v for name, v in given.items()}
    return _FlatObservations(values)


def tensor(value: Any) -> float | NDArray[np.float64] | None:
    """A result or tag as the wire can hold it: numbers only, others are left out."""
    if isinstance(value, (int, float)):
        return float(value)
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        return None
    if array.dtype.kind not in "buif":
        return None
    return array.astype(np.float64) if array.ndim else float(array)


def shaped(value: Any, distribution: Distribution) -> Any:
    """A value from the wire as a draw of this distribution."""
    if not distribution.shape:
        return distribution.cast(float(np.asarray(value).reshape(())) if np.ndim(value) else value)
    array = np.asarray(value, dtype=np.float64).reshape(distribution.shape)
    return array.astype(np.int64) if distribution.discrete and (array % 1 == 0).all() else array


def _results(traces: Sequence[Trace]) -> s.Values:
    values = [tensor(t.result) for t in traces]
    present = [v for v in values if v is not None]
    return s.Values([v is not None for v in values], None, None, None, *_tensors(present))


def _tensors(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Ranks and shapes (None where all are scalars) and flat numbers."""
    flat: Any = np.concatenate([np.ravel(v) for v in values]) if values else []
    if not any(np.ndim(v) for v in values):
        return None, None, flat
    return [np.ndim(v) for v in values], [extent for v in values for extent in np.shape(v)], flat


def _ragged(values: Sequence[Any]) -> tuple[list[int] | None, Any]:
    """Sizes (None where all are scalars) and flat numbers."""
    if not any(isinstance(v, (np.ndarray, tuple)) for v in values):
        return None, values
    return [int(np.size(v)) for v in values], np.concatenate([np.ravel(v) for v in values])


def _pieces(sizes: Any, values: Any, count: int) -> list[list[float]]:
    flat = _list(values)
    lengths = [1] * count if sizes is None else _list(sizes)
    if len(lengths) != count or sum(lengths) != len(flat):
        raise ValueError("the values of a request do not add up")
    ends_at = np.cumsum([0, *lengths]).tolist()
    return [flat[a:b] for a, b in pairwise(ends_at)]


def _list(numbers: Any) -> list[Any]:
    return [] if numbers is None else numbers.tolist()
