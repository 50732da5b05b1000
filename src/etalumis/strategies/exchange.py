"""Joining the gradients of all ranks to one step (SC'19, section 4.4.4).

A network has a layer for each of thousands of addresses, and the minibatch of a rank meets a few of them: ranks sum
what any of them has (:mod:`.union`), and nothing else. With mean gradients g_r over n_r traces, every rank ends with
Σ g_r n_r / Σ n_r, as if the joined minibatch had been one process's.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import NamedTuple

import torch

from etalumis.optim.parts import Parts
from etalumis.strategies.collective import Collective, CollectiveError
from etalumis.strategies.union import Compression, Joined, Union


class Exchanged(NamedTuple):
    """What an exchange was.

    Attributes:
        traces: behind the joined gradient, of all ranks.
        loss: the mean over these traces.
        bytes: that this rank put into the agreement and the sum; an algorithm may send them more than once.
        rows: of banks, in the union.
        tensors: dense ones, in the union.
        waiting: seconds until all ranks had come: the imbalance between them.
        transfer: seconds for agreeing on the union, packing, summing and unpacking.
        hidden: seconds of all this behind the backward pass, in none of the others.
    """

    traces: int
    loss: float
    bytes: int
    rows: int
    tensors: int
    waiting: float
    transfer: float
    hidden: float = 0.0


class _Begun(NamedTuple):
    """What of an exchange was done behind the backward pass: since when, when all ranks had come, and what it took."""

    traces: int
    loss: float
    weight: float
    start: float
    met: float
    joined: Joined


class RowExchange:
    """The exchange of a network's gradients between the ranks of a job.

    Args:
        collective: the ranks.
        parts: the network's dense parameters and banks; what it gains by growing joins by itself.
        compression: ``bf16`` sends rounded numbers, half of the bytes, and sums them in float32; the sum is rounded,
            too, and has the same bits on all ranks. float64 gradients are never rounded.
        last: with what the names begin of those parts whose gradients a backward pass completes last. The others'
            may be exchanged meanwhile, by :meth:`begin`. All ranks must say the same; empty where nothing is to be.

    Raises:
        CollectiveError: there are parts that are ``last``, and the ranks can't talk behind a backward pass.
    """

    def __init__(self, collective: Collective, parts: Parts, compression: Compression = "none", last: str = "") -> None:
        if compression not in ("none", "bf16"):
            raise ValueError(f"compression={compression!r} must be none or bf16")
        if last and not collective.serves_threads:
            raise CollectiveError("strategy.overlap=true: this MPI serves one thread only; leave it false")
        self.collective, self.compression = collective, compression
        self.parts = Parts(parts.network)  # not the optimiser's, who looks out for news there
        self._first = Union(collective, self.parts, compression, lambda name: not (last and name.startswith(last)))
        self._last = Union(collective, self.parts, compression, lambda name: name.startswith(last)) if last else None
        self._begun: Future[_Begun] | None = None

    def begin(self, traces: int, factor: float = 1.0, loss: float = 0.0) -> None:
        """Begin the next exchange in a thread of its own: the gradients of all but the ``last`` parts are complete.

        Until the exchange is called with the same numbers, this thread may complete the others', and nothing else that
        ranks do together. Ranks that don't begin do all in that call: they may differ in this.
        """
        if not traces:
            return  # the others' are to be dropped, too
        self.parts.refresh()
        start = time.perf_counter()
        self._begun = _in_background(lambda: self._begin(traces, factor, loss, start))

    def __call__(self, traces: int, factor: float = 1.0, loss: float = 0.0) -> Exchanged:
        """Replace this rank's mean gradients by the mean over the traces of all ranks; collective.

        Dense gradients and the rows of banks become views of memory that the next exchange uses again, unless they
        still are gradients then. Rows are rising and the same on all ranks. What has no gradient here counts as 0, and
        nothing else is special: a NaN of one rank is every rank's.

        Args:
            traces: behind the gradients of this rank; with 0 they are dropped.
            factor: that makes the gradients of this rank the mean over its traces.
            loss: the sum over its traces, which travels along.

        Raises:
            CollectiveError: the networks of ranks differ, or ranks don't come.
        """
        if traces < 0:
            raise ValueError(f"traces={traces} must be at least 0")
        self.parts.refresh()
        for device in {parameter.device for parameter in self.parts.dense.values() if parameter.is_cuda}:
            torch.cuda.synchronize(device)  # a backward pass at work is not waiting for others
        start = time.perf_counter()
        begun, self._begun = self._begun, None
        first = self._begin(traces, factor, loss, start) if begun is None else begun.result()
        joined = [first.joined]
        waiting = max(first.met - start, 0.0)
        if self._last is not None:
            began = time.perf_counter()
            joined.append(self._last.join(first.weight))
            waiting += joined[-1].agreed - began  # nothing brought the ranks together since the others' gradients
        return Exchanged(
            traces=first.traces,
            loss=first.loss,
            bytes=sum(one.bytes for one in joined),
            rows=sum(one.rows for one in joined),
            tensors=sum(one.tensors for one in joined),
            waiting=waiting,
            transfer=max(joined[-1].ended - start, 0.0) - waiting,
            hidden=max(min(start, first.joined.ended) - first.start, 0.0),
        )

    def _begin(self, traces: int, factor: float, loss: float, start: float) -> _Begun:
        """All but the last parts."""
        if not traces:
            self._drop()
        total, losses = self._meet(traces, loss)
        met = time.perf_counter()
        weight = factor * traces / max(total, 1)
        return _Begun(total, losses / max(total, 1), weight, start, met, self._first.join(weight))

    def _drop(self) -> None:
        """Gradients of no traces: nobody else would have them."""
        for parameter in self.parts.dense.values():
            parameter.grad = None
        for bank in self.parts.banks.values():
            bank.clear_gradient()

    def _meet(self, traces: int, loss: float) -> tuple[int, float]:
        """All ranks' traces and losses together, after a look at whether their networks are alike."""
        words = json.dumps(self._network(), sort_keys=True).encode()
        digest = int.from_bytes(hashlib.blake2b(words, digest_size=7).digest(), "big")
        bits = int(torch.tensor(loss, dtype=torch.float64).view(torch.int64))
        everyone = self.collective.all_gather(torch.tensor([digest, traces, bits]))
        if bool((everyone[:, 0] != digest).any()):
            raise CollectiveError(_difference([json.loads(one) for one in self.collective.all_gather_bytes(words)]))
        return int(everyone[:, 1].sum()), float(everyone[:, 2].contiguous().view(torch.float64).sum())

    def _network(self) -> dict[str, str]:
        """What must be alike on all ranks."""
        dense = {name: f"{tuple(p.shape)} {p.dtype} {p.stride()}" for name, p in self.parts.dense.items()}
        banks = {name: f"{len(bank)} rows {bank.shape} {bank.dtype}" for name, bank in self.parts.banks.items()}
        return dense | banks


def _in_background(work: Callable[[], _Begun]) -> Future[_Begun]:
    """In a thread that keeps no process alive: ranks that wait in vain must be able to end."""
    future: Future[_Begun] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # whoever asks for the result is told
            future.set_exception(error)

    Thread(target=run, name="exchange", daemon=True).start()
    return future


def _difference(networks: list[dict[str, str]]) -> str:
    """Which ranks differ from rank 0, and in what first."""
    first = networks[0]
    ranks = [rank for rank, network in enumerate(networks) if network != first]
    other = networks[ranks[0]]
    name = next(name for name in sorted(first.keys() | other.keys()) if first.get(name) != other.get(name))
    return (
        f"the networks of ranks differ: {name} is {first.get(name, 'missing')} on rank 0, "
        f"{other.get(name, 'missing')} on rank {ranks[0]}; different from rank 0 are ranks {ranks}. Build "
        "them from the same settings, and grow them by the same addresses, in one order, on all ranks before the step"
    )
