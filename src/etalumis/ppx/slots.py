"""Lock-step over simulators: a slot for each, so that all compute at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import greenlet

from etalumis.execution import Request, Trace
from etalumis.execution.controllers import Answer
from etalumis.execution.lockstep import Event, Job, Slot
from etalumis.ppx.connection import FaultError, resume
from etalumis.ppx.worker import Worker

if TYPE_CHECKING:
    from etalumis.ppx.remote import RemoteModel


class RemoteSlot(Slot):
    """Executions of one simulator, each in a coroutine that waits for messages and for answers."""

    def __init__(
        self,
        model: RemoteModel,
        worker: Worker,
        seed: int,
        slot: int,
        draw_observations: bool,
    ) -> None:
        super().__init__(model, seed, slot, draw_observations)
        self._remote = model
        self._worker = worker
        self._greenlet: greenlet.greenlet | None = None
        self._event: Event | None = None
        self._error: BaseException | None = None

    def wait(self, request: Request) -> Answer:
        self._event = request
        current = greenlet.getcurrent()
        assert current.parent is not None
        answer: Answer = current.parent.switch()
        return answer

    def start(self, job: Job) -> None:
        self.job = job
        self._event = None
        self._greenlet = greenlet.greenlet(self._converse)
        resume(self._greenlet)

    def answer(self, answer: Answer) -> None:
        assert self._greenlet is not None
        self._event = None
        resume(self._greenlet, answer)

    def event(self) -> Event:
        while self._event is None and self._error is None:
            self._remote.switchboard.turn()
        if self._error is not None:
            raise self._error
        assert self._event is not None
        return self._event

    def close(self) -> None:
        conversation = self._greenlet
        if conversation is not None and not conversation.dead:
            self._worker.fault(FaultError("the engine left in the middle of a run"))
            self._remote.switchboard.forget(conversation)
            conversation.parent = greenlet.getcurrent()
            conversation.throw()
        self._worker.switchboard = None

    def _converse(self, _: object = None) -> None:
        try:
            self._event = self._once()
        except Exception as error:
            self._worker.fault(FaultError("the engine left in the middle of a run"))
            self._error = error

    def _once(self) -> Trace:
        from etalumis.ppx.remote import failed_trace

        model, worker = self._remote, self._worker
        index, observations = self.job[:2]
        worker.switchboard = model.switchboard
        connection = worker.ready()
        try:
            return model.attempt(
                worker,
                connection,
                self,
                observations,
                self._stream,
                index,
                False,
                self._draw_observations,
            )
        except FaultError as fault:
            model.note(worker, index, fault)
            return failed_trace(fault, index)
