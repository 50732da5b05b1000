"""A rank of ``benchmarks.overlap``: rank 0 prints a line of JSON for each result."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict

import torch

from benchmarks.common import Result, Settings, compare, significant
from benchmarks.conv3d import OUTPUT, SHAPE
from benchmarks.workload import COMPONENTS, HIDDEN, addresses, traces
from etalumis.networks import InferenceNetwork, pack
from etalumis.networks.memory import keep_freed_memory
from etalumis.optim.parts import Parts
from etalumis.strategies.exchange import Exchanged, RowExchange
from etalumis.strategies.torch_distributed import TorchCollective

KINDS = 60
TRACES = 4  # of each rank: 0.8 s on a core
ITERATIONS = 3  # to a measure


class Rank:
    """Iterations of this rank, with the exchange behind the backward pass or after it."""

    def __init__(self) -> None:
        self.ranks = TorchCollective("gloo")
        config = {
            "core": {"kind": "lstm", "hidden": HIDDEN},
            "components": COMPONENTS,
            "head": {"kind": "per_address"},
            "observation_embedding": OUTPUT,
            "observations": {"detector": {"kind": "cnn3d"}},
        }
        self.network = InferenceNetwork(config, {"detector": SHAPE})
        self.network.grow(addresses(range(KINDS)))
        batch = traces([self.ranks.rank] * TRACES, 1 + self.ranks.rank, SHAPE)
        self.network.standardise(batch)
        self.minibatch = pack(batch, self.network.layout)
        parts, last = Parts(self.network), self.network.LAST_GRADIENTS
        self.exchange = {overlap: RowExchange(self.ranks, parts, last=last if overlap else "") for overlap in (0, 1)}
        self.done: dict[int, list[Exchanged]] = {0: [], 1: []}

    def rate(self, overlap: int) -> Callable[[], float]:
        """Iterations a second of the slower rank."""
        exchange = self.exchange[overlap]

        def measure() -> float:
            self.ranks.barrier()
            start = time.perf_counter()
            for _ in range(ITERATIONS):
                self.network.zero_grad()
                self.network.before_last_gradients = (lambda: exchange.begin(TRACES)) if overlap else None
                self.network.loss(self.minibatch)[0].backward()  # type: ignore[no-untyped-call]
                self.done[overlap].append(exchange(TRACES))
            taken = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
            return ITERATIONS / float(self.ranks.all_reduce(taken, "max"))

        return measure

    def results(self, settings: Settings) -> list[Result]:
        for overlap in (0, 1):
            self.rate(overlap)()
            self.done[overlap].clear()
        sent = self.exchange[0](TRACES).bytes / 1e6
        ours, theirs = self.rate(1), self.rate(0)
        note = f"{TRACES} traces of 20×35×35 voxels a rank, {sent:.0f} MB exchanged"
        first = compare(
            "overlap_vs_after", ours, theirs, unit="iterations/s", target=None, settings=settings, note=note
        )
        hidden, visible = statistics.median(done.hidden for done in self.done[1]), self._visible(1)
        share = Result(
            "hidden_share",
            significant(hidden / (hidden + visible)),
            None,
            significant(visible),
            significant(self._visible(0)),
            "s of an exchange that an iteration waits for",
            len(self.done[1]),
            "exchange and waiting for the other rank, medians of rank 0",
        )
        return [first, share]

    def _visible(self, overlap: int) -> float:
        """Seconds of an exchange that are left when the backward pass is over."""
        return statistics.median(done.waiting + done.transfer for done in self.done[overlap])


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overlap_ranks")
    parser.add_argument("--quick", action="store_true")
    rank = Rank()
    found = rank.results(Settings(quick=parser.parse_args().quick))
    if rank.ranks.rank == 0:
        for result in found:
            print(json.dumps(asdict(result)), flush=True)
    rank.ranks.barrier()
    rank.ranks.close()


if __name__ == "__main__":
    main()
