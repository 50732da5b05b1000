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
_LATE = 0.25  # of the timeout: whoever has waited for so long says so
ASKED = (0, 1)  # to whom: two, as one may be what all wait for
_FEW = 16  # ranks to name
_GRACE_S = 2.0  # they are the first to give up, for they know who is missing


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
        serves_threads: whether another thread than the one that made it may call it, one at a time.
    """

    rank: int
    world_size: int
    timeout: float
    serves_threads = True
    _longest_pause = 2e-3  # seconds between two looks at whether the others have come
    _joined = 0  # collectives so far, the same number on all ranks that wait in the same one

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
        name = f"rank {self.rank} of {self.world_size}"
        print(message if message.startswith(name) else f"{name}: {message}", file=sys.stderr, flush=True)  # noqa: T201
        sys.stdout.flush()
        self._end_job()
        os._exit(1)

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """The words of all ranks, in order of rank; lengths may differ."""
        lengths = self.all_gather(torch.tensor([len(data)])).flatten().tolist()
        if not any(lengths):
            return [b""] * self.world_size
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
        start, said = time.monotonic(), False
        self._joined += 1
        limit = self.timeout if self.rank in ASKED else self.timeout + _GRACE_S
        while not done():
            waited = time.monotonic() - start
            if waited < _SPIN_S:
                os.sched_yield()
            elif waited < limit:
                if not said and waited > _LATE * self.timeout:
                    self._say(self._joined)
                    said = True
                time.sleep(min(waited / 10.0, self._longest_pause))
            else:
                who, verb = self._missing()
                raise CollectiveError(
                    f"rank {self.rank} of {self.world_size} waited {self.timeout:g} s in vain for {who} to join in "
                    f"{what}: {verb} gone or busy with something else; look at its output, or give more time "
                    "(strategy.timeout)"
                )

    def _missing(self) -> tuple[str, str]:
        """Who has not joined in what this rank waits for, and a verb; as far as this rank knows."""
        heard = {} if self.world_size == 2 else self._heard() if self.rank in ASKED else None
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        absent = [str(rank) for rank in others if heard is not None and heard.get(rank, 0) < self._joined]
        if not 0 < len(absent) <= _FEW:
            return "the others", "one of them is"
        return (f"rank {absent[0]}", "it is") if len(absent) == 1 else (f"ranks {', '.join(absent)}", "they are")

    def _say(self, joined: int) -> None:  # noqa: B027  # where ranks can't, nobody knows who is missing
        """Tell the ranks ``ASKED`` how many collectives this rank has joined in, without waiting for anything."""

    def _heard(self) -> dict[int, int] | None:
        """What ranks said last, without waiting; None where they can't."""
        return None


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def back(tensor: Tensor, whole: Tensor) -> Tensor:
    """``tensor`` with the numbers of the contiguous, or host's, copy that was made of it."""
    if whole.data_ptr() != tensor.data_ptr():
        tensor.detach().copy_(whole)
    return tensor


def as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor, as uint8 (bytes,)."""
    return tensor.view(-1).view(torch.uint8)
