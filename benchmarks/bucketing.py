"""What grouping traces by length gains in throughput and costs in convergence, on τ decays.

    python -m benchmarks.bucketing --json [--quick] [--folder runs/bucketing] [--figures docs/figures]

Sixteen ranks take 64 traces each. Schemes:

- ``random``: the dataset as it was simulated; a minibatch has all lengths.
- ``sorted``: by trace type; a rank's minibatch is of one type, those of an iteration of any.
- ``buckets``: sorted, in eight buckets by length; the minibatches of an iteration are of one, drawn anew for each.
- ``dynamic``: sorted, so many controlled draws to a minibatch, however many traces those are.
- ``continuous``: the eight buckets one after the other, from short traces to long ones, in each epoch.

Throughput: processor time of loss and backward pass of every rank's minibatch in some iterations, of all schemes in
turn, in one process. Synchronous ranks wait for the slowest: an iteration takes the longest of its minibatches, and
the optimiser. The exchange between ranks is not in it. Convergence: validation loss of trainings that take for an
iteration what sixteen ranks would take, joined to one minibatch, which has the same gradient.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.bucketing_figure import draw
from benchmarks.common import Result, significant, tell
from benchmarks.trainings import Training, arguments, tau_data, train
from etalumis.conf.compose import compose, plain
from etalumis.datamodules.deal import EpochPlan, EpochPosition, Order
from etalumis.datamodules.minibatches import Minibatch, ValidationOrder, size
from etalumis.datamodules.reading import Reader
from etalumis.datamodules.traces import TracesDataModule
from etalumis.networks import InferenceNetwork, pack
from etalumis.networks.memory import keep_freed_memory
from etalumis.optim import RowAdam
from etalumis.storage.manifest import write_atomically

RANKS, OF_RANK = 16, 64
DRAWS = 11.4  # controlled ones of a τ trace in the mean
DYNAMIC = (f"data.batch_size={4 * OF_RANK}", f"data.max_draws={round(DRAWS * OF_RANK)}")
SCHEMES: Mapping[str, tuple[str, tuple[str, ...]]] = {  # dataset, and words beside those of all
    "random": ("train", ()),
    "sorted": ("sorted", ()),
    "buckets": ("sorted", ("data.buckets=8",)),
    "dynamic": ("sorted", DYNAMIC),
    "continuous": ("sorted", ("data.buckets=8", "+data.continuous=true")),
}
TIMED = ("random", "sorted", "buckets", "dynamic")  # continuous buckets are timed as buckets: the same minibatches


class _OneBucket(NamedTuple):
    """One bucket of an order."""

    order: Order
    bucket: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.order.sizes[self.bucket],)

    @property
    def bucket_traces(self) -> tuple[int, ...]:
        return (self.order.bucket_traces[self.bucket],)

    def epoch(self, epoch: int) -> list[list[Minibatch]]:
        return [self.order.epoch(epoch)[self.bucket]]


class RanksOrder:
    """For each iteration what so many ranks would take.

    Args:
        order: of the ranks' minibatches.
        ranks: how many.
        seed: see :class:`.EpochPlan`.
        continuous: bucket after bucket, in place of one drawn for each iteration.
    """

    def __init__(self, order: Order, ranks: int, seed: int, continuous: bool) -> None:
        buckets = range(len(order.sizes))
        self._orders: list[Order] = [_OneBucket(order, k) for k in buckets] if continuous else [order]
        self._ranks, self._seed = ranks, seed
        first = self.iterations(0)
        self.sizes = (len(first),)
        self.bucket_traces = (sum(size(m) for iteration in first for m in iteration),)

    def iterations(self, epoch: int) -> list[tuple[Minibatch, ...]]:
        """The minibatch of each rank, for all iterations of an epoch."""
        position = EpochPosition(epoch)
        plans = [EpochPlan(order, self._ranks, self._seed, position) for order in self._orders]
        return [iteration for plan in plans for iteration in plan.iterations]

    def epoch(self, epoch: int) -> list[list[Minibatch]]:
        """All iterations, each joined to one minibatch."""
        return [[tuple(piece for m in iteration for piece in m) for iteration in self.iterations(epoch)]]


class RanksInTurn(TracesDataModule):
    """One process that takes for an iteration what several ranks would; ``batch_size`` is of each.

    Args:
        ranks: how many.
        continuous: see :class:`RanksOrder`.
        settings: of :class:`TracesDataModule`.
    """

    def __init__(self, ranks: int = RANKS, continuous: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.ranks_order = RanksOrder(self.order, ranks, settings["seed"], continuous)
        self.order = self.ranks_order  # type: ignore[assignment]  # as good as any order
        rows = [np.arange(chunk.traces) for chunk in self.valid_data.chunks]
        self.valid_order = ValidationOrder(rows, ranks * self.batch_size)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        traces, valid: of the datasets.
        epochs: of each training.
        seeds: that each scheme is trained with.
        validations: per epoch.
        iterations, repeats: that are timed.
        words: of all trainings.
    """

    traces: int
    valid: int
    epochs: int
    seeds: int
    validations: int
    iterations: int
    repeats: int
    words: tuple[str, ...]


