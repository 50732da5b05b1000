"""The worker's side of a pool: a process that makes its work once, and does the tasks it is given."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Protocol, TypeVar

from etalumis.execution.cancellation import Cancellation
from etalumis.execution.signals import JOB_SIGNALS, leave_to_parent

Result_co = TypeVar("Result_co", covariant=True)
Task_contra = TypeVar("Task_contra", contravariant=True)
Report = Callable[[int, str], None]

NOWHERE = -1  # the position of work that told none
HELD_SIGNALS = {signal.SIGINT, *JOB_SIGNALS}  # kept from a worker until it can take them
_GRACE_S = 5.0  # for the work to be closed after the main process has gone


class PoolError(RuntimeError):
    """The work can't be sent to other processes, or a process that did it was lost."""


class Desk(Protocol):
    """What a task can tell while it is worked on."""

    def __call__(self, amount: int, note: str) -> None:
        """Progress, told to the caller of :meth:`Pool.run`."""

    def at(self, position: int) -> None:
        """Where the work is now (a trace index, say); costs well under a microsecond.

        From then on the worker counts as hanging when the position does not change for the pool's ``timeout``.
        −1 says that nothing is under way that may hang.
        """


class Work(Protocol[Task_contra, Result_co]):
    """The work on a task. Where it has ``close``, the worker calls that at its end, however it is ended."""

    def __call__(self, task: Task_contra, desk: Desk, /) -> Result_co: ...


def no_report(amount: int, note: str) -> None:
    """Nobody wants to know."""


class Board(ctypes.Structure):
    """Memory that a worker shares with its pool.

    Attributes:
        position: where its work is, written by the worker.
        dismissed: SIGTERM means this worker, not the whole job; written by whoever ends it.
    """

    _fields_ = (("position", ctypes.c_int64), ("dismissed", ctypes.c_bool))
    position: int
    dismissed: bool


class _Desk:
    """The worker's end of a :class:`Desk`."""

    def __init__(self, connection: Connection, board: Board) -> None:
        self._connection, self._board = connection, board

    def __call__(self, amount: int, note: str) -> None:
        self._connection.send(("progress", amount, note))

    def at(self, position: int) -> None:
        self._board.position = position


class OwnDesk:
    """The desk of work in this very process."""

    def __init__(self, report: Report = no_report, cancellation: Cancellation | None = None) -> None:
        self._report = report
        self._cancellation = cancellation

    def __call__(self, amount: int, note: str) -> None:
        self._report(amount, note)

    def at(self, position: int) -> None:
        """Nobody looks, but here the work may be cancelled."""
        if self._cancellation is not None:
            self._cancellation.check()


def serve(connection: Connection, payload: bytes, board: Board) -> None:
    """Body of a worker process."""

    def end(number: int, frame: FrameType | None) -> None:
        if board.dismissed:
            raise SystemExit(1)  # what the work holds, such as simulator processes, is let go of

    leave_to_parent()
    signal.signal(signal.SIGTERM, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
    threading.Thread(target=_end_with_parent, args=(board,), daemon=True).start()
    desk = _Desk(connection, board)
    with ExitStack() as stack, suppress(BrokenPipeError, ConnectionResetError):  # the main process wants no more
        try:
            work = pickle.loads(payload)()  # noqa: S301 (from our own parent process)
            if hasattr(work, "close"):
                stack.callback(work.close)
            while True:
                try:
                    number, task = connection.recv()
                except EOFError:
                    return
                result = work(task, desk)
                desk.at(NOWHERE)
                connection.send(("result", number, result))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            connection.send(("failure", portable(error), traceback.format_exc()))


def _end_with_parent(board: Board) -> None:
    """However the main process ended, and whatever is under way here: no worker outlives it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    board.dismissed = True
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)


def close_parts(common: object) -> None:
    """Let go of what the shared parts of tasks hold, such as a model's simulator processes."""
    for part in common if isinstance(common, tuple) else ():
        if hasattr(part, "close"):
            part.close()


def portable(error: Exception) -> Exception:
    """The exception where it survives the way to another process, else its text."""
    try:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 (made on the line itself)
    except Exception:
        return PoolError(f"{type(error).__name__}: {error}")
    assert isinstance(copy, Exception)
    return copy
