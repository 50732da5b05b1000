"""Minibatches of the paper's size: what they are made of on any number of ranks, and what an iteration keeps."""

from __future__ import annotations

import gc
import itertools
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from etalumis.conf.build import ConfigError
from etalumis.conf.compose import compose, plain
from etalumis.lit_models.fit import MEANT, build_optimizer, make_module, make_trainer
from etalumis.lit_models.minibatch import shared, with_minibatch
from etalumis.networks import TrainingBatch
from etalumis.optim import PolynomialDecay, RowAdam
from etalumis.storage import simulate
from training_runs import gaussian_model, settings

pytestmark = [
    pytest.mark.timeout(100),
    # Lightning uses what newer packages discourage; nothing we could change.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

PAPER = 131_072


# --- parts and ranks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 16, 1024, 2048])
def test_a_minibatch_is_over_all_ranks(ranks: int) -> None:
    for minibatch, most in itertools.product((1, 2, 64, 100, 2048, 4099, PAPER), (1, 64, 250)):
        if minibatch < ranks:
            with pytest.raises(ConfigError, match=rf"minibatch={minibatch} is over all {ranks} ranks"):
                shared(minibatch, ranks, most)
            continue
        size, parts = shared(minibatch, ranks, most)
        assert 1 <= size <= most
        assert minibatch <= size * parts * ranks < minibatch + parts * ranks, "less than a trace too many in a part"
        assert parts == 1 or (parts - 1) * ranks * most < minibatch, "as few parts as can be"


@pytest.mark.parametrize(
    ("ranks", "size", "parts"),
    [(1, 64, 2048), (2, 64, 1024), (16, 64, 128), (2048, 64, 1), (4096, 32, 1), (3, 64, 683)],
)
def test_the_preset_is_the_papers_on_any_number_of_ranks(ranks: int, size: int, parts: int) -> None:
    config = with_minibatch(plain(compose("train", ["experiment=paper_128k", "data.train=x"])), ranks)
    assert (config["data"]["batch_size"], config["trainer"]["accumulate_grad_batches"]) == (size, parts)
    assert config["minibatch"] is None, "spelled out"


def test_the_preset_has_the_papers_optimiser() -> None:
    config = plain(compose("train", ["experiment=paper_128k", "data.train=x"]))
    make, scale = build_optimizer(config["optimizer"])
    optimizer: Any = make(torch.nn.Linear(2, 2))  # type: ignore[arg-type]  # any module
    assert isinstance(optimizer, RowAdam)
    assert optimizer.defaults["larc"] == "update"
    assert scale(optimizer.defaults["lr"], PAPER) == pytest.approx(5.7e-4)
    assert scale(optimizer.defaults["lr"], PAPER // 16) == pytest.approx(5.7e-4 / 2)
    schedule = PolynomialDecay(optimizer, 100, config["scheduler"]["power"], config["scheduler"]["end_lr"])
    assert schedule.power == 2
    assert schedule.end_lr == 2e-5
    assert config["trainer"]["max_epochs"] == 12


# --- one iteration ---------------------------------------------------------------------------------------------------


class Kept:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Watch(Callback):
    """What is alive when a part begins: numbers that graphs keep, and minibatches.

    Attributes:
        graphs, minibatches: at the beginning of each part.
        most: numbers that graphs kept at most.
        traces: of all parts.
    """

    def __init__(self) -> None:
        self._kept: weakref.WeakSet[Kept] = weakref.WeakSet()
        self.graphs: list[int] = []
        self.minibatches: list[int] = []
        self.most = self.traces = 0

    def keep(self, tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        self._kept.add(kept)
        return kept

    def numbers(self) -> int:
        """That graphs keep now."""
        return sum(kept.tensor.numel() for kept in self._kept)

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: TrainingBatch, number: int
    ) -> None:
        self.graphs.append(self.numbers())
        self.traces += batch.num_traces
        if number % 16 == 0:
            gc.collect()
            self.minibatches.append(sum(isinstance(thing, TrainingBatch) for thing in gc.get_objects()))

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        self.most = max(self.most, self.numbers())


@pytest.mark.parametrize(("minibatch", "parts"), [(1024, 32), pytest.param(PAPER, 128, marks=pytest.mark.slow)])
def test_an_iteration_of_any_size_keeps_one_part_at_a_time(minibatch: int, parts: int, tmp_path: Path) -> None:
    """An epoch of one iteration."""
    simulate(gaussian_model, tmp_path / "data", minibatch, model="gaussian", workers=0)
    # fmt: off
    config = with_minibatch(settings(
        tmp_path / "data", tmp_path, "experiment=paper_128k", f"minibatch={minibatch}",
        f"data.batch_size={minibatch // parts}", "data.valid_fraction=0", "trainer.max_epochs=1",
    ))
    # fmt: on
    module, datamodule = make_module(config)
    watch = Watch()
    trainer = make_trainer(config, False, [watch])
    with warnings.catch_warnings(), torch.autograd.graph.saved_tensors_hooks(watch.keep, lambda kept: kept.tensor):
        for message in MEANT:
            warnings.filterwarnings("ignore", message)
        trainer.fit(module, datamodule=datamodule)
    assert (trainer.global_step, watch.traces, len(watch.graphs)) == (1, minibatch, parts)
    assert watch.most > 10 * minibatch // parts, "the graph of a part was seen"
    assert set(watch.graphs) == {0}, "no graph outlives its part"
    assert max(watch.minibatches) <= 3, "no minibatch does, but for those read ahead"