HOW = ("data._target_=benchmarks.bucketing.RanksInTurn", f"data.batch_size={OF_RANK}", "optimizer=adam")
HOW += ("optimizer.lr=5e-3", "scheduler=polynomial")
FULL = Plan(131_072, 4096, 1, 3, 8, 8, 5, ("network=tau", *HOW))
QUICK = Plan(2048, 128, 1, 1, 1, 1, 3, ("network=small", *HOW))


def words_of(plan: Plan, folder: Path, scheme: str, seed: int) -> list[str]:
    """The words of ``etalumis train`` for a scheme."""
    data, own = SCHEMES[scheme]
    words = [f"data.train={folder / 'data' / data}", f"data.valid={folder / 'data' / 'valid'}", f"seed={seed}"]
    words += [f"trainer.max_epochs={plan.epochs}", f"trainer.val_check_interval={1 / plan.validations}"]
    return [*words, *plan.words, *own]


# --- convergence ----------------------------------------------------------------------------------------------------


def trainings(plan: Plan, folder: Path) -> dict[str, list[Training]]:
    """All schemes with one seed, then with the next."""
    found: dict[str, list[Training]] = {scheme: [] for scheme in SCHEMES}
    for seed in range(plan.seeds):
        for scheme in SCHEMES:
            training = train(folder / f"{scheme}_seed_{seed}", words_of(plan, folder, scheme, seed))
            print(f"{scheme}, seed {seed}: {training.at_end():.4f}", file=sys.stderr, flush=True)
            found[scheme].append(training)
    return found


# --- throughput -----------------------------------------------------------------------------------------------------


class Times(NamedTuple):
    """Processor seconds of some iterations.

    Attributes:
        parts: of each rank's loss and backward pass, (iterations, ranks).
        optimiser: of each step, (iterations,).
        traces: in all.
    """

    parts: np.ndarray
    optimiser: np.ndarray
    traces: int

    @property
    def balanced(self) -> float:
        """Traces a second of all ranks, if none had to wait for another."""
        return float(self.traces / (self.parts.mean(1).sum() + self.optimiser.sum()))

    @property
    def together(self) -> float:
        """Traces a second of all ranks, of which each waits for the slowest."""
        return float(self.traces / (self.parts.max(1).sum() + self.optimiser.sum()))

    @property
    def balance(self) -> float:
        """The mean over ranks, relative to the slowest."""
        return float(self.parts.mean(1).sum() / self.parts.max(1).sum())


