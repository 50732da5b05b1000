"""A simulator written in Python as a probabilistic model, and the direct way to run one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from etalumis.distributions import Stream
from etalumis.execution.addresses import AddressBook, CallChains
from etalumis.execution.batch import TraceBatch
from etalumis.execution.controllers import Controller, Prior
from etalumis.execution.loop import Execution, call_root
from etalumis.execution.observations import Observations
from etalumis.execution.trace import FAILED, Trace


class Simulator(Protocol):
    """What engines need of a model, wherever it runs."""

    addresses: AddressBook
    suspendable: bool

    @property
    def name(self) -> str: ...

    def execute(
        self,
        controller: Controller,
        observe: Observations,
        stream: Stream,
        index: int,
        reject_zero: bool = False,
        draw_observations: bool = True,
    ) -> Trace: ...


@runtime_checkable
class Batched(Protocol):
    """A model that executes many traces from the prior by itself and has them in columns at once."""

    def batches(
        self,
        indices: Iterable[int],
        seed: int,
        observe: Observations,
        draw_observations: bool = True,
        keep_observes: bool = True,
    ) -> Iterator[TraceBatch]:
        """The executions in order; failed ones may be missing. Used observation names are noted in ``observe``."""


class Model:
    """A Python function (or callable object) of no arguments whose ``sample`` calls are its randomness.

    Args:
        function: the simulator.
        name: how datasets and checkpoints call it; by default the function's own name.

    An object with the attribute ``suspendable = False`` is run in threads where executions have to wait for
    each other, instead of in coroutines: needed where draws arrive inside a native library's callback.
    """

    def __init__(self, function: Callable[[], Any], name: str | None = None) -> None:
        if not callable(function):
            raise TypeError(f"a model is a function of no arguments; got {function!r}")
        self.function = function
        self.name = name or getattr(function, "__name__", None) or type(function).__name__
        self.suspendable: bool = getattr(function, "suspendable", True)
        self.addresses = AddressBook()
        self.chains = CallChains(call_root.__code__)

    def execute(
        self,
        controller: Controller,
        observe: Observations,
        stream: Stream,
        index: int,
        reject_zero: bool = False,
        draw_observations: bool = True,
    ) -> Trace:
        """Run the simulator once.

        Args:
            controller: decides the draws.
            observe: what to condition on.
            stream: the run's random numbers; positioned at trace ``index`` here.
            index: the trace (or chain step) index.
            reject_zero: end the execution at the first zero density (for Metropolis–Hastings).
            draw_observations: draw the value of observes that nobody gave one.
        """
        stream.start(index)
        controller.begin(index)
        execution = Execution(
            self.addresses, self.chains, controller, observe, stream, index, reject_zero, draw_observations
        )
        return execution.run(self.function)

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process builds its own: what was interned here belongs to this process.
        return type(self), (self.function, self.name)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {len(self.addresses)} addresses)"


def run(
    model: Simulator,
    controller: Controller | None = None,
    observe: Mapping[str, Any] | Observations | None = None,
    indices: Iterable[int] = (),
    seed: int = 0,
    draw_observations: bool = True,
) -> Iterator[Trace]:
    """Execute a model once per trace index and yield the traces in order.

    Raises:
        ObservationError: at the end, where no execution met one of the observation names.
    """
    observations = as_observations(observe)
    controller = controller or Prior()
    stream = Stream(seed)
    names: set[str] = set()
    executed = False
    for index in indices:
        trace = model.execute(controller, observations, stream, index, draw_observations=draw_observations)
        executed = True
        if trace.ended == FAILED:
            continue
        if len(observations.used) < len(observations):
            names |= met_names(trace)
        yield trace
    if executed:
        observations.check_used(names)


def as_observations(observe: Mapping[str, Any] | Observations | None) -> Observations:
    """Observations from what a user gave."""
    return observe if isinstance(observe, Observations) else Observations(observe)


def met_names(trace: Trace) -> set[str]:
    """The names that one trace's statements could be conditioned by."""
    return {*filter(None, trace.names), *(o.name for o in trace.observes if o.name)}
