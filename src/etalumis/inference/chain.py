"""One Metropolis–Hastings chain over traces."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import Stream
from etalumis.execution import (
    FAILED,
    FINISHED,
    AddressBook,
    Controller,
    Job,
    Observations,
    Prior,
    Proposer,
    Simulator,
    Trace,
    TraceBatch,
    run_jobs,
)
from etalumis.execution.model import met_names
from etalumis.inference.acceptance import Sites
from etalumis.inference.errors import InferenceError
from etalumis.inference.executions import HELD
from etalumis.inference.moves import State, Transition
from etalumis.inference.reuse import ReuseTally
from etalumis.inference.single_site import Reuse

_SAME = 1e-6  # absolute and relative, up to which log densities of one trace may differ
_BLOCK = 64  # steps that share a block of the chain's own random numbers
_MOST_STARTS = 50  # times the asked number of prior draws, in search of a finite density
_MOST_TRIES = 5  # to execute a saved state again, where a policy drops executions


class Chain:
    """A chain: ``start()``, then ``step()`` after ``step()``; ``trace`` is the present state.

    Equal (seed, number) give equal chains. Fresh draws of execution i come from the stream of (seed, number) at
    index i; what the chain itself decides, from a stream of its own.

    Args:
        model: the simulator.
        observe: what to condition on.
        moves: kinds of moves with the share of steps that each gets; shares sum to 1.
        seed: of the run.
        number: of the chain in the run.
        branch_share: see :class:`.acceptance.Sites`.
        temper: over so many first steps the likelihood's power rises from 0 to 1, so that a chain can cross
            barriers before it settles.
    """

    def __init__(
        self,
        model: Simulator,
        observe: Observations,
        moves: Sequence[tuple[float, Transition]],
        seed: int,
        number: int,
        branch_share: float = 0.0,
        temper: int = 0,
    ) -> None:
        self.model = model
        self._observe = observe
        self._moves = moves
        self._branch_share = branch_share
        self._temper = temper
        draws, choices = np.random.SeedSequence([seed & 0xFFFFFFFFFFFFFFFF, number]).generate_state(2, np.uint64)
        self._seed = int(draws)
        self._draws = Stream(self._seed)
        self._choices = Stream(int(choices))
        self._steps = 0
        self._index = 0  # of the next execution's random numbers
        self._restored = False
        self.power = 1.0
        self._state: State
        self.executions = 0  # starts and proposals; not those of the present state again
        self.failed = 0  # executions that a simulator's policy dropped
        self.names: set[str] = set()  # that the first executions could have been conditioned by
        self.tally: dict[int, list[int]] = {}  # address: moves proposed, moves accepted
        self.idle: Counter[str] = Counter()  # steps that found no draw of the kind that they move
        self.reuse = ReuseTally()
        self.adapting = True

    @property
    def trace(self) -> Trace:
        """The present state."""
        return self._state.trace

    def start(self, attempts: int) -> None:
        """Begin at the likeliest of at least ``attempts`` draws from the prior.

        Raises:
            InferenceError: none of many draws has a finite density, or there is nothing to draw.
        """
        best: Trace | None = None
        while self.executions < attempts or (best is None and self.executions < _MOST_STARTS * attempts):
            trace = self.execute(Prior())
            self.names |= met_names(trace)
            if trace.ended == FINISHED and math.isfinite(trace.log_likelihood):
                best = trace if best is None or trace.log_likelihood > best.log_likelihood else best
        if best is None:
            raise InferenceError(
                f"none of {self.executions} draws from the prior has a finite likelihood, so the chain has nowhere "
                "to start. Check the observed values and their units, widen the likelihood, or raise starts=…"
            )
        self._state = State(best, self.sites(best))
        if not len(self._state.sites):
            raise InferenceError("the model draws nothing that is not observed: there is nothing to infer")

    def step(self) -> bool:
        """One move: propose, execute, accept or stay. Returns whether it was accepted."""
        choices = self._choices
        block, place = divmod(self._steps, _BLOCK)
        self._steps += 1
        if self._temper:
            self.power = min(self._steps / self._temper, 1.0)
        if not place or self._restored:
            choices.start(block)
            self._restored = False
        choices.seek(2 * place)
        first, second, threshold = choices.uniform(), choices.uniform(), choices.uniform()
        transition = self._pick(choices.uniform()) if len(self._moves) > 1 else self._moves[0][1]
        choices.seek(2 * place + 1)
        attempt = transition.attempt(self, self._state, first, second, choices)
        address, proposed, log_alpha, lacking = attempt
        if address is None:
            self.idle[lacking] += 1
            return False
        acceptance = 1.0 if log_alpha >= 0.0 else math.exp(log_alpha)
        accepted = proposed is not None and threshold < acceptance
        transition.settle(attempt, accepted, acceptance, self.adapting)
        tally = self.tally.get(address)
        if tally is None:
            tally = self.tally[address] = [0, 0]
        tally[0] += 1
        if accepted:
            assert proposed is not None
            tally[1] += 1
            self._state = proposed
        return accepted

    def freeze(self) -> None:
        """Burn-in is over: step sizes stay as they are, and counting of moves and of reuse begins anew."""
        self.adapting = False
        self.tally.clear()
        self.idle.clear()
        self.reuse.clear()

    # --- on disk ------------------------------------------------------------------------------------------------

    def plain(self) -> dict[str, Any]:
        """All but the present trace, in JSON's types."""
        return {
            "steps": self._steps,
            "index": self._index,
            "executions": self.executions,
            "failed": self.failed,
            "adapting": self.adapting,
            "used": dict(self._observe.used),
            "tally": [[address, *counts] for address, counts in self.tally.items()],
            "idle": dict(self.idle),
            "reuse": self.reuse.plain(),
            "moves": [transition.plain() for _, transition in self._moves],
        }

    def restore(self, present: TraceBatch, plain: Mapping[str, Any]) -> None:
        """Go on from what :meth:`plain` told and the present trace, as one row of a batch.

        Raises:
            InferenceError: the simulator is not the one that the trace is of, or it failed.
        """
        ours = self.model.addresses.merge(present.addresses).tolist()
        self._steps, self._restored, self.adapting = plain["steps"], True, plain["adapting"]
        self.tally = {ours[address]: [proposed, accepted] for address, proposed, accepted in plain["tally"]}
        self.idle = Counter(plain.get("idle", {}))  # older chains did not count them
        self.reuse.restore(plain["reuse"], ours)
        for (_, transition), state in zip(self._moves, plain["moves"], strict=True):
            transition.restore(state, ours)
        self._observe.used |= Counter(plain["used"])
        trace = self._repeat({ours[address]: value for address, value in _values(present).items()})
        # What going on costs is not told, so that the end is the same whether or not a chain was interrupted.
        self._index, self.executions, self.failed = plain["index"], plain["executions"], plain["failed"]
        if changed := _difference(trace, self.model.addresses, present):
            raise InferenceError(
                "the simulator is not the one that this chain was made with, or it does not repeat itself: executed "
                f"again with the values of its present state, {changed}. Choose another folder to begin anew"
            )
        self._state = State(trace, self.sites(trace))
        if self._temper:
            self.power = min(self._steps / self._temper, 1.0)

    def _repeat(self, values: dict[int, Any]) -> Trace:
        reuse = Reuse()
        reuse.values, reuse.shapes = values, {a: value.shape for a, value in values.items() if np.shape(value)}
        for _ in range(_MOST_TRIES):
            trace = self.execute(reuse)
            if trace.ended != FAILED:
                return trace
        raise InferenceError(
            f"each of {_MOST_TRIES} executions of its present state failed and was dropped by the simulator's policy: "
            "find out why (a timeout may be too short), then run the same again"
        )

    # --- what moves ask for -------------------------------------------------------------------------------------

    def execute(self, controller: Controller) -> Trace:
        """Execute the model once; draws of zero density end it early."""
        trace = self.model.execute(
            controller, self._observe, self._draws, self._next_index(), reject_zero=True, draw_observations=False
        )
        self.failed += trace.ended == FAILED
        return trace

    def propose(self, proposer: Proposer, told: Mapping[int, Any], fixed: Mapping[int, Any]) -> Trace:
        """Execute it once with a network's proposals."""
        job = Job(self._next_index(), self._observe, told, fixed)
        (trace,) = run_jobs(self.model, proposer, [job], self._seed, batch_size=1, draw_observations=False)
        self.failed += trace.ended == FAILED
        return trace

    def evaluate(self, proposer: Proposer, told: Mapping[int, Any], fixed: Mapping[int, Any]) -> Trace:
        """The same for a trace of which every value is given: no random numbers are used up, and it is not counted.

        How often a chain needs it depends on what it remembers, which an interrupted one does not.
        """
        before, self._index = (self._index, self.executions, self.failed), 0
        trace = self.propose(proposer, told, fixed)
        self._index, self.executions, self.failed = before
        return trace

    def sites(self, trace: Trace) -> Sites:
        """How to choose among the sites of a trace."""
        return Sites(trace, self._branch_share)

    def _next_index(self) -> int:
        self.executions += 1
        self._index += 1
        return self._index - 1

    def _pick(self, uniform: float) -> Transition:
        for share, transition in self._moves:
            if uniform < share:
                return transition
            uniform -= share
        return self._moves[0][1]


