"""Importance sampling: from the simulator, or from the traces of a stored dataset.

A trace x drawn from q has the weight p(y | x) p(x) / q(x). Weights stay in log space; zeros count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etalumis.distributions import Distribution
from etalumis.execution import Controller, Guided, Inflated, Observations, Prior, Simulator, TraceBatch
from etalumis.execution.model import as_observations
from etalumis.inference.engine import DEFAULT_TRACES, finish
from etalumis.inference.errors import InferenceError
from etalumis.inference.executions import Plan, execute
from etalumis.inference.posterior import Posterior
from etalumis.inference.progress import Progress, progress_bar
from etalumis.inference.stored import weigh
from etalumis.inference.workers import Workers
from etalumis.storage import Dataset

Proposal = Distribution | Callable[[Distribution], Distribution]


@dataclass(frozen=True)
class ImportanceSampling:
    """Weighted traces from the prior, or from given proposals.

    Args:
        proposals: name of a draw to the distribution to draw it from instead, or to a function of its prior.
        inflation: widen the priors of the other controlled draws by this factor.
        dataset: weigh the traces of this dataset (or of its folder) instead of running the simulator: seconds,
            where executions take hours. Needs the parameters of the likelihoods, which ``etalumis simulate`` keeps.
        workers: processes that execute the simulator, or "mpi": the ranks of this job (:mod:`.ranks`); results do not
            depend on it.
        keep_observes: keep the parameters of the likelihoods with the traces (for posterior predictive checks).
    """

    proposals: Mapping[str, Proposal] | None = None
    inflation: float | None = None
    dataset: Dataset | str | Path | None = None
    workers: Workers = 1
    keep_observes: bool = False

    def __post_init__(self) -> None:
        if self.dataset is not None and (self.proposals or self.inflation is not None):
            raise ValueError("traces of a dataset came from the prior: proposals and inflation need the simulator")

    def controller(self) -> Controller:
        """What decides the draws."""
        wide = Prior() if self.inflation is None else Inflated(self.inflation)
        return Guided(self.proposals, wide) if self.proposals else wide

    def run(
        self,
        model: Simulator,
        observe: Mapping[str, Any] | Observations | None,
        num_traces: int | None = None,
        seed: int = 0,
        progress: Progress = None,
    ) -> Posterior:
        """Draw and weigh traces.

        Args:
            model: the simulator.
            observe: observed values by name.
            num_traces: how many to execute (1000 where None); of a dataset, those of index below it (None: all).
            seed: of the random numbers.
            progress: show a bar; None shows it on a terminal; or a function to tell, see :data:`.progress.Progress`.

        Raises:
            ObservationError: an observation name that no trace used.
            InferenceError: a proposal for a name that no trace draws.
            DensityError: a log density is not a number, with address and parameters.
        """
        observations = as_observations(observe)
        started = time.perf_counter()
        advice: list[str] = []
        if self.dataset is not None:
            dataset = self.dataset if isinstance(self.dataset, Dataset) else Dataset(self.dataset)
            with progress_bar("weighing stored traces", len(dataset), "traces", progress) as report:
                posterior = weigh(dataset, model.name, observations, num_traces, self.keep_observes, report)
        else:
            count = DEFAULT_TRACES if num_traces is None else num_traces
            plan = Plan(model, self.controller(), observations, seed, self.keep_observes)
            with progress_bar("importance sampling", count, "traces", progress) as report:
                traces = execute(plan, count, self.workers, report)
            self._check_proposals(traces)
            advice = self._inflation_advice(traces)
            posterior = Posterior(traces, traces.log_weight, info={"executions": count})
        return finish(posterior, type(self).__name__, model, observations, seed, started, advice)

    def _inflation_advice(self, traces: TraceBatch) -> list[str]:
        guided = [number for number, name in enumerate(traces.names) if name in (self.proposals or ())]
        wide = traces.controlled & ~np.isin(traces.name, guided)
        if self.inflation is None or (traces.log_q[wide] != traces.log_prob[wide]).any():
            return []
        return [
            f"inflation={self.inflation} widened no prior: it widens controlled draws, and of Uniform, Poisson and "
            "Binomial there is no wider form. Leave it out, or give proposals by name"
        ]

    def _check_proposals(self, traces: TraceBatch) -> None:
        drawn = {traces.names[i] for i in np.unique(traces.name[~traces.conditioned])} - {""}
        unused = sorted(set(self.proposals or ()) - drawn)
        if unused and len(traces):
            raise InferenceError(
                f"no execution draws {', '.join(map(repr, unused))}, so the proposals of these names were never used; "
                f"names that are drawn: {', '.join(map(repr, sorted(drawn))) or 'none'}"
            )
