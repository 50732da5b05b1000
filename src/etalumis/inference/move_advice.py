"""Settings of chains that do nothing for this model: what to say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from etalumis.distributions import BY_CODE
from etalumis.execution import TraceBatch
from etalumis.inference.block_moves import DISCRETE
from etalumis.inference.network_moves import SCALAR

_MANY = 0.01  # share of steps without anything to move that is worth a warning
_ADVICE = {
    DISCRETE: "lower dependants_share; where the model draws nothing discrete, to 0",
    SCALAR: "lower the share of the network's moves, or leave them out. A network proposes scalars only: draw the "
    "elements of arrays one by one",
}


def idle_advice(idle: Mapping[str, int], moves: Sequence[Sequence[int]]) -> list[str]:
    """Where many steps found no draw of the kind that they move.

    Args:
        idle: their number by the kind of draw.
        moves: address, moves proposed and moves accepted, of all other steps.
    """
    steps = sum(idle.values()) + sum(proposed for _, proposed, _ in moves)
    return [
        f"{count:,} of {steps:,} steps did nothing, since the trace then had no {lacking}: {_ADVICE[lacking]}"
        for lacking, count in idle.items()
        if count > _MANY * steps
    ]


def branch_advice(traces: TraceBatch) -> list[str]:
    """Where a chain was to move named discrete draws more often, and its states have none."""
    codes = [code for code, family in BY_CODE.items() if family.discrete]
    discrete = np.isin(traces.distributions.code[traces.distribution], codes)
    if (discrete & (traces.name != 0) & ~traces.conditioned).any():
        return []
    return [
        "branch_share did nothing, since no state has a named discrete draw: give such draws names, or leave it out"
    ]
