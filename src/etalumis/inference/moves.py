"""The kinds of moves that a chain makes over traces. Each proposes a trace and gives the log of its acceptance ratio.

A chain picks the kind with fixed probabilities, whatever its state, so each kind need only leave the posterior
invariant by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, Protocol

from etalumis.distributions import Distribution, Stream
from etalumis.execution import FAILED, FINISHED, Answer, Controller, Proposer, Simulator, Trace
from etalumis.execution.controllers import Script
from etalumis.inference.acceptance import Move, Sites, log_prior_change, pick
from etalumis.inference.errors import InferenceError
from etalumis.inference.kernels import Mixture
from etalumis.inference.reuse import ReuseTally


class State(NamedTuple):
    """Where a chain is: the trace, and how it chooses among its sites."""

    trace: Trace
    sites: Sites


class Attempt(NamedTuple):
    """A proposed state.

    Attributes:
        address: where the move began.
        state: None where there is nothing to accept.
        log_alpha: log of the acceptance ratio; −inf for no state.
    """

    address: int
    state: State | None = None
    log_alpha: float = -math.inf


class Host(Protocol):
    """What moves ask of their chain."""

    power: float  # of the likelihood; below 1 while a chain is tempered
    model: Simulator
    reuse: ReuseTally

    def execute(self, controller: Controller) -> Trace:
        """Execute the model once; draws of zero density end it early."""

    def propose(self, proposer: Proposer, told: Mapping[int, Any], fixed: Mapping[int, Any]) -> Trace:
        """Execute it once with a network's proposals; see :class:`etalumis.execution.lockstep.Job`."""

    def evaluate(self, proposer: Proposer, told: Mapping[int, Any], fixed: Mapping[int, Any]) -> Trace:
        """The same for a trace of which every value is given."""

    def sites(self, trace: Trace) -> Sites:
        """How to choose among the sites of a trace."""


class Transition(Protocol):
    """One kind of move."""

    def attempt(self, host: Host, state: State, first: float, second: float, stream: Stream) -> Attempt:
        """Propose a state, from two uniform numbers and a stream for a new value."""

    def settle(self, attempt: Attempt, accepted: bool, acceptance: float, adapting: bool) -> None:
        """What became of the last attempt."""

    def plain(self) -> Any:
        """What was learnt, in JSON's types."""

    def restore(self, plain: Any, addresses: Sequence[int]) -> None:
        """Take up what :meth:`plain` told; ``addresses`` translates its address ids."""


class Untaught:
    """Moves that learn nothing."""

    def settle(self, attempt: Attempt, accepted: bool, acceptance: float, adapting: bool) -> None:
        """Nothing is remembered."""

    def plain(self) -> Any:
        """Nothing was learnt."""
        return None

    def restore(self, plain: Any, addresses: Sequence[int]) -> None:
        """There is nothing to take up."""


class Reuse(Controller):
    """Gives the present trace's values by full address, and draws from the prior what it lacks."""

    __slots__ = ("fresh", "shapes", "values")

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}  # of the arrays among the values
        self.fresh: list[int] = []

    def begin(self, index: int) -> None:
        self.fresh = []

    def choose(self, address: int, name: str, distribution: Distribution, control: bool, stream: Stream) -> Answer:
        values = self.values
        # An array whose shape changed can't be reused: it counts as fresh here and as stale there.
        if address in values and distribution.shape == self.shapes.get(address, ()):
            return values[address], None
        self.fresh.append(address)
        return distribution.draw(stream), None

    def script(self) -> Script:
        return Script(self.values)

    def followed(self, trace: Trace) -> None:
        # What is reused is decided by size there; it need only be decided alike on the way back.
        self.fresh = [
            address
            for address, distribution, conditioned in zip(
                trace.addresses, trace.distributions, trace.conditioned, strict=True
            )
            if not conditioned
            and (address not in self.values or prod(distribution.shape) != prod(self.shapes.get(address, ())))
        ]

    def adopt(self, trace: Trace) -> None:
        """From now on reuse this trace's values."""
        self.values = {
            address: value
            for address, value, conditioned in zip(trace.addresses, trace.values, trace.conditioned, strict=True)
            if not conditioned
        }
        self.shapes = {
            address: distribution.shape
            for address, distribution in zip(trace.addresses, trace.distributions, strict=True)
            if distribution.shape
        }