def _values(present: TraceBatch) -> dict[int, Any]:
    """The values of one trace by address id, but for those it is conditioned on."""
    values: dict[int, Any] = {}
    for draw in np.flatnonzero(~present.conditioned).tolist():
        distribution = present.distributions.distribution(int(present.distribution[draw]))
        numbers = present.value[present.value_offsets[draw] : present.value_offsets[draw + 1]]
        kind = np.int64 if distribution.discrete else np.float64
        whole = numbers.astype(kind).reshape(distribution.shape)
        values[int(present.address[draw])] = whole if distribution.shape else distribution.cast(float(numbers[0]))
    return values


def _difference(trace: Trace, book: AddressBook, saved: TraceBatch) -> str:
    """What tells an execution from a saved trace, a batch of one; empty where they are the same."""
    made = [f"{book[address]} {name!r}" for address, name in zip(trace.addresses, trace.names, strict=True)]
    told = zip(saved.address.tolist(), saved.name.tolist(), strict=True)
    before = [f"{saved.addresses[address]} {saved.names[name]!r}" for address, name in told]
    for place, (one, other) in enumerate(zip_longest(made, before, fillvalue="none")):
        if one != other:
            return f"draw {place} was {other}, and is {one}"
    pairs = (("prior", trace.log_prior, saved.log_prior), ("likelihood", trace.log_likelihood, saved.log_likelihood))
    for what, now, (then,) in pairs:
        # Not to the last bit: another machine rounds differently, as does a simulator that scores its draws itself.
        if not math.isclose(now, then, rel_tol=_SAME, abs_tol=_SAME):
            return f"its log {what} was {then:.9g}, and is {now:.9g}"
    return ""


