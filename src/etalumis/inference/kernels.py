"""Metropolis–Hastings kernels of one site: the distribution from which its next value is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from etalumis.distributions import Distribution

# Bounds of a step, in standard deviations of the prior.
_SMALLEST_STEP = 1e-8
_LARGEST_STEP = 10.0


class Kernel(Protocol):
    """κ(· | value, parameters) at an address."""

    def at(self, distribution: Distribution, value: Any, address: int) -> Distribution:
        """The distribution of the next value, given the site's prior and its present value."""

    def learn(self, address: int, acceptance: float) -> None:
        """During burn-in: a move at this address had this acceptance probability."""

    def plain(self) -> Any:
        """What was learnt, in JSON's types."""

    def restore(self, plain: Any, addresses: Sequence[int]) -> None:
        """Take up what :meth:`plain` told; ``addresses`` translates its address ids."""


class PriorKernel:
    """The next value comes from the site's prior, whatever the present one."""

    def at(self, distribution: Distribution, value: Any, address: int) -> Distribution:
        return distribution

    def learn(self, address: int, acceptance: float) -> None:
        """Nothing to adapt."""

    def plain(self) -> Any:
        """Nothing was learnt."""
        return None

    def restore(self, plain: Any, addresses: Sequence[int]) -> None:
        """There is nothing to take up."""


class RandomWalk:
    """A step on the family's own support, of a size that adapts per address.

    Robbins and Monro's recursion on the log step, with the gain n^−0.6 at an address's n-th move.

    Args:
        initial: first step in standard deviations of the prior.
        target: acceptance to aim for; 0.44 is optimal for one dimension (Roberts and Rosenthal 2001).
    """

    def __init__(self, initial: float, target: float) -> None:
        self._initial = initial
        self._target = target
        self.steps: dict[int, float] = {}
        self._moves: dict[int, int] = {}

    def at(self, distribution: Distribution, value: Any, address: int) -> Distribution:
        return distribution.random_walk(value, self.steps.get(address, self._initial))

    def learn(self, address: int, acceptance: float) -> None:
        moves = self._moves[address] = self._moves.get(address, 0) + 1
        step = self.steps.get(address, self._initial) * math.exp((acceptance - self._target) * moves**-0.6)
        self.steps[address] = min(max(step, _SMALLEST_STEP), _LARGEST_STEP)

    def plain(self) -> Any:
        """Address, step and number of moves."""
        return [[address, step, self._moves[address]] for address, step in self.steps.items()]

    def restore(self, plain: Any, addresses: Sequence[int]) -> None:
        self.steps = {addresses[address]: step for address, step, _ in plain}
        self._moves = {addresses[address]: moves for address, _, moves in plain}


class Mixture:
    """Kernels picked with fixed probabilities.

    The pick does not look at the state, so each kernel may use its own density in the acceptance ratio: the
    chain alternates between moves each of which leaves the posterior invariant.
    """

    def __init__(self, kernels: Sequence[Kernel], probabilities: Sequence[float]) -> None:
        reach = 0.0
        self._parts: list[tuple[float, Kernel]] = []
        for kernel, probability in zip(kernels, probabilities, strict=True):
            if probability > 0.0:
                reach += probability
                self._parts.append((reach, kernel))
        self._last = self._parts[-1][1]

    def pick(self, uniform: float) -> Kernel:
        """One of the kernels, by a uniform number."""
        for reach, kernel in self._parts:
            if uniform < reach:
                return kernel
        return self._last

    def plain(self) -> Any:
        """What each kernel learnt."""
        return [kernel.plain() for _, kernel in self._parts]

    def restore(self, plain: Any, addresses: Sequence[int]) -> None:
        for (_, kernel), state in zip(self._parts, plain, strict=True):
            kernel.restore(state, addresses)
