"""What engines ask of simulators that run scripts, and how one scripted execution becomes a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from etalumis.distributions import DISTRIBUTIONS, Stream
from etalumis.execution import Controller, DensityError, Observations, Reject, Trace
from etalumis.execution import trace as ends
from etalumis.execution.controllers import Script
from etalumis.ppx import messages as m
from etalumis.ppx import scripted as s
from etalumis.ppx.columns import Interpreter
from etalumis.ppx.connection import Connection, FaultError
from etalumis.ppx.conversion import to_trace
from etalumis.ppx.drive import ending, give_up
from etalumis.ppx.errors import ProtocolError
from etalumis.ppx.worker import Worker


def observe_fields(observe: Observations) -> dict[str, Any]:
    """Observed values as fields of a request; a list becomes one entry for each meeting of its name."""
    names: list[str] = []
    values: list[Any] = []
    for name, value in observe.values.items():
        pieces = value if isinstance(value, list) else [value]
        names += [name] * len(pieces)
        values += pieces
    flat = [np.ravel(np.asarray(value, dtype=np.float64)) for value in values]
    return {
        "observe_names": tuple(names) or None,
        "observe_sizes": [len(piece) for piece in flat],
        "observe_values": np.concatenate(flat) if flat else None,
    }


def script_fields(interpreter: Interpreter, values: Mapping[int, Any]) -> dict[str, Any]:
    """Scripted values as fields of a request."""
    if not values:
        return {}
    entries, number = interpreter.addresses.entries, interpreter.bases.number
    addresses = [entries[identifier] for identifier in values]
    fields: dict[str, Any] = {
        "script_address": [number(a.base) for a in addresses],
        "script_family": [DISTRIBUTIONS[a.family].code for a in addresses],
        "script_instance": [a.instance for a in addresses],
    }
    given = list(values.values())
    if any(isinstance(value, np.ndarray) for value in given):
        fields["script_sizes"] = [int(np.size(value)) for value in given]
        given = np.concatenate([np.ravel(np.asarray(value, dtype=np.float64)) for value in given])  # type: ignore[assignment]
    fields["script_values"] = given
    fields["new_addresses"] = interpreter.bases.unsent()
    return fields


def follow(
    worker: Worker,
    connection: Connection,
    controller: Controller,
    script: Script,
    observe: Observations,
    stream: Stream,
    index: int,
    reject_zero: bool,
    draw_observations: bool,
) -> Trace:
    """One execution that the simulator runs by itself, but for the draws that the controller decides.

    Raises:
        FaultError: the simulator did not come to its end.
        DensityError: a log density is not a number.
    """
    request = s.Request(
        seed=stream.seed,
        first_index=index,
        reject_zero=reject_zero,
        draw_observations=draw_observations,
        stop_at=script.stop[0] if script.stop is not None else None,
        stop_instance=script.stop[1] if script.stop is not None else 0,
        control=s.CONTROL_ALL if script.asks else s.CONTROL_NONE,
        **observe_fields(observe),
        **script_fields(worker.interpreter, script.values),
    )
    connection.send(m.Run(request))
    answered: dict[int, tuple[int, Any, float | None]] = {}
    while True:
        said = connection.receive(worker.timeout)
        if not isinstance(said, m.Sample):
            break
        if not said.instance or not script.asks:
            raise FaultError("asked for a draw that it was to decide itself")
        address = worker.interpreter.addresses.intern(said.address, said.distribution.family, said.instance)
        stream.seek(said.ordinal)
        try:
            value, log_q = controller.choose(address, said.name, said.distribution, True, stream)
        except Reject:
            give_up(worker, connection, said)
            rejected = Trace(index)
            rejected.ended, rejected.log_likelihood = ends.REJECTED, -np.inf
            return rejected
        answered[said.ordinal] = (address, value, log_q)
        connection.send(m.SampleResult(value))
    try:
        columns = ending(said).columns
        if columns is None:
            raise FaultError("ended a scripted run without columns")
        table = worker.interpreter.read(columns, index, 1)
        trace = to_trace(table)
    except ProtocolError as error:
        raise FaultError(f"sent nonsense: {error}") from error
    if trace.ended == ends.FAILED:
        fault = FaultError(f"gave up: {table.error.strip()}", sane=True)
        fault.trace = trace
        raise fault
    _enter(trace, answered)
    note_used(trace, observe)
    controller.followed(trace)
    trace.log_prior = sum(trace.log_priors)
    trace.log_proposal = sum(trace.log_proposals)
    return trace


def _enter(trace: Trace, answered: Mapping[int, tuple[int, Any, float | None]]) -> None:
    """Put log q of the draws that were asked for into their trace."""
    for ordinal, (address, value, log_q) in answered.items():
        kept = ordinal < len(trace.addresses) and trace.addresses[ordinal] == address
        if not kept or trace.values[ordinal] != value:
            raise FaultError("did not use the value that it asked for")
        if log_q is not None:
            if log_q != log_q:
                raise DensityError(f"log q is not a number for {trace.distributions[ordinal]!r} at value {value!r}")
            trace.log_proposals[ordinal] = log_q


def note_used(trace: Trace, observe: Observations) -> None:
    """Note which observations a trace used."""
    if observe.used_up:
        return
    rows = zip(trace.names, trace.distributions, trace.conditioned, strict=True)
    met = [(name, distribution) for name, distribution, forced in rows if forced]
    met += [(o.name, o.distribution) for o in trace.observes if o.observed]
    times = Counter(name for name, _ in met)
    for name, distribution in met:
        if name in observe:
            observe.note(name, times[name], distribution.shape)