class SingleSite:
    """Moves one site and reuses every other value by its full address; see :mod:`.acceptance`.

    Args:
        kernel: proposes the new value.
        log_acceptance: the acceptance ratio from its terms.
    """

    def __init__(self, kernel: Mixture, log_acceptance: Callable[[Move], float]) -> None:
        self.kernel = kernel
        self._log_acceptance = log_acceptance
        self._reuse = Reuse()
        self._adopted: Trace | None = None
        self._undo: tuple[int, Any, Sites | None] = (-1, None, None)
        self._picked = kernel.pick(0.0)

    def attempt(self, host: Host, state: State, first: float, second: float, stream: Stream) -> Attempt:
        old, sites = state
        reuse = self._reuse
        if old is not self._adopted:
            reuse.adopt(old)
            self._adopted = old
        position = sites.choose(first)
        kernel = self._picked = self.kernel.pick(second)
        address, value = old.addresses[position], old.values[position]
        self._undo = (address, value, sites)
        forth = kernel.at(old.distributions[position], value, address)
        proposed = forth.draw(stream)
        reuse.values[address] = proposed
        new = host.execute(reuse)
        if new.ended != FINISHED:
            return Attempt(address)
        if position >= len(new) or new.addresses[position] != address:
            raise irreproducible(host, address)
        host.reuse.record(new.addresses, address, reuse.fresh)
        after = sites if sites.serve(new) else host.sites(new)
        controlled, branch, power = old.controlled[position], position in sites.branches, host.power
        log_alpha = self._log_acceptance(
            Move(
                power * new.log_likelihood,
                power * old.log_likelihood,
                log_prior_change(old, new, reuse.fresh),
                kernel.at(new.distributions[position], proposed, address).log_prob(value),
                forth.log_prob(proposed),
                after.log_probability(controlled, branch),
                sites.log_probability(controlled, branch),
            )
        )
        if log_alpha != log_alpha:
            raise InferenceError(
                f"the acceptance ratio of a move at {host.model.addresses[address]} is not a number: a density is "
                f"infinite there ({old.distributions[position]!r} from {value!r} to {proposed!r})"
            )
        return Attempt(address, State(new, after), log_alpha)

    def settle(self, attempt: Attempt, accepted: bool, acceptance: float, adapting: bool) -> None:
        address, value, sites = self._undo
        if adapting:
            self._picked.learn(address, acceptance)
        if not accepted:
            self._reuse.values[address] = value
        elif attempt.state is not None and attempt.state.sites is sites and not self._reuse.fresh:
            self._adopted = attempt.state.trace  # the same draws: its values are the ones held

    def plain(self) -> Any:
        return self.kernel.plain()

    def restore(self, plain: Any, addresses: Sequence[int]) -> None:
        self.kernel.restore(plain, addresses)


class Kept(Controller):
    """Gives some values by full address and draws the others from the prior."""

    __slots__ = ("values",)

    def __init__(self, values: Mapping[int, Any]) -> None:
        self.values = values

    def choose(self, address: int, name: str, distribution: Distribution, control: bool, stream: Stream) -> Answer:
        return (self.values[address] if address in self.values else distribution.draw(stream)), None

    def script(self) -> Script:
        return Script(self.values)


class Suffix(Untaught):
    """Redraws a site and everything after it from the prior.

    What comes before is the same in both traces, what comes after cancels against its own prior, so
    log α = Δ log p(y | x) + Δ log P(choose the site).
    """

    def attempt(self, host: Host, state: State, first: float, second: float, stream: Stream) -> Attempt:
        old, sites = state
        position = sites.choose(first)
        address = old.addresses[position]
        new = host.execute(Kept(values_of(old, position)))
        if new.ended != FINISHED:
            return Attempt(address)
        check_prefix(host, old, new, position)
        after = host.sites(new)
        flags = old.controlled[position], position in sites.branches
        change = host.power * (new.log_likelihood - old.log_likelihood)
        return Attempt(
            address, State(new, after), change + after.log_probability(*flags) - sites.log_probability(*flags)
        )


class Dependants(Untaught):
    """Redraws a discrete site and whatever depends on it; all else is reused.

    A draw depends on the site where the new execution gives it other parameters, or does not meet it. Which those
    are is the same from both sides, and all of them are drawn from the prior, so
    log α = Δ log p(y | x) + Δ log(1 / number of discrete sites).
    """

    def attempt(self, host: Host, state: State, first: float, second: float, stream: Stream) -> Attempt:
        old = state.trace
        positions = discrete_sites(old)
        if not positions:
            return Attempt(old.addresses[state.sites.choose(first)])
        position = pick(positions, first)
        address = old.addresses[position]
        new = host.execute(_Dependent(old, address, old.distributions[position].draw(stream)))
        if new.ended != FINISHED:
            return Attempt(address)
        check_prefix(host, old, new, position)
        change = host.power * (new.log_likelihood - old.log_likelihood)
        choice = math.log(len(positions)) - math.log(len(discrete_sites(new)))
        return Attempt(address, State(new, host.sites(new)), change + choice)


class _Dependent(Controller):
    __slots__ = ("_at", "_old", "_value")

    def __init__(self, old: Trace, address: int, value: Any) -> None:
        rows = zip(old.addresses, old.distributions, old.values, old.conditioned, strict=True)
        self._old = {a: (d, v) for a, d, v, conditioned in rows if not conditioned}
        self._at = address
        self._value = value

    def choose(self, address: int, name: str, distribution: Distribution, control: bool, stream: Stream) -> Answer:
        if address == self._at:
            return self._value, None
        before = self._old.get(address)
        if before is not None and alike(before[0], distribution):
            return before[1], None
        return distribution.draw(stream), None


