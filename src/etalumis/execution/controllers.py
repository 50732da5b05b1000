"""Controllers: they decide the values of draws, and nothing else.

The execution loop conditions, scores, counts and records; a controller answers one question. Engines differ
in their controllers only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from etalumis.distributions import Distribution, Stream
from etalumis.execution.addresses import Address
from etalumis.execution.errors import Reject
from etalumis.execution.trace import Trace

Answer = tuple[Any, float | None]


class Script(NamedTuple):
    """What a controller is going to answer, where that can be said before the execution.

    Attributes:
        values: by address id; a draw of another size is drawn from the prior.
        asks: the other controlled scalar draws are asked for; where False they too come from the prior.
        stop: base address and instance of the draw or marker before which the execution ends.
    """

    values: Mapping[int, Any] = MappingProxyType({})
    asks: bool = False
    stop: tuple[str, int] | None = None

    @property
    def empty(self) -> bool:
        """Everything comes from the prior."""
        return not self.values and not self.asks and self.stop is None


class Stop:
    """Ends an execution before a draw or marker.

    Args:
        place: its base address and instance; simulators that run by themselves are told it.
        where: or before the first draw for which this holds, given the draws before it. Conditioned draws are left out.

    Attributes:
        met: where the execution ended.
    """

    __slots__ = ("_seen", "met", "place", "where")

    def __init__(
        self,
        place: tuple[str, int] | None = None,
        where: Callable[[Sequence[Address], Address], bool] | None = None,
    ) -> None:
        self.place = place
        self.where = where
        self.met: Address | None = None
        self._seen: list[Address] = []

    def begin(self) -> None:
        """An execution begins."""
        self.met = None
        self._seen = []

    def at_draw(self, address: Address) -> None:
        """Raise :class:`Reject` where the execution has to end before this draw."""
        if self.where is not None and self.where(self._seen, address):
            self.met = address
            raise Reject
        self.at_mark(address)
        self._seen.append(address)

    def at_mark(self, address: Address) -> None:
        """Raise :class:`Reject` where it has to end at this place."""
        if (address.base, address.instance) == self.place:
            self.met = address
            raise Reject


class Controller:
    """Answers draws from the prior; the base of all others."""

    __slots__ = ()

    def begin(self, index: int) -> None:
        """An execution with this trace index starts."""

    def choose(self, address: int, name: str, distribution: Distribution, control: bool, stream: Stream) -> Answer:
        """The value of a draw and log q of it; None says that it came from the prior.

        ``stream`` stands at the statement's own numbers. Raising :class:`Reject` ends the execution.
        """
        return distribution.draw(stream), None

    def marked(self, address: int) -> None:
        """A marker of a rejection loop is met. Raising :class:`Reject` ends the execution before it."""

    def script(self) -> Script | None:
        """What ``choose`` is going to answer, for simulators that can run by themselves; None: ask and see."""
        return None

    def followed(self, trace: Trace) -> None:
        """A simulator followed the script. Its trace has log q = log prior at all draws but those it asked for."""


class Prior(Controller):
    """Draws everything from the prior."""

    __slots__ = ()

    def script(self) -> Script:
        return Script()


class Replay(Controller):
    """Gives recorded values at known addresses (log q = 0) and leaves the others to another controller."""

    __slots__ = ("then", "values")

    def __init__(self, values: Mapping[int, Any], then: Controller | None = None) -> None:
        self.values = values
        self.then = then or Prior()

    def begin(self, index: int) -> None:
        self.then.begin(index)

    def choose(self, address: int, name: str, distribution: Distribution, control: bool, stream: Stream) -> Answer:
        if address in self.values:
            return self.values[address], 0.0
        return self.then.choose(address, name, distribution, control, stream)

    def script(self) -> Script | None:
        then = self.then.script()
        return None if then is None else Script({**then.values, **self.values}, then.asks)

    def followed(self, trace: Trace) -> None:
        self.then.followed(trace)
        for place, address in enumerate(trace.addresses):
            if address in self.values:
                trace.log_proposals[place] = 0.0


class Guided(Controller):
    """Draws named sites from given proposals: a distribution, or a function of the prior that returns one."""

    __slots__ = ("proposals", "then")

    def __init__(
        self,
        proposals: Mapping[str, Distribution | Callable[[Distribution], Distribution]],
        then: Controller | None = None,
    ) -> None:
        self.proposals = dict(proposals)
        self.then = then or Prior()

    def begin(self, index: int) -> None:
        self.then.begin(index)

    def choose(self, address: int, name: str, distribution: Distribution, control: bool, stream: Stream) -> Answer:
        proposal = self.proposals.get(name)
        if proposal is None:
            return self.then.choose(address, name, distribution, control, stream)
        if not isinstance(proposal, Distribution):
            proposal = proposal(distribution)
        value = proposal.draw(stream)
        return value, proposal.log_prob(value)


class Inflated(Controller):
    """Draws controlled sites from priors widened by ``factor`` (prior inflation)."""

    __slots__ = ("factor", "then")

    def __init__(self, factor: float, then: Controller | None = None) -> None:
        if not factor > 0.0:
            raise ValueError(f"prior inflation needs a factor > 0; got {factor!r}")
        self.factor = factor
        self.then = then or Prior()

    def begin(self, index: int) -> None:
        self.then.begin(index)

    def choose(self, address: int, name: str, distribution: Distribution, control: bool, stream: Stream) -> Answer:
        if not control:
            return self.then.choose(address, name, distribution, control, stream)
        wider = distribution.inflated(self.factor)
        value, log_q = self.then.choose(address, name, wider, control, stream)
        return value, wider.log_prob(value) if log_q is None else log_q
