"""A rank of ``benchmarks.allreduce``: ``python -m benchmarks.allreduce_ranks mpi|gloo [--quick] [--kinds N]``.

Rank 0 prints a line of JSON for each result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.common import Measure, Result, Settings, compare, significant
from benchmarks.workload import COMPONENTS, DRAWS, HIDDEN, MINIBATCH, SIZE, addresses, traces
from etalumis.networks import InferenceNetwork, pack
from etalumis.networks.banks import RowGrad
from etalumis.networks.memory import keep_freed_memory
from etalumis.optim.parts import Parts
from etalumis.strategies.collective import Collective
from etalumis.strategies.exchange import Compression, RowExchange
from etalumis.strategies.mpi import MPICollective
from etalumis.strategies.torch_distributed import TorchCollective

EXCHANGES = 5  # short ones, of which a measure is the median


class Job:
    """The ranks, and how they take times: that of the slowest."""

    def __init__(self, library: str, settings: Settings, kinds: int) -> None:
        self.library, self.settings, self.kinds = library, settings, kinds
        self.ranks: Collective = MPICollective() if library == "mpi" else TorchCollective("gloo")
        self.sum_in_place = _mpi_sum() if library == "mpi" else dist.all_reduce

    def milliseconds(self, work: Callable[[], object], prepare: Callable[[], object], times: int = 1) -> Measure:
        def measure() -> float:
            seconds = []
            for _ in range(times):
                prepare()
                self.ranks.barrier()
                start = time.perf_counter()
                work()
                taken = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
                seconds.append(float(self.ranks.all_reduce(taken, "max")))
            return 1e3 * statistics.median(seconds)

        return measure

    def compare(self, name: str, ours: Measure, theirs: Measure, target: float | None, note: str) -> Result:
        return compare(
            name, ours, theirs, unit="ms", target=target, settings=self.settings, smaller_is_better=True, note=note
        )


class Gradients:
    """The gradient of one minibatch of this rank, to be joined again and again."""

    def __init__(self, job: Job, head: str) -> None:
        config = {"core": {"kind": "lstm", "hidden": HIDDEN}, "components": COMPONENTS, "head": {"kind": head}}
        self.job = job
        self.network = InferenceNetwork(config, {"y": (SIZE,)})
        self.network.grow(addresses(range(job.kinds)))
        self.parts = Parts(self.network)
        self.dense: dict[str, Tensor] = {}
        self.rows: dict[str, RowGrad] = {}

    def backward(self, kinds: Sequence[int]) -> None:
        batch = traces(kinds, seed=self.job.ranks.rank)
        self.clear()
        self.network.standardise(batch)
        self.network.loss(pack(batch, self.network.layout))[0].backward()  # type: ignore[no-untyped-call]
        self.dense = {name: p.grad for name, p in self.parts.dense.items() if p.grad is not None}
        self.rows = {name: bank.gradient for name, bank in self.parts.banks.items() if bank.gradient is not None}

    def clear(self) -> None:
        for parameter in self.parts.dense.values():
            parameter.grad = None
        for bank in self.parts.banks.values():
            bank.clear_gradient()

    def restore(self) -> None:
        self.clear()
        for name, gradient in self.dense.items():
            self.parts.dense[name].grad = gradient
        for name, rows in self.rows.items():
            self.parts.banks[name].gradient = rows

    def exchange(self, compression: Compression = "none") -> tuple[Measure, int]:
        """Our measure, and the bytes of an exchange."""
        exchange = RowExchange(self.job.ranks, self.parts, compression)
        self.restore()
        sent = exchange(MINIBATCH).bytes
        return self.job.milliseconds(lambda: exchange(MINIBATCH), self.restore, EXCHANGES), sent

    def every_tensor(self) -> tuple[Measure, int]:
        """Theirs, and its bytes: each tensor of each address's layers on its own, zeros where this minibatch has none.

        Only the sums are measured: setting those zeros, which every step would have to, is a gift.
        """
        everything = [torch.zeros_like(p) for p in self.parts.dense.values()]
        for name, p in self.dense.items():
            everything[list(self.parts.dense).index(name)].copy_(p)
        for name, bank in self.parts.banks.items():
            whole = torch.zeros(len(bank), *bank.shape)
            if name in self.rows:
                whole[self.rows[name].ids] = self.rows[name].rows
            everything += whole.unbind(0)

        def work() -> None:
            for tensor in everything:
                self.job.sum_in_place(tensor)

        return self.job.milliseconds(work, lambda: None), sum(t.numel() * t.element_size() for t in everything)


def results(job: Job) -> Iterator[Result]:
    size = job.ranks.world_size
    suffix = f"{size}" if job.library == "mpi" else f"{size}_{job.library}"
    gradients = Gradients(job, "per_address")
    gradients.backward([job.ranks.rank] * MINIBATCH)
    (ours, sent), (theirs, everything) = gradients.exchange(), gradients.every_tensor()
    shares = f"{sent / 1e6:.0f} of {everything / 1e6:.0f} MB"
    note = f"{job.kinds * DRAWS} addresses, one type with {DRAWS} draws per rank; {shares}"
    yield job.compare(f"packed_vs_per_tensor_{suffix}", ours, theirs, 4.0, note)
    plain = torch.zeros(sent // 4)
    floor = job.milliseconds(lambda: job.sum_in_place(plain), lambda: None, EXCHANGES)
    yield job.compare(f"packed_vs_plain_sum_{suffix}", ours, floor, None, "theirs: one sum of as many bytes")
    if size > 2 or job.library != "mpi":
        return
    yield Result(
        "bytes_share",
        significant(sent / everything),
        None,
        float(sent),
        float(everything),
        "bytes",
        1,
        "of what a rank puts into the sums",
    )
    half, _ = gradients.exchange("bf16")
    yield job.compare(f"bf16_vs_float32_{suffix}", half, ours, None, "half of the bytes, in shared memory")
    gradients.backward(np.random.default_rng(job.ranks.rank).integers(job.kinds, size=MINIBATCH).tolist())
    (ours, sent), (theirs, everything) = gradients.exchange(), gradients.every_tensor()
    note = f"{MINIBATCH} traces of random types per rank; {sent / 1e6:.0f} of {everything / 1e6:.0f} MB"
    yield job.compare(f"packed_vs_per_tensor_{suffix}_mixed", ours, theirs, None, note)
    gradients = Gradients(job, "film")
    gradients.backward([job.ranks.rank] * MINIBATCH)
    (ours, sent), (theirs, everything) = gradients.exchange(), gradients.every_tensor()
    note = f"one type per rank, the default head; {sent / 1e6:.0f} of {everything / 1e6:.0f} MB"
    yield job.compare(f"packed_vs_per_tensor_{suffix}_film", ours, theirs, None, note)


def _mpi_sum() -> Callable[[Tensor], None]:
    """MPI's own blocking sum: nothing of ours in the way."""
    from mpi4py import MPI

    def work(tensor: Tensor) -> None:
        MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, [tensor.view(-1).numpy(), MPI.FLOAT])

    return work


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as `etalumis train` does
    parser = argparse.ArgumentParser(prog="python -m benchmarks.allreduce_ranks")
    parser.add_argument("library", choices=("mpi", "gloo"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kinds", type=int, required=True, help=f"kinds of traces, of {DRAWS} addresses each")
    arguments = parser.parse_args()
    job = Job(arguments.library, Settings(quick=arguments.quick), arguments.kinds)
    for result in results(job):
        if job.ranks.rank == 0:
            print(json.dumps(asdict(result)), flush=True)
    job.ranks.close()


if __name__ == "__main__":
    main()
