"""Tasks over worker processes or MPI ranks: results in the order of the tasks, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, Literal, NoReturn, TypeVar

from etalumis.execution.pool import Loss, Pool
from etalumis.execution.pool_worker import Desk, PoolError, Report, close_parts
from etalumis.inference.errors import InferenceError
from etalumis.inference.ranks import run_on_ranks, working_ranks

Common = TypeVar("Common")
Task = TypeVar("Task")
Result = TypeVar("Result")
Function = Callable[[Common, Task, Report], Result]

#: Processes to work in, or "mpi": the ranks of this job, see :mod:`.ranks`.
Workers = int | Literal["mpi"]
MPI: Literal["mpi"] = "mpi"

__all__ = ["Report", "Workers", "processes", "run_tasks"]


def processes(workers: Workers) -> int:
    """How many processes work at the same time.

    Raises:
        ValueError: there are none.
        InferenceError: MPI ranks are asked for, and there are none.
    """
    if workers == MPI:
        return working_ranks()
    if workers < 1:
        raise ValueError(f'workers must be at least 1, or "mpi"; got {workers}')
    return workers


def run_tasks(
    function: Function[Common, Task, Result],
    common: Common,
    tasks: Sequence[Task],
    workers: Workers,
    report: Report,
) -> list[Result]:
    """``function(common, task, report)`` for each task, in this process, in ``workers`` others, or on MPI ranks.

    Args:
        function: module-level; ``report(amount, note)`` tells of progress.
        common: what every task needs (the model, the engine); sent to each worker once.
        tasks: given out in order.
        workers: 1 runs in this process; "mpi" on the other ranks of this job.
        report: called in this process with every worker's progress.

    Raises:
        InferenceError: ``common`` can't be sent to another process, or a worker died.
        Exception: whatever ``function`` raised.
    """
    count = processes(workers)
    if workers == MPI:
        return run_on_ranks(function, common, tasks, report)
    if count == 1 or len(tasks) < 2:
        return [function(common, task, report) for task in tasks]
    try:
        with Pool[Task, Result](partial(_Bound, function, common), min(count, len(tasks))) as pool:
            return list(pool.run(tasks, report, _lost))
    except PoolError as error:
        raise InferenceError(f"{error}, or use workers=1") from error


def _lost(loss: Loss) -> NoReturn:
    raise InferenceError(
        f"a worker process {loss.reason} while it did task {loss.task!r:.80}: the simulator crashed, memory ran out, "
        "or the program lacks its `if __name__ == '__main__':` guard. Try workers=1 to see the cause"
    )


class _Bound(Generic[Common, Task, Result]):
    """The work of a process: the function with what all tasks share."""

    def __init__(self, function: Function[Common, Task, Result], common: Common) -> None:
        self._function, self._common = function, common

    def __call__(self, task: Task, desk: Desk) -> Result:
        return self._function(self._common, task, desk)

    def close(self) -> None:
        """See :func:`.close_parts`."""
        close_parts(self._common)
