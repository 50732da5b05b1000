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

from etalumis.execution import Address, Observations, Proposer, Simulator, run_lockstep
from etalumis.execution.model import as_observations
from etalumis.inference.engine import DEFAULT_TRACES, finish
from etalumis.inference.executions import in_blocks
from etalumis.inference.posterior import Posterior
from etalumis.inference.progress import Progress, progress_bar

_MANY_UNKNOWN = 0.1  # share of controlled draws at unknown addresses that is worth a warning


class CountingProposer(Proposer, Protocol):
    """A network's proposals, and what it left to the prior.

    Attributes:
        proposed: draws that the network answered.
        unknown: how often each address was met that the network does not know.
        beyond: draws left to the prior because their trace was too long.
    """

    proposed: int
    beyond: int

    @property
    def unknown(self) -> Mapping[Address, int]: ...


class Network(Protocol):
    """What is asked of a trained network."""

    def proposer(self) -> CountingProposer:
        """Proposals for executions in lock-step, none of which has begun."""
        ...


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

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}")

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
        progress: Progress = None,
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
        info = {
            "executions": count,
            "proposed_draws": proposer.proposed,
            "unknown_draws": sum(proposer.unknown.values()),
            "unknown_addresses": len(proposer.unknown),
            "draws_beyond": proposer.beyond,
        }
        posterior = Posterior(traces, traces.log_weight, info=info)
        return finish(posterior, "IC", model, observations, seed, started, _unknown_advice(info))


def _unknown_advice(info: Mapping[str, int]) -> list[str]:
    met = info["proposed_draws"] + info["unknown_draws"] + info["draws_beyond"]
    if info["unknown_draws"] <= _MANY_UNKNOWN * met:
        return []
    share = info["unknown_draws"] / met
    return [
        f"{share:.0%} of the controlled draws came from the prior, at {info['unknown_addresses']} addresses that the "
        "network does not know: exact but wasteful. Train on more traces of this simulator"
    ]
