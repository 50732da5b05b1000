"""The processes of one job that a launcher (``mpirun``, ``srun``) started, and how they agree.

Only a few words travel between them: data goes through the file system that they share.
"""

from __future__ import annotations

import os
from typing import Any

from etalumis.storage.errors import DatasetError

_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS")


class RankError(DatasetError):
    """Another rank failed; the message says which and how."""


class Ranks:
    """This process among those of its job; alone where no launcher started it.

    Attributes:
        rank, size: which of how many.
    """

    def __init__(self, communicator: Any = None) -> None:
        self._communicator = communicator
        self.rank = 0 if communicator is None else int(communicator.Get_rank())
        self.size = 1 if communicator is None else int(communicator.Get_size())

    @classmethod
    def of_job(cls) -> Ranks:
        """The ranks of the job that this process was launched in.

        Raises:
            DatasetError: there are several and mpi4py is not installed.
        """
        if not any(int(os.environ.get(name) or 1) > 1 for name in _SIZES):
            return cls()
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise DatasetError(
                "several ranks were launched and mpi4py is not here: pip install 'etalumis[mpi]'"
            ) from error
        return cls(MPI.COMM_WORLD)

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        return value if self._communicator is None else self._communicator.bcast(value, root=0)

    def agree(self, error: Exception | None) -> None:
        """Wait for all ranks; raises where one of them failed, so that none goes on, or waits, alone.

        Raises:
            RankError: another rank failed. ``error`` itself is raised where it is this one's.
        """
        failures = [repr(error) if error else None]
        if self._communicator is not None:
            failures = self._communicator.allgather(failures[0])
        if error is not None:
            raise error
        for rank, failure in enumerate(failures):
            if failure is not None:
                raise RankError(f"rank {rank} of {self.size} failed: {failure}")
