"""Signals by which job managers ask a job to stop: all of its processes get them, and one of each rank decides."""

from __future__ import annotations

import signal
from multiprocessing import resource_tracker
from types import FrameType

JOB_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def leave_to_parent() -> None:
    """Go on whatever the job, or a terminal by Ctrl-C, is told: the main process decides, this one ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in JOB_SIGNALS:
        signal.signal(number, go_on)


def start_tracker() -> None:
    """Start the process in which multiprocessing keeps account of what processes share: it, too, goes on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)  # which it inherits
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def go_on(number: int, frame: FrameType | None) -> None:
    """Nothing: what is ignored outright stays so in programs that this process starts, such as simulators."""
