"""Independent executions under a controller, as one batch: what the prior and importance sampling need."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from etalumis.distributions import Stream
from etalumis.execution import FAILED, Batched, Controller, Observations, Simulator, Trace, TraceBatch
from etalumis.execution.model import met_names
from etalumis.inference.workers import Report, Workers, processes, run_tasks

HELD = 512  # traces held as objects before they become columns
_TASK = 4096  # traces to a task of a worker process, at most


class Plan(NamedTuple):
    """How to execute a model.

    Attributes:
        model: the simulator.
        controller: decides its draws.
        observations: what it is conditioned on.
        seed: of the run.
        keep_observes: keep the likelihoods' parameters with the traces.
        draw_observations: draw what is observed and has no value.
    """

    model: Simulator
    controller: Controller
    observations: Observations
    seed: int
    keep_observes: bool = False
    draw_observations: bool = False


def execute(plan: Plan, num_traces: int, workers: Workers, report: Report) -> TraceBatch:
    """Traces 0 … num_traces − 1 of a run, in order, executed in this process, in others, or on MPI ranks.

    Raises:
        ObservationError: an observation name that no execution used.
    """
    if num_traces < 1:
        raise ValueError(f"num_traces must be at least 1; got {num_traces}")
    tasks = [range(num_traces)] if workers == 1 else shares(num_traces, processes(workers))
    outcomes = run_tasks(_execute, plan, tasks, workers, report)
    for outcome in outcomes:
        plan.observations.used |= outcome.used
    plan.observations.check_used(set().union(*(outcome.names for outcome in outcomes)))
    return join(plan.model, [outcome.traces for outcome in outcomes])


def shares(num_traces: int, count: int) -> list[range]:
    """The tasks of ``count`` processes, as many and as long for each; no trace depends on how they are cut."""
    rounds = math.ceil(num_traces / (count * _TASK))
    size = math.ceil(num_traces / (count * rounds))
    return [range(first, min(first + size, num_traces)) for first in range(0, num_traces, size)]


def join(model: Simulator, batches: Iterable[TraceBatch]) -> TraceBatch:
    """One batch under the model's own address book."""
    book = model.addresses
    ours = [b if b.addresses is book else b.remap(book.merge(b.addresses), book) for b in batches]
    return TraceBatch.concatenate(ours)


def in_blocks(traces: Iterable[Trace], model: Simulator, keep_observes: bool, report: Report) -> TraceBatch:
    """Many traces as one batch, of which few are objects at any time."""
    blocks: list[TraceBatch] = []
    held: list[Trace] = []
    for trace in traces:
        held.append(trace)
        if len(held) == HELD:
            blocks.append(TraceBatch.from_traces(held, model.addresses, keep_observes))
            report(len(held), "")
            held = []
    if held or not blocks:
        blocks.append(TraceBatch.from_traces(held, model.addresses, keep_observes))
        report(len(held), "")
    return TraceBatch.concatenate(blocks)


class _Outcome(NamedTuple):
    """One task's traces, the observation names they used, and the names they could have used."""

    traces: TraceBatch
    used: Counter[str]
    names: set[str]


def _execute(plan: Plan, indices: range, report: Report) -> _Outcome:
    # Not `execution.run`: whether every observation was used is known only when all tasks are done.
    model, observations = plan.model, plan.observations
    script = plan.controller.script()
    if isinstance(model, Batched) and script is not None and script.empty:
        return _receive(plan, model, indices, report)
    stream = Stream(plan.seed)
    names: set[str] = set()

    def traces() -> Iterable[Trace]:
        for index in indices:
            trace = model.execute(
                plan.controller, observations, stream, index, draw_observations=plan.draw_observations
            )
            if trace.ended == FAILED:
                continue
            if len(observations.used) < len(observations):
                names.update(met_names(trace))
            yield trace

    batch = in_blocks(traces(), model, plan.keep_observes, report)
    return _Outcome(batch, observations.used, names)


def _receive(plan: Plan, model: Batched, indices: range, report: Report) -> _Outcome:
    """The same from a model that executes many traces by itself."""
    observations = plan.observations
    batches: list[TraceBatch] = []
    names: set[str] = set()
    for batch in model.batches(indices, plan.seed, observations, plan.draw_observations, keep_observes=True):
        names.update(filter(None, (*batch.names, *(o.name for o in batch.observes))))
        batches.append(batch if plan.keep_observes else replace(batch, observes=()))
        report(len(batch), "")
    traces = TraceBatch.concatenate(batches) if batches else TraceBatch.empty(plan.model.addresses)
    return _Outcome(traces, observations.used, names)
