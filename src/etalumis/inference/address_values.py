"""The values drawn at each address, in columns of numbers: an array is looked at element by element."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import BY_CODE
from etalumis.execution import Address, TraceBatch

Array = NDArray[np.float64]
MOST_ELEMENTS = 25  # of one array, spread evenly over it


class AddressValues(NamedTuple):
    """The values of a scalar draw at one address, or of one element of an array.

    Attributes:
        address: where.
        name: of the draw; empty where it has none.
        element: position in the flattened array; None for a scalar.
        elements: of the array, the largest met; 1 for a scalar.
        discrete: categories or counts.
        traces: positions of the traces that met it, rising, (M,).
        values: there, (M,).
    """

    address: Address
    name: str
    element: int | None
    elements: int
    discrete: bool
    traces: NDArray[np.int64]
    values: Array

    @property
    def label(self) -> str:
        """What people are told: the name, or the address, and which element."""
        return _spelt(self.name or str(self.address), self.element)


def address_values(traces: TraceBatch, names: Collection[str] | None = None) -> dict[str, AddressValues]:
    """The draws that the traces were not conditioned on, by address; ``"ADDRESS (element k)"`` has element k of arrays.

    Of an array with more than :data:`MOST_ELEMENTS` elements so many are taken, the first and the last among them.

    Args:
        traces: where.
        names: only draws of these names.
    """
    wanted = ~traces.conditioned
    if names is not None:
        wanted &= np.isin(traces.name, [place for place, name in enumerate(traces.names) if name in names])
    draws = np.flatnonzero(wanted)
    draws = draws[np.argsort(traces.address[draws], kind="stable")]
    identifiers, starts = np.unique(traces.address[draws], return_index=True)
    owner = traces.trace_of_draw[draws]
    stops = np.append(starts[1:], len(draws))
    found = {}
    for identifier, start, stop in zip(identifiers.tolist(), starts, stops[: len(starts)], strict=True):
        address = traces.addresses.entries[identifier]
        for column in _columns(traces, address, draws[start:stop], owner[start:stop]):
            found[_spelt(str(address), column.element)] = column
    return found


def _columns(
    traces: TraceBatch, address: Address, draws: NDArray[np.int64], owner: NDArray[np.int64]
) -> Iterator[AddressValues]:
    start = traces.value_offsets[draws]
    size = traces.value_offsets[draws + 1] - start
    table, first = traces.distributions, int(traces.distribution[draws[0]])
    discrete = BY_CODE[int(table.code[first])].discrete
    name = traces.names[traces.name[draws[0]]]
    if table.shapes[first] == () and (size == 1).all():
        yield AddressValues(address, name, None, 1, discrete, owner, traces.value[start])
        return
    largest = int(size.max())
    for element in np.unique(np.linspace(0, largest - 1, min(largest, MOST_ELEMENTS)).astype(np.int64)).tolist():
        there = size > element  # where the size varies, an element is met as a draw in a branch is
        values = traces.value[start[there] + element]
        yield AddressValues(address, name, element, largest, discrete, owner[there], values)


def _spelt(what: str, element: int | None) -> str:
    return what if element is None else f"{what} (element {element})"
