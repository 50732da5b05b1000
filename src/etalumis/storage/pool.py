"""Worker processes that do tasks in any order and hand their results back in the order of the tasks.

Tasks travel as JSON and results as bytes: nothing is unpickled but the function, which the main process gives.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from etalumis.storage.errors import DatasetError
from etalumis.storage.worker import one_thread_each

Work = Callable[[Any], Sequence[bytes]]
_GRACE_S = 1.0
_AHEAD = 3  # tasks per worker that may be done or in work before the next result is taken


def in_order(work: Work, tasks: Sequence[Any], workers: int) -> Generator[list[bytes], None, None]:
    """``work(task)`` for each task, by ``workers`` processes; 0 works in this one.

    Args:
        work: picklable; called in the workers.
        tasks: plain JSON each.
        workers: processes.

    Raises:
        DatasetError: ``work`` raised it, or a worker died.
        RuntimeError: ``work`` raised something else; the message holds its traceback.
    """
    workers = min(workers, len(tasks))
    if workers < 1:
        for task in tasks:
            yield list(work(task))
        return
    pool = _Pool(work, workers)
    try:
        yield from pool.run(tasks)
    finally:
        pool.close()


class _Pool:
    """Spawned processes, so that threads and open files of this one don't leak into them."""

    def __init__(self, work: Work, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._workers: dict[Connection, SpawnProcess] = {}
        self._assigned: dict[Connection, int] = {}
        with one_thread_each():
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, work), daemon=True)
                process.start()
                theirs.close()
                self._workers[ours] = process

    def run(self, tasks: Sequence[Any]) -> Generator[list[bytes], None, None]:
        ready: dict[int, list[bytes]] = {}
        following = given = 0
        while following < len(tasks):
            for connection in self._workers:
                if (
                    connection not in self._assigned
                    and given < len(tasks)
                    and given < following + _AHEAD * len(self._workers)
                ):
                    with suppress(OSError):  # it ended: receiving says so
                        connection.send_bytes(json.dumps(tasks[given]).encode())
                    self._assigned[connection] = given
                    given += 1
            if following not in ready:
                for readable in wait(list(self._assigned)):
                    assert isinstance(readable, Connection)
                    result = self._receive(readable)
                    ready[self._assigned.pop(readable)] = result
                continue
            yield ready.pop(following)
            following += 1

    def close(self) -> None:
        for connection in self._workers:
            connection.close()  # ends a worker that has nothing to do
        for process in self._workers.values():
            process.join(_GRACE_S)
            process.kill()
            process.join()

    def _receive(self, connection: Connection) -> list[bytes]:
        try:
            head = json.loads(connection.recv_bytes())
            parts = [connection.recv_bytes() for _ in range(head.get("parts", 0))]
        except (EOFError, OSError) as error:
            process = self._workers[connection]
            process.join(timeout=5)
            raise DatasetError(
                f"a worker process died (exit code {process.exitcode}): memory ran out, or it was killed. What was "
                "finished is kept: run the same command again to go on, with fewer workers or a smaller memory_mb "
                "if memory is short"
            ) from error
        if "refused" in head:
            raise DatasetError(head["refused"])
        if "failed" in head:
            raise RuntimeError(f"a worker process failed:\n{head['failed']}")
        return parts


def _serve(connection: Connection, work: Work) -> None:
    """Body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides; its connection ends this one
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while request := connection.recv_bytes():
            parts: Sequence[bytes] = ()
            try:
                parts = work(json.loads(request))
                head: dict[str, Any] = {"parts": len(parts)}
            except DatasetError as error:
                head = {"refused": str(error)}
            except Exception:
                head = {"failed": traceback.format_exc()}
            connection.send_bytes(json.dumps(head).encode())
            for part in parts:
                connection.send_bytes(part)
