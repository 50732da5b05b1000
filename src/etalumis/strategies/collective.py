"""What the ranks of one job do together, whichever library carries it.

Tensors travel as they lie in memory, words as bytes: nothing is pickled, so that a rank never runs what another sent.
Every rank must call the same methods in the same order, with tensors of equal shape and dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NoReturn

import torch
from torch import Tensor

Op = Literal["sum", "max", "min"]
TIMEOUT_S = 1800.0  # longer than any rank's first epoch, checkpoint or validation should keep the others waiting


class CollectiveError(RuntimeError):
    """Ranks can't work together: a rank did not come within the time limit, or the launcher does not fit."""


class Collective(ABC):
    """The ranks of one job, of which this process is one.

    All methods but :meth:`abort` and :meth:`close` are collective: each rank waits for the others, for at most
    ``timeout`` seconds. While waiting, signals are heard: Ctrl-C raises KeyboardInterrupt here.

    Attributes:
        rank, world_size: which of how many.
        local_rank: which of those on this machine, for choosing a GPU.
        timeout: seconds to wait for other ranks.

    Raises:
        CollectiveError: other ranks did not come in time, or are gone.
    """

    rank: int
    world_size: int
    local_rank: int
    timeout: float

    @abstractmethod
    def all_reduce(self, tensor: Tensor, op: Op = "sum") -> Tensor:
        """Sum, maximum or minimum over the ranks, in place, and the same bits on all of them.

        Args:
            tensor: contiguous; float32, float64, int64, int32 or uint8; on the CPU or a GPU.

        Returns:
            ``tensor`` itself.
        """

    @abstractmethod
    def broadcast(self, tensor: Tensor, root: int = 0) -> Tensor:
        """The tensor of one rank, on all of them, in place; of any dtype, contiguous. Returns ``tensor``."""

    @abstractmethod
    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, (world_size, *shape), in order of rank; any dtype, equal shapes."""

    @abstractmethod
    def all_to_all(self, tensor: Tensor) -> Tensor:
        """Slice r of a tensor (world_size, …) goes to rank r; slice r of the result came from rank r. Any dtype."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait for all ranks."""

    @abstractmethod
    def abort(self, message: str) -> NoReturn:
        """Say the message, with this rank's number, on standard error and end the whole job at once.

        For when this rank can't go on while others wait for it. Not collective. Does not return.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what was taken; does not wait. Doing it twice does no harm."""

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """The words of all ranks, in order of rank; lengths may differ."""
        lengths = self.all_gather(torch.tensor([len(data)])).flatten().tolist()
        padded = torch.zeros(max(1, *lengths), dtype=torch.uint8)
        padded[: len(data)] = _bytes(data)
        return [row[:length].numpy().tobytes() for row, length in zip(self.all_gather(padded), lengths, strict=True)]

    def broadcast_bytes(self, data: bytes, root: int = 0) -> bytes:
        """The words of one rank, on all of them; what others pass does not matter."""
        length = int(self.broadcast(torch.tensor([len(data)]), root))
        words = _bytes(data) if self.rank == root else torch.empty(length, dtype=torch.uint8)
        return self.broadcast(words, root).numpy().tobytes() if length else b""


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
