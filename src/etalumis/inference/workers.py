"""Tasks over worker processes: results in the order of the tasks, whatever the number of workers."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

from etalumis.inference.errors import InferenceError
from etalumis.storage.worker import one_thread_each

Common = TypeVar("Common")
Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[int, str], None]
Function = Callable[[Common, Task, Report], Result]


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
        payload = pickle.dumps((function, common))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InferenceError(
            f"the model can't be sent to worker processes ({error}); define its function at the top level of an "
            "importable module, or use workers=1"
        ) from error
    pool: _Pool[Task, Result] = _Pool(payload, min(workers, len(tasks)))
    try:
        return pool.run(tasks, report)
    finally:
        pool.close()


class _Pool(Generic[Task, Result]):
    """Spawned processes, so that threads and open files of this one don't leak into them."""

    def __init__(self, payload: bytes, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes: dict[Connection, SpawnProcess] = {}
        with one_thread_each():
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs,), daemon=True)
                process.start()
                theirs.close()
                self._processes[ours] = process
        for connection in self._processes:
            with suppress(BrokenPipeError):  # a worker that died at once is noticed on receiving
                connection.send_bytes(payload)

    def run(self, tasks: Sequence[Task], report: Report) -> list[Result]:
        results: dict[int, Result] = {}
        waiting = list(enumerate(tasks))[::-1]
        for connection in self._processes:
            self._give(connection, waiting)
        while len(results) < len(tasks):
            for readable in wait(list(self._processes)):
                assert isinstance(readable, Connection)
                kind, *content = self._receive(readable)
                if kind == "progress":
                    report(*content)
                elif kind == "failure":
                    error, text = content
                    raise error from InferenceError(f"in a worker process:\n{text}")
                else:
                    number, result = content
                    results[number] = result
                    self._give(readable, waiting)
        return [results[number] for number in range(len(tasks))]

    def close(self) -> None:
        for connection, process in self._processes.items():
            connection.close()
            process.terminate()
            process.join()

    def _give(self, connection: Connection, waiting: list[tuple[int, Task]]) -> None:
        if waiting:
            with suppress(BrokenPipeError):
                connection.send(waiting.pop())

    def _receive(self, connection: Connection) -> tuple[Any, ...]:
        try:
            message: tuple[Any, ...] = connection.recv()
        except (EOFError, OSError) as error:
            process = self._processes[connection]
            process.join(timeout=5)
            raise InferenceError(
                f"a worker process died (exit code {process.exitcode}): the simulator crashed, memory ran out, or "
                "the program lacks its `if __name__ == '__main__':` guard. Try workers=1 to see the cause"
            ) from error
        return message


def _serve(connection: Connection) -> None:
    """Body of a worker process."""
    # Ctrl-C reaches every process of the terminal: the main one decides, workers end with its connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def report(amount: int, note: str) -> None:
        connection.send(("progress", amount, note))

    try:
        function, common = pickle.loads(connection.recv_bytes())  # noqa: S301 (from our own parent process)
        while True:
            number, task = connection.recv()
            connection.send(("result", number, function(common, task, report)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the main process is gone, or needs no more
    except Exception as error:
        connection.send(("failure", _portable(error), traceback.format_exc()))


def _portable(error: Exception) -> Exception:
    """The exception where it survives the way to another process, else its text."""
    try:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 (made on the line itself)
    except Exception:
        return InferenceError(f"{type(error).__name__}: {error}")
    assert isinstance(copy, Exception)
    return copy
