"""What an optimiser works on: the dense parameters and the banks of a network that may grow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from etalumis.networks.banks import Bank, banks_of

_SMALL = 512  # numbers in a row up to which rows are gathered instead of updated one by one


class Parts:
    """Dense parameters and banks by name, looked up again only when the network has grown.

    With thousands of addresses a network has thousands of pages: a step must not walk them.

    Attributes:
        dense: the parameters that are no pages of a bank.
        banks: all banks; ``pages`` of each.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._count = -1
        self.dense: dict[str, nn.Parameter] = {}
        self.banks: dict[str, Bank] = {}
        self.pages: dict[str, list[nn.Parameter]] = {}
        self.refresh()

    def refresh(self) -> bool:
        """Look again; whether there is something new. Costs a walk over the modules, whatever the banks hold."""
        count = _count(self.network)
        if count == self._count:
            return False
        self._count = count
        self.banks = banks_of(self.network)
        self.pages = {name: bank.pages for name, bank in self.banks.items()}
        pages = {id(page) for pages in self.pages.values() for page in pages}
        self.dense = {name: p for name, p in self.network.named_parameters() if id(p) not in pages}
        return True

    def gradients(self) -> list[Tensor]:
        """Every gradient there is: of dense parameters, and the rows of each bank as one tensor."""
        dense = [p.grad for p in self.dense.values() if p.grad is not None]
        return dense + [bank.gradient.rows for bank in self.banks.values() if bank.gradient is not None]


class Places(NamedTuple):
    """Rows of a bank, sorted, and the pages they stand on.

    Attributes:
        ids: of the rows, (n,), rising, on the CPU.
        order: where each was in the order given, (n,); None where that was rising already.
        runs: (page, start, end): rows start to end of ``ids`` stand on that page.
    """

    ids: Tensor
    order: Tensor | None
    runs: list[tuple[int, int, int]]

    @classmethod
    def of(cls, ids: Tensor, capacity: int) -> Places:
        """Sort distinct rows (n,) of a bank with pages of this capacity."""
        order = None
        if len(ids) > 1 and not bool((ids[1:] > ids[:-1]).all()):
            ids, order = ids.sort()
        pages, counts = torch.unique_consecutive(torch.div(ids, capacity, rounding_mode="floor"), return_counts=True)
        ends = counts.cumsum(0).tolist()
        return cls(ids, order, list(zip(pages.tolist(), [0, *ends[:-1]], ends, strict=True)))

    def sorted(self, rows: Tensor) -> Tensor:
        """Rows (n, …) in the order given, in the order of ``ids``."""
        return rows if self.order is None else rows.index_select(0, self.order.to(rows.device))

    def on_pages(self, capacity: int, device: torch.device) -> Iterator[tuple[int, Tensor, slice]]:
        """Each page, the places on it (on a device), and which of ``ids`` they are."""
        places = (self.ids % capacity).to(device)
        for page, start, end in self.runs:
            yield page, places[start:end], slice(start, end)


def gather(pages: list[Tensor], capacity: int, places: Places) -> Tensor:
    """A table of rows, (n, numbers), from pages (capacity, *shape)."""
    first = pages[0].flatten(1)
    table = first.new_empty((len(places.ids), first.shape[1]))
    for page, here, part in places.on_pages(capacity, table.device):
        torch.index_select(pages[page].flatten(1), 0, here, out=table[part])
    return table


def scatter(pages: list[Tensor], capacity: int, places: Places, table: Tensor) -> None:
    """The inverse of :func:`gather`."""
    for page, here, part in places.on_pages(capacity, table.device):
        pages[page].flatten(1).index_copy_(0, here, table[part])


def is_small(bank: Bank) -> bool:
    """Whether a tensor operation for each row would cost more than the arithmetic."""
    return math.prod(bank.shape) <= _SMALL


def _count(network: nn.Module) -> int:
    count, stack = 0, [network]
    while stack:
        module = stack.pop()
        count += len(module._parameters)
        stack.extend(child for child in module._modules.values() if child is not None)
    return count
