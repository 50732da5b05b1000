"""Moves of many draws at once, redrawn from the prior: what follows a site, or what depends on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from etalumis.distributions import Distribution, Stream
from etalumis.execution import FINISHED, Answer, Controller, Trace
from etalumis.execution.controllers import Script
from etalumis.inference.acceptance import pick
from etalumis.inference.moves import Attempt, Host, State, Untaught, check_prefix, values_of

DISCRETE = "discrete draw"  # what Dependants moves


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
            return Attempt(None, lacking=DISCRETE)
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


def discrete_sites(trace: Trace) -> list[int]:
    """Positions of the discrete scalar draws that are not conditioned."""
    rows = zip(trace.conditioned, trace.distributions, strict=True)
    return [k for k, (given, d) in enumerate(rows) if d.discrete and not given and not d.shape]


def alike(one: Distribution, other: Distribution) -> bool:
    """Whether two distributions are the same, parameters and all."""
    return one is other or (one.code == other.code and one.shape == other.shape and one.pack() == other.pack())
