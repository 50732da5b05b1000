"""Executions from the prior by many simulators at once, many executions to a message."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import greenlet

from etalumis.distributions import Stream
from etalumis.execution import Observations, Prior, Trace, TraceBatch
from etalumis.execution import trace as ends
from etalumis.ppx import messages as m
from etalumis.ppx import scripted as s
from etalumis.ppx.connection import Connection, FaultError, resume
from etalumis.ppx.conversion import Answer, to_batch
from etalumis.ppx.drive import ending
from etalumis.ppx.errors import ProtocolError
from etalumis.ppx.requests import observe_fields
from etalumis.ppx.worker import Worker

if TYPE_CHECKING:
    from etalumis.ppx.remote import RemoteModel

_SECONDS = 0.1  # a request is for as many executions as take about so long
_MOST, _FEW = 4096, 16
_SHARE = 0.25  # of the time-out that a request may take


class Batches:
    """One run over all simulators of a model. Index ranges are handed out; results come in order."""

    def __init__(
        self, model: RemoteModel, seed: int, observe: Observations, draw_observations: bool, keep_observes: bool
    ) -> None:
        self._model = model
        self._seed = seed
        self._observe = observe
        self._draw = draw_observations
        self._keep = keep_observes
        self._todo: deque[range] = deque()
        self._done: dict[int, tuple[int, TraceBatch | None]] = {}
        self._errors: list[BaseException] = []
        self._size: dict[Worker, int] = {}
        self._paused: list[greenlet.greenlet] = []

    def run(self, indices: Iterable[int]) -> Iterator[TraceBatch]:
        """Batches in the order of the indices."""
        board = self._model.switchboard
        for span in spans(indices):
            self._todo.append(span)
            conversations: list[greenlet.greenlet] = []
            try:
                for worker in self._model.workers:
                    worker.switchboard = board
                    conversations.append(greenlet.greenlet(self._work))
                    resume(conversations[-1], worker)
                following = span.start
                while following < span.stop:
                    while following in self._done:
                        following, batch = self._done.pop(following)
                        if batch is not None and len(batch):
                            yield batch
                    if self._errors:
                        raise self._errors[0]
                    if following < span.stop:
                        if all(c.dead for c in conversations):  # what came back was split after others had ended
                            conversations = [greenlet.greenlet(self._work) for _ in self._model.workers]
                            for conversation, worker in zip(conversations, self._model.workers, strict=True):
                                resume(conversation, worker)
                        elif self._paused:
                            resume(self._paused.pop())
                        else:
                            board.turn()
            finally:
                self._end(conversations)

    def _end(self, conversations: list[greenlet.greenlet]) -> None:
        self._todo.clear()
        while self._paused:
            resume(self._paused.pop())
        for conversation, worker in zip(conversations, self._model.workers, strict=False):
            if not conversation.dead:
                worker.fault(FaultError("the engine left in the middle of a run"))
                self._model.switchboard.forget(conversation)
                conversation.parent = greenlet.getcurrent()
                conversation.throw()
            worker.switchboard = None

    # --- one simulator ----------------------------------------------------------------------------------------

    def _work(self, worker: Worker) -> None:
        stream = Stream(self._seed)
        try:
            while not self._errors and self._todo:
                span = self._take(self._size.get(worker, 1))
                started = time.monotonic()
                connection = self._ready(worker, span)
                if worker.scripted and not self._observe.override:
                    self._scripted(worker, connection, span, stream)
                else:
                    self._interact(worker, span, stream)
                self._adapt(worker, len(span), time.monotonic() - started)
        except Exception as error:
            worker.fault(FaultError("the engine left in the middle of a run"))
            self._errors.append(error)

    def _interact(self, worker: Worker, span: range, stream: Stream) -> None:
        """Interactive executions; where there is one simulator only, waiting for it needs no switchboard."""
        if len(self._model.workers) > 1:
            self._put(span, self._one_by_one(worker, span, stream))
            return
        worker.switchboard = None
        self._put(span, self._one_by_one(worker, span, stream))
        worker.switchboard = self._model.switchboard
        current = greenlet.getcurrent()
        assert current.parent is not None
        self._paused.append(current)
        current.parent.switch()

    def _ready(self, worker: Worker, span: range) -> Connection:
        try:
            return worker.ready()
        except BaseException:
            self._todo.appendleft(span)
            raise

    def _scripted(self, worker: Worker, connection: Connection, span: range, stream: Stream) -> None:
        try:
            answer = self._ask(worker, connection, span)
        except FaultError as fault:
            worker.fault(fault)
            if self._model.strict:
                traces = f"trace {span.start}" if len(span) == 1 else f"traces {span.start} to {span.stop - 1}"
                blamed = span.start if len(span) == 1 else None
                raise worker.error(f"{fault} (in {traces})", blamed) from fault
            if len(span) > 1:  # which of them broke it is unknown: ask again for fewer
                middle = span.start + len(span) // 2
                self._todo.extendleft((range(middle, span.stop), range(span.start, middle)))
                self._size[worker] = 1
            elif isinstance(fault.__cause__, ProtocolError):
                self._model.note(worker, span.start, fault)
                self._put(span, self._one_by_one(worker, span, stream, fault))
            else:  # statement by statement it shows how far it comes
                self._put(span, self._one_by_one(worker, span, stream))
            return
        for name, (times, shape) in answer.used.items():
            if name in self._observe:
                self._observe.note(name, times, shape)
        if answer.failed is None:
            self._drop(answer.lost)
            self._put(span, answer.traces)
            return
        # The model broke one off. Played once more, statement by statement, it shows how far it came.
        broken = range(answer.failed, answer.failed + 1)
        rest = range(broken.stop, span.stop)
        if rest:
            self._todo.appendleft(rest)
        self._put(range(span.start, broken.start), answer.traces)
        self._put(broken, self._one_by_one(worker, broken, stream))

    def _ask(self, worker: Worker, connection: Connection, span: range) -> Answer:
        request = s.Request(
            seed=self._seed & 0xFFFFFFFFFFFFFFFF,
            first_index=span.start,
            executions=len(span),
            draw_observations=self._draw,
            **observe_fields(self._observe),
        )
        connection.send(m.Run(request))
        said = ending(connection.receive(worker.timeout))
        if said.columns is None:
            raise FaultError("ended a scripted run without columns")
        try:
            return to_batch(worker.interpreter.read(said.columns, span.start, len(span)), self._keep)
        except ProtocolError as error:
            raise FaultError(f"sent nonsense: {error}") from error

    def _one_by_one(
        self, worker: Worker, span: range, stream: Stream, fault: FaultError | None = None
    ) -> TraceBatch | None:
        """Interactive executions."""
        traces: list[Trace] = []
        for index in span:

            def once(connection: Connection, index: int = index) -> Trace:
                return self._model.attempt(
                    worker, connection, Prior(), self._observe, stream, index, False, self._draw, scripted=False
                )

            trace = self._model.by_policy(worker, index, once, fault)
            if trace.ended != ends.FAILED:
                traces.append(trace)
        return TraceBatch.from_traces(traces, self._model.addresses, self._keep) if traces else None

    # --- bookkeeping ------------------------------------------------------------------------------------------

    def _take(self, size: int) -> range:
        span = self._todo.popleft()
        workers = len(self._model.workers)
        if workers > 1:  # the last ones are shared
            size = min(size, max(_FEW, -(-len(span) // (2 * workers))))
        if size < len(span):
            self._todo.appendleft(span[size:])
        return span[:size]

    def _put(self, span: range, batch: TraceBatch | None) -> None:
        if len(span):
            self._done[span.start] = (span.stop, batch)

    def _drop(self, lost: tuple[int, ...]) -> None:
        self._model.num_dropped += len(lost)

    def _adapt(self, worker: Worker, count: int, seconds: float) -> None:
        """Ask for as many next time as fit the time, growing by no more than four."""
        wanted = min(_SECONDS, _SHARE * worker.timeout) / max(seconds / count, 1e-7)
        self._size[worker] = max(1, min(int(wanted), 4 * count, _MOST))


def spans(indices: Iterable[int]) -> Iterator[range]:
    """Maximal ranges of consecutive indices."""
    if isinstance(indices, range) and indices.step == 1:
        if indices:
            yield indices
        return
    first = last = None
    for index in indices:
        if first is None or last is None:
            first = index
        elif index != last + 1:
            yield range(first, last + 1)
            first = index
        last = index
    if first is not None and last is not None:
        yield range(first, last + 1)
