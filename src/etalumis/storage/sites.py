"""What a dataset tells of the networks that could learn from it, without reading it.

A *site* is an address with the number of parameters of its distribution: together they decide the row that answers
the address and the shape of its proposal. Of each site some traces are named that have it, so that what a part of the
traces holds is known as well, all but always.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import TraceBatch
from etalumis.execution.ragged import gather, offsets_of
from etalumis.storage.errors import DatasetError
from etalumis.storage.index import from_text, to_text

NAMED = 8  # traces of a site that are named
_ARRAYS = ("address", "parameters", "traces", "named")


@dataclass(frozen=True, eq=False)
class Sites:
    """S sites of controlled scalar draws in N traces, by (address, parameters).

    Attributes:
        address: ids, int64 (S,).
        parameters: how many numbers the distribution's packed parameters are, int64 (S,).
        traces: how many traces have such a draw, int64 (S,).
        named: positions of the first min(traces, 8) of these, site after site, int64.
    """

    address: NDArray[np.int64]
    parameters: NDArray[np.int64]
    traces: NDArray[np.int64]
    named: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.address)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each site's traces begin in ``named``, and its length, (S + 1,)."""
        return offsets_of(np.minimum(self.traces, NAMED))

    @classmethod
    def of(cls, batch: TraceBatch) -> Sites:
        """The sites of a batch; positions are those in the batch."""
        draws = batch.controlled_scalars()
        parameters = np.diff(batch.distributions.offsets)[batch.distribution[draws]]
        radix, count = int(parameters.max(initial=0)) + 1, max(len(batch), 1)
        site = batch.address[draws].astype(np.int64) * radix + parameters
        site, trace = np.divmod(np.unique(site * count + batch.trace_of_draw[draws]), count)
        address, parameters = np.divmod(site, radix)
        return cls._joined(address, parameters, np.ones(len(trace), dtype=np.int64), trace, np.arange(len(trace)))

    @classmethod
    def concatenate(cls, parts: Sequence[Sites], lengths: Iterable[int]) -> Sites:
        """The sites of consecutive traces; all ids of one dictionary (see :meth:`remap`).

        Args:
            parts: of some traces each.
            lengths: how many traces each part is of.
        """
        starts = np.cumsum([0, *lengths]).tolist()
        named = [part.named + start for start, part in zip(starts, parts, strict=False)]
        owner = [np.repeat(np.arange(len(part)), np.diff(part.offsets)) for part in parts]
        first = np.cumsum([0, *map(len, parts)]).tolist()
        return cls._joined(
            np.concatenate([part.address for part in parts]),
            np.concatenate([part.parameters for part in parts]),
            np.concatenate([part.traces for part in parts]),
            np.concatenate(named),
            np.concatenate([o + f for o, f in zip(owner, first, strict=False)]),
        )

    @classmethod
    def _joined(
        cls,
        address: NDArray[np.int64],
        parameters: NDArray[np.int64],
        traces: NDArray[np.int64],
        named: NDArray[np.int64],
        owner: NDArray[np.int64],
    ) -> Sites:
        """Sites of which some are the same; ``owner`` is the one that each trace of ``named`` has."""
        pairs, place = np.unique(np.stack([address, parameters]), axis=1, return_inverse=True)
        place = place.reshape(-1)
        counts = np.zeros(pairs.shape[1], dtype=np.int64)
        np.add.at(counts, place, traces)
        order = np.lexsort((named, place[owner]))
        starts = offsets_of(np.bincount(place[owner], minlength=len(counts)))
        kept = np.arange(len(order)) - np.repeat(starts[:-1], np.diff(starts)) < NAMED
        return cls(pairs[0], pairs[1], counts, named[order][kept])

    def remap(self, ids: NDArray[np.int32]) -> Sites:
        """The same with ids of another dictionary, ``ids[our id]``."""
        order = np.lexsort((self.parameters, ids[self.address]))
        named, _ = gather(self.named, self.offsets, order)
        address = ids[self.address].astype(np.int64)[order]
        return Sites(address, self.parameters[order], self.traces[order], named)

    def within(self, part: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which sites some of the traces have.

        Args:
            part: whether a trace is one of them, (N,).

        Returns:
            which sites are sure to be met, and of which nothing is known, (S,) each.
        """
        met = np.zeros(len(self), dtype=np.bool_)
        owner = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        met[owner[part[self.named]]] = True
        return met, ~met & (self.traces > NAMED)

    def holds(self, part: Sites, start: int, traces: int) -> bool:
        """Whether ``part`` can be the sites of the ``traces`` traces from ``start`` on."""
        ours = {pair: row for row, pair in enumerate(zip(self.address.tolist(), self.parameters.tolist(), strict=True))}
        rows = [ours.pop(pair, -1) for pair in zip(part.address.tolist(), part.parameters.tolist(), strict=True)]
        whole, mine = self.offsets, part.offsets
        here = (self.named >= start) & (self.named < start + traces)
        if -1 in rows or any(here[whole[row] : whole[row + 1]].any() for row in ours.values()):
            return False
        for place, row in enumerate(rows):
            span = slice(whole[row], whole[row + 1])
            named, expected = self.named[span][here[span]], part.named[mine[place] : mine[place + 1]] + start
            if len(named) < min(len(expected), NAMED) and self.traces[row] <= NAMED:
                return False
            if not np.array_equal(named, expected[: len(named)]) or part.traces[place] > self.traces[row]:
                return False
        return True

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The columns by name."""
        return {f"site.{key}": getattr(self, key) for key in _ARRAYS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Sites:
        """The inverse of :meth:`to_arrays`.

        Raises:
            DatasetError: columns are missing or don't fit together.
        """
        try:
            sites = cls(*(arrays[f"site.{key}"].astype(np.int64) for key in _ARRAYS))
            fit = len(sites.parameters) == len(sites.traces) == len(sites) and sites.offsets[-1] == len(sites.named)
        except (KeyError, ValueError) as error:
            raise DatasetError(f"the index of sites does not add up ({error})") from error
        if not fit:
            raise DatasetError("the index of sites does not add up")
        return sites

    def to_text(self) -> str:
        """The columns in letters, for a line of JSON."""
        return to_text(self.to_arrays())

    @classmethod
    def from_text(cls, text: str) -> Sites:
        """The inverse of :meth:`to_text`."""
        return cls.from_arrays(from_text(text))


Seen = Mapping[str, Mapping[str, Any]]


def observed(batch: TraceBatch) -> dict[str, dict[str, Any]]:
    """The named observations of a batch: ``families``, ``shapes`` of one value, ``most`` times in a trace."""
    out: dict[str, dict[str, Any]] = {}
    counts: dict[str, NDArray[np.int64]] = {}
    for column in batch.observes:
        if column.name:
            entry = out.setdefault(column.name, {"families": [], "shapes": [], "most": 0})
            entry["families"] += [column.family] if column.family not in entry["families"] else []
            shape = [int(n) for n in column.shape]
            entry["shapes"] += [shape] if shape not in entry["shapes"] else []
            count = counts.setdefault(column.name, np.zeros(len(batch), dtype=np.int64))
            count += np.bincount(column.rows, minlength=len(batch))
    for name, count in counts.items():
        out[name]["most"] = int(count.max(initial=0))
    return out


def join_observed(parts: Iterable[Seen]) -> dict[str, dict[str, Any]]:
    """What several of :func:`observed` are together."""
    out: dict[str, dict[str, Any]] = {}
    for part in parts:
        for name, entry in part.items():
            known = out.setdefault(name, {"families": [], "shapes": [], "most": 0})
            for key in ("families", "shapes"):
                known[key] = [*known[key], *(s for s in entry[key] if s not in known[key])]
            known["most"] = max(known["most"], entry["most"])
    return out
