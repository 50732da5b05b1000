"""Training the paper's whole network on one GPU: traces per second, and the share of what its matrix products reach.

    python -m benchmarks.gpu --json [--quick] [--profile PATH]
    python -m benchmarks.gpu --device cpu --quick            # tries the script where there is no GPU

3D CNN of 20 x 35 x 35 voxels, LSTM 512, mixtures of 10, τ decays with at most 25 proposed draws, over 1,000
addresses; matrix products in bf16 (autocast), TF32 off, Adam. A step is: minibatch from page-locked memory, noise drawn
on the device, loss, backward pass, optimiser. Packing is not in it: loader processes do it, ``packed_traces_per_s``
each. The flops that count are those of convolutions, linear layers of the CNN and LSTM, three times forward, without
the gradient of the image.

Without CUDA the results are null, with a note.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

import etalumis as et
from benchmarks import common
from benchmarks.common import Measure, Result, Settings, alternate, rate, significant, single
from benchmarks.conv3d import FIRST_LAYER_FLOPS
from etalumis.execution import AddressBook, TraceBatch, run
from etalumis.networks import InferenceNetwork, Layout, TrainingBatch, pack, rows_of
from etalumis.networks.autocast import has_bf16_products
from etalumis.networks.observations import CNN
from etalumis.optim import RowAdam
from etalumis.simulators.detector import Detector, scaled_noise
from etalumis.simulators.tau import Tau

TARGET = 28_000.0  # traces/s: 1,024 nodes on average in the paper
SHAPE = (20, 35, 35)
ADDRESSES, MOST_DRAWS, HIDDEN = 1000, 25, 512
CONFIG: dict[str, Any] = {
    "observations": {"detector": {"kind": "cnn3d"}},
    "core": {"kind": "lstm", "hidden": HIDDEN},
    "components": 10,
    "max_controlled": MOST_DRAWS,
}
SIZES, TRIAL_SIZES = (64, 256, 512, 1024), (2,)
RING = 4  # minibatches in turn
SQUARE, TRIAL_SQUARE = 8192, 256


class Workload:
    """A network with its optimiser, and traces to train it with.

    Args:
        device: where it runs.
        traces: how many to simulate.
        head: kind of head; None takes the default.
    """

    def __init__(self, device: torch.device, traces: TraceBatch, head: str | None = None) -> None:
        self.device, self.traces = device, traces
        config = CONFIG | ({} if head is None else {"head": {"kind": head}})
        self.network = InferenceNetwork.for_batch(config, traces, "tau").to(device)
        self.optimizer = RowAdam(self.network, lr=1e-4)
        self._generator = np.random.default_rng(0)
        self._bf16 = device.type != "cpu" or has_bf16_products()

    def packed(self, size: int) -> TrainingBatch:
        """A minibatch of traces at random."""
        rows = self._generator.choice(len(self.traces), size, replace=False)
        batch = pack(self.traces.select(rows), self.network.layout, noise_on_device=True)
        return batch.pin_memory() if self.device.type == "cuda" else batch

    def step(self, minibatch: TrainingBatch) -> None:
        """One training step."""
        batch = minibatch.to(self.device, non_blocking=True)
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            loss, _ = self.network.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def rate(self, ring: list[TrainingBatch], steps: int) -> Measure:
        """Traces per second of ``steps`` steps."""
        endless = cycle(ring)

        def measure() -> float:
            synchronize(self.device)
            start, traces = time.perf_counter(), 0
            for _ in range(steps):
                minibatch = next(endless)
                traces += minibatch.num_traces
                self.step(minibatch)
            synchronize(self.device)
            return traces / (time.perf_counter() - start)

        return measure

    def flops(self, ring: list[TrainingBatch]) -> float:
        """Of a trace, mean over minibatches."""
        embedding = next(module for module in self.network.modules() if isinstance(module, CNN))
        draws = sum(b.num_draws for b in ring) / sum(b.num_traces for b in ring)
        return 3 * embedding.flops - FIRST_LAYER_FLOPS + 3 * draws * 2 * 4 * HIDDEN * HIDDEN


def results(settings: Settings, device: torch.device | None, path: Path | None) -> Iterator[Result]:
    if device is None:
        note = "no CUDA device: not measured"
        yield Result("traces_per_s", None, TARGET, None, None, "traces/s", 0, note)
        yield Result("share_of_matmul", None, None, None, None, "Tflop/s", 0, note)
        return
    prepare(device)
    trial = device.type == "cpu"
    sizes = TRIAL_SIZES if trial else SIZES
    steps = 1 if trial else 5 if settings.quick else 20
    traces = tau_traces(8 if trial else 2 * sizes[-1])
    work = Workload(device, traces)
    known = f"{len(work.network.layout):,} addresses, {name_of(device)}"
    products = matrix_products(device, TRIAL_SQUARE if trial else SQUARE)
    best: Result | None = None
    for size in sizes:
        ring = [work.packed(size) for _ in range(RING)]
        speed, peak = alternate([work.rate(ring, steps), products], settings.repeats)
        found = Result(
            f"traces_per_s_{size}", None, TARGET, significant(speed), None, "traces/s", settings.repeats, known
        )
        yield found
        ours = 1e-12 * speed * work.flops(ring)
        yield Result(
            f"share_of_matmul_{size}",
            significant(ours / peak),
            None,
            significant(ours),
            significant(peak),
            "Tflop/s",
            settings.repeats,
            f"bf16 products of {TRIAL_SQUARE if trial else SQUARE}² matrices",
        )
        best = found if best is None or speed > (best.ours or 0.0) else best
    assert best is not None
    yield replace(best, name="traces_per_s", note=f"minibatch {best.name.rpartition('_')[2]}; {known}")
    largest = sizes[-1]
    other = Workload(device, traces, "per_address")
    ring = [other.packed(largest) for _ in range(RING)]
    yield single(
        "traces_per_s_per_address", other.rate(ring, steps), unit="traces/s", target=None, settings=settings, note=known
    )
    yield single(
        "packed_traces_per_s",
        rate(work.packed, largest),
        unit="traces/s",
        target=None,
        settings=settings,
        note="one process, noise left to the device",
    )
    if path is not None:
        path.write_text(profiled(work, [work.packed(largest) for _ in range(RING)]), encoding="utf-8")


def prepare(device: torch.device) -> None:
    """The settings under which everything is measured."""
    torch.manual_seed(0)
    if device.type == "cpu":
        torch.set_num_threads(1)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True  # shapes repeat


def tau_traces(count: int) -> TraceBatch:
    """τ decays whose detector's likelihood is kept, each at one of several copies of all addresses."""
    noise = scaled_noise(0.2, (8, 14, 14), SHAPE)
    model = et.Model(Tau(detector=Detector(shape=SHAPE, noise=noise)))
    batch = TraceBatch.from_traces(list(run(model, indices=range(count), draw_observations=False)), model.addresses)
    rows = Layout({}).grow(rows_of(batch))
    copies = math.ceil(2 * ADDRESSES / rows)  # no copy meets all of them
    book = AddressBook()
    return TraceBatch.concatenate(
        [copied(batch.select(np.arange(copy, count, copies)), copy, book) for copy in range(min(copies, count))]
    )


