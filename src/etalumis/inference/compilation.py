"""Inference compilation: importance sampling with the proposals of a trained network, in lock-step batches.

Le, Baydin and Wood, "Inference compilation and universal probabilistic programming", AISTATS 2017.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from etalumis.distributions import derived_seed
from etalumis.execution import Address, Observations, Proposer, Simulator
from etalumis.execution.model import as_observations
from etalumis.inference.capped import Capped
from etalumis.inference.engine import DEFAULT_TRACES, finish
from etalumis.inference.loops import Pattern
from etalumis.inference.network_moves import Proposed
from etalumis.inference.network_runs import Network, Outcome, Plan, check_used, execute, weighted_traces
from etalumis.inference.posterior import Posterior
from etalumis.inference.progress import Progress, progress_bar
from etalumis.inference.refinement import Refine, refine, summary
from etalumis.inference.rejection import REJECTIONS, Counts, Rejection, rejection_advice
from etalumis.inference.workers import Workers

_EVENT = 0x65766E  # "evn": seeds of events that are inferred one after the other
_MANY_UNKNOWN = 0.1  # share of controlled draws at unknown addresses that is worth a warning


@dataclass(frozen=True)
class IC:
    """Importance sampling with a trained network's proposals.

    A network proposes scalar draws only. Arrays that the model draws come from the prior, as do draws at addresses
    that it was not trained on: exact, but blind to the observation. ``info`` counts them and warns.

    Args:
        checkpoint: the file that training wrote; nothing else is needed. Or a network already loaded.
        batch_size: executions that wait for the network together.
        defensive: make this share of the executions with the prior's values, so that no weight exceeds the
            likelihood divided by it, however wrong the network is; see :mod:`.defensive`.
        workers: processes to execute in, each with the network, or "mpi": the ranks of this job (:mod:`.ranks`);
            results do not depend on it.
        keep_observes: keep the parameters of the likelihoods with the traces (for posterior predictive checks).
        rejection: what becomes of rejection loops that the simulator marks (:func:`etalumis.rejection`) or ``loops``
            finds. "exact" weighs every pass. "amortised" weighs the accepted pass alone, with its rates of acceptance
            estimated by extra executions: for loops that rarely accept; see :mod:`.rejection`.
            "accepted_only_biased" leaves the rates out: biased, to be compared with.
        extra_runs: executions for each of the two rates of each loop of each trace.
        loops: name of a loop to a regular expression found in the base addresses of its draws, and in no others, for
            simulators whose source can't be marked. A pass begins where its first address comes again, or, where the
            expression has a group ``(?P<last>…)``, behind a draw that matches this group. Between two visits to a loop
            there must be a draw at another address.
        max_instances: propose only at so many instances of an address, and leave later ones to the prior.
        refine: fit a copy of the network to the observation first, by its own weighted traces: where the network is
            poor there, or few weights carry the result; see :mod:`.refinement`. Weights stay exact.
    """

    checkpoint: str | Path | Network
    batch_size: int = 64
    defensive: float = 0.0
    workers: Workers = 1
    keep_observes: bool = False
    rejection: Rejection = "exact"
    extra_runs: int = 10
    loops: Mapping[str, str] = field(default_factory=dict)
    max_instances: int | None = None
    refine: Refine | None = None

    def __post_init__(self) -> None:
        if self.rejection not in REJECTIONS:
            raise ValueError(f"rejection is one of {', '.join(REJECTIONS)}; got {self.rejection!r}")
        if self.extra_runs < 1:
            raise ValueError(f"extra_runs must be at least 1; got {self.extra_runs}")
        if self.max_instances is not None and self.max_instances < 1:
            raise ValueError(f"max_instances must be at least 1; got {self.max_instances}")
        if self.loops and self.rejection == "exact":
            raise ValueError('loops are for rejection="amortised": "exact" weighs every pass alike')
        for text in self.loops.values():
            Pattern(text)
        if self.defensive and self.rejection != "exact":
            raise ValueError(
                f"a defensive share needs the exact density of a trace, which rejection={self.rejection!r} does not "
                'have: use defensive=0.0, or rejection="exact"'
            )
        if self._refines and self.rejection != "exact":
            raise ValueError(f'refining needs exact densities: use rejection="exact" instead of {self.rejection!r}')
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}")
        if not 0.0 <= self.defensive < 1.0:
            raise ValueError(f"defensive is a share of the executions below 1; got {self.defensive}")

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

    def as_kernel(self, share: float = 0.2, whole: float = 0.5) -> NetworkMoves:
        """The network as a proposal of Metropolis–Hastings: ``et.RMH(proposals=et.IC(checkpoint).as_kernel())``.

        Chains then jump between modes that the network knows, and walk where it is not sharp.

        Args:
            share: of a chain's steps.
            whole: of these, the share that redraws the whole trace; the others redraw a site and what follows it.
        """
        if self.rejection != "exact":
            raise ValueError(f'chains need exact densities: use rejection="exact" instead of {self.rejection!r}')
        if self.defensive:
            raise ValueError("a defensive share bounds importance weights, and a chain has none; leave it out")
        if self._refines:
            raise ValueError("chains take a network as it is: refine with keep=FILE first, and give that file to IC")
        if not 0.0 < share <= 1.0 or not 0.0 <= whole <= 1.0:
            raise ValueError(f"share and whole are shares of moves; got {share} and {whole}")
        return NetworkMoves(self, share, whole)

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
        return self.run_events(model, [observe], num_traces, seed, progress)[0]

    def run_events(
        self,
        model: Simulator,
        events: Sequence[Mapping[str, Any] | Observations | None],
        num_traces: int | None = None,
        seed: int = 0,
        progress: Progress = None,
    ) -> list[Posterior]:
        """A posterior for each of many observations, with ``num_traces`` each, by one network in one run.

        Event e takes the random numbers of the traces e · num_traces and following. Networks to be refined are so for
        each event alone, one after the other, with seeds of their own.
        """
        count = DEFAULT_TRACES if num_traces is None else num_traces
        if count < 1:
            raise ValueError(f"num_traces must be at least 1; got {count}")
        observations = [as_observations(observe) for observe in events]
        if not self._refines:
            return self._run(model, observations, count, seed, progress, time.perf_counter())
        assert self.refine is not None
        if self.refine.keep is not None and len(events) > 1:
            raise ValueError("refine.keep is a file for the network of one observation; there are several")
        seeds = [seed, *(derived_seed(_EVENT, seed, number) for number in range(1, len(events)))]
        return [self._run_refined(model, o, count, own, progress) for o, own in zip(observations, seeds, strict=True)]

    @property
    def _refines(self) -> bool:
        return self.refine is not None and self.refine.rounds > 0

    def _run(
        self,
        model: Simulator,
        events: list[Observations],
        count: int,
        seed: int,
        progress: Progress,
        started: float,
        info: Mapping[str, Any] | None = None,
        warnings: Sequence[str] = (),
    ) -> list[Posterior]:
        plan = Plan(self, model, events, count, seed)
        with progress_bar("IC", count * len(events), "traces", progress) as report:
            outcomes = execute(plan, report)
        return list(_posteriors(plan, outcomes, started, info or {}, warnings))

    def _run_refined(
        self, model: Simulator, observations: Observations, count: int, seed: int, progress: Progress
    ) -> Posterior:
        started = time.perf_counter()
        assert self.refine is not None
        network, rounds, warnings = refine(self, self.refine, model, observations, seed, progress)
        engine = replace(self, checkpoint=network, refine=None)
        info = {"refinement": summary(rounds)}
        return engine._run(model, [observations], count, seed, progress, started, info, warnings)[0]


@dataclass(frozen=True)
class NetworkMoves:
    """Moves of Markov chains by a trained network; see :class:`.network_moves.Proposed`.

    Attributes:
        engine: whose network it is.
        share: of a chain's steps.
        whole: of these moves, the share that redraws the whole trace; the others a site and what follows it.
    """

    engine: IC
    share: float
    whole: float

    def __str__(self) -> str:
        source = self.engine.checkpoint
        network = str(source) if isinstance(source, (str, Path)) else type(source).__name__
        return f"{network}, share {self.share}, whole {self.whole}, max_instances {self.engine.max_instances}"

    @property
    def file(self) -> Path | None:
        """Of the network; None where it came loaded."""
        source = self.engine.checkpoint
        return Path(source) if isinstance(source, (str, Path)) else None

    def transition(self, model: Simulator) -> Proposed:
        """The moves of one chain."""
        proposer: Proposer = self.engine.network(model.name).proposer()
        if self.engine.max_instances is not None:
            proposer = Capped(proposer, self.engine.max_instances)
        return Proposed(proposer, self.whole)


def _posteriors(
    plan: Plan, outcomes: Sequence[Outcome], started: float, more: Mapping[str, Any], warnings: Sequence[str]
) -> Iterator[Posterior]:
    """The posterior of each event from what all workers brought."""
    engine, model, events, each, seed = plan
    traces = weighted_traces(plan, outcomes)
    check_used(plan, outcomes)
    unknown = sum((outcome.unknown for outcome in outcomes), Counter[Address]())
    info = {
        **more,
        "executions": each,
        "proposed_draws": sum(outcome.proposed for outcome in outcomes),
        "unknown_draws": unknown.total(),
        "unknown_addresses": len(unknown),
        "draws_beyond": sum(outcome.beyond for outcome in outcomes),
        "controlled_draws": int(traces.controlled.sum()),
        "array_draws": int(traces.controlled.sum()) - len(traces.controlled_scalars()),
    }
    if len(events) > 1:
        info["events"] = len(events)  # which the counts of draws are for
    advice = [*warnings, *_unknown_advice(info)]
    if engine.rejection != "exact":
        counts = sum((outcome.counts for outcome in outcomes), Counts())
        info |= {
            "loops": counts.loops,
            "rejected_passes": counts.rejected,
            "extra_executions": counts.extra,
            "never_accepted": counts.zeros,
        }
        advice += rejection_advice(engine.rejection, counts, total=len(events) * each)
    bounds = np.searchsorted(traces.index, np.arange(len(events) + 1) * each)
    for number, observations in enumerate(events):
        own = traces.select(np.arange(bounds[number], bounds[number + 1]))
        posterior = Posterior(own, own.log_weight, info=info)
        finish(posterior, "IC", model, observations, seed, started, advice)
        posterior.info["seconds"] /= len(events)
        yield posterior


def _unknown_advice(info: Mapping[str, int]) -> list[str]:
    advice = []
    met = info["proposed_draws"] + info["unknown_draws"] + info["draws_beyond"]
    if info["unknown_draws"] > _MANY_UNKNOWN * met:
        share = info["unknown_draws"] / met
        advice.append(
            f"{share:.0%} of the controlled draws came from the prior, at {info['unknown_addresses']} addresses that "
            "the network does not know: exact but wasteful. Train on more traces of this simulator"
        )
    if info["array_draws"]:
        advice.append(
            f"{info['array_draws']:,} of {info['controlled_draws']:,} controlled draws are arrays and came from the "
            "prior, since a network proposes scalars only: exact but wasteful. Draw their elements one by one and "
            "train again, or draw them with control=False where the prior will do"
        )
    return advice
