"""The first instances of an address are proposed, later ones come from the prior.

The later passes of a rejection loop have little to learn, and the ratios of many proposals multiply into noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etalumis.execution import AddressBook, Answer, Proposer, Request


class Capped:
    """Hands the prior's values to a proposer at late instances, so that it knows them, and takes the prior's density.

    Args:
        proposer: of the network.
        most: instances of an address that it answers.
    """

    def __init__(self, proposer: Proposer, most: int) -> None:
        self._proposer = proposer
        self._most = most

    def begin(self, slots: Sequence[int], observe: Any) -> None:
        self._proposer.begin(slots, observe)

    def propose(self, requests: Sequence[Request], addresses: AddressBook) -> Sequence[Answer]:
        late = [addresses[request.address].instance > self._most for request in requests]
        told = [
            r._replace(value=r.distribution.draw(r.stream)) if is_late and r.value is None else r
            for r, is_late in zip(requests, late, strict=True)
        ]
        answers = self._proposer.propose(told, addresses)
        return [(a[0], None) if is_late else a for a, is_late in zip(answers, late, strict=True)]