class Recorder:
    """Collects kept states in columns; a state kept several times in a row is stored once.

    Args:
        chain: whose states.
        keep_observes: hold the likelihoods' parameters too.
    """

    def __init__(self, chain: Chain, keep_observes: bool) -> None:
        self._chain = chain
        self._keep_observes = keep_observes
        self._rows = array("q")
        self._distinct = 0
        self._last: Trace | None = None
        self._held: list[Trace] = []
        self._blocks: list[TraceBatch] = []

    def begin(self) -> int | None:
        """Steps that the chain has done: it has yet to start."""
        return None

    def keep(self) -> None:
        """Keep the present state."""
        trace = self._chain.trace
        if trace is not self._last:
            if len(self._held) == HELD:
                self._flush()
            self._last = trace
            self._held.append(trace)
            self._distinct += 1
        self._rows.append(self._distinct - 1)

    def save(self, steps: int, force: bool = False) -> None:
        """Nothing is kept on disk."""

    def finish(self, count: int) -> tuple[TraceBatch, NDArray[np.int64]]:
        """The distinct traces, and the row of each of the ``count`` kept states among them."""
        self._flush()
        return TraceBatch.concatenate(self._blocks), np.array(self._rows, dtype=np.int64)

    def _flush(self) -> None:
        self._blocks.append(TraceBatch.from_traces(self._held, self._chain.model.addresses, self._keep_observes))
        self._held = []
