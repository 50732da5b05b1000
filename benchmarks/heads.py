"""Which head learns fastest: validation loss against time, on one dataset, for every head.

    python -m benchmarks.heads --train data/train --valid data/valid --output docs/figures

The networks are equal but for their heads. They take the same minibatches in turn, so that a slow minute of the
machine hits all alike; a network's time is the processor time of its own loss, backward pass and optimiser. Prints
one JSON object last, and draws ``heads.png``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import machine
from etalumis.conf.compose import compose, plain
from etalumis.networks import InferenceNetwork, pack
from etalumis.networks.memory import keep_freed_memory
from etalumis.networks.packing import TrainingBatch
from etalumis.optim import PolynomialDecay, RowAdam, clip_grad_norm
from etalumis.storage import Dataset

CLIP = 10.0


class Learner:
    """A network with its optimiser and the processor time it has taken."""

    def __init__(self, config: dict[str, Any], data: Dataset, lr: float, steps: int) -> None:
        self.network = InferenceNetwork.for_batches(config, data.batches(), simulator=data.name)
        self._optimizer = RowAdam(self.network, lr=lr)
        self._schedule = PolynomialDecay(self._optimizer, steps)
        self.seconds = 0.0
        self.curve: list[tuple[float, float]] = []

    def learn(self, batch: TrainingBatch) -> None:
        started = time.process_time()
        self._optimizer.zero_grad()
        loss, _ = self.network.loss(batch)
        loss.backward()
        clip_grad_norm(self._optimizer, CLIP)
        self._optimizer.step()
        self._schedule.step()
        self.seconds += time.process_time() - started

    @torch.no_grad()
    def judge(self, batches: Sequence[TrainingBatch]) -> None:
        traces = sum(batch.num_traces for batch in batches)
        total = sum(float(self.network.loss(batch)[0]) * batch.num_traces for batch in batches)
        self.curve.append((self.seconds, total / traces))

    @property
    def weights(self) -> int:
        """Numbers in all known rows and layers."""
        return sum(tensor.numel() for tensor in self.network.state_dict().values() if torch.is_tensor(tensor))


def minibatches(data: Dataset, size: int, epoch: int, layout: Any, seed: int) -> Iterator[TrainingBatch]:
    """All traces in an order of (seed, epoch); chunks one after the other."""
    generator = np.random.default_rng((seed, epoch))
    for chunk in generator.permutation(len(data.chunks)).tolist():
        traces = data.read(chunk)
        order = generator.permutation(len(traces))
        for first in range(0, len(order), size):
            yield pack(traces.select(order[first : first + size]), layout, seed=seed, epoch=epoch)


def study(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train all heads; the curves and what they end at."""
    torch.set_num_threads(1)
    keep_freed_memory()
    train, valid = Dataset(arguments.train), Dataset(arguments.valid)
    base = plain(compose("train", [f"network={arguments.network}", "data.train=x"]))["network"]
    steps = arguments.epochs * sum(-(-chunk.traces // arguments.batch_size) for chunk in train.chunks)
    learners = {}
    for kind in arguments.heads.split(","):
        name, _, hidden = kind.partition(":")
        config = base | {"head": {"kind": name, "hidden": int(hidden) if hidden else None}}
        learners[kind] = Learner(config, train, arguments.lr, steps)
    layout = next(iter(learners.values())).network.layout
    held_out = [pack(traces, layout, seed=1) for traces in valid.batches()]
    for epoch in range(arguments.epochs):
        for number, batch in enumerate(minibatches(train, arguments.batch_size, epoch, layout, seed=0)):
            order = list(learners.values())
            for learner in order[number % len(order) :] + order[: number % len(order)]:
                learner.learn(batch)
        for kind, learner in learners.items():
            learner.judge(held_out)
            print(f"epoch {epoch + 1}  {kind:<18} {learner.curve[-1][1]:.4f} after {learner.seconds:.0f} s", flush=True)
    results = [
        {
            "name": kind,
            "loss": learner.curve[-1][1],
            "seconds": learner.seconds,
            "weights": learner.weights,
            "curve": learner.curve,
        }
        for kind, learner in learners.items()
    ]
    return {"benchmark": "heads", "machine": machine(None), "traces": len(train), "results": results}


def draw(outcome: dict[str, Any], path: Path) -> None:
    """Validation loss against processor time, a line per head."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from etalumis.inference.figures.style import LOOKS, RC

    with rc_context(RC):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        for result, look in zip(outcome["results"], LOOKS, strict=False):
            seconds, loss = zip(*result["curve"], strict=True)
            label = f"{result['name']}, {result['weights'] / 1e6:.2f} M weights"
            axes.plot(seconds, loss, marker="o", markersize=3, color=look.colour, linestyle=look.dash, label=label)
        axes.set_xlabel("processor time of training [s]")
        axes.set_ylabel("validation loss [nats]")
        axes.legend()
        figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="folder of a dataset")
    parser.add_argument("--valid", required=True, help="folder of another")
    parser.add_argument("--output", type=Path, default=Path(), help="folder of heads.png")
    parser.add_argument("--network", default="tau", help="preset of everything but the head")
    parser.add_argument(
        "--heads", default="per_address:64,per_address,shared,film", help="kinds, as KIND or KIND:HIDDEN"
    )
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=5e-3)
    arguments = parser.parse_args()
    outcome = study(arguments)
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw(outcome, arguments.output / "heads.png")
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
