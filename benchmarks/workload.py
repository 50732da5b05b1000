"""The training workload: kinds of traces that share no address, and a network's whole training step on them.

A trace of kind k draws 17 numbers from uniform priors at addresses of its own and observes 16 noisy numbers. With 32
kinds there are 544 addresses; a mixed minibatch of 64 has two traces of each kind, one of one type 64 of one kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import etalumis as et
from etalumis.distributions import Normal, Uniform
from etalumis.execution import TraceBatch, run
from etalumis.networks import InferenceNetwork, pack, rows_of
from etalumis.networks.layout import Row
from etalumis.optim import RowAdam

KINDS, DRAWS, SIZE, MINIBATCH = 32, 17, 16, 64
HIDDEN, COMPONENTS = 512, 10
MIXED = [trace % KINDS for trace in range(MINIBATCH)]
ONE_TYPE = [0] * MINIBATCH
LEARNING_RATE = 1e-4


def traces(kinds: Sequence[int], seed: int = 0, detector: Sequence[int] | None = None) -> TraceBatch:
    """Prior traces of the kinds given; observed by a detector of so many voxels, where there is one."""
    upcoming = iter(kinds)

    def program() -> None:
        kind = next(upcoming)
        x = np.array([et.sample(Uniform(0.0, 1.0), address=f"kind {kind} draw {n}") for n in range(DRAWS)])
        if detector is None:
            et.observe(Normal(x[:SIZE], 0.1), name="y")
        else:
            et.observe(Normal(np.full(detector, x.mean()), 0.1), name="detector")

    model = et.Model(program)
    return TraceBatch.from_traces(list(run(model, indices=range(len(kinds)), seed=seed)), model.addresses)


def addresses(kinds: Sequence[int]) -> list[Row]:
    """Rows for the addresses of kinds, in their order."""
    return rows_of(traces(kinds))


class Training:
    """A network with rows for some kinds, and Adam. Calling it makes one step, from traces in columns on.

    Args:
        head: kind of head; None takes the default.
        kinds: those that the network knows.
        bf16: matrix products in bf16 (autocast).
    """

    def __init__(self, head: str | None = None, kinds: Sequence[int] = range(KINDS), *, bf16: bool = False) -> None:
        config: dict[str, Any] = {"core": {"kind": "lstm", "hidden": HIDDEN}, "components": COMPONENTS}
        if head is not None:
            config["head"] = {"kind": head}
        self.network = InferenceNetwork(config, {"y": (SIZE,)})
        self.network.standardise(traces(MIXED))
        self.network.grow(addresses(kinds))
        self.optimizer = RowAdam(self.network, lr=LEARNING_RATE)
        self.bf16 = bf16

    def __call__(self, batch: TraceBatch) -> float:
        """Packing, loss, backward pass and optimiser; the loss."""
        minibatch = pack(batch, self.network.layout)
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            loss, _ = self.network.loss(minibatch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()
