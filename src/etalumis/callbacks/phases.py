"""The phases of an iteration: how long each took, and what several ranks' phases say of their balance."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

READ = "read"  # waiting for a minibatch
FORWARD = "forward"
BACKWARD = "backward"
WAITING = "waiting"  # for ranks whose gradients were not there yet
EXCHANGE = "exchange"  # of gradients, all ranks being there
OPTIMISE = "optimise"  # clipping and the optimiser's step
OTHER = "other"  # callbacks, logging
PHASES = (READ, FORWARD, BACKWARD, WAITING, EXCHANGE, OPTIMISE, OTHER)
WORK = tuple(phase for phase in PHASES if phase != WAITING)
_NUMBER = {phase: number for number, phase in enumerate(PHASES)}


class PhaseClock:
    """Times the phases of each iteration, of one minibatch or of several that are accumulated.

    On a GPU, where operations end later than the call that starts them, times are taken by events in its stream, and
    are looked at in :meth:`take` only: nothing waits for the GPU in between.

    Args:
        device: where the network is trained.
        now: what tells seconds where that is no GPU.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        on_gpu = device.type == "cuda"
        self._now: Callable[[], Any] = _event if on_gpu else now
        self._between: Callable[[Any, Any], float] = _event_seconds if on_gpu else _seconds
        self._marks: list[tuple[int | None, Any]] = []
        self._closed: list[tuple[int, float, float]] = []  # marks up to the end of an iteration, seconds told

    @property
    def iterations(self) -> int:
        """How many were closed since the last :meth:`take`."""
        return len(self._closed)

    def enter(self, phase: str) -> None:
        """A phase begins, and the one before it ends."""
        self._marks.append((_NUMBER[phase], self._now()))

    def forget(self) -> None:
        """What was since the last phase began does not count, as validation; "other" begins."""
        if self._marks:
            self._marks[-1] = (None, self._marks[-1][1])
        self.enter(OTHER)

    def close(self, read: float, waiting: float) -> None:
        """An iteration ends where the phase that began last began.

        Args:
            read: seconds of phase "other" that were spent waiting for minibatches.
            waiting: seconds of phase "exchange" that were spent until all ranks were there.
        """
        self._closed.append((len(self._marks), read, waiting))

    def take(self) -> Tensor:
        """Seconds of the iterations closed since the last call, (iterations, phases), float64."""
        table: list[list[float]] = []
        start = 0
        for end, read, waiting in self._closed:
            row = [0.0] * len(PHASES)
            for (phase, began), (_, ended) in pairwise(self._marks[start:end]):
                if phase is not None:
                    row[phase] += self._between(began, ended)
            _move(row, OTHER, READ, read)
            _move(row, EXCHANGE, WAITING, waiting)
            table.append(row)
            start = end - 1
        self._marks = self._marks[start:]
        self._closed = []
        return torch.tensor(table, dtype=torch.float64).view(-1, len(PHASES))


class Balance(NamedTuple):
    """What ranks' phases say, as means over iterations, in seconds.

    Attributes:
        actual: an iteration as it was, waiting included; the mean over ranks, which differ by nothing in the long run.
        best: the same if no rank had to wait: the mean over ranks of what they worked.
        phases: of each rank, (ranks, phases).
        excess: by phase, how much longer the slowest rank of each iteration took than the mean over ranks, (phases,).
    """

    actual: float
    best: float
    phases: Tensor
    excess: Tensor

    @classmethod
    def of(cls, table: Tensor) -> Balance:
        """From seconds of each rank, iteration and phase, (ranks, iterations, phases).

        What the rank waited that was last counts as exchange: to agree takes so long even when all are there.
        """
        table = table.to(torch.float64, copy=True)
        least = table[:, :, _NUMBER[WAITING]].min(0).values
        table[:, :, _NUMBER[WAITING]] -= least
        table[:, :, _NUMBER[EXCHANGE]] += least
        phases = table.mean(1)
        actual = float(phases.sum(1).mean())
        best = actual - float(phases[:, _NUMBER[WAITING]].mean())
        return cls(actual, best, phases, (table.max(0).values - table.mean(0)).mean(0))

    @property
    def imbalance(self) -> float:
        """By how much an iteration was longer than at best, as a share of the best."""
        return self.actual / self.best - 1.0 if self.best else 0.0

    def imbalance_of(self, phase: str) -> float:
        """The slowest rank's time for a phase over the mean of all ranks, less 1; 0 where nobody takes any time."""
        mean = float(self.phases[:, _NUMBER[phase]].mean())
        return float(self.excess[_NUMBER[phase]]) / mean if mean else 0.0


def _move(row: list[float], source: str, target: str, seconds: float) -> None:
    """Count some seconds of a phase as another."""
    part = min(seconds, row[_NUMBER[source]])
    row[_NUMBER[source]] -= part
    row[_NUMBER[target]] += part


def _seconds(began: float, ended: float) -> float:
    return ended - began


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _event_seconds(began: torch.cuda.Event, ended: torch.cuda.Event) -> float:
    ended.synchronize()
    return 1e-3 * began.elapsed_time(ended)
