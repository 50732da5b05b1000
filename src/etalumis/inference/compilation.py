"""Inference compilation: importance sampling with the proposals of a trained network, in lock-step batches.

Le, Baydin and Wood, "Inference compilation and universal probabilistic programming", AISTATS 2017.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from etalumis.execution import Observations, Proposer, Simulator, TraceBatch, run_lockstep
from etalumis.execution.model import as_observations
from etalumis.inference.engine import DEFAULT_TRACES, finish
from etalumis.inference.executions import in_blocks
from etalumis.inference.posterior import Posterior
from etalumis.inference.progress import progress_bar


class Network(Protocol):
    """What is asked of a trained network."""

    def proposer(self) -> Proposer:
        """A proposer with no executions in its slots."""


@dataclass(frozen=True)
class IC:
    """Importance sampling with a trained network's proposals.

    Args:
        checkpoint: the file that training wrote; nothing else is needed. Or a network already loaded.
        batch_size: executions that wait for the network together.
        keep_observes: keep the parameters of the likelihoods with the traces (for posterior predictive checks).
    """

    checkpoint: str | Path | Network
    batch_size: int = 64
    keep_observes: bool = False

    def network(self, simulator: str) -> Network:
        """The network, loaded where a file was given.

        Args:
            simulator: name of the model that it must have been trained on.
        """
        if not isinstance(self.checkpoint, (str, Path)):
            return self.checkpoint
        from etalumis.networks import checkpoint

        network: Network = checkpoint.load(self.checkpoint, simulator=simulator)[0]
        return network

    def run(
        self,
        model: Simulator,
        observe: Mapping[str, Any] | Observations | None,
        num_traces: int | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Posterior:
        """Draw and weigh ``num_traces`` traces (1000 where None); the arguments are those of ``et.posterior``.

        Raises:
            ObservationError: an observation name that no execution used.
            DensityError: a log density is not a number, with address and parameters.
        """
        count = DEFAULT_TRACES if num_traces is None else num_traces
        if count < 1:
            raise ValueError(f"num_traces must be at least 1; got {count}")
        observations = as_observations(observe)
        proposer = self.network(model.name).proposer()
        started = time.perf_counter()
        with progress_bar("IC", count, "traces", progress) as report:
            executions = run_lockstep(
                model, proposer, observations, range(count), seed, self.batch_size, draw_observations=False
            )
            traces = in_blocks(executions, model, self.keep_observes, report)
        traces = traces.select(np.argsort(traces.index))  # executions end in no order
        addresses, share = unproposed(traces)
        info = {"executions": count, "unproposed_addresses": addresses, "unproposed_share": share}
        return finish(Posterior(traces, traces.log_weight, info=info), "IC", model, observations, seed, started)


def unproposed(traces: TraceBatch) -> tuple[int, float]:
    """Controlled draws that the network left to the prior, because it does not know their addresses.

    Returns:
        the number of their addresses, and their share of all controlled draws.
    """
    sizes = np.diff(traces.value_offsets)
    asked = traces.controlled & ~traces.conditioned & (sizes == 1)
    # A proposer that answers from the prior says so, and both densities are then the same number. Certain draws
    # (density one) tell nothing.
    left = asked & (traces.log_q == traces.log_prob) & (traces.log_prob != 0.0)
    return len(np.unique(traces.address[left])), float(left.sum() / max(int(asked.sum()), 1))
