"""The processes of one job that a launcher (``mpirun``, ``srun``) started, and how they agree.

Only a few words travel between them: data goes through the file system that they share.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from etalumis.storage.errors import DatasetError

_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS")
# RANK is torchrun's, which srun may have started once on each node.
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "RANK", "SLURM_PROCID")
_PROGRESS = 1  # tag of messages
_PAUSE_S = 0.02  # MPI itself waits at full load


def launched_by_mpi() -> int:
    """How many ranks the launcher of this process says it started; 1 where none did."""
    return max(int(os.environ.get(name) or 1) for name in _SIZES)


def launched_rank() -> int:
    """Which of them this process is, as far as its environment tells before the ranks have met; 0 where it is alone."""
    return next((int(os.environ[name]) for name in _RANKS if os.environ.get(name)), 0)


class RankError(DatasetError):
    """Another rank failed; the message says which and how."""


class Ranks:
    """This process among those of its job; alone where no launcher started it.

    Attributes:
        rank, size: which of how many.
        communicator: of mpi4py; None where this process is alone.
    """

    def __init__(self, communicator: Any = None) -> None:
        self.communicator = communicator
        self.rank = 0 if communicator is None else int(communicator.Get_rank())
        self.size = 1 if communicator is None else int(communicator.Get_size())
        self._sent: list[Any] = []  # messages on their way
        self._telling = self.size - 1  # ranks that rank 0 hears of

    @classmethod
    def of_job(cls) -> Ranks:
        """The ranks of the job that this process was launched in.

        Raises:
            DatasetError: there are several and mpi4py is not installed, or does not see them.
        """
        launched = launched_by_mpi()
        if launched < 2:
            return cls()
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise DatasetError(
                "several ranks were launched and mpi4py is not here: pip install 'etalumis[mpi]'"
            ) from error
        ranks = cls(MPI.COMM_WORLD)
        if ranks.size == 1:  # each would do all the work, in the same folder
            raise DatasetError(
                f"{launched} ranks were launched, but each sees itself alone: the launcher and the MPI library of "
                "mpi4py don't belong together. Use the mpirun of that library, tell srun its kind (srun --mpi=pmix), "
                "or build mpi4py for the system's MPI"
            )
        return ranks

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        return value if self.communicator is None else self.communicator.bcast(value, root=0)

    def all(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        return [value] if self.communicator is None else list(self.communicator.allgather(value))

    def agree(self, error: Exception | None) -> None:
        """Wait for all ranks; raises where one of them failed, so that none goes on, or waits, alone.

        Raises:
            RankError: another rank failed. ``error`` itself is raised where it is this one's.
        """
        self._meet()
        failures = self.all(repr(error) if error else None)
        if error is not None:
            raise error
        for rank, failure in enumerate(failures):
            if failure is not None:
                raise RankError(f"rank {rank} of {self.size} failed: {failure}")

    def tell(self, amount: int | None) -> None:
        """Let rank 0 know of progress, without waiting for it; None says that no more is to come."""
        if self.rank > 0:
            self._sent = [request for request in self._sent if not request.Test()]
            self._sent.append(self.communicator.isend(amount, dest=0, tag=_PROGRESS))

    def heard(self) -> list[int]:
        """What other ranks told since the last time; on rank 0."""
        amounts: list[int] = []
        while self.rank == 0 and self._telling and self.communicator.iprobe(tag=_PROGRESS):
            amount = self.communicator.recv(tag=_PROGRESS)
            if amount is None:
                self._telling -= 1
            else:
                amounts.append(amount)
        return amounts

    def finish_telling(self) -> Iterator[int]:
        """This rank has nothing more to tell; on rank 0, what the others tell until they have not either."""
        self.tell(None)
        while self.rank == 0 and self._telling:
            yield from self.heard()
            time.sleep(_PAUSE_S)

    def meet(self) -> None:
        """Wait for all ranks, leaving the core to others meanwhile."""
        if self.communicator is not None:
            self._meet()
            self._wait(lambda: all(request.Test() for request in self._sent))

    def abort(self) -> None:
        """End the whole job, at once: another rank may be waiting for this one."""
        if self.communicator is not None:
            self.communicator.Abort(1)

    def _meet(self) -> None:
        """Unlike MPI's own waiting, this leaves the core to others, and an interruption is heard."""
        if self.communicator is not None:
            self._wait(self.communicator.Ibarrier().Test)

    @staticmethod
    def _wait(done: Callable[[], bool]) -> None:
        while not done():
            time.sleep(_PAUSE_S)
