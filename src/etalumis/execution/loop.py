"""The one loop through which every model runs: a simulator asks, a controller answers, the trace records.

Conditioning, scoring, address counting and recording happen here and nowhere else. The current execution
lives in a context variable, so executions nest, interleave in coroutines and run in threads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

from etalumis.distributions import Distribution, Stream
from etalumis.distributions.stream import OBSERVE as OBSERVE_STREAM
from etalumis.execution.addresses import OBSERVE, TAG, AddressBook, CallChains, Site
from etalumis.execution.controllers import Controller
from etalumis.execution.errors import DensityError, ModelError, ObservationError, Reject
from etalumis.execution.observations import Observations
from etalumis.execution.trace import REJECTED, Mark, Observed, Tagged, Trace

_NEVER = -float("inf")
_EVER = float("inf")
_current: ContextVar[Statements | None] = ContextVar("etalumis_execution", default=None)


class Statements(Protocol):
    """What answers the statements of a running model: an :class:`Execution`, or an engine at the other end of a wire.

    ``base`` is the explicit base address; where it is None, the statement's caller is two frames further out.
    """

    def sample(self, distribution: Distribution, name: str, control: bool, base: str | None) -> Any: ...

    def observe(self, distribution: Distribution, value: Any, name: str, base: str | None) -> None: ...

    def tag(self, value: Any, name: str, base: str | None) -> None: ...

    def mark(self, base: str) -> None: ...

    def factor(self, log_weight: float, name: str) -> None: ...


def call_root(function: Callable[[], Any]) -> Any:
    """Call a model. Address chains end at this frame."""
    return function()


def call_model(function: Callable[[], Any], statements: Statements) -> Any:
    """Call a model whose statements ``statements`` answers."""
    token = _current.set(statements)
    try:
        return call_root(function)
    finally:
        _current.reset(token)


class Execution:
    """One run of a model under a controller. Made by :meth:`Model.execute`; not for direct use."""

    __slots__ = (
        "_book",
        "_chains",
        "_choose",
        "_counts",
        "_draw_observations",
        "_marked",
        "_met",
        "_observations",
        "_reject_zero",
        "_stream",
        "trace",
    )

    def __init__(
        self,
        book: AddressBook,
        chains: CallChains,
        controller: Controller,
        observations: Observations,
        stream: Stream,
        index: int,
        reject_zero: bool,
        draw_observations: bool,
    ) -> None:
        self.trace = Trace(index)
        self._book = book
        self._chains = chains
        self._choose = controller.choose
        self._marked = controller.marked
        self._observations = observations
        self._stream = stream
        self._reject_zero = reject_zero
        self._draw_observations = draw_observations
        self._counts: dict[Site, int] = {}
        self._met: dict[str, int] = {}

    def run(self, function: Callable[[], Any]) -> Trace:
        trace = self.trace
        try:
            trace.result = call_model(function, self)
        except Reject:
            trace.ended = REJECTED
            trace.log_likelihood = _NEVER
        trace.log_prior = sum(trace.log_priors)
        trace.log_proposal = sum(trace.log_proposals)
        return trace

    def sample(self, distribution: Distribution, name: str, control: bool, base: str | None) -> Any:
        if base is None:
            base = self._chains.base(sys._getframe(2))
        site = self._book.site(base, distribution.family)
        counts = self._counts
        count = counts.get(site, 0)
        counts[site] = count + 1
        ids = site.ids
        address = ids[count] if count < len(ids) else self._book.instance(site, count)
        trace = self.trace
        conditioned = name in self._observations
        if conditioned:
            value = self._conditioned_value(name, distribution)
            log_prior = log_proposal = 0.0
            log_prob = distribution.log_prob(value)
            trace.log_likelihood += log_prob
        else:
            stream = self._stream
            stream.seek(len(trace.addresses))
            value, log_q = self._choose(address, name, distribution, control, stream)
            log_prob = log_prior = distribution.log_prob(value)
            log_proposal = log_prob if log_q is None else log_q
        trace.addresses.append(address)
        trace.names.append(name)
        trace.distributions.append(distribution)
        trace.values.append(value)
        trace.log_priors.append(log_prior)
        trace.log_proposals.append(log_proposal)
        trace.controlled.append(control and not conditioned)
        trace.conditioned.append(conditioned)
        if not (log_prob < _EVER and log_proposal < _EVER):  # infinite, or not a number
            raise self._not_finite(log_prob, address, distribution, value)
        if log_prob == _NEVER and self._reject_zero:
            raise Reject
        return value

    def observe(self, distribution: Distribution, value: Any, name: str, base: str | None) -> None:
        if base is None:
            base = self._chains.base(sys._getframe(2))
        address = self._address(base, distribution.family, OBSERVE)
        trace = self.trace
        observations = self._observations
        if name in observations:
            if value is not None and not observations.override:
                raise ObservationError(
                    f"the simulator supplies the value of observe {name!r} itself, so observe[{name!r}] is refused; "
                    "leave it out, or pass override=True to replace the simulator's value"
                )
            value = self._conditioned_value(name, distribution)
        if value is None:
            if self._draw_observations:
                stream = self._stream
                stream.seek(len(trace.observes), OBSERVE_STREAM)
                value = distribution.draw(stream)
            trace.observes.append(Observed(address, name, distribution, value, False, 0.0))
            return
        log_prob = distribution.log_prob(value)
        trace.observes.append(Observed(address, name, distribution, value, True, log_prob))
        if not log_prob < _EVER:
            raise self._not_finite(log_prob, address, distribution, value)
        trace.log_likelihood += log_prob
        if log_prob == _NEVER and self._reject_zero:
            raise Reject

    def tag(self, value: Any, name: str, base: str | None) -> None:
        if base is None:
            base = name or self._chains.base(sys._getframe(2))
        self.trace.tags.append(Tagged(self._address(base, "Tag", TAG), name, value))

    def mark(self, base: str) -> None:
        address = self._address(base, "Tag", TAG)
        self._marked(address)
        trace = self.trace
        trace.marks.append(Mark(base, self._book[address].instance, len(trace.addresses), trace.log_likelihood))

    def factor(self, log_weight: float, name: str) -> None:
        if not log_weight < _EVER:
            raise DensityError(
                f"factor {name!r} of trace {self.trace.index} is {log_weight!r}; look for a NaN or an overflow in the "
                "numbers that make it"
            )
        self.trace.log_likelihood += log_weight
        if log_weight == _NEVER and self._reject_zero:
            raise Reject

    def _address(self, base: str, family: str, kind: str) -> int:
        site = self._book.site(base, family, kind)
        count = self._counts.get(site, 0)
        self._counts[site] = count + 1
        return self._book.instance(site, count)

    def _conditioned_value(self, name: str, distribution: Distribution) -> Any:
        count = self._met.get(name, 0)
        self._met[name] = count + 1
        value = self._observations.value(name, count, distribution.shape)
        return value if distribution.shape else distribution.cast(value)

    def _not_finite(self, log_prob: float, address: int, distribution: Distribution, value: Any) -> DensityError:
        what, hint = (
            ("infinite", "a weight can't be: keep the value off the point where the density has its pole")
            if log_prob == _EVER
            else ("not a number", "look for a NaN among the parameters or the data there")
        )
        return DensityError(
            f"log density is {what} at address {self._book[address]} of trace {self.trace.index}: "
            f"{distribution!r} at value {value!r}; {hint}"
        )


def sample(
    distribution: Distribution, name: str | None = None, control: bool = True, address: str | None = None
) -> Any:
    """Draw a random variable of the model.

    Args:
        distribution: its prior given everything drawn before.
        name: how posteriors and observations call it; conditioning on a name forces the value and scores it.
        control: let a network propose it (where False, importance samplers draw it from the prior).
        address: explicit base address; by default the chain of calls that leads here.

    Returns:
        A float, an int for discrete families, or an array where the distribution has a shape.
    """
    execution = _current.get()
    if execution is None:
        raise _outside("sample")
    return execution.sample(distribution, name or "", control, address)


def observe(distribution: Distribution, value: Any = None, name: str | None = None, address: str | None = None) -> None:
    """Condition the model: the likelihood is ``distribution`` at the observed value.

    Args:
        distribution: the likelihood.
        value: the observed value; None takes the one given to the engine under ``name``.
        name: how engines call the observation.
        address: explicit base address.
    """
    execution = _current.get()
    if execution is None:
        raise _outside("observe")
    execution.observe(distribution, value, name or "", address)


def tag(value: Any, name: str | None = None, address: str | None = None) -> None:
    """Record a quantity with the trace; posteriors read it by name like a draw."""
    execution = _current.get()
    if execution is None:
        raise _outside("tag")
    execution.tag(value, name or "", address)


def mark(base: str) -> None:
    """Set a marker of this base address; see :func:`etalumis.execution.rejection.rejection`."""
    execution = _current.get()
    if execution is None:
        raise _outside("rejection")
    execution.mark(base)


def factor(log_weight: float, name: str | None = None) -> None:
    """Multiply the likelihood by exp(log_weight)."""
    execution = _current.get()
    if execution is None:
        raise _outside("factor")
    execution.factor(log_weight, name or "")


def _outside(statement: str) -> ModelError:
    return ModelError(
        f"{statement}() was called outside of a running model; wrap the function with etalumis.Model(function) "
        "and run it through etalumis.prior or etalumis.posterior"
    )
