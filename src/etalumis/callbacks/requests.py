"""Requests to stop: signals, and a limit of time."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterable
from types import FrameType
from typing import Any

import torch

from etalumis.execution.signals import JOB_SIGNALS

_SIGNALS = (*JOB_SIGNALS, signal.SIGINT)
TIME_LIMIT = 1  # a request that no signal here has the number of
GOES_ON = ": the same command goes on"
_UNITS = (1, 60, 60 * 60, 24 * 60 * 60)  # seconds to a second, minute, hour and day


class Paused(RuntimeError):  # noqa: N818  # nothing is wrong
    """Training stopped where it can go on: everything is in a checkpoint, or there is nothing to save yet.

    Attributes:
        signal: that asked for it; None for the time limit.
        exit_code: of the process: "try again later" of sysexits.h.
    """

    exit_code = 75

    def __init__(self, text: str, number: signal.Signals | None = None) -> None:
        super().__init__(text)
        self.signal = number


def reason_of(number: int) -> str:
    """A request in words; see :attr:`StopRequests.number`."""
    if number in (0, TIME_LIMIT):
        return "the time limit" if number else ""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def paused(number: int, when: str) -> Paused:
    """The end that was asked for; see :attr:`StopRequests.number`."""
    return Paused(f"stopped by {reason_of(number)} {when}", None if number == TIME_LIMIT else signal.Signals(number))


class StopRequests:
    """Notes that training is asked to stop, instead of stopping: whoever trains looks at :attr:`reason` in time.

    Between :meth:`listen` and :meth:`close` the first signal is noted; a second Ctrl-C interrupts at once, as always in
    Python; more of the others change nothing, as job managers repeat them.

    Args:
        limit: seconds after which to stop, counted from now on; None never.

    Attributes:
        signal: that came first.
    """

    def __init__(self, limit: float | None = None) -> None:
        self._end = None if limit is None else time.monotonic() + limit
        self._before: dict[signal.Signals, Any] = {}
        self.signal: signal.Signals | None = None

    @property
    def number(self) -> int:
        """What was asked for, for ranks to agree on by the largest: a signal's, ``TIME_LIMIT``, or 0 for going on."""
        if self.signal is not None:
            return int(self.signal)
        return TIME_LIMIT if self._end is not None and time.monotonic() >= self._end else 0

    @property
    def reason(self) -> str:
        """Why to stop; empty for going on."""
        return reason_of(self.number)

    def listen(self, signals: Iterable[signal.Signals] = _SIGNALS) -> None:
        """Take signals over; in another than the main thread none arrive."""
        if threading.current_thread() is threading.main_thread():
            for number in signals:
                self._before.setdefault(number, signal.signal(number, self._note))

    def close(self, signals: Iterable[signal.Signals] = _SIGNALS) -> None:
        """Give back those that were taken over, and that nobody else has taken since."""
        for number in signals:
            handler = self._before.pop(number, self._note)
            if handler != self._note and signal.getsignal(number) == self._note:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)


def leave_if_asked(requests: StopRequests, strategy: Any) -> None:
    """Before the first step, where all ranks come by: there is nothing to save.

    Raises:
        Paused: one of them has got a signal. A limit of time lets an iteration be made first.
    """
    request = int(requests.signal or 0)
    if strategy is not None:
        request = int(strategy.reduce(torch.tensor(request), reduce_op="max"))
    if request:
        raise paused(request, f"before the first step of this run{GOES_ON}")


def seconds_of(duration: str | float | None) -> float | None:
    """Seconds of a duration: ``DD:HH:MM:SS`` with parts on the left left out, or a number of seconds.

    Raises:
        ValueError: it is neither, or nothing.
    """
    if duration is None:
        return None
    parts = str(duration).split(":")
    if len(parts) > len(_UNITS) or not all(re.fullmatch(r"\d+(\.\d*)?", part) for part in parts):
        raise ValueError(f"a time is DD:HH:MM:SS, HH:MM:SS or a number of seconds; got {duration!r}")
    seconds = sum(float(part) * unit for part, unit in zip(reversed(parts), _UNITS, strict=False))
    if not seconds > 0.0:
        raise ValueError(f"a time must be longer than nothing; got {duration!r}")
    return seconds
