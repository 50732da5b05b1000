"""Simulators in other processes as models: everything an engine can do with a Python model it can do with these."""

from __future__ import annotations

import shlex
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import zmq

from etalumis.distributions import Stream
from etalumis.execution import AddressBook, Controller, Observations, Trace, TraceBatch
from etalumis.execution import trace as ends
from etalumis.execution.addresses import CallChains
from etalumis.execution.lockstep import Slot
from etalumis.execution.loop import Execution, call_root
from etalumis.execution.model import as_observations
from etalumis.ppx.batches import Batches
from etalumis.ppx.connection import Connection, FaultError, Switchboard
from etalumis.ppx.drive import drive
from etalumis.ppx.process import Guard
from etalumis.ppx.requests import follow
from etalumis.ppx.slots import RemoteSlot
from etalumis.ppx.worker import Launch, Worker

Policy = Literal["retry", "drop", "raise"]
_POLICIES = ("retry", "drop", "raise")
_REMEMBERED = 1000  # failures kept


class Failure(NamedTuple):
    """An execution that a simulator did not bring to its end.

    Attributes:
        trace_index: of which execution.
        reason: what happened.
        trace: the draws up to then, as far as they are known.
        output: the last of what the simulator's process printed.
    """

    trace_index: int
    reason: str
    trace: Trace | None
    output: str


