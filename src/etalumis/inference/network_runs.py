"""Executions whose draws a network proposes: in lock-step batches, over processes, for many observations at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from etalumis.execution import FAILED, Address, Job, Observations, Proposer, Simulator, Trace, TraceBatch, run_jobs
from etalumis.execution.model import met_names
from etalumis.inference.capped import Capped
from etalumis.inference.defensive import Defensive, mixed
from etalumis.inference.executions import HELD, in_blocks, join
from etalumis.inference.rejection import Corrector, Counts
from etalumis.inference.workers import Report, processes, run_tasks

if TYPE_CHECKING:
    from etalumis.inference.compilation import IC


class CountingProposer(Proposer, Protocol):
    """A network's proposals, and what it left to the prior. Draws whose value it was told count as neither.

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


class Plan(NamedTuple):
    """What every worker needs: ``each`` executions for each of the events."""

    engine: IC
    model: Simulator
    events: list[Observations]
    each: int
    seed: int


class Outcome(NamedTuple):
    """The traces of some executions, and what was met on the way."""

    traces: TraceBatch
    proposed: int
    beyond: int
    unknown: Counter[Address]
    used: list[Counter[str]]
    names: set[str]
    counts: Counts


def execute(plan: Plan, report: Report) -> list[Outcome]:
    """All executions of a plan, in this process or in others."""
    total = plan.each * len(plan.events)
    shards = np.linspace(0, total, min(processes(plan.engine.workers), total) + 1).astype(int).tolist()
    tasks = [range(first, last) for first, last in pairwise(shards)]
    return run_tasks(_execute, plan, tasks, plan.engine.workers, report)


def weighted_traces(plan: Plan, outcomes: Sequence[Outcome]) -> TraceBatch:
    """The traces of all workers, by index."""
    traces = join(plan.model, [outcome.traces for outcome in outcomes])
    if plan.engine.defensive:
        traces = mixed(traces, plan.engine.defensive)
    return traces.select(np.argsort(traces.index))  # executions end in no order


def check_used(plan: Plan, outcomes: Sequence[Outcome]) -> None:
    """See that each observation was asked for.

    Raises:
        ObservationError: an observation name that no execution used.
    """
    names = set().union(*(outcome.names for outcome in outcomes))
    for number, observations in enumerate(plan.events):
        for outcome in outcomes:
            observations.used |= outcome.used[number]
        observations.check_used(names)


def _execute(plan: Plan, indices: range, report: Report) -> Outcome:
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
    return Outcome(batch, counting.proposed, counting.beyond, Counter(counting.unknown), used, names, counts)


def _corrector(plan: Plan, network: Network) -> Corrector:
    engine, model, _, _, seed = plan
    proposer: Proposer = network.proposer()
    if engine.max_instances is not None:
        proposer = Capped(proposer, engine.max_instances)
    return Corrector(model, engine.rejection, engine.loops, proposer, engine.extra_runs, engine.batch_size, seed)


def _blocks(indices: range, size: int) -> Iterator[range]:
    return (indices[first : first + size] for first in range(0, len(indices), max(size, 1)))
