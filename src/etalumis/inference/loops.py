"""The rejection loops of a trace: where their passes begin, and where they end.

A simulator marks its loops (:func:`etalumis.rejection`), or patterns say which addresses belong to a loop: such a
loop is a run of draws at these addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Protocol

from etalumis.execution import Address, AddressBook, Mark, Stop, Trace
from etalumis.execution.trace import ACCEPTED, PASS
from etalumis.inference.errors import InferenceError


class Visit(Protocol):
    """One visit of a trace to a rejection loop.

    Attributes:
        loop: its name.
        starts: positions where its passes begin; the last one is of the accepted pass.
        end: position behind the accepted pass.
    """

    @property
    def loop(self) -> str: ...

    @property
    def starts(self) -> Sequence[int]: ...

    @property
    def end(self) -> int: ...

    def after_pass(self) -> Stop:
        """Ends another execution, which is equal up to the accepted pass, behind that pass."""

    def accepted(self, trace: Trace, stop: Stop) -> bool:
        """Whether that execution accepted this pass."""

    def after_loop(self) -> Stop:
        """Ends another execution, which is equal up to the loop, behind the loop."""

    def passes(self, trace: Trace, stop: Stop) -> int:
        """How many passes the loop of that execution had."""


@dataclass(frozen=True)
class Marked:
    """A visit between markers.

    Attributes:
        first: how many markers of passes there were at the first pass, itself included.
        visits: how many markers of accepted passes there were at the end, its own included.
    """

    loop: str
    starts: tuple[int, ...]
    end: int
    first: int
    visits: int

    def after_pass(self) -> Stop:
        return Stop((PASS + self.loop, self._next))

    def accepted(self, trace: Trace, stop: Stop) -> bool:
        for mark in trace.marks:
            if mark.base == ACCEPTED + self.loop and mark.instance == self.visits:
                return True
            if mark.base == PASS + self.loop and mark.instance == self._next:
                return False
        return False

    def after_loop(self) -> Stop:
        return Stop((ACCEPTED + self.loop, self.visits))

    def passes(self, trace: Trace, stop: Stop) -> int:
        count = 0
        for mark in trace.marks:
            if mark.base == ACCEPTED + self.loop and mark.instance == self.visits:
                break
            count += mark.base == PASS + self.loop and mark.instance >= self.first
        return count

    @property
    def _next(self) -> int:
        """Instance of the marker behind the accepted pass."""
        return self.first + len(self.starts)


class Pattern:
    """The addresses of a loop, and where its passes begin.

    Args:
        text: a regular expression. Where it has a group ``last``, a pass ends with a draw that the group takes part
            in; otherwise a pass begins where the place of its first draw comes again.
    """

    def __init__(self, text: str) -> None:
        try:
            self._expression = re.compile(text)
        except re.error as error:
            raise ValueError(f"loops={{…: {text!r}}} is no regular expression: {error}") from error
        self._has_last = "last" in self._expression.groupindex

    def holds(self, address: Address) -> bool:
        """Whether a draw belongs to the loop."""
        return self._expression.search(address.base) is not None

    def starts(self, run: Sequence[Address]) -> list[int]:
        """Where passes begin in a run of draws of the loop."""
        if not self._has_last:
            first = run[0]
            return [k for k, a in enumerate(run) if a.base == first.base and a.family == first.family]
        found = [self._expression.search(address.base) for address in run[:-1]]
        return [0] + [k + 1 for k, match in enumerate(found) if match is not None and match["last"] is not None]


@dataclass(frozen=True)
class Matched:
    """A visit found by a pattern.

    Attributes:
        pattern: of the loop.
        book: what address ids mean.
        before: how many draws that are not conditioned stand before the loop, and before its accepted pass.
        place: base and instance of the draw behind the loop, where there is one.
    """

    loop: str
    starts: tuple[int, ...]
    end: int
    pattern: Pattern
    book: AddressBook
    before: tuple[int, int]
    place: tuple[str, int] | None

    def after_pass(self) -> Stop:
        pattern, told = self.pattern, self.before[1]

        def ends(seen: Sequence[Address], address: Address) -> bool:
            here = seen[told:]
            return bool(here) and (not pattern.holds(address) or len(pattern.starts([*here, address])) > 1)

        return Stop(None, ends)

    def accepted(self, trace: Trace, stop: Stop) -> bool:
        rest, run = self._run(trace, self.starts[-1])
        if len(self.pattern.starts(run)) > 1:
            return False
        return len(run) < len(rest) or stop.met is None or not self.pattern.holds(stop.met)

    def after_loop(self) -> Stop:
        pattern, told = self.pattern, self.before[0]
        return Stop(self.place, lambda seen, address: len(seen) > told and not pattern.holds(address))

    def passes(self, trace: Trace, stop: Stop) -> int:
        run = self._run(trace, self.starts[0])[1]
        return len(self.pattern.starts(run)) if run else 0

    def _run(self, trace: Trace, start: int) -> tuple[list[Address], list[Address]]:
        """The draws from a position on, and of these the first that belong to the loop."""
        rest = [self.book[a] for a in trace.addresses[start:]]
        return rest, list(takewhile(self.pattern.holds, rest))


class Finder:
    """Finds the loops of traces.

    Args:
        patterns: name of a loop to the text of its :class:`Pattern`.
        book: what the address ids of traces mean.
    """

    def __init__(self, patterns: Mapping[str, str], book: AddressBook) -> None:
        self._patterns = {name: Pattern(text) for name, text in patterns.items()}
        self._book = book
        self._loop_of: dict[str, str | None] = {}  # by base address

    def visits(self, trace: Trace) -> list[Visit]:
        """The visits on the accepted path: those inside of rejected passes are left out.

        Raises:
            InferenceError: loops overlap, one has no end, or something is observed inside.
        """
        marked = marked_visits(trace.marks)
        matched = list(self._matched(trace)) if self._patterns else []
        for one in matched:
            for other in marked:
                if one.starts[0] < other.end and other.starts[0] < one.end:
                    raise InferenceError(
                        f"the rejection loop {other.loop!r} is marked, and the pattern of {one.loop!r} finds the same "
                        "draws: leave the pattern out, or make it narrower"
                    )
        visits: list[Visit] = [*marked, *matched]
        for visit in visits:
            if any(trace.conditioned[visit.starts[0] : visit.end]):
                raise _observed(visit.loop)
        return visits

    def _matched(self, trace: Trace) -> Iterator[Matched]:
        addresses = trace.addresses
        loops = [self._loop(self._book[a]) for a in addresses]
        for loop, group in groupby(range(len(loops)), key=loops.__getitem__):
            if loop is None:
                continue
            positions = list(group)
            begin, end = positions[0], positions[-1] + 1
            pattern = self._patterns[loop]
            starts = tuple(begin + k for k in pattern.starts([self._book[a] for a in addresses[begin:end]]))
            before = begin - sum(trace.conditioned[:begin])
            behind = self._book[addresses[end]] if end < len(addresses) else None
            place = None if behind is None else (behind.base, behind.instance)
            # Nothing is conditioned within a loop: that is refused.
            yield Matched(loop, starts, end, pattern, self._book, (before, before + starts[-1] - begin), place)

    def _loop(self, address: Address) -> str | None:
        base = address.base
        if base not in self._loop_of:
            names = [name for name, pattern in self._patterns.items() if pattern.holds(address)]
            if len(names) > 1:
                raise InferenceError(
                    f"the patterns of the rejection loops {' and '.join(map(repr, names))} both find the address "
                    f"{base}: loops within loops can't be told by patterns. Make them narrower, or mark the loops"
                )
            self._loop_of[base] = names[0] if names else None
        return self._loop_of[base]


class _Open:
    """A loop being read."""

    def __init__(self, loop: str) -> None:
        self.loop = loop
        self.marks: list[Mark] = []  # of passes
        self.inner: list[Marked] = []  # visits inside of the present pass
        self.accepted: Mark | None = None


def marked_visits(marks: Sequence[Mark]) -> list[Marked]:
    """The visits between markers, by a stack: those inside of rejected passes are left out.

    Raises:
        InferenceError: loops overlap, one has no end, or something is observed inside.
    """
    found: list[Marked] = []
    stack: list[_Open] = []
    for mark in marks:
        kind = PASS if mark.base.startswith(PASS) else ACCEPTED
        loop = mark.base[len(kind) :]
        top = stack[-1] if stack else None
        if top is None or top.loop != loop:
            if top is not None and (kind == ACCEPTED or any(outer.loop == loop for outer in stack)):
                raise InferenceError(
                    f"the rejection loop {top.loop!r} was still going when {loop!r} went on: of nested loops the inner "
                    "one must end first, in every way out of it"
                )
            if kind == ACCEPTED:
                raise InferenceError(f"the rejection loop {loop!r} accepted a pass that never began")
            top = _Open(loop)
            stack.append(top)
        if kind == ACCEPTED:
            top.accepted = mark
        elif top.accepted is None:
            top.marks.append(mark)
            top.inner = []
        else:
            stack.pop()
            visits = [_visit(top, top.accepted), *top.inner]
            (stack[-1].inner if stack else found).extend(visits)
    if stack:
        raise InferenceError(
            f"the rejection loop {stack[-1].loop!r} has no end: mark the acceptance on every way out of it"
        )
    return found


def _visit(read: _Open, accepted: Mark) -> Marked:
    if accepted.log_likelihood != read.marks[0].log_likelihood:
        raise _observed(read.loop)
    starts = tuple(mark.position for mark in read.marks)
    return Marked(read.loop, starts, accepted.position, read.marks[0].instance, accepted.instance)


def _observed(loop: str) -> InferenceError:
    return InferenceError(
        f"something is observed inside of the rejection loop {loop!r}: what a rejected pass observes can't count. "
        'Observe behind the loop, or use rejection="exact"'
    )
