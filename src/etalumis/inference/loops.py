"""The rejection loops of a trace: where their passes begin, and where they end.

A simulator marks its loops (:func:`etalumis.rejection`), or patterns say which addresses belong to a loop: such a
loop is a run of draws at these addresses, and a pass begins where the first of them comes again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
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


@dataclass(frozen=True)
class Matched:
    """A visit found by a pattern.

    Attributes:
        pattern: of the base addresses that belong to the loop.
        book: what address ids mean.
        before: ids of the draws up to the first of the accepted pass, it included.
        place: base and instance of the draw behind the loop, where there is one.
    """

    loop: str
    starts: tuple[int, ...]
    end: int
    pattern: re.Pattern[str]
    book: AddressBook
    before: Sequence[int]
    place: tuple[str, int] | None

    def after_pass(self) -> Stop:
        first = self.book[self.before[-1]]
        past = {self.book[a] for a in self.before}
        return Stop(None, lambda a: a not in past and (not self.pattern.search(a.base) or _same_site(a, first)))

    def accepted(self, trace: Trace, stop: Stop) -> bool:
        following = (self.book[a] for a in trace.addresses[self.starts[-1] + 1 :])
        end = next((a for a in following if not self.pattern.search(a.base) or _same_site(a, self._first)), stop.met)
        return end is None or not self.pattern.search(end.base)

    def after_loop(self) -> Stop:
        past = {self.book[a] for a in self.before[: self.starts[0]]}
        return Stop(self.place, lambda a: a not in past and not self.pattern.search(a.base))

    def passes(self, trace: Trace, stop: Stop) -> int:
        count = 0
        for address in map(self.book.__getitem__, trace.addresses[self.starts[0] :]):
            if not self.pattern.search(address.base):
                break
            count += _same_site(address, self._first)
        return count

    @property
    def _first(self) -> Address:
        return self.book[self.before[-1]]


class Finder:
    """Finds the loops of traces.

    Args:
        patterns: name of a loop to a regular expression that its base addresses, and no others, contain.
        book: what the address ids of traces mean.
    """

    def __init__(self, patterns: Mapping[str, str], book: AddressBook) -> None:
        self._patterns = {name: re.compile(pattern) for name, pattern in patterns.items()}
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
        loops = [self._loop(self._book[a].base) for a in addresses]
        for loop, group in groupby(range(len(loops)), key=loops.__getitem__):
            if loop is None:
                continue
            positions = list(group)
            first = self._book[addresses[positions[0]]]
            starts = tuple(k for k in positions if _same_site(self._book[addresses[k]], first))
            end = positions[-1] + 1
            behind = self._book[addresses[end]] if end < len(addresses) else None
            yield Matched(
                loop,
                starts,
                end,
                self._patterns[loop],
                self._book,
                addresses[: starts[-1] + 1],
                None if behind is None else (behind.base, behind.instance),
            )

    def _loop(self, base: str) -> str | None:
        if base not in self._loop_of:
            names = [name for name, pattern in self._patterns.items() if pattern.search(base)]
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


def _same_site(one: Address, other: Address) -> bool:
    return one.base == other.base and one.family == other.family
