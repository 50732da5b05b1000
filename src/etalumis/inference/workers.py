"""Tasks over worker processes: results in the order of the tasks, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, NoReturn, TypeVar

from etalumis.execution.pool import Loss, Pool
from etalumis.execution.pool_worker import Desk, PoolError, Report
from etalumis.inference.errors import InferenceError

Common = TypeVar("Common")
Task = TypeVar("Task")
Result = TypeVar("Result")
Function = Callable[[Common, Task, Report], Result]

__all__ = ["Report", "run_tasks"]


def run_tasks(
    function: Function[Common, Task, Result],
    common: Common,
    tasks: Sequence[Task],
    workers: int,
    report: Report,
) -> list[Result]:
    """``function(common, task, report)`` for each task, in this process or in ``workers`` others.

    Args:
        function: module-level; ``report(amount, note)`` tells of progress.
        common: what every task needs (the model, the engine); sent to each worker once.
        tasks: given out in order.
        workers: 1 runs in this process.
        report: called in this process with every worker's progress.

    Raises:
        InferenceError: ``common`` can't be sent to another process, or a worker died.
        Exception: whatever ``function`` raised.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    if workers == 1 or len(tasks) < 2:
        return [function(common, task, report) for task in tasks]
    try:
        with Pool[Task, Result](partial(_Bound, function, common), min(workers, len(tasks))) as pool:
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
        """Let go of what the shared parts hold, such as a model's simulator processes."""
        for part in self._common if isinstance(self._common, tuple) else ():
            if hasattr(part, "close"):
                part.close()
