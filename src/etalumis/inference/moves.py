"""What a move of a chain over traces is: it proposes a trace and gives the log of its acceptance ratio.

A chain picks the kind of move with fixed probabilities, whatever its state, so each kind need only leave the posterior
invariant by itself. A kind that finds nothing to move therefore stays where it is: to hand over to another kind would
pick that one more often in some states than in others. The kinds: :mod:`.single_site`, :mod:`.block_moves`,
:mod:`.network_moves`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from etalumis.distributions import Stream
from etalumis.execution import Controller, Proposer, Simulator, Trace
from etalumis.inference.acceptance import Sites
from etalumis.inference.errors import InferenceError
from etalumis.inference.reuse import ReuseTally


class State(NamedTuple):
    """Where a chain is: the trace, and how it chooses among its sites."""

    trace: Trace
    sites: Sites


class Attempt(NamedTuple):
    """A proposed state.

    Attributes:
        address: where the move began; None where the trace has no draw of the kind that it moves.
        state: None where there is nothing to accept.
        log_alpha: log of the acceptance ratio; −inf for no state.
        lacking: without an address, the kind of draw.
    """

    address: int | None
    state: State | None = None
    log_alpha: float = -math.inf
    lacking: str = ""


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


def values_of(trace: Trace, stop: int) -> dict[int, Any]:
    """Values by address of the draws before a position that are not conditioned."""
    rows = zip(trace.addresses[:stop], trace.values[:stop], trace.conditioned[:stop], strict=True)
    return {address: value for address, value, given in rows if not given}


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
