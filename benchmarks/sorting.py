"""What sorting by trace type gains: training steps on unsorted and sorted data, with the packed loss and without.

    python -m benchmarks.sorting --json [--quick]

Data with many trace types: τ decays, and Pythia's with matrix elements and every draw controlled. "Algorithm 1" is
the paper's: a minibatch is cut into sub-minibatches of one trace type each, which go through the same network one
after the other. Its cost is what sorting saves; the packed loss takes a minibatch as it comes. One thread; packing,
fresh noise, loss, backward pass, clipping and optimiser count.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

import etalumis as et
from benchmarks.common import Measure, Result, Settings, compare, main, rate
from etalumis.conf.compose import compose, plain
from etalumis.datamodules.reading import Reader
from etalumis.datamodules.traces import TracesDataModule
from etalumis.execution import TraceBatch
from etalumis.networks import InferenceNetwork, pack
from etalumis.networks.memory import keep_freed_memory
from etalumis.optim import RowAdam, clip_grad_norm
from etalumis.simulators.pythia_tau import PythiaTau
from etalumis.simulators.tau import Tau
from etalumis.storage import simulate, sort

MINIBATCH = 256
CLIP = 10.0
TRACES = {"tau": (16_384, 2048), "pythia": (4096, 0)}  # full and quick; Pythia takes its time
STEPS = {"packed": (12, 3), "algorithm1": (2, 1)}
MODELS: dict[str, Callable[[], et.Model]] = {
    "tau": lambda: et.Model(Tau(), name="tau"),
    "pythia": lambda: et.Model(PythiaTau(mode=2, control="all"), name="pythia_tau"),
}


class Training:
    """A network of the preset ``tau`` and its optimiser."""

    def __init__(self, data: TracesDataModule) -> None:
        config = plain(compose("train", ["network=tau", "data.train=x"]))["network"]
        self.network = InferenceNetwork.for_batches(config, data.batches(), simulator=data.model)
        self._optimizer = RowAdam(self.network, lr=1e-3)

    def packed(self, traces: TraceBatch) -> None:
        """One step of the packed loss."""
        self._optimizer.zero_grad()
        self._backward(traces, 1.0)
        self._finish()

    def algorithm1(self, traces: TraceBatch) -> None:
        """The same step, trace type by trace type."""
        self._optimizer.zero_grad()
        types = traces.trace_types()
        for kind in np.unique(types):
            alike = traces.select(types == kind)
            self._backward(alike, len(alike) / len(traces))
        self._finish()

    def _backward(self, traces: TraceBatch, share: float) -> None:
        loss, _ = self.network.loss(pack(traces, self.network.layout))
        (share * loss).backward()  # type: ignore[no-untyped-call]

    def _finish(self) -> None:
        clip_grad_norm(self._optimizer, CLIP)
        self._optimizer.step()


def stepping(step: Callable[[TraceBatch], None], data: TracesDataModule, steps: int) -> Measure:
    """Traces per second over minibatches of the training's own order, read before."""
    reader = Reader(data.train_data, cache_mb=2048)
    batches = cycle([reader.minibatch(pieces) for pieces in data.order.epoch(0)[0][:32]])

    def work(count: int) -> None:
        for _ in range(count):
            step(next(batches))

    measure = rate(work, steps)
    return lambda: MINIBATCH * measure()


def results(settings: Settings) -> Iterator[Result]:
    torch.set_num_threads(1)
    keep_freed_memory()
    for name, make in MODELS.items():
        if not TRACES[name][settings.quick]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            yield from of_model(name, make, Path(folder), settings)


def of_model(name: str, make: Callable[[], et.Model], folder: Path, settings: Settings) -> Iterator[Result]:
    """All comparisons on the traces of one simulator."""
    simulate(make, folder / "plain", TRACES[name][settings.quick], model=make().name, workers=0)
    sort([folder / "plain"], folder / "sorted", workers=0)
    data = {order: TracesDataModule(folder / order, batch_size=MINIBATCH, workers=0) for order in ("plain", "sorted")}
    training = Training(data["plain"])

    def measure(algorithm: str, order: str) -> Measure:
        step: Any = getattr(training, algorithm)
        return stepping(step, data[order], STEPS[algorithm][settings.quick])

    def against(label: str, ours: Measure, theirs: Measure) -> Result:
        return compare(
            f"{name}_{label}", ours, theirs, unit="traces/s", target=None, settings=settings, note=describe(data)
        )

    yield against("packed_sorted_vs_unsorted", measure("packed", "sorted"), measure("packed", "plain"))
    yield against("algorithm1_sorted_vs_unsorted", measure("algorithm1", "sorted"), measure("algorithm1", "plain"))
    yield against("packed_vs_algorithm1_unsorted", measure("packed", "plain"), measure("algorithm1", "plain"))
    yield against("packed_vs_algorithm1_sorted", measure("packed", "sorted"), measure("algorithm1", "sorted"))


def describe(data: dict[str, TracesDataModule]) -> str:
    """How many types a minibatch holds."""
    counts = []
    for order in ("sorted", "plain"):
        reader = Reader(data[order].train_data, cache_mb=2048)
        some = [reader.minibatch(pieces) for pieces in data[order].order.epoch(0)[0][:8]]
        counts.append(f"{np.mean([len(np.unique(traces.trace_types())) for traces in some]):.0f} {order}")
    return f"trace types in a minibatch of {MINIBATCH}: {', '.join(counts).replace('plain', 'unsorted')}"


if __name__ == "__main__":
    sys.exit(main("sorting", results))
