"""Lock-step execution: many executions wait at their draws, so that one call answers them all.

A network is fast only on batches. Each slot holds one suspended execution: a coroutine (greenlet) where the
simulator allows it, else a thread (a native callback must not be suspended).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, runtime_checkable

import greenlet

from etalumis.distributions import Distribution, Stream
from etalumis.execution.addresses import AddressBook
from etalumis.execution.controllers import Answer, Controller, Script
from etalumis.execution.errors import Reject
from etalumis.execution.model import Simulator, as_observations, met_names
from etalumis.execution.observations import Observations
from etalumis.execution.trace import FAILED, Trace


class Request(NamedTuple):
    """A draw that waits for its value. ``stream`` stands at the statement's own random numbers."""

    slot: int
    trace_index: int
    address: int
    name: str
    distribution: Distribution
    stream: Stream


class Proposer(Protocol):
    """Answers the waiting draws of many executions at once."""

    def begin(self, slots: Sequence[int], observe: Mapping[str, Any]) -> None:
        """New executions start in these slots; whatever was remembered of them ends."""

    def propose(self, requests: Sequence[Request], addresses: AddressBook) -> Sequence[Answer]:
        """A value and log q (None: drawn from the prior) for each request."""


Event = Request | Trace


class _Abandoned(Reject):
    """The run ended while an execution waited."""


class Slot(Controller, ABC):
    """Runs executions one after the other; each controlled scalar draw is handed out as a request."""

    def __init__(
        self, model: Simulator, observations: Observations, seed: int, slot: int, draw_observations: bool
    ) -> None:
        self._model = model
        self._observations = observations
        self._stream = Stream(seed)
        self._slot = slot
        self._draw_observations = draw_observations
        self.index = -1

    def choose(self, address: int, name: str, distribution: Distribution, control: bool, stream: Stream) -> Answer:
        if not control or distribution.shape:
            return distribution.draw(stream), None
        return self.wait(Request(self._slot, self.index, address, name, distribution, stream))

    def script(self) -> Script:
        return Script(asks=True)

    @abstractmethod
    def wait(self, request: Request) -> Answer:
        """Suspend the execution until its draw is answered."""

    @abstractmethod
    def start(self, index: int) -> None:
        """Begin the execution of a trace index."""

    @abstractmethod
    def answer(self, answer: Answer) -> None:
        """Let the suspended execution go on."""

    @abstractmethod
    def event(self) -> Event:
        """The request that the execution now waits with, or its trace."""

    @abstractmethod
    def close(self) -> None:
        """Abandon whatever is suspended."""

    def execute(self) -> Trace:
        return self._model.execute(
            self, self._observations, self._stream, self.index, draw_observations=self._draw_observations
        )


class _CoroutineSlot(Slot):
    """Suspends in a greenlet: about a microsecond a switch."""

    _greenlet: greenlet.greenlet | None = None
    _event: Event

    def wait(self, request: Request) -> Answer:
        current = greenlet.getcurrent()
        assert current.parent is not None
        answer: Answer = current.parent.switch(request)
        return answer

    def start(self, index: int) -> None:
        self.index = index
        self._greenlet = greenlet.greenlet(self.execute)
        self._event = self._greenlet.switch()

    def answer(self, answer: Answer) -> None:
        assert self._greenlet is not None
        self._event = self._greenlet.switch(answer)

    def event(self) -> Event:
        return self._event

    def close(self) -> None:
        if self._greenlet is not None and not self._greenlet.dead:
            self._greenlet.throw(_Abandoned)


class _ThreadSlot(Slot):
    """Suspends by blocking a thread of its own, which keeps the simulator's thread-local state."""

    def __init__(
        self, model: Simulator, observations: Observations, seed: int, slot: int, draw_observations: bool
    ) -> None:
        super().__init__(model, observations, seed, slot, draw_observations)
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._outbox: SimpleQueue[Event | BaseException] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=f"etalumis-slot-{slot}", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while (index := self._inbox.get()) is not None:
            self.index = index
            try:
                self._outbox.put(self.execute())
            except BaseException as error:  # a simulator that exits must not leave the engine waiting
                self._outbox.put(error)

    def wait(self, request: Request) -> Answer:
        self._outbox.put(request)
        answer: Answer | None = self._inbox.get()
        if answer is None:
            self._inbox.put(None)
            raise _Abandoned
        return answer

    def start(self, index: int) -> None:
        self._inbox.put(index)

    def answer(self, answer: Answer) -> None:
        self._inbox.put(answer)

    def event(self) -> Event:
        event = self._outbox.get()
        if isinstance(event, BaseException):
            raise event
        return event

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join()


@runtime_checkable
class Slotted(Protocol):
    """A model that has slots of its own kind, such as one for each of its simulator processes."""

    def open_slots(
        self, observations: Observations, seed: int, batch_size: int, draw_observations: bool
    ) -> Sequence[Slot]:
        """At most ``batch_size`` slots, numbered from 0."""

    def again(self, trace: Trace) -> bool:
        """Whether to run a failed execution again; an error where it may not be left out either."""


def run_lockstep(
    model: Simulator,
    proposer: Proposer,
    observe: Mapping[str, Any] | Observations | None,
    indices: Iterable[int],
    seed: int = 0,
    batch_size: int = 64,
    draw_observations: bool = True,
) -> Iterator[Trace]:
    """Execute a model once per trace index, ``batch_size`` at a time, answered together by ``proposer``.

    Yields traces as they end: in no order, but equal for equal seeds whatever the batch size, as far as the
    proposer's answers are.

    Raises:
        ObservationError: at the end, where no execution met one of the observation names.
    """
    observations = as_observations(observe)
    todo = iter(indices)
    first = list(islice(todo, batch_size))
    slots = _open_slots(model, observations, seed, len(first), draw_observations)
    todo, first = chain(first[len(slots) :], todo), first[: len(slots)]
    names: set[str] = set()
    given = observations.values
    try:
        proposer.begin(range(len(slots)), given)
        for slot, index in zip(slots, first, strict=True):
            slot.start(index)
        active = list(range(len(slots)))
        while active:
            requests: list[Request] = []
            ended: list[int] = []
            for number in active:
                event = slots[number].event()
                if isinstance(event, Request):
                    requests.append(event)
                    continue
                if len(observations.used) < len(observations):
                    names |= met_names(event)
                ended.append(number)
                if event.ended != FAILED:
                    yield event
                elif isinstance(model, Slotted) and model.again(event):
                    todo = chain([event.index], todo)
            answers = proposer.propose(requests, model.addresses) if requests else ()
            for request, answer in zip(requests, answers, strict=True):
                slots[request.slot].answer(answer)
            active = [request.slot for request in requests]
            again = [(number, index) for number, index in zip(ended, todo, strict=False)]
            if again:
                proposer.begin([number for number, _ in again], given)
                for number, index in again:
                    slots[number].start(index)
                    active.append(number)
    finally:
        for slot in slots:
            slot.close()
    if slots:
        observations.check_used(names)


def _open_slots(
    model: Simulator, observations: Observations, seed: int, count: int, draw_observations: bool
) -> Sequence[Slot]:
    if isinstance(model, Slotted):
        return model.open_slots(observations, seed, count, draw_observations)
    make: Callable[..., Slot] = _CoroutineSlot if model.suspendable else _ThreadSlot
    return [make(model, observations, seed, slot, draw_observations) for slot in range(count)]
