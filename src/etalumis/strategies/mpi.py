"""Collectives over MPI, by mpi4py's buffer calls: under ``mpirun`` and ``srun``."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from etalumis.storage.errors import DatasetError
from etalumis.storage.ranks import Ranks, launched_by_mpi
from etalumis.strategies.collective import (
    ASKED,
    TIMEOUT_S,
    Collective,
    CollectiveError,
    Op,
    as_bytes,
    back,
)

_TYPES = {
    torch.float32: "FLOAT",
    torch.float64: "DOUBLE",
    torch.int64: "INT64_T",
    torch.int32: "INT32_T",
    torch.uint8: "UINT8_T",
}
_OPERATIONS: dict[Op, str] = {"sum": "SUM", "max": "MAX", "min": "MIN"}
# Large messages: MPI's blocking algorithms are up to five times as fast as its nonblocking ones, which can be waited
# for politely. So all ranks meet politely first, and then nobody waits long in a blocking call. Signals are heard
# between two pieces.
_LARGE_BYTES = 1 << 16
_PIECE_BYTES = 1 << 26
_LOOK_S = 5.0  # between two looks at a call that nothing can interrupt
_HEARD_S = 0.2  # for mpirun to pass on what was said: it may not after the end
_LATE_TAG = 1  # tag of messages


class MPICollective(Collective):
    """The ranks of an MPI job. Tensors on a GPU travel through memory of the host, for sums and broadcasts pinned.

    Args:
        timeout: seconds to wait for other ranks. Where one is lost while data flows, the others can't be called back
            to Python, and the job ends by :meth:`abort`.
        communicator: of mpi4py, of which a duplicate is used; None takes the whole job.

    Raises:
        CollectiveError: mpi4py is missing, or several ranks were launched but each sees itself alone.
    """

    # MPI carries messages while it is called only, and a barrier of many ranks is a chain of messages.
    _longest_pause = 2e-4

    def __init__(self, timeout: float = TIMEOUT_S, communicator: Any = None) -> None:
        if communicator is None:
            communicator = _of_job()
        from mpi4py import MPI

        self._mpi = MPI
        self._communicator = communicator.Dup()  # messages of others don't get in between
        self._requests: list[Any] = []  # hold the memory that they read and write, also after an interruption
        self._late: dict[int, int] = {}  # what ranks said last that waited long
        self._pinned = torch.empty(0, dtype=torch.uint8)
        self.rank = int(communicator.Get_rank())
        self.world_size = int(communicator.Get_size())
        self.timeout = timeout
        self.serves_threads = MPI.Query_thread() >= MPI.THREAD_SERIALIZED
        self._watch = _Watch(timeout, self.abort)

    def all_reduce(self, tensor: Tensor, op: Op = "sum") -> Tensor:
        kind, operation = getattr(self._mpi, _TYPES[tensor.dtype]), getattr(self._mpi, _OPERATIONS[op])
        host = self._host(tensor)
        flat, size = host.view(-1).numpy(), host.element_size()
        if flat.nbytes <= _LARGE_BYTES:
            request = self._communicator.Iallreduce(self._mpi.IN_PLACE, [flat, kind], operation)
            self._finish(request, "an all-reduce")
            return back(tensor, host)
        self._finish(self._communicator.Ibarrier(), "an all-reduce")
        for start in range(0, flat.size, _PIECE_BYTES // size):
            piece = flat[start : start + _PIECE_BYTES // size]
            with self._watch.over("an all-reduce"):
                self._communicator.Allreduce(self._mpi.IN_PLACE, [piece, kind], operation)
        return back(tensor, host)

    def broadcast(self, tensor: Tensor, root: int = 0) -> Tensor:
        host = self._host(tensor)
        flat = _words(host)
        self._carry(
            flat.nbytes,
            lambda: self._communicator.Ibcast([flat, self._mpi.BYTE], root),
            lambda: self._communicator.Bcast([flat, self._mpi.BYTE], root),
            f"a broadcast from rank {root}",
        )
        return back(tensor, host)

    def all_gather(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = tensor.new_empty((self.world_size, *tensor.shape))
        mine, all_of_them = _words(tensor.detach().cpu().contiguous()), out.cpu()
        send, receive = [mine, self._mpi.BYTE], [_words(all_of_them), self._mpi.BYTE]
        self._carry(
            mine.nbytes,
            lambda: self._communicator.Iallgather(send, receive),
            lambda: self._communicator.Allgather(send, receive),
            "an all-gather",
        )
        return back(out, all_of_them)

    def all_to_all(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        mine, theirs = _words(tensor.detach().cpu().contiguous()), out.cpu()
        send, receive = [mine, self._mpi.BYTE], [_words(theirs), self._mpi.BYTE]
        self._carry(
            mine.nbytes,
            lambda: self._communicator.Ialltoall(send, receive),
            lambda: self._communicator.Alltoall(send, receive),
            "an all-to-all",
        )
        return back(out, theirs)

    def barrier(self) -> None:
        self._finish(self._communicator.Ibarrier(), "a barrier")

    def _end_job(self) -> None:
        time.sleep(_HEARD_S)
        self._communicator.Abort(1)

    def close(self) -> None:
        """Nothing is given back before the end of the process, where MPI itself ends."""
        self._heard()  # no message is left on its way

    def _say(self, joined: int) -> None:
        for rank in ASKED:
            if rank != self.rank:
                message = [_words(torch.tensor([joined])), self._mpi.BYTE]
                self._requests.insert(0, self._communicator.Isend(message, rank, _LATE_TAG))

    def _heard(self) -> dict[int, int]:
        message, status = torch.zeros(1, dtype=torch.int64), self._mpi.Status()
        while self._communicator.Iprobe(tag=_LATE_TAG, status=status):
            self._communicator.Recv([_words(message), self._mpi.BYTE], status.Get_source(), _LATE_TAG)
            self._late[status.Get_source()] = int(message)
        return self._late

    def _carry(self, size: int, nonblocking: Callable[[], Any], blocking: Callable[[], None], what: str) -> None:
        """Small messages politely, large ones (of ``size`` bytes) fast once all ranks have come."""
        if size <= _LARGE_BYTES:
            self._finish(nonblocking(), what)
        else:
            self._finish(self._communicator.Ibarrier(), what)
            with self._watch.over(what):
                blocking()

    def _finish(self, request: Any, what: str) -> None:
        self._requests.append(request)
        self._wait(request.Test, what)
        self._requests.pop()

    def _host(self, tensor: Tensor) -> Tensor:
        """The tensor's numbers in contiguous memory of the CPU: its own, or a copy."""
        tensor = tensor.detach()
        if tensor.device.type == "cpu":
            return tensor.contiguous()
        size = tensor.numel() * tensor.element_size()
        if self._pinned.numel() < size:
            self._pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return self._pinned[:size].view(tensor.dtype).view(tensor.shape).copy_(tensor)


