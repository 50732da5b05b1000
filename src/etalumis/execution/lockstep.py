"""Lock-step execution: many executions wait at their draws, so that one call answers them all.

A network is fast only on batches. Each slot holds one suspended execution: a coroutine (greenlet) where the
simulator allows it, else a thread (a native callback must not be suspended).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import greenlet

from etalumis.distributions import Distribution, Stream
from etalumis.execution.addresses import AddressBook
from etalumis.execution.controllers import Answer, Controller, Script, Stop
from etalumis.execution.errors import Reject
from etalumis.execution.model import Simulator, as_observations, met_names
from etalumis.execution.observations import Observations
from etalumis.execution.trace import FAILED, Trace


class Request(NamedTuple):
    """A draw that waits for its value.

    ``stream`` stands at the statement's own random numbers. Where ``value`` is given, only its density is asked for.
    """

    slot: int
    trace_index: int
    address: int
    name: str
    distribution: Distribution
    stream: Stream
    value: Any = None


class Job(NamedTuple):
    """One execution to make.

    Attributes:
        trace_index: of its random numbers.
        observations: what it is conditioned on.
        told: by address id, values of controlled scalar draws that the proposer is told instead of asked for.
        fixed: by address id, values of other draws.
        asks: let the proposer answer the controlled scalar draws; where False the prior does.
        stop: where to end before the end.
    """

    trace_index: int
    observations: Observations
    told: Mapping[int, Any] = MappingProxyType({})
    fixed: Mapping[int, Any] = MappingProxyType({})
    asks: bool = True
    stop: Stop | None = None


class Proposer(Protocol):
    """Answers the waiting draws of many executions at once."""

    def begin(self, slots: Sequence[int], observe: Mapping[str, Any]) -> None:
        """New executions start in these slots; whatever was remembered of them ends."""

    def propose(self, requests: Sequence[Request], addresses: AddressBook) -> Sequence[Answer]:
        """A value and log q (None: that of the prior) for each request; its own value if it has one."""


Event = Request | Trace


class _Abandoned(Reject):
    """The run ended while an execution waited."""


class Slot(Controller, ABC):
    """Runs executions one after the other; each controlled scalar draw is handed out as a request."""

    def __init__(self, model: Simulator, seed: int, slot: int, draw_observations: bool) -> None:
        self._model = model
        self._stream = Stream(seed)
        self._slot = slot
        self._draw_observations = draw_observations
        self.job = Job(-1, Observations())

    def choose(self, address: int, name: str, distribution: Distribution, control: bool, stream: Stream) -> Answer:
        job = self.job
        if job.stop is not None:
            job.stop.at_draw(self._model.addresses[address])
        if not control or distribution.shape or not job.asks:
            return job.fixed[address] if address in job.fixed else distribution.draw(stream), None
        value = job.told.get(address)
        return self.wait(Request(self._slot, job.trace_index, address, name, distribution, stream, value))

    def begin(self, index: int) -> None:
        if self.job.stop is not None:
            self.job.stop.begin()

    def script(self) -> Script | None:
        job = self.job
        if job.asks and job.stop is not None and job.stop.where is not None:
            return None  # every draw must be seen
        return Script(job.fixed, job.asks, job.stop.place if job.stop is not None else None)

    def marked(self, address: int) -> None:
        if self.job.stop is not None:
            self.job.stop.at_mark(self._model.addresses[address])

    @abstractmethod
    def wait(self, request: Request) -> Answer:
        """Suspend the execution until its draw is answered."""

    @abstractmethod
    def start(self, job: Job) -> None:
        """Begin an execution."""

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
        index, observations = self.job[:2]
        return self._model.execute(self, observations, self._stream, index, draw_observations=self._draw_observations)


class _CoroutineSlot(Slot):
    """Suspends in a greenlet: about a microsecond a switch."""

    _greenlet: greenlet.greenlet | None = None
    _event: Event

    def wait(self, request: Request) -> Answer:
        current = greenlet.getcurrent()
        assert current.parent is not None
        answer: Answer = current.parent.switch(request)
        return answer

    def start(self, job: Job) -> None:
        self.job = job
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

    def __init__(self, model: Simulator, seed: int, slot: int, draw_observations: bool) -> None:
        super().__init__(model, seed, slot, draw_observations)
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._outbox: SimpleQueue[Event | BaseException] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=f"etalumis-slot-{slot}", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while (job := self._inbox.get()) is not None:
            self.job = job
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

    def start(self, job: Job) -> None:
        self._inbox.put(job)

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

    def open_slots(self, seed: int, batch_size: int, draw_observations: bool) -> Sequence[Slot]:
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
    names: set[str] = set()
    executed = False
    jobs = (Job(index, observations) for index in indices)
    for trace in run_jobs(model, proposer, jobs, seed, batch_size, draw_observations):
        executed = True
        if len(observations.used) < len(observations):
            names |= met_names(trace)
        if trace.ended != FAILED:
            yield trace
    if executed:
        observations.check_used(names)


def run_jobs(
    model: Simulator,
    proposer: Proposer,
    jobs: Iterable[Job],
    seed: int = 0,
    batch_size: int = 64,
    draw_observations: bool = True,
) -> Iterator[Trace]:
    """The same for executions that may each be conditioned on something else; failed ones are handed out too.

    Jobs begin in order, so those of one observation should follow each other: the proposer embeds an observation
    whenever it changes. Whether every observation was used is not checked.
    """
    todo = iter(jobs)
    first = list(islice(todo, batch_size))
    slots = _open_slots(model, seed, len(first), draw_observations)
    todo = chain(first, todo)
    try:
        active = _begin(proposer, slots, range(len(slots)), todo)
        while active:
            requests: list[Request] = []
            ended: list[int] = []
            for number in active:
                event = slots[number].event()
                if isinstance(event, Request):
                    requests.append(event)
                    continue
                ended.append(number)
                if event.ended == FAILED and isinstance(model, Slotted) and model.again(event):
                    todo = chain([slots[number].job], todo)
                else:
                    yield event
            answers = proposer.propose(requests, model.addresses) if requests else ()
            for request, answer in zip(requests, answers, strict=True):
                slots[request.slot].answer(answer)
            active = [request.slot for request in requests] + _begin(proposer, slots, ended, todo)
    finally:
        for slot in slots:
            slot.close()


def _begin(proposer: Proposer, slots: Sequence[Slot], free: Iterable[int], todo: Iterator[Job]) -> list[int]:
    """Start the next jobs in free slots; returns the slots that got one."""
    # Slots first: zip must not take a job for which there is no slot.
    started = list(zip(free, todo, strict=False))
    for observations, jobs in groupby(started, key=lambda pair: pair[1].observations):
        proposer.begin([number for number, _ in jobs], observations.values)
    for number, job in started:
        slots[number].start(job)
    return [number for number, _ in started]


def _open_slots(model: Simulator, seed: int, count: int, draw_observations: bool) -> Sequence[Slot]:
    if isinstance(model, Slotted):
        return model.open_slots(seed, count, draw_observations)
    make: Callable[..., Slot] = _CoroutineSlot if model.suspendable else _ThreadSlot
    return [make(model, seed, slot, draw_observations) for slot in range(count)]
