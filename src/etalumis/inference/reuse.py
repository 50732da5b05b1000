"""How often single-site moves find a value to reuse at an address, and how often they must draw a fresh one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


class ReuseTally:
    """Counts over the executions that single-site moves proposed, accepted or not.

    A site of which most values are fresh is one that other sites bring in and out of the trace: every such move
    gambles on a draw from the prior, and is rejected where the observation speaks against it.
    """

    __slots__ = ("_addresses", "_fresh", "_met", "_moved", "_pending")

    def __init__(self) -> None:
        self._met: Counter[int] = Counter()
        self._moved: Counter[int] = Counter()
        self._fresh: Counter[int] = Counter()
        self._addresses: Sequence[int] = ()
        self._pending = 0  # executions through `_addresses` that are not in `_met` yet

    def record(self, addresses: Sequence[int], moved: int, fresh: Iterable[int]) -> None:
        """Count an execution: the addresses that it met, the one that moved, and those drawn afresh."""
        if addresses != self._addresses:
            self._settle()
            self._addresses = addresses
        self._pending += 1
        self._moved[moved] += 1
        for address in fresh:
            self._fresh[address] += 1

    def clear(self) -> None:
        """Begin anew."""
        self._met, self._moved, self._fresh, self._pending = Counter(), Counter(), Counter(), 0

    def plain(self) -> list[list[int]]:
        """For each address: its id, how often it was met while another site moved, and how often it was fresh then."""
        self._settle()
        return [[address, met - self._moved[address], self._fresh[address]] for address, met in self._met.items()]

    def restore(self, plain: Sequence[Sequence[int]], addresses: Sequence[int]) -> None:
        """Take up what :meth:`plain` told; ``addresses`` translates its address ids."""
        self.clear()
        for address, met, fresh in plain:
            self._met[addresses[address]] += met
            self._fresh[addresses[address]] += fresh

    def _settle(self) -> None:
        if self._pending:
            for address in self._addresses:
                self._met[address] += self._pending
            self._pending = 0
