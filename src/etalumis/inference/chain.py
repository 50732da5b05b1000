"""One Metropolis–Hastings chain over traces."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import Distribution, Stream
from etalumis.execution import FAILED, FINISHED, Answer, Controller, Observations, Prior, Simulator, Trace, TraceBatch
from etalumis.execution.controllers import Script
from etalumis.execution.model import met_names
from etalumis.inference.acceptance import Move, Sites, log_prior_change
from etalumis.inference.errors import InferenceError
from etalumis.inference.executions import HELD, to_columns
from etalumis.inference.kernels import Mixture

_BLOCK = 64  # steps that share a block of the chain's own random numbers
_MOST_STARTS = 50  # times the asked number of prior draws, in search of a finite density


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


class Chain:
    """A chain: ``start()``, then ``step()`` after ``step()``; ``trace`` is the present state.

    Equal (seed, number) give equal chains. Fresh draws of execution i come from the stream of (seed, number) at
    index i; what the chain itself decides, from a stream of its own.

    Args:
        model: the simulator.
        observe: what to condition on.
        kernel: proposes new values.
        log_acceptance: the acceptance ratio.
        seed: of the run.
        number: of the chain in the run.
        branch_share: see :class:`.acceptance.Sites`.
    """

    def __init__(
        self,
        model: Simulator,
        observe: Observations,
        kernel: Mixture,
        log_acceptance: Callable[[Move], float],
        seed: int,
        number: int,
        branch_share: float = 0.0,
    ) -> None:
        self._model = model
        self._observe = observe
        self._kernel = kernel
        self._log_acceptance = log_acceptance
        self._branch_share = branch_share
        draws, moves = np.random.SeedSequence([seed & 0xFFFFFFFFFFFFFFFF, number]).generate_state(2, np.uint64)
        self._draws = Stream(int(draws))
        self._moves = Stream(int(moves))
        self._reuse = Reuse()
        self._steps = 0
        self.executions = 0
        self.failed = 0  # executions that a simulator's policy dropped
        self.names: set[str] = set()  # that the first executions could have been conditioned by
        self.tally: dict[int, list[int]] = {}  # address: moves proposed, moves accepted
        self.adapting = True
        self.trace: Trace
        self._sites: Sites

    def start(self, attempts: int) -> None:
        """Begin at the likeliest of at least ``attempts`` draws from the prior.

        Raises:
            InferenceError: none of many draws has a finite density, or there is nothing to draw.
        """
        best: Trace | None = None
        while self.executions < attempts or (best is None and self.executions < _MOST_STARTS * attempts):
            trace = self._execute(Prior())
            self.names |= met_names(trace)
            if trace.ended == FINISHED and math.isfinite(trace.log_likelihood):
                best = trace if best is None or trace.log_likelihood > best.log_likelihood else best
        if best is None:
            raise InferenceError(
                f"none of {self.executions} draws from the prior has a finite likelihood, so the chain has nowhere "
                "to start. Check the observed values and their units, widen the likelihood, or raise starts=…"
            )
        self._sites = Sites(best, self._branch_share)
        if not len(self._sites):
            raise InferenceError("the model draws nothing that is not observed: there is nothing to infer")
        self.trace = best
        self._reuse.adopt(best)

    def step(self) -> bool:
        """One move: propose at a site, execute, accept or stay. Returns whether it was accepted."""
        old, reuse, moves = self.trace, self._reuse, self._moves
        block, place = divmod(self._steps, _BLOCK)
        self._steps += 1
        if not place:
            moves.start(block)
        moves.seek(2 * place)
        position = self._sites.choose(moves.uniform())
        kernel = self._kernel.pick(moves.uniform())
        threshold = moves.uniform()
        address, value = old.addresses[position], old.values[position]
        forth = kernel.at(old.distributions[position], value, address)
        moves.seek(2 * place + 1)
        proposed = forth.draw(moves)

        reuse.values[address] = proposed
        new = self._execute(reuse)
        log_alpha, sites = -math.inf, self._sites
        if new.ended == FINISHED:
            if position >= len(new) or new.addresses[position] != address:
                raise self._irreproducible(address)
            if new.addresses != old.addresses or new.controlled != old.controlled:
                sites = Sites(new, self._branch_share)
            controlled, branch = old.controlled[position], position in self._sites.branches
            log_alpha = self._log_acceptance(
                Move(
                    new.log_likelihood,
                    old.log_likelihood,
                    log_prior_change(old, new, reuse.fresh),
                    kernel.at(new.distributions[position], proposed, address).log_prob(value),
                    forth.log_prob(proposed),
                    sites.log_probability(controlled, branch),
                    self._sites.log_probability(controlled, branch),
                )
            )
            if log_alpha != log_alpha:
                raise InferenceError(
                    f"the acceptance ratio of a move at {self._model.addresses[address]} is not a number: a density is "
                    f"infinite there ({old.distributions[position]!r} from {value!r} to {proposed!r})"
                )
        acceptance = 1.0 if log_alpha >= 0.0 else math.exp(log_alpha)
        accepted = threshold < acceptance
        if self.adapting:
            kernel.learn(address, acceptance)
        tally = self.tally.get(address)
        if tally is None:
            tally = self.tally[address] = [0, 0]
        tally[0] += 1
        if accepted:
            tally[1] += 1
            self.trace = new
            if sites is not self._sites or reuse.fresh:
                self._sites = sites
                reuse.adopt(new)
        else:
            reuse.values[address] = value
        return accepted

    def freeze(self) -> None:
        """Burn-in is over: step sizes stay as they are, and counting of accepted moves begins anew."""
        self.adapting = False
        self.tally.clear()

    def _execute(self, controller: Controller) -> Trace:
        index = self.executions
        self.executions = index + 1
        trace = self._model.execute(
            controller, self._observe, self._draws, index, reject_zero=True, draw_observations=False
        )
        self.failed += trace.ended == FAILED
        return trace

    def _irreproducible(self, address: int) -> InferenceError:
        return InferenceError(
            f"executed again with the same values, the simulator did not come to {self._model.addresses[address]} as "
            "before: it has randomness or memory of its own. Draw all random numbers with sample(), and keep no "
            "state from one execution to the next"
        )


class Recorder:
    """Collects kept states in columns; a state kept several times in a row is stored once.

    Args:
        model: whose traces they are.
        count: how many states will be kept.
        keep_observes: hold the likelihoods' parameters too.
    """

    def __init__(self, model: Simulator, count: int, keep_observes: bool) -> None:
        self._model = model
        self._keep_observes = keep_observes
        self._rows = np.zeros(count, dtype=np.int64)
        self._kept = 0
        self._distinct = 0
        self._last: Trace | None = None
        self._held: list[Trace] = []
        self._blocks: list[TraceBatch] = []

    def keep(self, trace: Trace) -> None:
        """Keep a state."""
        if trace is not self._last:
            if len(self._held) == HELD:
                self._flush()
            self._last = trace
            self._held.append(trace)
            self._distinct += 1
        self._rows[self._kept] = self._distinct - 1
        self._kept += 1

    def finish(self) -> tuple[TraceBatch, NDArray[np.int64]]:
        """The distinct traces, and the row of each kept state among them."""
        self._flush()
        return TraceBatch.concatenate(self._blocks), self._rows

    def _flush(self) -> None:
        self._blocks.append(to_columns(self._held, self._model, self._keep_observes))
        self._held = []
