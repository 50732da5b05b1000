"""One name's values over a batch of traces: absent in some, several times in others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import TraceBatch


class _Unset:
    """The type of :data:`UNSET`."""

    def __repr__(self) -> str:
        return "…"


UNSET: Final = _Unset()  # `missing` was not given: None is a value that a user may want


@dataclass(frozen=True, eq=False)
class NamedValues:
    """Values of one name in N traces.

    Attributes:
        values: of all meetings, ordered by trace and within it, shape (M, *shape).
        first: position of each trace's first value, int64 (N,).
        counts: how often each trace met the name, int64 (N,).
    """

    values: NDArray[Any]
    first: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, batch: TraceBatch, name: str) -> NamedValues:
        """The values of the draws, or of the tag, of this name.

        Raises:
            ValueError: draws and a tag share the name.
        """
        drawn = name in batch.names and bool((batch.name == batch.names.index(name)).any())
        tags = [tag for tag in batch.tags if tag.name == name and len(tag)]
        if drawn and tags:
            raise ValueError(f"a draw and a tag are both named {name!r}; rename one of them in the model")
        if drawn:
            owner, values = batch.draws(name)
        else:
            owner, values = tags[0].rows, _as_array(tags[0].values)
        order = np.argsort(owner, kind="stable")
        counts = np.bincount(owner, minlength=len(batch))
        return cls(values[order], np.cumsum(counts) - counts, counts)

    def is_number(self, rows: NDArray[np.int64]) -> bool:
        """Whether each of these traces has exactly one value, and it is a number."""
        return self.values.ndim == 1 and self.values.dtype.kind in "biuf" and bool((self.counts[rows] == 1).all())

    def take(self, rows: NDArray[np.int64], index: int | None, missing: Any) -> NDArray[Any]:
        """Values of the traces at ``rows``; the arguments are those of ``Posterior.values``.

        Raises:
            ValueError: a value is not there; the message goes on after the name.
        """
        counts = self.counts[rows]
        most = int(counts.max(initial=0))
        if index is None and most > 1:
            columns = [self._instance(rows, counts, k, missing, most) for k in range(most)]
            return np.stack(columns, axis=1)
        return self._instance(rows, counts, 0 if index is None else index, missing, most)

    def _instance(
        self, rows: NDArray[np.int64], counts: NDArray[np.int64], index: int, missing: Any, most: int
    ) -> NDArray[Any]:
        place = counts + index if index < 0 else np.full(len(rows), index)
        there = (place >= 0) & (place < counts)
        absent = len(rows) - int(there.sum())
        if not absent:
            present: NDArray[Any] = self.values[self.first[rows] + place]
            return present
        if missing is UNSET:
            if most > 1:
                raise ValueError(
                    f"is met {int(counts.min())} to {most} times in a trace, and {absent} of {len(rows)} samples have "
                    f"no instance {index}; ask for one that all have with index=… (-1 is the last), or say what to "
                    "put there with missing=…"
                )
            raise ValueError(
                f"is missing in {absent} of {len(rows)} samples; say what to put there with missing=… "
                "(for instance missing=float('nan'))"
            )
        filler = np.asarray(missing)
        kind = self.values.dtype
        dtype = np.result_type(kind, filler.dtype) if kind.kind in "biuf" and filler.dtype.kind in "biuf" else object
        if kind.kind == filler.dtype.kind == "U":
            dtype = np.result_type(kind, filler.dtype)
        out = np.empty((len(rows), *self.values.shape[1:]), dtype=dtype)
        out[...] = filler if filler.ndim else missing
        out[there] = self.values[(self.first[rows] + place)[there]]
        return out


def _as_array(values: NDArray[Any] | list[Any]) -> NDArray[Any]:
    """Booleans and strings as arrays of their own type, other objects as objects."""
    if isinstance(values, np.ndarray):
        return values
    for kind in (bool, str):
        if all(type(value) is kind for value in values):
            return np.array(values)
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out
