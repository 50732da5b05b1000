"""What the ranks of one job do together, whichever library carries it.

Tensors travel as they lie in memory, words as bytes: nothing is pickled, so that a rank never runs what another sent.
Every rank must call the same methods in the same order, with tensors of equal shape and dtype.
"""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NoReturn

import torch
from torch import Tensor

Op = Literal["sum", "max", "min"]
TIMEOUT_S = 1800.0  # longer than any rank's first epoch, checkpoint or validation should keep the others waiting
_SPIN_S = 5e-4  # what takes less is not worth a sleep, whose end comes some 60 µs late
_LONGEST_PAUSE_S = 2e-3


class CollectiveError(RuntimeError):
    """Ranks can't work together: one did not come in time or is gone, the launcher or their networks don't fit."""


class Collective(ABC):
    """The ranks of one job, of which this process is one.

    All methods but :meth:`abort` and :meth:`close` are collective: each rank waits for the others, for at most
    ``timeout`` seconds, and raises CollectiveError where they don't come. While waiting, a rank leaves its core to
    others and hears signals: Ctrl-C raises KeyboardInterrupt there.

    Attributes:
        rank, world_size: which of how many.
        timeout: seconds to wait for other ranks.
    """

    rank: int
    world_size: int
    timeout: float

    @abstractmethod
    def all_reduce(self, tensor: Tensor, op: Op = "sum") -> Tensor:
        """Sum, maximum or minimum over the ranks, in place, with the same bits on all of them.

        Args:
            tensor: float32, float64, int64, int32 or uint8; on the CPU or a GPU.

        Returns:
            ``tensor`` itself.
        """

    @abstractmethod
    def broadcast(self, tensor: Tensor, root: int = 0) -> Tensor:
        """The tensor of one rank, on all of them, in place; of any dtype. Returns ``tensor``."""

    @abstractmethod
    def all_gather(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        """The tensors of all ranks, in order of rank.

        Args:
            tensor: of any dtype, of one shape on all ranks.
            out: contiguous memory for the result, of its shape, dtype and device; None takes fresh memory.

        Returns:
            (world_size, *shape).
        """

    @abstractmethod
    def all_to_all(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        """Slice r of a tensor (world_size, …) goes to rank r, slice r of the result came from rank r.

        Args:
            tensor: of any dtype.
            out: contiguous memory for the result, alike ``tensor`` and apart from it; None takes fresh memory.
        """

    @abstractmethod
    def barrier(self) -> None:
        """Wait for all ranks."""

    @abstractmethod
    def _end_job(self) -> None:
        """End the other ranks, if that can be done from here; this one ends right after."""

    @abstractmethod
    def close(self) -> None:
        """Release what was taken, without waiting for other ranks. Doing it twice does no harm."""

    def abort(self, message: str) -> NoReturn:
        """Say the message, with this rank's number, on standard error and end the whole job at once, with status 1.

        For when this rank can't go on while others may wait for it. Not collective; does not return.
        """
        print(f"rank {self.rank} of {self.world_size}: {message}", file=sys.stderr, flush=True)  # noqa: T201
        sys.stdout.flush()
        self._end_job()
        os._exit(1)

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """The words of all ranks, in order of rank; lengths may differ."""
        lengths = self.all_gather(torch.tensor([len(data)])).flatten().tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(data)] = _bytes(data)
        return [row[:length].numpy().tobytes() for row, length in zip(self.all_gather(padded), lengths, strict=True)]

    def broadcast_bytes(self, data: bytes, root: int = 0) -> bytes:
        """The words of one rank, on all of them; what others pass does not matter."""
        length = int(self.broadcast(torch.tensor([len(data)]), root))
        words = _bytes(data) if self.rank == root else torch.empty(length, dtype=torch.uint8)
        return bytes(self.broadcast(words, root).numpy().tobytes())

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        """Until ``done``: at first only yielding the core, then in pauses of a tenth of what was waited so far.

        Libraries wait at full load, deaf to signals, which starves ranks that share a core.

        Raises:
            CollectiveError: not done in time.
        """
        start = time.monotonic()
        while not done():
            waited = time.monotonic() - start
            if waited < _SPIN_S:
                os.sched_yield()
            elif waited < self.timeout:
                time.sleep(min(waited / 10.0, _LONGEST_PAUSE_S))
            else:
                raise CollectiveError(
                    f"rank {self.rank} of {self.world_size} waited {self.timeout:g} s in vain for the others to join "
                    f"in {what}: one of them is gone or busy with something else; look at their output, or give more "
                    "time (timeout)"
                )


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
