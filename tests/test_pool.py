"""Worker processes: ordered results, and no end of a worker that goes unnoticed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from etalumis.execution.cancellation import Cancellation, Cancelled
from etalumis.execution.pool import Loss, Pool
from etalumis.execution.pool_worker import Desk, PoolError
from etalumis.execution.signals import JOB_SIGNALS

pytestmark = pytest.mark.timeout(60)


class Squares:
    """Squares numbers; what it does with a negative one is ``how``.

    Touches ``sign.made`` when it is made, ``sign.at`` when it hangs, and ``sign`` when it is closed.
    """

    def __init__(self, how: str = "raise", sign: Path | None = None) -> None:
        self._how, self._sign = how, sign
        if how == "unmade":
            raise RuntimeError("no licence")
        if sign is not None:
            sign.with_suffix(".made").touch()

    def __call__(self, number: int, desk: Desk) -> tuple[int, int]:
        desk.at(100 + abs(number))
        desk(1, f"squaring {number}")
        if number < 0:
            if self._how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._how == "hang":
                if self._sign is not None:
                    self._sign.with_suffix(".at").touch()
                time.sleep(60.0)
            if self._how == "wait":
                assert self._sign is not None
                until(self._sign.with_suffix(".go"))
                return number**2, os.getpid()
            raise ZeroDivisionError(f"no root of {number}")
        return number**2, os.getpid()

    def close(self) -> None:
        if self._sign is not None:
            self._sign.touch()


def until(path: Path) -> None:
    deadline = time.monotonic() + 20.0
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_tasks(workers: int, tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(40):
            taken.append(number)
            yield number

    with Pool[int, tuple[int, int]](partial(Squares, "raise", tmp_path / "closed"), workers) as pool:
        results = pool.run(tasks(), lambda amount, note: told.append((amount, note)))
        first = next(results)
        assert first[0] == 0
        assert len(taken) <= 7 * workers, "tasks are taken as workers become free"
        rest = list(results)
    assert [square for square, _ in rest] == [n**2 for n in range(1, 40)]
    assert os.getpid() not in {pid for _, pid in rest}
    assert sorted(told) == sorted((1, f"squaring {n}") for n in range(40))
    assert (tmp_path / "closed").exists()


def test_what_the_work_raises_is_raised_here() -> None:
    with (
        Pool[int, tuple[int, int]](Squares, 2) as pool,
        pytest.raises(ZeroDivisionError, match="no root of -3") as raised,
    ):
        list(pool.run([1, 2, -3, 4]))
    assert "in a worker process:\nTraceback" in str(raised.value.__cause__)
    with (
        Pool[int, tuple[int, int]](partial(Squares, "unmade"), 1) as pool,
        pytest.raises(RuntimeError, match="licence"),
    ):
        list(pool.run([1]))


def test_a_dead_worker_is_noticed() -> None:
    with (
        Pool[int, object](partial(Squares, "die"), 2) as pool,
        pytest.raises(PoolError, match=r"died \(exit code -9\)"),
    ):
        list(pool.run([1, -2, 3]))


@pytest.mark.parametrize(("how", "reason"), [("die", "died (exit code -9)"), ("hang", "hung for 0.3 s")])
def test_the_work_of_a_lost_worker_is_recovered(how: str, reason: str) -> None:
    losses: list[Loss] = []

    def recover(loss: Loss) -> int:
        losses.append(loss)
        return 0 if len(losses) == 2 else int(loss.task)

    timeout = 0.3 if how == "hang" else None
    with Pool[int, tuple[int, int]](partial(Squares, how), 2, timeout) as pool:
        squares = [square for square, _ in pool.run([1, 2, -3, 4, 5, 6], recover=recover)]
    assert squares == [1, 4, 0, 16, 25, 36]
    assert losses == [Loss(-3, 103, reason)] * 2


def test_closing_ends_a_busy_worker_and_its_work_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etalumis.execution.pool._GRACE_S", 5.0)  # of a machine that has much else to do
    work = Cancellation()
    pool = Pool[int, object](partial(Squares, "hang", tmp_path / "closed"), 1, cancellation=work)
    results = pool.run([-1])

    def take() -> None:
        with suppress(Cancelled):
            next(results)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    until(tmp_path / "closed.at")
    process = next(iter(pool._members.values())).process
    started = time.monotonic()
    work.cancel()
    thread.join(10.0)
    pool.close()
    assert time.monotonic() - started < 10.0
    assert (tmp_path / "closed").exists()
    assert not process.is_alive()


def test_workers_leave_a_job_s_signals_to_the_main_process(tmp_path: Path) -> None:
    """Launchers send them to all processes; a simulator is at work, or the worker has only begun to start."""
    with Pool[int, tuple[int, int]](partial(Squares, "wait", tmp_path / "sign"), 1) as pool:
        pid = next(iter(pool._members.values())).process.pid or 0

        def ask() -> None:
            for number in (*JOB_SIGNALS, signal.SIGINT):
                os.kill(pid, number)

        ask()
        until(tmp_path / "sign.made")
        ask()
        (tmp_path / "sign.go").touch()
        assert [square for square, _ in pool.run([-2, 3])] == [4, 9]
        ask()
        time.sleep(0.1)
        assert next(iter(pool._members.values())).process.is_alive()


LEFT = """
import os, sys, threading, time
from functools import partial
from pathlib import Path
from etalumis.execution import pool as pools
from etalumis.execution.pool import Pool
from test_pool import Squares, until

if __name__ == "__main__":
    pools._GRACE_S = 10.0  # of a machine that has much else to do
    sign = Path(sys.argv[1])
    pool = Pool(partial(Squares, "hang", sign), 1)
    threading.Thread(target=lambda: next(pool.run([-1])), daemon=True).start()
    until(sign.with_suffix(".at"))
    {end}
"""


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), 9)"])
def test_no_worker_outlives_its_program(tmp_path: Path, end: str) -> None:
    """One that does not close its pool, and one that is killed."""
    (tmp_path / "left.py").write_text(LEFT.format(end=end))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    words = [sys.executable, str(tmp_path / "left.py"), str(tmp_path / "sign")]
    # Standard output ends with the last of the processes that have it.
    done = subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=False
    )
    assert (done.returncode == 0) == (end == "pass")
    assert (tmp_path / "sign").exists(), "its work was closed"


def test_work_that_cannot_be_sent() -> None:
    with pytest.raises(PoolError, match=r"can't be sent to worker processes.*top level of an importable module"):
        Pool[int, object](lambda: Squares(), 1)
    with pytest.raises(ValueError, match="at least one worker"):
        Pool[int, object](Squares, 0)
