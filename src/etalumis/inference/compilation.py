"""Inference compilation: importance sampling with the proposals of a trained network, in lock-step batches.

Le, Baydin and Wood, "Inference compilation and universal probabilistic programming", AISTATS 2017.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from etalumis.execution import FAILED, Address, Job, Observations, Proposer, Simulator, Trace, TraceBatch, run_jobs
from etalumis.execution.model import as_observations, met_names
from etalumis.inference.capped import Capped
from etalumis.inference.defensive import Defensive, mixed
from etalumis.inference.engine import DEFAULT_TRACES, finish
from etalumis.inference.executions import HELD, in_blocks, join
from etalumis.inference.loops import Pattern
from etalumis.inference.moves import Proposed
from etalumis.inference.posterior import Posterior
from etalumis.inference.progress import Progress, progress_bar
from etalumis.inference.rejection import REJECTIONS, Corrector, Counts, Rejection, rejection_advice
from etalumis.inference.workers import Report, run_tasks

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
        defensive: make this share of the executions with the prior's values, so that no weight exceeds the
            likelihood divided by it, however wrong the network is; see :mod:`.defensive`.
        workers: processes to execute in, each with the network; results do not depend on it.
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
    """

    checkpoint: str | Path | Network
    batch_size: int = 64
    defensive: float = 0.0
    workers: int = 1
    keep_observes: bool = False
    rejection: Rejection = "exact"
    extra_runs: int = 10
    loops: Mapping[str, str] = field(default_factory=dict)
    max_instances: int | None = None

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

        Event e takes the random numbers of the traces e · num_traces and following.
        """
        count = DEFAULT_TRACES if num_traces is None else num_traces
        if count < 1:
            raise ValueError(f"num_traces must be at least 1; got {count}")
        plan = _Plan(self, model, [as_observations(observe) for observe in events], count, seed)
        total = count * len(events)
        shards = np.linspace(0, total, min(self.workers, total) + 1).astype(int).tolist()
        tasks = [range(first, last) for first, last in pairwise(shards)]
        started = time.perf_counter()
        with progress_bar("IC", total, "traces", progress) as report:
            outcomes = run_tasks(_execute, plan, tasks, self.workers, report)
        return list(_posteriors(plan, outcomes, started))


@dataclass(frozen=True)
class NetworkMoves:
    """Moves of Markov chains by a trained network; see :class:`.moves.Proposed`.

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

    def transition(self, model: Simulator) -> Proposed:
        """The moves of one chain."""
        proposer: Proposer = self.engine.network(model.name).proposer()
        if self.engine.max_instances is not None:
            proposer = Capped(proposer, self.engine.max_instances)
        return Proposed(proposer, self.whole)


class _Plan(NamedTuple):
    """What every worker needs: ``each`` executions for each of the events."""

    engine: IC
    model: Simulator
    events: list[Observations]
    each: int
    seed: int


class _Outcome(NamedTuple):
    """The traces of some executions, and what was met on the way."""

    traces: TraceBatch
    proposed: int
    beyond: int
    unknown: Counter[Address]
    used: list[set[str]]
    names: set[str]
    counts: Counts


def _execute(plan: _Plan, indices: range, report: Report) -> _Outcome:
    engine, model, events, each, seed = plan
    network = engine.network(model.name)
    counting = network.proposer()
    proposer: Proposer = counting
    if engine.max_instances is not None:
        proposer = Capped(proposer, engine.max_instances)
    if engine.defensive:
        proposer = Defensive(proposer, engine.defensive, seed)
    corrector = _corrector(plan, network) if engine.rejection != "exact" else None
    names: set[str] = set()

    def traces() -> Iterator[Trace]:
        for block in _blocks(indices, HELD if corrector else len(indices)):
            jobs = (Job(index, events[index // each]) for index in block)
            made = run_jobs(model, proposer, jobs, seed, engine.batch_size, draw_observations=False)
            if corrector:
                whole = list(made)
                corrector.correct(whole, [events[trace.index // each] for trace in whole])
                made = iter(whole)
            for trace in made:
                if trace.ended == FAILED:
                    continue
                observations = events[trace.index // each]
                if len(observations.used) < len(observations):
                    names.update(met_names(trace))
                yield trace

    batch = in_blocks(traces(), model, engine.keep_observes, report)
    used = [observations.used for observations in events]
    counts = corrector.counts if corrector else Counts()
    return _Outcome(batch, counting.proposed, counting.beyond, Counter(counting.unknown), used, names, counts)


def _corrector(plan: _Plan, network: Network) -> Corrector:
    engine, model, _, _, seed = plan
    proposer: Proposer = network.proposer()
    if engine.max_instances is not None:
        proposer = Capped(proposer, engine.max_instances)
    return Corrector(model, engine.rejection, engine.loops, proposer, engine.extra_runs, engine.batch_size, seed)


def _blocks(indices: range, size: int) -> Iterator[range]:
    return (indices[first : first + size] for first in range(0, len(indices), max(size, 1)))


def _posteriors(plan: _Plan, outcomes: Sequence[_Outcome], started: float) -> Iterator[Posterior]:
    """The posterior of each event from what all workers brought."""
    engine, model, events, each, seed = plan
    traces = join(model, [outcome.traces for outcome in outcomes])
    if engine.defensive:
        traces = mixed(traces, engine.defensive)
    traces = traces.select(np.argsort(traces.index))  # executions end in no order
    unknown = sum((outcome.unknown for outcome in outcomes), Counter[Address]())
    info = {
        "executions": each,
        "proposed_draws": sum(outcome.proposed for outcome in outcomes),
        "unknown_draws": unknown.total(),
        "unknown_addresses": len(unknown),
        "draws_beyond": sum(outcome.beyond for outcome in outcomes),
    }
    if len(events) > 1:
        info["events"] = len(events)  # which the counts of draws are for
    advice = _unknown_advice(info)
    if engine.rejection != "exact":
        counts = sum((outcome.counts for outcome in outcomes), Counts())
        info |= {
            "loops": counts.loops,
            "rejected_passes": counts.rejected,
            "extra_executions": counts.extra,
            "never_accepted": counts.zeros,
        }
        advice += rejection_advice(engine.rejection, counts, total=len(events) * each)
    names = set().union(*(outcome.names for outcome in outcomes))
    bounds = np.searchsorted(traces.index, np.arange(len(events) + 1) * each)
    for number, observations in enumerate(events):
        observations.used.update(*(outcome.used[number] for outcome in outcomes))
        observations.check_used(names)
        own = traces.select(np.arange(bounds[number], bounds[number + 1]))
        posterior = Posterior(own, own.log_weight, info=info)
        finish(posterior, "IC", model, observations, seed, started, advice)
        posterior.info["seconds"] /= len(events)
        yield posterior


def _unknown_advice(info: Mapping[str, int]) -> list[str]:
    met = info["proposed_draws"] + info["unknown_draws"] + info["draws_beyond"]
    if info["unknown_draws"] <= _MANY_UNKNOWN * met:
        return []
    share = info["unknown_draws"] / met
    return [
        f"{share:.0%} of the controlled draws came from the prior, at {info['unknown_addresses']} addresses that the "
        "network does not know: exact but wasteful. Train on more traces of this simulator"
    ]
