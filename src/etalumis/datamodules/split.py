"""Which traces are for training, validation and test: by seed, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from etalumis.datamodules.minibatches import Rows

Side = Literal["train", "valid", "test"]
_SPLIT = 0  # kind of random numbers


@dataclass(frozen=True)
class Split:
    """Divides every storage chunk at random into traces to train, to validate and to test with.

    Attributes:
        seed: decides which; a trace stays on its side for as long as the dataset is the same.
        fraction: of the traces to validate with.
        test_fraction: of the traces to test with; the others train.
    """

    seed: int
    fraction: float
    test_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.fraction < 0.0 or self.test_fraction < 0.0 or not self.fraction + self.test_fraction < 1.0:
            raise ValueError(
                "the fractions to validate and to test with must be at least 0 and together below 1; "
                f"got {self.fraction} and {self.test_fraction}"
            )

    def rows(self, chunk: int, traces: int, side: Side) -> Rows:
        """Positions of the traces of one side, rising."""
        generator = np.random.default_rng((self.seed, _SPLIT, chunk))
        # Rounded up or down at random, so that small chunks are divided fairly too.
        luck = generator.random()
        valid = int(self.fraction * traces + luck)
        other = int((self.fraction + self.test_fraction) * traces + luck)
        order = generator.permutation(traces)
        sides = {"valid": order[:valid], "test": order[valid:other], "train": order[other:]}
        return np.sort(sides[side])


def limited(rows: Sequence[Rows], limit: int | float, seed: int) -> list[Rows]:
    """A part of the traces, spread over the chunks in proportion, chosen by seed.

    Args:
        rows: positions of each chunk's traces.
        limit: how many in all; or below 1 the share of them.
        seed: decides which.
    """
    total = sum(map(len, rows))
    wanted = min(round(limit * total) if limit < 1 else int(limit), total)
    if wanted < 1:
        raise ValueError(f"limit={limit} leaves none of {total} traces; give a count of at least 1, or a larger share")
    ends = np.cumsum([0, *map(len, rows)]) * wanted // max(total, 1)
    out = []
    for chunk, (of_chunk, count) in enumerate(zip(rows, np.diff(ends).tolist(), strict=True)):
        generator = np.random.default_rng((seed, _SPLIT, chunk, total))
        out.append(np.sort(generator.permutation(of_chunk)[:count]))
    return out
