"""Collectives over torch.distributed: gloo for tensors on the CPU, NCCL for those on GPUs.

Under ``torchrun``, which tells the ranks about each other, or directly under SLURM's ``srun``.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from etalumis.strategies.collective import TIMEOUT_S, Collective, CollectiveError, Op, as_bytes, back

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
# Its name before torch 2.13.
_ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
# What gloo and NCCL say of a rank that is gone; not of more ranks than cards, or of memory that is full.
_LOST = re.compile(
    "(?i)clos|reset by peer|broken pipe|refused|timed? ?out|read error|write error|remote (error|process)|aborted"
)
_LATE_KEY = "etalumis/late/"  # key of ranks that waited long
_ANSWER_S = 1.0
_FIRST_PORT, _PORTS = 10_000, 22_000  # below those that systems give to outgoing connections


class Placement(NamedTuple):
    """Which of how many this process is, and where rank 0 listens.

    Attributes:
        rank, world_size: which of how many.
        address: of rank 0: ``tcp://host:port``, or ``env://`` where the environment says it.
    """

    rank: int
    world_size: int
    address: str

    @classmethod
    def of_job(cls) -> Placement:
        """What torchrun's environment says, else SLURM's.

        Raises:
            CollectiveError: neither says anything.
        """
        here = os.environ
        if "RANK" in here and "WORLD_SIZE" in here:
            return cls(int(here["RANK"]), int(here["WORLD_SIZE"]), "env://")
        if "SLURM_STEP_NUM_TASKS" not in here:  # of a job, but no step: a batch script, which is one process
            raise CollectiveError(
                "no ranks were launched: start the command with torchrun, or with srun under SLURM; those of mpirun "
                "take strategy=mpi"
            )
        host = here.get("MASTER_ADDR") or first_host(here.get("SLURM_STEP_NODELIST") or here["SLURM_JOB_NODELIST"])
        # Jobs on one machine, and steps of one job, must not meet.
        step = 31 * int(here.get("SLURM_JOB_ID", 0)) + int(here.get("SLURM_STEP_ID", 0))
        port = here.get("MASTER_PORT") or _FIRST_PORT + step % _PORTS
        return cls(int(here["SLURM_PROCID"]), int(here["SLURM_STEP_NUM_TASKS"]), f"tcp://{host}:{port}")


class TorchCollective(Collective):
    """The ranks of a torch.distributed job.

    Uses torch's process group where there is one already, else makes it and takes it down in :meth:`close`.

    Args:
        backend: ``gloo`` or ``nccl``, which carries tensors on GPUs, beside gloo for the others; None takes the second
            where there are GPUs.
        timeout: seconds to wait for other ranks.

    Raises:
        CollectiveError: no ranks were launched, or they don't find each other.
    """

    def __init__(self, backend: str | None = None, timeout: float = TIMEOUT_S) -> None:
        self.timeout = timeout
        self._made = not dist.is_initialized()
        if backend is None:
            backend = "nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        if self._made:
            _connect(Placement.of_job(), timeout, "cpu:gloo,cuda:nccl" if backend == "nccl" else backend)
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def all_reduce(self, tensor: Tensor, op: Op = "sum") -> Tensor:
        whole = tensor.detach().contiguous()
        self._finish(lambda: dist.all_reduce(whole, _OPERATIONS[op], async_op=True), "an all-reduce")
        return back(tensor, whole)

    def broadcast(self, tensor: Tensor, root: int = 0) -> Tensor:
        whole = tensor.detach().contiguous()
        words = as_bytes(whole)
        self._finish(lambda: dist.broadcast(words, root, async_op=True), f"a broadcast from rank {root}")
        return back(tensor, whole)

    def all_gather(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = tensor.new_empty((self.world_size, *tensor.shape))
        mine, theirs = as_bytes(tensor.detach().contiguous()), as_bytes(out)
        self._finish(lambda: _ALL_GATHER(theirs, mine, async_op=True), "an all-gather")
        return out

    def all_to_all(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        mine, theirs = as_bytes(tensor.detach().contiguous()), as_bytes(out)
        self._finish(lambda: dist.all_to_all_single(theirs, mine, async_op=True), "an all-to-all")
        return out

    def barrier(self) -> None:
        self.all_reduce(torch.zeros(1))

    def _end_job(self) -> None:
        """Nothing: the launcher ends the others when this rank fails."""

    def close(self) -> None:
        if self._made and dist.is_initialized():
            dist.destroy_process_group()

    def _say(self, joined: int) -> None:
        self._ask(lambda store: store.set(f"{_LATE_KEY}{self.rank}", str(joined)))

    def _heard(self) -> dict[int, int] | None:
        heard: dict[int, int] = {}

        def ask(store: Any) -> None:
            for rank in range(self.world_size):
                if store.check([f"{_LATE_KEY}{rank}"]):
                    heard[rank] = int(store.get(f"{_LATE_KEY}{rank}"))

        asking = self._ask(ask)
        asking.join(_ANSWER_S)
        return None if asking.is_alive() else heard

    @staticmethod
    def _ask(what: Callable[[Any], Any]) -> threading.Thread:
        """Something of the store by which ranks found each other; rank 0 may keep it, and may be what hangs."""

        def ask() -> None:
            with suppress(RuntimeError):  # it is gone
                what(dist.distributed_c10d._get_default_store())

        asking = threading.Thread(target=ask, name="store", daemon=True)
        asking.start()
        return asking

    def _finish(self, start: Callable[[], Any], what: str) -> None:
        """Torch's own waiting would not let Python hear signals."""
        try:
            work = start()
            if work is not None:
                self._wait(work.is_completed, what)
                work.wait()
        except CollectiveError:
            raise
        except RuntimeError as error:
            reason = str(error).partition(". This is typically")[0]  # gloo's text goes on with guesses
            here = f"rank {self.rank} of {self.world_size}"
            if not _LOST.search(reason):
                raise CollectiveError(f"{here}: {what} failed ({reason})") from error
            raise CollectiveError(
                f"{here} lost another in {what}: it failed or was killed, as its output or the launcher says ({reason})"
            ) from error


def first_host(hosts: str) -> str:
    """The first of SLURM's compressed list of hosts: ``node[017-020,033],login1`` begins with node017."""
    first = re.split(r",(?![^\[]*\])", hosts)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def _connect(where: Placement, timeout: float, backend: str) -> None:
    limit = timedelta(seconds=timeout)
    try:
        store, rank, world_size = next(rendezvous(where.address, where.rank, where.world_size, timeout=limit))
        store.set_timeout(limit)
        # Ranks that torchrun starts again may meet in the store of those before, and must not read where those were.
        store = PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, None, limit, world_size, rank, store)
    except (RuntimeError, ValueError) as error:
        raise CollectiveError(
            f"rank {where.rank} of {where.world_size} does not find the others at {where.address}: start "
            "all ranks with one torchrun or srun, and let the machines reach each other at MASTER_ADDR and "
            f"MASTER_PORT ({error})"
        ) from error
