"""Makes datasets: worker processes execute the model, this process puts their chunks on disk in order.

Trace i depends on (seed, i) alone, a chunk's bytes on its traces alone, and which chunks make a shard on the number
of traces alone. So equal settings give equal files, byte for byte, whatever the number of workers and of ranks, and
however often the work was interrupted.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from etalumis.execution.cancellation import Cancellation
from etalumis.execution.pool import Loss, Pool
from etalumis.execution.pool_worker import NOWHERE, OwnDesk, PoolError
from etalumis.storage.chunk import Encoding
from etalumis.storage.errors import DatasetError, SimulationError, writing
from etalumis.storage.failures import FailedTrace, FailurePolicy
from etalumis.storage.growing import GrowingDataset, GrowingShard, State
from etalumis.storage.journal import Layout, tidy_up
from etalumis.storage.manifest import Manifest, Origin, finished
from etalumis.storage.ranks import Ranks
from etalumis.storage.worker import ChunkError, ChunkRunner, ChunkTask, Factory, Made

CHUNK_SIZE = 1024
_DEATHS = 2  # workers that an execution may take with it before it counts as failed

Report = Callable[[int], None]


def simulate(
    factory: Factory,
    output: str | Path,
    num_traces: int,
    *,
    model: str,
    seed: int = 0,
    workers: int = 1,
    chunk_size: int = CHUNK_SIZE,
    encoding: Encoding | None = None,
    shard_traces: int | None = None,
    simulator: Mapping[str, Any] | None = None,
    failures: FailurePolicy | None = None,
    ranks: Ranks | None = None,
    progress: Report | None = None,
) -> Manifest:
    """Execute a model from its prior and store the traces.

    A dataset that was interrupted is gone on with; one that is complete is left alone.

    Args:
        factory: returns the model; called once in each worker process, which imports it by name.
        output: the dataset's folder; all ranks of a job see the same.
        num_traces: how many.
        model: the model's name.
        seed: of the random numbers.
        workers: processes of each rank; 0 runs in this one.
        chunk_size: traces to a storage chunk.
        encoding: how chunks are stored.
        shard_traces: traces to a shard; by default a sixteenth of all, at most 65,536. Each rank writes whole shards.
        simulator: the configuration behind ``factory`` as plain JSON, kept in the manifest.
        failures: what a failed execution means.
        ranks: the processes that share the work; all of them call this function with the same arguments.
        progress: called on rank 0 with the number of executions on disk (those that failed count) after each chunk.

    Raises:
        DatasetError: ``output`` holds another dataset.
        SimulationError: an execution failed or a worker died. What was finished stays; run again to go on.
    """
    if num_traces < 1 or chunk_size < 1 or (shard_traces is not None and shard_traces < 1):
        raise ValueError(
            f"simulate needs num_traces ≥ 1, chunk_size ≥ 1 and shard_traces ≥ 1; got {num_traces}, {chunk_size} and "
            f"{shard_traces}"
        )
    if workers < 0:
        raise ValueError(f"workers is a number of processes, or 0 for none; got {workers}")
    policy, ranks = failures or FailurePolicy(), ranks or Ranks()
    if policy.timeout is not None and workers < 1:
        raise ValueError("timeout needs worker processes, which can be ended: set workers ≥ 1, or no timeout")
    origin = Origin(
        model=model,
        seed=seed,
        num_traces=num_traces,
        chunk_size=chunk_size,
        simulator=dict(simulator or {}),
        encoding=(encoding or Encoding()).to_json(),
    )
    output, report = Path(output), progress or (lambda executions: None)
    with writing(output), ExitStack() as stack:
        growing, layout, state = _begin(stack, output, origin, Layout.of(num_traces, chunk_size, shard_traces), ranks)
        done = state.executions
        report(done)
        mine = {number: state.unfinished[number] for number in sorted(state.unfinished)[ranks.rank :: ranks.size]}
        for executions in _write(factory, output, origin, layout, mine, workers, policy):
            ranks.tell(executions)
            done += executions + sum(ranks.heard())
            report(done)
        for executions in ranks.finish_telling():
            done += executions
            report(done)
        if growing is not None:
            growing.complete()
        ranks.meet()
    return Manifest.load(output)


def _begin(
    stack: ExitStack, output: Path, origin: Origin, layout: Layout, ranks: Ranks
) -> tuple[GrowingDataset | None, Layout, State]:
    """Open the folder on rank 0, and tell all ranks what is to be done."""
    growing, error = None, None
    state = State({}, 0)
    if ranks.rank == 0:
        try:
            if (complete := finished(output, origin)) is not None:
                tidy_up(output)
                state = State({}, complete.origin.num_traces or complete.traces)
            else:
                growing = stack.enter_context(GrowingDataset(output, origin, layout))
                layout, state = growing.layout, growing.state()
                if ranks.size > len(state.unfinished) > 0:
                    warnings.warn(
                        f"only {len(state.unfinished)} of {ranks.size} ranks have work, a shard each; a new dataset "
                        "with a smaller shard_traces keeps more of them busy",
                        stacklevel=3,
                    )
        except (DatasetError, OSError) as raised:
            error = raised
    ranks.agree(error)
    layout, state = ranks.share((layout, state))
    return growing, layout, state


def _write(
    factory: Factory,
    output: Path,
    origin: Origin,
    layout: Layout,
    mine: Mapping[int, int],
    workers: int,
    policy: FailurePolicy,
) -> Iterator[int]:
    """Make and write the chunks that my shards lack; yields the executions of each."""
    todo = [number for shard, have in mine.items() for number in layout.of_shard(shard)[have:]]
    with closing(make_chunks(factory, origin, todo, workers, policy, empty=True)) as chunks:
        for number in mine:
            with GrowingShard(output, number, layout.of_shard(number)) as shard:
                while not shard.full:
                    chunk, failures = next(chunks)
                    shard.append(chunk, failures)
                    yield chunk.index.counts()["traces"] + len(failures)


def make_chunks(
    factory: Factory,
    origin: Origin,
    todo: Sequence[int],
    workers: int,
    policy: FailurePolicy,
    inflation: float | None = None,
    cancellation: Cancellation | None = None,
    empty: bool = False,
) -> Generator[Made, None, None]:
    """The chunks of these numbers in order, made in this process (``workers=0``) or in others.

    With ``inflation`` the traces come from wider priors; they know log q of their draws. With
    ``empty`` a chunk may have no traces, where the policy lets all of its executions fail.

    Raises:
        SimulationError: an execution failed or a worker died, and the policy does not let it pass.
        Cancelled: by another thread, through ``cancellation``.
    """
    if not todo:
        return
    make, tasks = partial(ChunkRunner, factory, origin, policy, inflation, empty), map(ChunkTask, todo)
    try:
        if workers < 1:
            runner = make()
            for task in tasks:
                yield runner(task, OwnDesk(cancellation=cancellation))
            return
        with Pool[ChunkTask, Made](make, min(workers, len(todo)), policy.timeout, cancellation) as pool:
            yield from pool.run(tasks, recover=_Recovery(origin, policy))
    except PoolError as error:
        raise SimulationError(f"{error}, or use workers=0") from error
    except ChunkError as failure:
        raise _failure(origin, policy, failure) from failure


class _Recovery:
    """What is done about a lost worker: its chunk is made again, without the execution that took it twice."""

    def __init__(self, origin: Origin, policy: FailurePolicy) -> None:
        self._origin, self._policy = origin, policy
        self._deaths: Counter[tuple[int, int]] = Counter()

    def __call__(self, loss: Loss) -> ChunkTask:
        task: ChunkTask = loss.task
        place = task.number, loss.position
        self._deaths[place] += 1
        if not self._policy.skips:
            raise SimulationError(self._describe(task, loss))
        if self._deaths[place] < _DEATHS:
            return task
        size = self._origin.chunk_size or 0
        if loss.position == NOWHERE or len(task.lost) >= self._policy.allowed(size):
            raise SimulationError(f"{self._describe(task, loss)} (the last of {1 + len(task.lost)} in this chunk)")
        return task._replace(lost=(*task.lost, FailedTrace(loss.position, f"the worker process {loss.reason}")))

    def _describe(self, task: ChunkTask, loss: Loss) -> str:
        size = self._origin.chunk_size or 0
        first = task.number * size
        if loss.position == NOWHERE:
            where = f"while it made traces {first} to {first + size - 1}"
        else:
            where = f"while it ran trace {loss.position}"
        again = "" if loss.position == NOWHERE else f" {_repeat(self._origin, loss.position)}"
        return (
            f"a worker process {loss.reason} {where} (seed {self._origin.seed}): the simulator crashed or hangs, or "
            f"memory ran out. What was finished is kept: run the same command again to go on, with fewer workers if "
            f"memory is short, or with failures=skip to leave such traces out.{again}"
        )


def _failure(origin: Origin, policy: FailurePolicy, failure: ChunkError) -> SimulationError:
    if failure.what is None:
        return SimulationError(f"the model {origin.model!r} can't be made:\n{failure.report.rstrip()}")
    again = "" if failure.index is None else f" {_repeat(origin, failure.index)}"
    way = "allow for more max_failures" if policy.skips else "choose failures=skip"
    return SimulationError(
        f"{failure.what} (seed {origin.seed}) of {origin.model!r} failed; what was finished is kept: correct the "
        f"simulator, or {way}, and run the same command again to go on.{again} It raised:\n"
        f"{failure.report.rstrip()}"
    )


def _repeat(origin: Origin, index: int) -> str:
    return (
        f"That trace alone: etalumis event simulator=… seed={origin.seed} index={index} output=event.npz, or "
        f"etalumis.execution.run(model, indices=[{index}], seed={origin.seed})."
    )
