"""Moves of one site, every other value reused: the ones that LMH and RMH are named for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from etalumis.distributions import Distribution, Stream
from etalumis.execution import FINISHED, Answer, Controller, Trace
from etalumis.execution.controllers import Script
from etalumis.inference.acceptance import Move, Sites, log_prior_change
from etalumis.inference.errors import InferenceError
from etalumis.inference.kernels import Mixture
from etalumis.inference.moves import Attempt, Host, State, irreproducible


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
