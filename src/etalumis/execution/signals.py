"""Signals by which job managers ask a job to stop: all of its processes get them, and one of each rank decides."""

from __future__ import annotations

import signal
from types import FrameType

JOB_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def leave_to_parent() -> None:
    """Go on whatever the job, or a terminal by Ctrl-C, is told: the main process decides, this one ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in JOB_SIGNALS:
        signal.signal(number, go_on)


def go_on(number: int, frame: FrameType | None) -> None:
    """Nothing: what is ignored outright stays so in programs that this process starts, such as simulators."""