class _Watch:
    """Ends the job where a call of MPI that nothing can interrupt takes too long.

    Args:
        timeout: seconds.
        abort: ends the job with a message, from another thread.
    """

    def __init__(self, timeout: float, abort: Callable[[str], object]) -> None:
        self._timeout, self._abort = timeout, abort
        self._call: tuple[float, str] | None = None  # when the call at work should have ended, and what it is
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, what: str) -> Iterator[None]:
        """While a call is at work."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
            self._thread.start()
        self._call = time.monotonic() + self._timeout, what
        try:
            yield
        finally:
            self._call = None

    def _look(self) -> None:
        while True:
            time.sleep(min(self._timeout / 10.0, _LOOK_S))
            call = self._call
            if call is not None and time.monotonic() > call[0]:
                self._abort(
                    f"{call[1]} did not end in {self._timeout:g} s: another rank, or the network, is gone or hangs; "
                    "look at their output, or give more time (strategy.timeout)"
                )


def _words(tensor: Tensor) -> Any:
    """The bytes of a tensor on the CPU, as mpi4py takes them."""
    return as_bytes(tensor).numpy()


def _of_job() -> Any:
    """All ranks of this job, as mpi4py's communicator."""
    if launched_by_mpi() == 1 and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise CollectiveError(
            f"{os.environ['WORLD_SIZE']} ranks were launched, but not by MPI: take mpirun or srun in place of "
            "torchrun, or strategy=ddp_rows in place of strategy=mpi"
        )
    try:
        ranks = Ranks.of_job()
        from mpi4py import MPI
    except DatasetError as error:
        raise CollectiveError(str(error)) from error
    except ImportError as error:
        raise CollectiveError("MPI needs mpi4py: pip install 'etalumis[mpi]'") from error
    return MPI.COMM_WORLD if ranks.communicator is None else ranks.communicator