class Proposed(Untaught):
    """Redraws the whole trace, or a site and everything after it, by a network's proposals.

    With the weight of what is redrawn, w = p(y | x) Π p / q over the draws from the site on,
    log α = Δ log w + Δ log P(choose the site); a whole trace is chosen without looking at the state. What stands
    before the site is told to the network, so that it knows how the trace began.

    Args:
        proposer: of the network.
        whole: share of these moves that redraw the whole trace.
    """

    def __init__(self, proposer: Proposer, whole: float) -> None:
        self._proposer = proposer
        self._whole = whole
        self._scored: tuple[Trace | None, Sequence[float]] = (None, ())

    def attempt(self, host: Host, state: State, first: float, second: float, stream: Stream) -> Attempt:
        old = state.trace
        asked = asked_sites(old)
        if not asked:
            return Attempt(old.addresses[state.sites.choose(first)])
        whole = second < self._whole
        position = asked[0] if whole else pick(asked, first)
        log_q = self._log_q(host, old)
        if log_q is None:
            return Attempt(old.addresses[position])
        start = 0 if whole else position
        new = host.propose(self._proposer, *told_and_fixed(old, start))
        if new.ended != FINISHED or not math.isfinite(new.log_likelihood + new.log_prior):
            return Attempt(old.addresses[position])
        if not whole:
            check_prefix(host, old, new, position)
        log_alpha = host.power * (new.log_likelihood - old.log_likelihood)
        log_alpha += sum(new.log_priors[start:]) - sum(new.log_proposals[start:])
        log_alpha -= sum(old.log_priors[start:]) - sum(log_q[start:])
        if not whole:
            log_alpha += math.log(len(asked)) - math.log(len(asked_sites(new)))
        return Attempt(old.addresses[position], State(new, host.sites(new)), log_alpha)

    def settle(self, attempt: Attempt, accepted: bool, acceptance: float, adapting: bool) -> None:
        if accepted and attempt.state is not None:
            self._scored = (attempt.state.trace, attempt.state.trace.log_proposals)

    def _log_q(self, host: Host, trace: Trace) -> Sequence[float] | None:
        """The network's log q along a trace that another kind of move made; None where a policy dropped it."""
        if self._scored[0] is not trace:
            again = host.evaluate(self._proposer, *told_and_fixed(trace, len(trace)))
            if again.ended == FAILED:
                return None
            if again.addresses != trace.addresses:
                raise irreproducible(host, trace.addresses[0])
            self._scored = (trace, again.log_proposals)
        return self._scored[1]


def asked_sites(trace: Trace) -> list[int]:
    """Positions of the draws that a network is asked for: controlled scalars that are not conditioned."""
    rows = zip(trace.controlled, trace.conditioned, trace.distributions, strict=True)
    return [k for k, (control, given, d) in enumerate(rows) if control and not given and not d.shape]


def discrete_sites(trace: Trace) -> list[int]:
    """Positions of the discrete scalar draws that are not conditioned."""
    rows = zip(trace.conditioned, trace.distributions, strict=True)
    return [k for k, (given, d) in enumerate(rows) if d.discrete and not given and not d.shape]


def values_of(trace: Trace, stop: int) -> dict[int, Any]:
    """Values by address of the draws before a position that are not conditioned."""
    rows = zip(trace.addresses[:stop], trace.values[:stop], trace.conditioned[:stop], strict=True)
    return {address: value for address, value, given in rows if not given}


def told_and_fixed(trace: Trace, stop: int) -> tuple[dict[int, Any], dict[int, Any]]:
    """The same, apart: those that a network is asked for, and the others."""
    values = values_of(trace, stop)
    told = {trace.addresses[k]: values.pop(trace.addresses[k]) for k in asked_sites(trace) if k < stop}
    return told, values


def alike(one: Distribution, other: Distribution) -> bool:
    """Whether two distributions are the same, parameters and all."""
    return one is other or (one.code == other.code and one.shape == other.shape and one.pack() == other.pack())


def check_prefix(host: Host, old: Trace, new: Trace, position: int) -> None:
    """See that an execution with the same values before a position came to it as the old one did.

    Raises:
        InferenceError: the simulator does not repeat itself.
    """
    if new.addresses[: position + 1] != old.addresses[: position + 1]:
        raise irreproducible(host, old.addresses[position])


def irreproducible(host: Host, address: int) -> InferenceError:
    """The error of a simulator that does not repeat itself."""
    return InferenceError(
        f"executed again with the same values, the simulator did not come to {host.model.addresses[address]} as "
        "before: it has randomness or memory of its own. Draw all random numbers with sample(), and keep no "
        "state from one execution to the next"
    )
