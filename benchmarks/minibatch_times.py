"""What one rank's work on each minibatch of the sampler costs, for several ways to make minibatches of τ decays."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.conv3d import OUTPUT, SHAPE, step
from benchmarks.synchronous import Measured
from etalumis.conf.build import build
from etalumis.conf.compose import compose, plain
from etalumis.datamodules.traces import TracesDataModule
from etalumis.networks import InferenceNetwork, banks_of
from etalumis.networks.observations import CNN
from etalumis.optim import RowAdam, clip_grad_norm

BATCH = 64  # traces to a minibatch, as in the paper
CLIP = 10.0
PAPER_RATE = 51.1  # traces/s of the paper on one socket (Xeon Gold 6252)
CNN_TRACES = 8


class Way(NamedTuple):
    """How to make minibatches.

    Attributes:
        about: in words.
        data: which dataset, "random" or "sorted".
        words: settings; ``{draws}`` stands for those of an average minibatch.
        compression: bytes that ranks exchange for a byte of gradients.
        parts: minibatches that a rank accumulates for an iteration.
        overlap: exchange all but the CNN's gradients behind the CNN's backward pass.
    """

    about: str
    data: str
    words: tuple[str, ...] = ()
    compression: float = 1.0
    parts: int = 1
    overlap: bool = False


_BUCKETS = ("data.buckets=10",)
_DRAWS = ("data.max_draws={draws}", "data.batch_size=1024")
WAYS = {
    "mixed": Way("traces in random order", "random"),
    "plain": Way("sorted by type", "sorted"),
    "bucketed": Way("sorted, 10 buckets by length", "sorted", _BUCKETS),
    "dynamic": Way("sorted, equal numbers of draws", "sorted", _DRAWS),
    "both": Way("sorted, buckets and equal numbers of draws", "sorted", (*_BUCKETS, *_DRAWS)),
    # 1,024 ranks have 131,072 traces to an iteration, the paper's 128k.
    "accumulated": Way("sorted, 10 buckets, two minibatches to an iteration", "sorted", _BUCKETS, 1.0, 2),
    "accumulated_bf16": Way("the same, gradients sent as bf16", "sorted", _BUCKETS, 0.5, 2),
    "bucketed_overlap": Way("sorted, 10 buckets, exchanged behind the CNN", "sorted", _BUCKETS, overlap=True),
    "accumulated_overlap": Way(
        "10 buckets, two minibatches, exchanged behind the CNN", "sorted", _BUCKETS, 1.0, 2, overlap=True
    ),
}
SMALL = ("network=tau",)
# The paper's sizes, but for its 3D CNN, which costs as much for every trace and is timed by itself.
LARGE = (
    "network=paper",
    "network.observations.detector.kind=mlp",
    "+network.observations.detector.hidden=[256]",
)


def sampled(way: Way, folders: dict[str, Path], draws: int) -> TracesDataModule:
    """The data module that makes minibatches in a way."""
    words = [f"data.train={folders[way.data]}", f"data.batch_size={BATCH}", "data.valid_fraction=0", "data.workers=0"]
    data = build(plain(compose("train", [*words, *(word.format(draws=draws) for word in way.words)]))["data"])
    assert isinstance(data, TracesDataModule)
    return data


def average_draws(folders: dict[str, Path]) -> int:
    """Controlled draws of an average minibatch."""
    lengths = np.concatenate(sampled(WAYS["plain"], folders, 1).train_data.lengths())
    return round(BATCH * float(lengths.mean()))


class Worker:
    """A network with its optimiser, that measures what minibatches cost.

    Args:
        words: settings of the network.
        folder: a dataset that has all addresses.
    """

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        settings = plain(compose("train", [*words, f"data.train={folder}", "data.workers=0"]))
        data = build(settings["data"])
        self.network = InferenceNetwork.for_batches(settings["network"], data.batches(), simulator=data.model)
        self.optimizer = RowAdam(self.network, lr=1e-5)
        self.banks = list(banks_of(self.network).values())
        self.starts = np.cumsum([0, *(len(bank) for bank in self.banks)])
        self.row_bytes = np.concatenate(
            [np.full(len(bank), 4 * int(np.prod(bank.shape, dtype=np.int64))) for bank in self.banks]
        )
        self.dense_bytes = sum(4 * parameter.numel() for parameter in self.optimizer.parts.dense.values())

    def measure(self, data: TracesDataModule, repeats: int, most: int | None = None) -> Measured:
        """Minibatches of an epoch, each measured several times, with the others in between; the least counts.

        Args:
            data: makes them.
            repeats: how often.
            most: so many minibatches only, evenly over the epoch.
        """
        data.attach(self.network.layout)
        places = [(number, pieces) for number, of in enumerate(data.order.epoch(0)) for pieces in of]
        if most is not None and len(places) > most:
            places = [places[k * len(places) // most] for k in range(most)]
        loader: Any = data.train_dataloader().dataset
        seconds = np.empty((repeats, 2, len(places)))
        touched = np.zeros((len(places), len(self.row_bytes)), dtype=np.bool_)
        traces = np.empty(len(places), dtype=np.int64)
        for repeat in range(repeats):
            for number, (_, pieces) in enumerate(places):
                batch = loader[(0, pieces)]
                seconds[repeat, :, number], touched[number] = self._work(batch)
                traces[number] = batch.num_traces
        passes, steps = seconds.min(0)
        line = straight(self.dense_bytes + touched @ self.row_bytes, steps)
        bucket = np.array([number for number, _ in places])
        return Measured(passes, traces, bucket, touched, self.row_bytes, self.dense_bytes, line)

    def _work(self, batch: Any) -> tuple[tuple[float, float], np.ndarray]:
        """Seconds of the two passes and of the step, and which rows were touched."""
        started = time.thread_time()
        self.optimizer.zero_grad()
        loss, _ = self.network.loss(batch)
        loss.backward()
        passed = time.thread_time()
        touched = np.zeros(len(self.row_bytes), dtype=np.bool_)
        for start, bank in zip(self.starts, self.banks, strict=False):
            if bank.gradient is not None:
                touched[start + bank.gradient.ids.numpy()] = True
        marked = time.thread_time()
        clip_grad_norm(self.optimizer, CLIP)
        self.optimizer.step()
        return (passed - started, time.thread_time() - marked), touched


def straight(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """a and b of the line a + b x, neither below 0, that is closest to points."""
    b, a = np.polyfit(x, y, 1) if np.ptp(x) else (0.0, y.mean())
    return (float(a), float(b)) if a >= 0.0 and b >= 0.0 else (0.0, float(y.mean() / x.mean()))


class CNNCost(NamedTuple):
    """What the paper's 3D CNN costs.

    Attributes:
        forward, backward: seconds for a trace.
        bytes: of its weights.
    """

    forward: float
    backward: float
    bytes: int

    @classmethod
    def measured(cls, repeats: int) -> CNNCost:
        """The least of several times."""
        network = CNN(SHAPE, OUTPUT, 3)
        both, alone = step(network, network, CNN_TRACES), step(network, network, CNN_TRACES, backward=False)
        rate, forward = (max(measure() for _ in range(1 + repeats)) for measure in (both, alone))
        weights = sum(parameter.numel() for parameter in network.parameters())
        return cls(1.0 / forward, max(1.0 / rate - 1.0 / forward, 0.0), 4 * weights)


def with_cnn(measured: Measured, cnn: CNNCost) -> Measured:
    """The same with the CNN: as many seconds more for each trace, its backward pass last, and its weights."""
    return replace(
        measured,
        seconds=measured.seconds + measured.traces * (cnn.forward + cnn.backward),
        dense_bytes=measured.dense_bytes + cnn.bytes,
        last=measured.traces * cnn.backward,
        last_bytes=cnn.bytes,
    )
