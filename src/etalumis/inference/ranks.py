"""Tasks over the ranks of an MPI job by ``mpi4py.futures``: rank 0 runs the program and hands out, all others work.

Only the ranks of one job talk to each other, and what travels between them is pickled as between a process and its
own workers. A rank that dies takes the job with it: its launcher says which, and ends the others.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from etalumis.execution.pool_worker import close_parts, portable
from etalumis.inference.errors import InferenceError
from etalumis.storage.errors import DatasetError
from etalumis.storage.ranks import Ranks, launched_by_mpi

if TYPE_CHECKING:
    from concurrent.futures import Future

FUTURES = "mpi4py.futures"
Report = Callable[[int, str], None]


def working_ranks() -> int:
    """How many ranks wait for tasks.

    Raises:
        InferenceError: there are none, and how to start the program so that there are.
    """
    try:
        size = Ranks.of_job().size
    except DatasetError as error:
        raise InferenceError(str(error)) from error
    if size < 2 or FUTURES not in sys.modules:
        raise InferenceError(
            'workers="mpi" takes the ranks of a job beside the first: start the program as mpirun -n 5 python -m '
            "mpi4py.futures PROGRAM.py, or the command as mpirun -n 5 etalumis ..., for four that work (with mpi4py: "
            "pip install 'etalumis[mpi]')"
        )
    return size - 1


def hand_over(module: str, words: Sequence[str]) -> None:
    """Let this process become a rank of ``mpi4py.futures`` that runs a module, or waits for its tasks.

    Returns where it is one already, or no launcher started several. To be called before MPI begins.
    """
    if FUTURES in sys.modules or launched_by_mpi() < 2 or find_spec("mpi4py") is None:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", FUTURES, "-m", module, *words])


def run_on_ranks(function: Callable[..., Any], common: Any, tasks: Sequence[Any], report: Report) -> list[Any]:
    """``function(common, task, report)`` for each task on the ranks that wait; results in the order of the tasks.

    Args:
        function, common: as of :func:`etalumis.inference.workers.run_tasks`.
        report: told of the progress of a task when it is done.

    Raises:
        InferenceError: ``common`` can't be sent to another rank, or no ranks wait.
        Exception: whatever ``function`` raised first; tasks that have not begun are dropped.
    """
    working_ranks()
    from concurrent.futures import as_completed

    from mpi4py.futures import MPIPoolExecutor

    try:
        payload = pickle.dumps((function, common))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InferenceError(
            f"the model can't be sent to other ranks ({error}); define its function at the top level of an importable "
            'module, or of a program that begins its work below `if __name__ == "__main__":`'
        ) from error
    executor = MPIPoolExecutor()
    try:
        waiting: list[Future[tuple[Any, int]]] = [executor.submit(_work, payload, task) for task in tasks]
        for done in as_completed(waiting):
            report(done.result()[1], "")
        return [done.result()[0] for done in waiting]
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _work(payload: bytes, task: Any) -> tuple[Any, int]:
    """A task on a working rank: its result, and the progress that it would have told."""
    function, common = pickle.loads(payload)  # noqa: S301 (from rank 0 of our own job)
    amounts: list[int] = []
    try:
        result = function(common, task, lambda amount, note: amounts.append(amount))
    except Exception as error:
        raise portable(error) from error
    finally:
        close_parts(common)
    return result, sum(amounts)