def copied(batch: TraceBatch, copy: int, book: AddressBook) -> TraceBatch:
    """The same traces at addresses of their own, known to a book."""
    ids = [book.intern(f"{a.base} copy {copy}", a.family, a.instance, a.kind) for a in batch.addresses]
    return batch.remap(np.array(ids, dtype=np.int32), book)


def matrix_products(device: torch.device, size: int) -> Measure:
    """Tflop/s of square bf16 products of random numbers."""
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    products = 20

    def measure() -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(products):
            torch.mm(a, b, out=out)
        synchronize(device)
        return 2e-12 * products * size**3 / (time.perf_counter() - start)

    return measure


def profiled(work: Workload, ring: list[TrainingBatch]) -> str:
    """Where the time of a few steps goes: the kernels that take most of it."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (work.device.type == "cuda")
    work.step(ring[0])
    synchronize(work.device)
    with profile(activities=activities) as recorded:
        for minibatch in ring:
            work.step(minibatch)
        synchronize(work.device)
    key = "self_cuda_time_total" if work.device.type == "cuda" else "self_cpu_time_total"
    table: str = recorded.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=90)
    return f"{len(ring)} steps of {ring[0].num_traces} traces on {name_of(work.device)}\n{table}\n"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name_of(device: torch.device) -> str:
    """The device's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (trial)"


def main(argv: list[str] | None = None) -> int:
    """The options of the device, then what every benchmark does."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a trial")
    parser.add_argument("--profile", type=Path, help="write a table of the kernels that take most time there")
    arguments, others = parser.parse_known_args(argv)
    available = arguments.device == "cpu" or torch.cuda.is_available()
    device = torch.device(arguments.device) if available else None
    return common.main(
        "gpu", partial(results, device=device, path=arguments.profile), others, pinned=arguments.device == "cpu"
    )


if __name__ == "__main__":
    sys.exit(main())
