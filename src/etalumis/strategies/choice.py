"""The strategies that ``conf/strategy`` offers, and what launchers say of their ranks."""

from __future__ import annotations

import os

import torch

from etalumis.storage.ranks import launched_by_mpi
from etalumis.strategies.collective import TIMEOUT_S
from etalumis.strategies.mpi import MPICollective
from etalumis.strategies.strategy import RowStrategy
from etalumis.strategies.torch_distributed import TorchCollective
from etalumis.strategies.union import Compression


def mpi(compression: Compression = "none", overlap: bool = False, timeout: float = TIMEOUT_S) -> RowStrategy:
    """The ranks of ``mpirun`` or ``srun``, by mpi4py.

    Args:
        compression: of gradients on their way; see :class:`.RowExchange`.
        overlap: exchange gradients behind the backward pass; see :class:`.RowStrategy`.
        timeout: seconds that ranks wait for one another.

    Raises:
        CollectiveError: mpi4py is missing, or does not see the ranks that were launched.
    """
    return RowStrategy(MPICollective(timeout), compression, overlap)


def ddp_rows(
    backend: str | None = None,
    accelerator: str = "auto",
    compression: Compression = "none",
    overlap: bool = False,
    timeout: float = TIMEOUT_S,
) -> RowStrategy:
    """The ranks of ``torchrun`` or ``srun``, by torch.distributed.

    Args:
        backend: ``"gloo"`` or ``"nccl"``; None takes NCCL where the accelerator is graphics cards.
        accelerator: of the trainer.
        compression: of gradients on their way; see :class:`.RowExchange`.
        overlap: exchange gradients behind the backward pass; see :class:`.RowStrategy`.
        timeout: seconds that ranks wait for one another.

    Raises:
        CollectiveError: no ranks were launched, or they don't find each other.
    """
    if backend is None:
        backend = "nccl" if accelerator != "cpu" and torch.cuda.is_available() else "gloo"
    return RowStrategy(TorchCollective(backend, timeout), compression, overlap)


def launched_ranks() -> int:
    """How many ranks a launcher says it started; 1 where none did."""
    return max(launched_by_mpi(), int(os.environ.get("WORLD_SIZE") or 1))
