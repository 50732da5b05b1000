"""What a network knows of addresses: which row of which bank answers an address.

A *row* is an address with the number of categories of its distribution (0 where it is not categorical), because
that number decides the shape of its proposal head. Loop instances beyond ``max_instances`` share a row.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import BY_CODE, DISTRIBUTIONS
from etalumis.execution import Address, AddressBook, DistributionTable, TraceBatch
from etalumis.networks.columns import categories

UNKNOWN = -1
CATEGORICAL = "categorical"


class Row(NamedTuple):
    """An address (instance capped) and the number of categories, 0 where the family has another proposal."""

    address: Address
    categories: int


class Known(NamedTuple):
    """What the network needs of one address: its rows (UNKNOWN where there are none) and its features."""

    row: int
    head: str
    head_row: int
    family: int
    instance: int
    frames: tuple[int, ...]


class Layout:
    """The network's address dictionary, and how data sets' addresses map to it. Picklable, NumPy only.

    Args:
        observations: shape of each observation the network reads, by name.
        max_instances: instances of a loop beyond this share a row; None gives each its own.
        max_controlled: controlled draws of a trace beyond this number are left to the prior.
        proposals: kind of proposal by family, where it is not the family's own.

    Attributes:
        rows: all rows in order; a row's number indexes the address bank.
        frames: id of each known stack frame.
        head_rows: number of rows in each head's banks.
    """

    def __init__(
        self,
        observations: Mapping[str, Sequence[int]],
        max_instances: int | None = 4,
        max_controlled: int | None = None,
        proposals: Mapping[str, str] | None = None,
    ) -> None:
        self.observations = {name: tuple(shape) for name, shape in observations.items()}
        self.max_instances = max_instances
        self.max_controlled = max_controlled
        self.proposals = dict(proposals or {})
        self.rows: list[Row] = []
        self.frames: dict[str, int] = {}
        self.head_rows: dict[str, int] = {}
        self._known: dict[Row, Known] = {}
        self._translation: _Translation | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_translation": None}

    # --- growing ----------------------------------------------------------------------------------------------

    def capped(self, address: Address, categories: int) -> Row:
        """The row that stands for an address."""
        most = self.max_instances
        if most is not None and address.instance > most:
            address = address._replace(instance=most)
        return Row(address, categories)

    def head(self, row: Row) -> str:
        """The heads whose bank holds a row: one per shape of output."""
        family = row.address.family
        kind = self.proposals.get(family, DISTRIBUTIONS[family].proposal)
        return f"{kind}_{row.categories}" if kind == CATEGORICAL else kind

    def grow(self, rows: Iterable[Row]) -> int:
        """Append the rows that are not known yet, in the order given; returns how many."""
        before = len(self.rows)
        for given in rows:
            row = self.capped(*given)
            if row in self._known:
                continue
            head = self.head(row)
            head_row = self.head_rows.get(head, 0)
            self.head_rows[head] = head_row + 1
            for frame in row.address.frames:
                self.frames.setdefault(frame, len(self.frames))
            self._known[row] = self._describe(row, len(self.rows), head_row)
            self.rows.append(row)
        if len(self.rows) > before:
            self._translation = None
        return len(self.rows) - before

    def find(self, address: Address, categories: int) -> Known:
        """The description of an address; of an unknown one, what its relatives tell."""
        row = self.capped(address, categories)
        known = self._known.get(row)
        return known if known is not None else self._describe(row, UNKNOWN, UNKNOWN)

    def _describe(self, row: Row, number: int, head_row: int) -> Known:
        address = row.address
        frames = tuple(self.frames[f] for f in address.frames if f in self.frames)
        code = DISTRIBUTIONS[address.family].code
        return Known(number, self.head(row), head_row, code, address.instance, frames)

    # --- data sets' addresses ---------------------------------------------------------------------------------

    def translate(
        self, book: AddressBook, address: NDArray[np.int32], categories: NDArray[np.int64]
    ) -> tuple[list[Known], NDArray[np.int64]]:
        """The distinct descriptions of draws, and which of them each draw has.

        Instances that share a row have one description.

        Args:
            book: what the address ids mean.
            address, categories: of the draws, (n,).
        """
        translation = self._translation
        if translation is None or translation.book() is not book:
            translation = self._translation = _Translation(weakref.ref(book), {})
        radix = int(categories.max(initial=0)) + 1
        pairs, member = np.unique(address.astype(np.int64) * radix + categories, return_inverse=True)
        found: dict[Known, int] = {}
        which = np.empty(len(pairs), dtype=np.int64)
        for place, pair in enumerate(zip((pairs // radix).tolist(), (pairs % radix).tolist(), strict=True)):
            known = translation.known.get(pair)
            if known is None:
                known = translation.known[pair] = self.find(book[pair[0]], pair[1])
            which[place] = found.setdefault(known, len(found))
        return list(found), which[member]

    # --- plain data -------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """JSON-like containers; base addresses are stored once."""
        bases: dict[str, int] = {}
        rows = []
        for (base, family, instance, kind), count in self.rows:
            rows.append([bases.setdefault(base, len(bases)), family, instance, kind, count])
        return {
            "observations": {name: list(shape) for name, shape in self.observations.items()},
            "max_instances": self.max_instances,
            "max_controlled": self.max_controlled,
            "proposals": self.proposals,
            "bases": list(bases),
            "rows": rows,
        }

    @staticmethod
    def rows_from_json(data: Mapping[str, Any]) -> list[Row]:
        """The rows that :meth:`to_json` stored, in order."""
        bases = data["bases"]
        return [
            Row(Address(str(bases[base]), str(family), int(instance), str(kind)), int(categories))
            for base, family, instance, kind, categories in data["rows"]
        ]


class _Translation(NamedTuple):
    book: weakref.ref[AddressBook]
    known: dict[tuple[int, int], Known]


def row_of(address: Address, parameters: int) -> Row:
    """The row of an address whose distribution has so many packed parameters."""
    return Row(address, categories(DISTRIBUTIONS[address.family], *[1.0] * parameters))


def category_counts(table: DistributionTable) -> NDArray[np.int64]:
    """The number of categories of each distribution of a table, 0 where its proposal is not categorical."""
    lengths = np.diff(table.offsets)
    counts = np.zeros(len(table), dtype=np.int64)
    for code in np.unique(table.code).tolist():
        of_family = table.code == code
        for length in np.unique(lengths[of_family]).tolist():
            counts[of_family & (lengths == length)] = categories(BY_CODE[code], *[1.0] * length)
    return counts


def rows_of(batch: TraceBatch) -> list[Row]:
    """The distinct rows of a batch's draws, in order of first appearance in the address book."""
    draws = batch.controlled_scalars()
    categories = category_counts(batch.distributions)[batch.distribution[draws]]
    pairs = np.unique(np.stack([batch.address[draws].astype(np.int64), categories], axis=1), axis=0)
    return [Row(batch.addresses[address], count) for address, count in pairs.tolist()]


def without_unknown(batch: TraceBatch, layout: Layout) -> NDArray[np.int64]:
    """Positions of the traces that have a row in the layout for each of their controlled draws."""
    draws = batch.controlled_scalars()
    categories = category_counts(batch.distributions)[batch.distribution[draws]]
    known, which = layout.translate(batch.addresses, batch.address[draws], categories)
    unknown = np.array([k.row == UNKNOWN for k in known], dtype=bool)[which]
    left = np.ones(len(batch), dtype=bool)
    left[batch.trace_of_draw[draws[unknown]]] = False
    return np.flatnonzero(left)
