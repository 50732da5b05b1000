"""A trained network fitted to one observation: some rounds of training on its own weighted traces.

A round draws traces given the observation with the network as it is, weighs them, and trains the network to minimise
−Σ w log q(x | y): the cross-entropy from the posterior to its proposal, as population Monte Carlo does (Cappé et al.
2008, "Adaptive importance sampling in general mixture classes"). What is inferred in the end comes from traces drawn
and weighed afresh, with the density of the network that drew them: exact whatever the training did.

A network trained on few traces of any weight would collapse onto them. Four guards:

- the largest weights are Pareto-smoothed, then raised to the largest power ≤ 1 that leaves an effective sample size of
  :attr:`Refine.ess`: the target is then p^β q^(1 − β), a step from the proposal towards the posterior, and the next
  round begins there;
- a fifth of the traces is held out, and the network of the epoch with the least loss on them is kept: the one that the
  round began with, where no epoch is better;
- a round in which fewer than twenty traces have a weight trains nothing;
- gradients are limited, and where a loss is not finite the round ends with the best network before.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import derived_seed
from etalumis.execution import Observations, Simulator, TraceBatch
from etalumis.inference.diagnostics import ess_weights, normalise
from etalumis.inference.errors import InferenceError
from etalumis.inference.network_runs import Plan, check_used, execute, weighted_traces
from etalumis.inference.pareto import smooth
from etalumis.inference.progress import Progress, progress_bar
from etalumis.inference.workers import Report

if TYPE_CHECKING:
    from torch import Tensor

    from etalumis.inference.compilation import IC
    from etalumis.networks import InferenceNetwork, TrainingBatch

Array = NDArray[np.float64]

_KEY = 0x726566  # "ref": sets these numbers apart from the draws of the same seed
_HELD_OUT = 5  # every so many-th trace, by weight
_FEWEST = 20  # traces with a weight that a network may be trained on
_PATIENCE = 3  # epochs without a lower loss on what is held out
_MAX_NORM = 10.0
_HALVINGS = 50


@dataclass(frozen=True)
class Refine:
    """How to fit a network to one observation before inferring from it: ``et.IC("network.pt", refine=et.Refine())``.

    Args:
        rounds: of drawing and training; 0 leaves the network as it is.
        num_traces: to draw in each round; more than ``ess``.
        epochs: over a round's traces at most; it ends earlier when the loss on held-out traces rises.
        minibatch: traces in a step.
        lr: learning rate of Adam.
        ess: effective sample size that a round's weights are tempered to, where they have less.
        keep: file for the refined network, to be used for the same observation again: ``et.IC(keep)``.
    """

    rounds: int = 3
    num_traces: int = 1000
    epochs: int = 20
    minibatch: int = 64
    lr: float = 1e-3
    ess: float = 100.0
    keep: str | Path | None = None

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"refine: rounds must be at least 0; got {self.rounds}")
        for name in ("num_traces", "epochs", "minibatch"):
            if getattr(self, name) < 1:
                raise ValueError(f"refine: {name} must be at least 1; got {getattr(self, name)}")
        if not 0.0 < self.lr < math.inf or not self.ess >= 1.0:
            raise ValueError(f"refine: lr must be above 0 and ess at least 1; got {self.lr} and {self.ess}")
        if self.ess >= self.num_traces:
            raise ValueError(
                f"refine: num_traces={self.num_traces} can't have an effective sample size of ess={self.ess} unless "
                "all count alike, which teaches nothing: give more traces, best ten times as many, or a lower ess"
            )


class Round(NamedTuple):
    """What a round did.

    Attributes:
        ess: of its traces, under the network it began with.
        power: that the weights were raised to.
        epochs: of training.
        loss_before, loss: −log q on the held-out traces, before and after.
        new_addresses: rows that the network has gained.
    """

    ess: float
    power: float
    epochs: int
    loss_before: float
    loss: float
    new_addresses: int


class Refined(NamedTuple):
    """A refined network.

    Attributes:
        network: a copy.
        rounds: what was done.
        warnings: why it ended early, if it did.
    """

    network: InferenceNetwork
    rounds: list[Round]
    warnings: list[str]


def refine(
    engine: IC, settings: Refine, model: Simulator, observations: Observations, seed: int, progress: Progress
) -> Refined:
    """Fit a copy of an engine's network to an observation.

    Raises:
        InferenceError: the engine's network can't be trained.
        ObservationError: an observation name that no execution used.
    """
    from etalumis.networks import InferenceNetwork, checkpoint
    from etalumis.networks.observed import given_values

    given = engine.network(model.name)
    if not isinstance(given, InferenceNetwork):
        raise InferenceError(f"a {type(given).__name__} can't be refined: give a network that was trained")
    network = copy.deepcopy(given)
    shared = given_values(observations.values, network.layout.observations)
    rounds: list[Round] = []
    warnings: list[str] = []
    with progress_bar("refining", settings.rounds * settings.num_traces, "traces", progress) as report:
        for number in range(settings.rounds):
            drawing = replace(engine, checkpoint=network, refine=None, keep_observes=False)
            own = derived_seed(_KEY, seed, number)
            plan = Plan(drawing, model, [observations], settings.num_traces, own)
            outcomes = execute(plan, report)
            check_used(plan, outcomes)
            traces = weighted_traces(plan, outcomes)
            weights, power = tempered(traces.log_weight, settings.ess)
            positive = np.count_nonzero(weights)
            if positive < _FEWEST:
                warnings.append(
                    f"refinement ended in round {number + 1}: {positive} of {len(weights)} traces have a weight above "
                    f"zero, and fewer than {_FEWEST} teach nothing. Draw more (refine.num_traces), or let some come "
                    "from the prior (defensive=0.1)"
                )
                break
            fit = _Fit(network, settings, shared, traces, weights, np.random.default_rng(own))
            with_notes = _noted(report, f"round {number + 1}, ESS {ess_weights(traces.log_weight):.0f}")
            rounds.append(fit.run(with_notes)._replace(ess=ess_weights(traces.log_weight), power=power))
            if fit.error:
                warnings.append(f"refinement ended in round {number + 1}: {fit.error}. Try a smaller refine.lr")
                break
    if settings.keep is not None:
        checkpoint.save(settings.keep, network, {"refined": [list(done) for done in rounds]})
    return Refined(network, rounds, warnings)


def tempered(log_weights: Array, wanted: float) -> tuple[Array, float]:
    """Smoothed weights to the largest power ≤ 1 with at least this effective sample size.

    Args:
        log_weights: shape (S,).
        wanted: effective sample size.

    Returns:
        weights that sum to 1, all 0 where they were, and the power. Where fewer weights than wanted are positive, the
        power is 0, and these are equal.
    """
    smoothed = smooth(log_weights)
    if ess_weights(smoothed) >= wanted or not np.isfinite(smoothed).any():
        return normalise(smoothed), 1.0
    positive = np.isfinite(smoothed)
    low, high = 0.0, 1.0
    if positive.sum() > wanted:
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            enough = ess_weights(smoothed[positive] * middle) >= wanted
            low, high = (middle, high) if enough else (low, middle)
    raised = np.full_like(smoothed, -np.inf)
    raised[positive] = low * smoothed[positive]
    return normalise(raised), low


class _Fit:
    """The training of one round.

    Attributes:
        error: why it stopped before its end, if it did.
    """

    def __init__(
        self,
        network: InferenceNetwork,
        settings: Refine,
        shared: Mapping[str, Tensor],
        traces: TraceBatch,
        weights: Array,
        numbers: np.random.Generator,
    ) -> None:
        self._network, self._settings, self._shared = network, settings, shared
        self._traces, self._weights, self._numbers = traces, weights, numbers
        self.error = ""

    def run(self, report: Report) -> Round:
        """Train; leaves the network of the best epoch."""
        from etalumis.networks import ProposalError
        from etalumis.optim import RowAdam, clip_grad_norm

        network, settings = self._network, self._settings
        # Heavy and light traces on both sides.
        ranked = np.argsort(-self._weights, kind="stable")[: np.count_nonzero(self._weights)]
        held_out = ranked[_HELD_OUT // 2 :: _HELD_OUT]
        trained = np.setdiff1d(ranked, held_out)
        added = network.grow(self._traces.select(ranked))
        valid = list(self._batches(self._resampled(held_out, len(held_out))))
        before = least = self._loss(valid)
        best = copy.deepcopy(network.state_dict())
        optimizer = RowAdam(network, lr=settings.lr)
        waited = epochs = 0
        try:
            while epochs < settings.epochs and waited < _PATIENCE and any(batch.num_draws for batch in valid):
                network.train()
                for batch in self._batches(self._resampled(trained, len(trained))):
                    optimizer.zero_grad()
                    loss = network.loss(batch)[0]
                    if loss.requires_grad:
                        loss.backward()  # type: ignore[no-untyped-call]
                        clip_grad_norm(optimizer, _MAX_NORM)
                        optimizer.step()
                loss_now = self._loss(valid)
                epochs += 1
                waited += 1
                if loss_now < least:
                    least, waited, best = loss_now, 0, copy.deepcopy(network.state_dict())
                report(0, f"epoch {epochs}, loss {loss_now:.3g}")
        except (FloatingPointError, ProposalError) as error:
            self.error = str(error)
        optimizer.zero_grad()
        network.load_state_dict(best)
        network.eval()
        return Round(math.nan, math.nan, epochs, before, least, added)

    def _loss(self, batches: Sequence[TrainingBatch]) -> float:
        import torch

        self._network.eval()
        with torch.no_grad():
            total = sum(self._network.loss(batch)[0].item() * batch.num_traces for batch in batches)
        return total / sum(batch.num_traces for batch in batches)

    def _resampled(self, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """So many of the traces ``rows`` in proportion to their weights, in random order."""
        reach = np.cumsum(self._weights[rows])
        places = (np.arange(count) + self._numbers.random()) / count * reach[-1]
        picked = np.minimum(np.searchsorted(reach, places, side="right"), len(rows) - 1)
        return self._numbers.permutation(rows[picked])

    def _batches(self, rows: NDArray[np.int64]) -> Iterator[TrainingBatch]:
        from etalumis.networks import pack

        like = self._network.projection.address.weight
        for part in np.array_split(rows, max(len(rows) // self._settings.minibatch, 1)):
            batch = pack(self._traces.select(part), self._network.layout, shared=self._shared)
            batch = batch if like.dtype.itemsize < 8 else batch.double()
            yield batch.to(like.device)


def _noted(report: Report, prefix: str) -> Report:
    return lambda amount, note: report(amount, f"{prefix}, {note}")


def summary(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """What was done, for a posterior's ``info``."""
    return [done._asdict() for done in rounds]
