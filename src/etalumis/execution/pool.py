"""Worker processes: tasks go out, results come back in the order of the tasks, and no death goes unnoticed.

Every worker is spawned, so that threads and open files of this process don't leak into it, and talks to this
process alone, over a pipe of its own. A worker that is killed, crashes, or hangs is a :class:`Loss`: it names the
task and where in it the worker was, and the caller decides what is run instead.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, NamedTuple, TypeVar

from etalumis.execution.cancellation import Cancellation
from etalumis.execution.pool_worker import HELD_SIGNALS, NOWHERE, Board, PoolError, Report, Work, no_report, serve
from etalumis.execution.signals import start_tracker

Task = TypeVar("Task")
Result = TypeVar("Result")

_GRACE_S = 1.0  # for a worker to end by itself, and again after it was asked to
_IN_HAND = 2  # tasks of a worker: one in work, one waiting, so that it never idles
_AHEAD = 4  # results per worker that may wait for an earlier one
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of_cores(gather: Callable[[bytes], list[bytes]]) -> int:
    """Cores for this rank of a job: those that it may use, shared with the ranks that may use the same ones.

    Args:
        gather: from this rank's words to those of all ranks.
    """
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    ours = repr((socket.gethostname(), usable)).encode()
    return max(cores() // gather(ours).count(ours), 1)


class Loss(NamedTuple):
    """A task whose worker was lost.

    Attributes:
        task: what it worked on.
        position: where in it, as the work told by :meth:`.Desk.at`; −1 where it told nothing.
        reason: how the worker ended: ``"died (exit code -9)"``, ``"hung for 60 s"``.
    """

    task: Any
    position: int
    reason: str


class Pool(Generic[Task, Result]):
    """Processes that work on tasks; a context manager.

    Args:
        make: makes the work; called once in each process, which gets it by pickling.
        workers: processes.
        timeout: seconds without a new position after which a worker counts as hanging; None waits forever.
        cancellation: by which another thread ends a run, whatever its workers do.

    Raises:
        PoolError: ``make`` can't be sent to another process.
    """

    def __init__(
        self,
        make: Callable[[], Work[Task, Result]],
        workers: int,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"a pool needs at least one worker; got {workers}")
        try:
            self._payload = pickle.dumps(make)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise PoolError(
                f"the model can't be sent to worker processes ({error}); define its function at the top level of an "
                "importable module"
            ) from error
        self._timeout = timeout
        self._cancellation = cancellation or Cancellation()
        self._members: dict[Connection, _Member[Task]] = {}
        atexit.register(self.close)  # before multiprocessing waits for workers that it has only sent SIGTERM
        try:
            for _ in range(workers):
                self._hire()
        except BaseException:
            self.close()
            raise

    def run(
        self,
        tasks: Iterable[Task],
        report: Report = no_report,
        recover: Callable[[Loss], Task] | None = None,
    ) -> Generator[Result, None, None]:
        """The results in the order of the tasks; once per pool.

        Args:
            tasks: taken from as workers become free, never far ahead of the results.
            report: told of the progress in all workers.
            recover: given a task whose worker was lost, says what to do instead, in a new process; without it, or
                where it raises, the run ends.

        Raises:
            PoolError: a worker was lost.
            Cancelled: by another thread.
            Exception: whatever the work raised, from a PoolError that shows where.
        """
        waiting = enumerate(tasks)
        again: deque[tuple[int, Task]] = deque()
        ready: dict[int, Result] = {}
        following, exhausted = 0, False
        while True:
            while following in ready:
                yield ready.pop(following)
                following += 1
            for hands in range(1, _IN_HAND + 1):
                for member in self._members.values():
                    while len(member.tasks) < hands and not exhausted:
                        if not again and len(ready) >= _AHEAD * len(self._members):
                            break
                        numbered = again.popleft() if again else next(waiting, None)
                        if numbered is None:
                            exhausted = True
                            break
                        member.give(*numbered)
            if exhausted and not any(m.tasks for m in self._members.values()):
                assert not ready
                return
            for number, result in self._turn(report, recover, again):
                ready[number] = result
            exhausted = exhausted and not again

    def close(self) -> None:
        """End all processes: idle ones by themselves, others by force, and their work is closed if it lets us."""
        atexit.unregister(self.close)
        members = list(self._members.values())
        self._members.clear()
        for member in members:
            member.connection.close()
        for force in (None, _Member.dismiss, _Member.kill):
            deadline = time.monotonic() + _GRACE_S
            for member in members:
                if force is not None and member.process.is_alive():
                    force(member)
            for member in members:
                member.process.join(None if force is _Member.kill else max(deadline - time.monotonic(), 0.0))

    def __enter__(self) -> Pool[Task, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- members --------------------------------------------------------------------------------------------------

    def _hire(self) -> None:
        context = multiprocessing.get_context("spawn")
        board = context.RawValue(Board, NOWHERE, False)
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self._payload, board), daemon=True)
        with one_thread_each(), _without_signals():
            process.start()
        theirs.close()
        self._members[ours] = _Member(ours, process, board)

    def _turn(
        self, report: Report, recover: Callable[[Loss], Task] | None, again: deque[tuple[int, Task]]
    ) -> Iterator[tuple[int, Result]]:
        """Wait until something happens; yields results."""
        pause = None if self._timeout is None else min(self._timeout / 4, 1.0)
        happened = wait([*self._members, self._cancellation.wakes], pause)
        self._cancellation.check()
        for readable in happened:
            assert isinstance(readable, Connection)
            member = self._members[readable]
            try:
                kind, *content = readable.recv()
            except (EOFError, OSError):
                self._replace(member, member.ending(), recover, again)
                continue
            if kind == "progress":
                report(*content)
            elif kind == "failure":
                error, text = content
                raise error from PoolError(f"in a worker process:\n{text}")
            else:
                number, result = content
                assert member.tasks[0][0] == number
                member.tasks.popleft()
                yield number, result
        if self._timeout is None:
            return
        for member in list(self._members.values()):
            if member.idle_for() > self._timeout:
                member.dismiss()
                member.process.join(_GRACE_S)
                member.kill()
                self._replace(member, f"hung for {self._timeout:g} s", recover, again)

    def _replace(
        self,
        member: _Member[Task],
        reason: str,
        recover: Callable[[Loss], Task] | None,
        again: deque[tuple[int, Task]],
    ) -> None:
        """Go on after a loss: what the lost worker had before it is given out anew."""
        if not member.tasks or recover is None:
            raise PoolError(
                f"a worker process {reason}: the simulator crashed, memory ran out, or the program lacks its "
                "`if __name__ == '__main__':` guard"
            )
        (number, task), *rest = member.tasks
        instead = recover(Loss(task, member.board.position, reason))
        again.extendleft(reversed([(number, instead), *rest]))
        del self._members[member.connection]
        member.connection.close()
        member.process.join()
        self._hire()


class _Member(Generic[Task]):
    """A process, the tasks it has, and where it is in the first of them."""

    def __init__(self, connection: Connection, process: SpawnProcess, board: Board) -> None:
        self.connection = connection
        self.process = process
        self.board = board
        self.tasks: deque[tuple[int, Task]] = deque()
        self._seen, self._since = NOWHERE, 0.0

    def give(self, number: int, task: Task) -> None:
        self.tasks.append((number, task))
        with suppress(OSError):  # it ended: what it said before, or that it said nothing, comes up on receiving
            self.connection.send((number, task))

    def ending(self) -> str:
        """How the process ended, whose pipe is closed."""
        self.process.join(timeout=5)
        return f"died (exit code {self.process.exitcode})"

    def dismiss(self) -> None:
        """Ask the process to end; its work is closed."""
        self.board.dismissed = True
        self.process.terminate()

    def kill(self) -> None:
        """End the process."""
        self.process.kill()

    def idle_for(self) -> float:
        """Seconds since the position was seen to change."""
        now, position = time.monotonic(), self.board.position
        if position != self._seen or position == NOWHERE:
            self._seen, self._since = position, now
        return now - self._since


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started inside run numerical libraries on one thread: the workers fill the cores."""
    before = {name: os.environ.get(name) for name in _THREAD_SETTINGS}
    os.environ.update(dict.fromkeys(_THREAD_SETTINGS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _without_signals() -> Iterator[None]:
    """Processes started inside don't see signals of the job before they can take them; here they are only put off."""
    start_tracker()  # or the first start would do so, which lets some signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
