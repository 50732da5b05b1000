"""An interactive execution: the loop answers a simulator's messages, one round trip each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from etalumis.distributions import Stream
from etalumis.execution import Reject
from etalumis.execution.loop import Statements
from etalumis.execution.trace import is_mark
from etalumis.ppx import messages as m
from etalumis.ppx.connection import Connection, FaultError
from etalumis.ppx.worker import Worker

_OBSERVED, _TAGGED = m.ObserveResult(), m.TagResult()


def drive(worker: Worker, connection: Connection, statements: Statements) -> Any:
    """Run a simulator once; returns what its model returned.

    Conditioning, scoring and recording are those of ``statements``, an :class:`Execution`.

    Raises:
        FaultError: the simulator did not come to its end.
        Reject: the controller ended the execution; the simulator waits for the next one.
    """

    def sample(x: m.Sample) -> m.Message:
        return m.SampleResult(statements.sample(x.distribution, x.name, x.control, x.address))

    def observe(x: m.Observe) -> m.Message:
        statements.observe(x.distribution, x.value, x.name, x.address)
        return _OBSERVED

    def tag(x: m.Tag) -> m.Message:
        if is_mark(x.address):
            statements.mark(x.address)
        else:
            statements.tag(x.value, x.name, x.address)
        return _TAGGED

    answers: dict[type, Callable[[Any], m.Message]] = {m.Sample: sample, m.Observe: observe, m.Tag: tag}
    message: m.Message = m.Run()
    while True:
        connection.send(message)
        said = connection.receive(worker.timeout)
        answer = answers.get(type(said))
        if answer is None:
            return ending(said).result
        try:
            message = answer(said)
        except Reject:
            give_up(worker, connection, said)
            raise


def ending(said: m.Message) -> m.RunResult:
    """The end of a run.

    Raises:
        FaultError: it is something else.
    """
    if isinstance(said, m.RunResult):
        return said
    if isinstance(said, m.Error):
        raise FaultError(f"gave up: {said.text.strip()}", sane=True)
    if isinstance(said, m.Reset):
        raise FaultError("sent Reset", sane=True)
    raise FaultError(f"sent {type(said).__name__} in the middle of a run")


def give_up(worker: Worker, connection: Connection, said: m.Message) -> None:
    """Bring a simulator that waits for the answer to a statement to the end of its run.

    One that understands it is told so. Any other runs on, with draws from the prior that nobody records.
    """
    if worker.understands_reset:
        connection.send(m.Reset())
        reply = connection.receive(worker.timeout)
        if type(reply) is not m.Reset:
            raise FaultError(f"answered Reset by {type(reply).__name__}")
        return
    stream = Stream(0)
    stream.start(0)
    ordinal = 0
    while True:
        if isinstance(said, m.Sample):
            stream.seek(ordinal)
            ordinal += 1
            connection.send(m.SampleResult(said.distribution.draw(stream)))
        elif isinstance(said, m.Observe):
            connection.send(_OBSERVED)
        elif isinstance(said, m.Tag):
            connection.send(_TAGGED)
        else:
            ending(said)
            return
        said = connection.receive(worker.timeout)