class RemoteModel:
    """A simulator that speaks PPX, as a model.

    ``RemoteModel("ipc:///tmp/sim")`` or ``RemoteModel("tcp://host:5555")`` connects to a running simulator, a list
    of addresses to several; ``RemoteModel(command=["./sim", "{address}"], workers=4)`` launches its own, watches
    them, restarts them where they die or hang, and stops them at the end. Close it, or use it as a context manager.

    Args:
        address: where one simulator listens, or several.
        command: program and arguments of a simulator, as words or as one string; ``{address}`` stands for where it
            shall listen.
        workers: simulator processes to launch.
        timeout: seconds to wait for any message. A simulator may compute as long between two of its draws, a
            scripted one as long as one execution takes.
        startup: seconds to wait for the handshake.
        policy: what a failed execution means. ``"retry"`` tries it again, with the same random numbers, up to
            ``retries`` times; ``"drop"`` leaves it out, which conditions the model on finishing; ``"raise"`` ends
            the run. What was tried in vain ends the run with a SimulatorError that tells the simulator's last words.
        retries: times to try again.
        name: how datasets and checkpoints call the model; by default as the simulator calls it.
        scripted: let simulators that can run many executions by themselves do so; the traces are the same.
        environment: variables for launched simulators.
        directory: where launched simulators run.

    Attributes:
        addresses: the address book.
        failures: the last thousand failed executions; ``num_failures`` counts all.
        num_dropped: executions that were left out.
        workers: the simulators; ``restarts`` of each counts how often its process had to be launched again.
    """

    suspendable = True

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        *,
        command: str | Sequence[str] | None = None,
        workers: int = 1,
        timeout: float = 60.0,
        startup: float = 30.0,
        policy: Policy = "retry",
        retries: int = 3,
        name: str | None = None,
        scripted: bool = True,
        environment: Mapping[str, str] | None = None,
        directory: str | Path | None = None,
    ) -> None:
        if (address is None) == (command is None):
            raise ValueError('give either the address of a running simulator or command=["./sim", "{address}"]')
        if policy not in _POLICIES:
            raise ValueError(f"policy is one of {', '.join(_POLICIES)}; got {policy!r}")
        if workers < 1 or not timeout > 0.0 or not startup > 0.0 or retries < 0:
            raise ValueError("workers must be at least 1, timeout and startup positive, retries at least 0")
        if isinstance(command, str):
            command = shlex.split(command)
        if command is not None and (not command or not any("{address}" in word for word in command)):
            raise ValueError(
                f'command is a list of words, one with {{address}}, as ["./sim", "{{address}}"]; got {command}'
            )
        if address is not None and workers != 1:
            raise ValueError("workers counts launched simulators: with running ones give a list of their addresses")
        self._arguments = {
            "command": None if command is None else tuple(command),
            "workers": workers,
            "timeout": timeout,
            "startup": startup,
            "policy": policy,
            "retries": retries,
            "name": name,
            "scripted": scripted,
            "environment": environment,
            "directory": directory,
        }
        self.addresses = AddressBook()
        self.failures: deque[Failure] = deque(maxlen=_REMEMBERED)
        self.num_failures = 0
        self.num_dropped = 0
        self._name = name
        self._policy, self._retries = policy, retries
        self._tried: dict[int, int] = {}  # attempts that failed in this run in lock-step, by trace index
        self._errors: dict[int, Exception] = {}
        self._chains = CallChains(call_root.__code__)
        self.switchboard = Switchboard()
        context = zmq.Context()
        places = [""] * workers if command else [address] if isinstance(address, str) else list(address or ())
        launches = [
            Launch(
                self._arguments["command"],  # type: ignore[arg-type]
                place,
                environment,
                None if directory is None else str(directory),
                timeout,
                startup,
                1 + retries,
                scripted,
            )
            for place in places
        ]
        guard = Guard()
        self.workers = [Worker(n, launch, context, guard, self.addresses) for n, launch in enumerate(launches)]
        self._finalizer = weakref.finalize(self, _close, self.workers, context, guard)

    @property
    def name(self) -> str:
        """What the model is called."""
        if self._name is None:
            worker = self.workers[0]
            worker.ready()
            self._name = worker.peer.model_name or worker.peer.system_name or "simulator"
        return self._name

    @property
    def strict(self) -> bool:
        """Whether any failure ends the run."""
        return self._policy == "raise"

    def close(self) -> None:
        """Stop launched simulators and leave running ones alone."""
        self._finalizer()

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._arguments["command"] is None:
            raise TypeError(
                "a running simulator serves one engine at a time, so it can't be shared with worker processes; use "
                "workers=1, or RemoteModel(command=…), of which every process launches its own"
            )
        return _rebuild, (self._arguments,)

    def __repr__(self) -> str:
        return f"RemoteModel({len(self.workers)} simulators, {len(self.addresses)} addresses)"

    # --- executions -------------------------------------------------------------------------------------------

    def execute(
        self,
        controller: Controller,
        observe: Observations,
        stream: Stream,
        index: int,
        reject_zero: bool = False,
        draw_observations: bool = True,
    ) -> Trace:
        """Run the first simulator once; see :meth:`Model.execute`.

        Where the controller's answers can be said beforehand and the simulator runs scripts, this is one round trip.

        Raises:
            SimulatorError: it failed, and the policy does not let it pass. A dropped trace has ended "failed".
        """
        worker = self.workers[0]
        worker.switchboard = None

        def once(connection: Connection) -> Trace:
            return self.attempt(worker, connection, controller, observe, stream, index, reject_zero, draw_observations)

        return self.by_policy(worker, index, once)

    def batches(
        self,
        indices: Iterable[int],
        seed: int = 0,
        observe: Mapping[str, Any] | Observations | None = None,
        draw_observations: bool = True,
        keep_observes: bool = True,
    ) -> Iterator[TraceBatch]:
        """Executions from the prior by all simulators at once, in the order of ``indices``.

        Traces are the same as those of :func:`etalumis.execution.run`. Dropped ones are missing.

        Args:
            indices: of the traces.
            seed: of the random numbers.
            observe: what to condition on; which names were used is noted there, and not checked.
            draw_observations: draw the value of observes that nobody gave one.
            keep_observes: keep the likelihoods' parameters with the traces.
        """
        yield from Batches(self, seed, as_observations(observe), draw_observations, keep_observes).run(indices)

    def open_slots(self, seed: int, batch_size: int, draw_observations: bool) -> Sequence[Slot]:
        """A slot for each simulator, for a run in lock-step."""
        self._tried.clear()
        workers = self.workers[:batch_size]
        return [RemoteSlot(self, w, seed, n, draw_observations) for n, w in enumerate(workers)]

    def again(self, trace: Trace) -> bool:
        """Whether to try the failed execution of a slot again.

        Raises:
            SimulatorError: it may neither be tried again nor left out.
        """
        index = trace.index
        if self._policy == "drop":
            self.num_dropped += 1
            return False
        tried = self._tried[index] = self._tried.get(index, 0) + 1
        if self._policy == "raise" or tried > self._retries:
            raise self._errors.pop(index)
        return True

    # --- for the parts of this room ---------------------------------------------------------------------------

    def attempt(
        self,
        worker: Worker,
        connection: Connection,
        controller: Controller,
        observe: Observations,
        stream: Stream,
        index: int,
        reject_zero: bool,
        draw_observations: bool,
        scripted: bool = True,
    ) -> Trace:
        """One execution, scripted where possible.

        Raises:
            FaultError: the simulator did not bring it to its end; with the draws up to then.
        """
        stream.start(index)
        controller.begin(index)
        script = controller.script() if scripted and worker.scripted and not observe.override else None
        if script is not None:
            return follow(
                worker, connection, controller, script, observe, stream, index, reject_zero, draw_observations
            )
        execution = Execution(
            self.addresses, self._chains, controller, observe, stream, index, reject_zero, draw_observations
        )
        try:
            return execution.run(lambda: drive(worker, connection, execution))
        except FaultError as fault:
            fault.trace = execution.trace
            raise

    def by_policy(
        self, worker: Worker, index: int, once: Callable[[Connection], Trace], fault: FaultError | None = None
    ) -> Trace:
        """Run ``once`` until it succeeds or the policy says otherwise; ``fault`` is of a first attempt elsewhere."""
        tried = 0
        while True:
            if fault is not None:
                tried += 1
                if self._policy == "drop":
                    self.num_dropped += 1
                    return failed_trace(fault, index)
                if self._policy == "raise" or tried > self._retries:
                    raise worker.error(f"{fault} (in trace {index}, attempt {tried})", index) from fault
            try:
                return once(worker.ready())
            except FaultError as raised:
                fault = raised
                self.note(worker, index, fault)
            except BaseException:
                worker.fault(FaultError("the engine left in the middle of a run"))
                raise

    def note(self, worker: Worker, index: int, fault: FaultError) -> None:
        """Count and remember a failed execution, and have the simulator made ready for the next."""
        worker.fault(fault)
        self.num_failures += 1
        self.failures.append(Failure(index, str(fault), fault.trace, worker.last_output))
        self._errors[index] = worker.error(f"{fault} (in trace {index})", index)
        if len(self._errors) > _REMEMBERED:
            self._errors.pop(next(iter(self._errors)))


def failed_trace(fault: FaultError, index: int) -> Trace:
    """The draws up to a failure, as a trace that counts for nothing."""
    trace = fault.trace or Trace(index)
    trace.ended, trace.log_likelihood = ends.FAILED, -float("inf")
    return trace


def _rebuild(arguments: dict[str, Any]) -> RemoteModel:
    return RemoteModel(**arguments)


def _close(workers: Sequence[Worker], context: Any, guard: Guard) -> None:
    for worker in workers:
        worker.close()
    context.term()
    guard.close()