class Timed:
    """Some iterations of a scheme, packed, and a network that they train."""

    def __init__(self, plan: Plan, folder: Path, scheme: str) -> None:
        config = plain(compose("train", [*words_of(plan, folder, scheme, 0), "data.workers=0"]))
        data = RanksInTurn(**{key: value for key, value in config["data"].items() if key != "_target_"})
        self._network = InferenceNetwork.for_batches(config["network"], data.batches(), simulator=data.model)
        self._optimizer = RowAdam(self._network, lr=1e-4)
        reader, layout = Reader(data.train_data, cache_mb=512), self._network.layout
        every = data.ranks_order.iterations(0)
        chosen = np.linspace(0, len(every) - 1, plan.iterations).round().astype(int).tolist()
        self._parts = [[pack(reader.minibatch(m), layout) for m in every[k]] for k in chosen]
        self.rounds: list[tuple[list[list[float]], list[float]]] = []

    def measure(self) -> None:
        parts, steps = [], []
        for iteration in self._parts:
            self._optimizer.zero_grad()
            seconds = []
            for batch in iteration:
                started = time.process_time()
                loss, _ = self._network.loss(batch)
                loss.backward()  # type: ignore[no-untyped-call]
                seconds.append(time.process_time() - started)
            started = time.process_time()
            self._optimizer.step()
            steps.append(time.process_time() - started)
            parts.append(seconds)
        self.rounds.append((parts, steps))

    def times(self) -> Times:
        """Medians over all rounds but the first."""
        parts, steps = (np.median([r[k] for r in self.rounds[1:]], axis=0) for k in (0, 1))
        return Times(parts, steps, sum(batch.num_traces for parts in self._parts for batch in parts))


def throughput(plan: Plan, folder: Path) -> dict[str, Times]:
    """All schemes in turn; what the folder holds is not measured again."""
    kept = folder / "times.json"
    if not kept.exists():
        torch.set_num_threads(1)
        keep_freed_memory()
        timed = {scheme: Timed(plan, folder, scheme) for scheme in TIMED}
        for _ in range(1 + plan.repeats):
            for scheme in timed.values():
                scheme.measure()
        rows = {name: [np.asarray(part).tolist() for part in scheme.times()] for name, scheme in timed.items()}
        write_atomically(kept, json.dumps(rows).encode())
    rows = json.loads(kept.read_text())
    return {name: Times(np.array(rows[name][0]), np.array(rows[name][1]), rows[name][2]) for name in TIMED}


# --- what came out --------------------------------------------------------------------------------------------------


def results(plan: Plan, times: Mapping[str, Times], found: Mapping[str, Sequence[Training]]) -> list[Result]:
    """Rates of all schemes beside those of sorted data, and losses beside those of random minibatches."""
    out = []
    base = times["sorted"]
    for scheme, one in times.items():
        note = f"{RANKS} ranks, mean {one.balance:.2f} of the slowest; without waiting {one.balanced:.0f} traces/s"
        rates = [significant(value) for value in (one.together / base.together, one.together, base.together)]
        out.append(
            Result(f"rate_{scheme}_vs_sorted", rates[0], None, rates[1], rates[2], "traces/s", plan.repeats, note)
        )
    for scheme, several in found.items():
        ends = [training.at_end() for training in several]
        other = float(np.mean([training.at_end() for training in found["random"]]))
        note = (
            f"seeds: {', '.join(f'{end:.3f}' for end in ends)}; {plan.epochs * plan.traces:,} traces; theirs is random"
        )
        loss = significant(float(np.mean(ends)), 5)
        out.append(Result(f"loss_{scheme}", None, None, loss, significant(other, 5), "nats", len(ends), note))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    given = arguments("bucketing", __doc__).parse_args(argv)
    plan = QUICK if given.quick else FULL
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or (Path(temporary) if given.quick else Path("runs/bucketing"))
        tau_data(folder / "data", plan.traces, plan.valid, sorted_too=True)
        times, found = throughput(plan, folder), trainings(plan, folder)
    if given.figures is not None:
        given.figures.mkdir(parents=True, exist_ok=True)
        draw(times, found, RANKS, plan.epochs * plan.traces, given.figures / "bucketing.png")
    tell("bucketing", results(plan, times, found), given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
