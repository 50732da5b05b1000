"""Averaged weights: equal to averaging everything in every step, whatever is touched; kept, swapped and exported."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

import etalumis as et
from etalumis.conf.build import ConfigError
from etalumis.conf.compose import compose, plain
from etalumis.lit_models.fit import fit
from etalumis.lit_models.inference_network import LitInferenceNetwork
from etalumis.networks import checkpoint
from etalumis.networks.banks import Bank, normal
from etalumis.optim import AverageModel, RowAdam
from etalumis.simulators.classics import branching
from etalumis.storage import simulate

pytestmark = [
    pytest.mark.timeout(100),
    # Lightning uses what newer packages discourage; nothing we could change.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


class Rows(nn.Module):
    """Banks of large and of small rows over several pages, and dense parameters."""

    def __init__(self, rows: int = 11) -> None:
        super().__init__()
        self.large = Bank((30, 20), normal(1.0), 1)
        self.small = Bank((5,), normal(1.0), 2)
        for bank in (self.large, self.small):
            bank.capacity = 4
            bank.grow(rows)
        self.dense = nn.Parameter(torch.arange(6.0))
        self.rare = nn.Parameter(torch.ones(2))
        self.double()

    def weights(self) -> dict[str, Tensor]:
        return {
            "large": self.large.rows,
            "small": self.small.rows,
            "dense": self.dense.detach().clone(),
            "rare": self.rare.detach().clone(),
        }


class Everything:
    """The plain average of all weights in every step."""

    def __init__(self, rows: Rows, decay: float, warm_up: bool) -> None:
        self.rows, self.decay, self.warm_up = rows, decay, warm_up
        self.average = rows.weights()
        self.steps = 0

    def grown(self) -> None:
        for name, weights in self.rows.weights().items():
            if name in ("large", "small"):
                old = self.average[name]
                self.average[name] = torch.cat([old, weights[len(old) :]])

    def step(self) -> None:
        self.steps += 1
        limit = (1 + self.steps) / (10 + self.steps) if self.warm_up else 1.0
        d = min(self.decay, limit)
        for name, weights in self.rows.weights().items():
            self.average[name] = d * self.average[name] + (1.0 - d) * weights


def train(rows: Rows, optimizer: RowAdam, steps: range) -> Iterator[int]:
    """Steps on random rows; ``rare`` gets a gradient every fourth step, the last row never."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        rows.dense.grad = torch.randn(6, generator=generator, dtype=torch.float64)
        if step % 4 == 0:
            rows.rare.grad = torch.ones(2, dtype=torch.float64)
        for bank in (rows.large, rows.small):
            ids = torch.randperm(len(bank) - 1, generator=generator)[: step % 4]
            if len(ids):
                bank.accumulate(ids, torch.randn(len(ids), *bank.shape, generator=generator, dtype=torch.float64))
        optimizer.step()
        yield step


def assert_equal(rows: Rows, average: AverageModel, expected: dict[str, Tensor]) -> None:
    own = rows.weights()
    average.swap()
    for name, weights in rows.weights().items():
        torch.testing.assert_close(weights, expected[name], rtol=1e-12, atol=1e-13, msg=name)
    average.swap()
    for name, weights in rows.weights().items():
        assert torch.equal(weights, own[name]), f"{name} does not come back"


@pytest.mark.parametrize(("decay", "warm_up"), [(0.9, False), (0.7, True), (0.999, True)])
def test_equals_the_average_of_everything_in_every_step(decay: float, warm_up: bool) -> None:
    rows = Rows()
    optimizer = RowAdam(rows, lr=0.1, weight_decay=0.1)
    average = AverageModel(optimizer, decay, warm_up)
    optimizer.before_update.append(average.update)
    plain_one = Everything(rows, decay, warm_up)
    assert_equal(rows, average, plain_one.average)
    for step in train(rows, optimizer, range(40)):
        plain_one.step()
        if step == 15:
            rows.large.grow(6)
            rows.small.grow(9)
            plain_one.grown()
        if step in (3, 17, 18, 39):
            assert_equal(rows, average, plain_one.average)
    assert float((rows.weights()["large"] - plain_one.average["large"]).abs().max()) > 1e-3
    assert torch.equal(rows.large.rows[-1], plain_one.average["large"][-1]), "never touched"


def test_goes_on_from_its_state_and_costs_no_page_that_no_step_touched(tmp_path: Path) -> None:
    rows = Rows()
    optimizer = RowAdam(rows, lr=0.1)
    average = AverageModel(optimizer, 0.9)
    optimizer.before_update.append(average.update)
    list(train(rows, optimizer, range(10)))
    torch.save([rows.state_dict(), optimizer.state_dict(), average.state_dict()], tmp_path / "state.pt")
    list(train(rows, optimizer, range(10, 30)))
    again = Rows()
    states = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(states[0])
    resumed = RowAdam(again, lr=0.1)
    resumed.load_state_dict(states[1])
    other = AverageModel(resumed, 0.9)
    other.load_state_dict(states[2])
    resumed.before_update.append(other.update)
    list(train(again, resumed, range(10, 30)))
    one, two = average.state_dict(), other.state_dict()
    assert (one["steps"], one["log_decay"]) == (two["steps"], two["log_decay"])
    for name in one["dense"]:
        assert torch.equal(one["dense"][name], two["dense"][name])
    for name in one["rows"]:
        assert torch.equal(one["rows"][name]["ids"], two["rows"][name]["ids"])
        assert torch.equal(one["rows"][name]["rows"], two["rows"][name]["rows"])
        assert len(one["rows"][name]["ids"]) == 10, "the last row has no average of its own"
    wide = Rows(400)
    optimizer = RowAdam(wide)
    average = AverageModel(optimizer, 0.9)
    wide.large.accumulate(torch.tensor([397]), torch.ones(1, 30, 20).double())
    average.update()
    assert {name: list(pages) for name, pages in average._pages.items()} == {"large": [99]}
    assert average.state_dict()["rows"]["large"]["ids"].tolist() == [397]


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_wrong_decay_is_named(decay: float) -> None:
    with pytest.raises(ValueError, match="above 0 and below 1"):
        AverageModel(RowAdam(Rows()), decay)


# --- in training ----------------------------------------------------------------------------------------------


def branching_model() -> et.Model:
    return et.Model(branching)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "branching"
    simulate(branching_model, path, 300, model="branching", workers=0, chunk_size=100)
    return path


def settings(data: Path, output: Path, *overrides: str) -> dict[str, Any]:
    words = [f"data.train={data}", f"output={output}", "network.observation_embedding=8", "network.core.hidden=8"]
    words += ["network.head.hidden=8", "data.workers=0", "data.batch_size=32", "logger=none", "optimizer.lr=1e-2"]
    config: dict[str, Any] = plain(compose("train", [*words, *overrides]))
    return config


class Losses(Callback):
    """The validation loss by hand, of the weights that the network has then."""

    seen: list[float] = []  # noqa: RUF012  # read by the test, which does not make the object

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *rest: Any) -> None:
        with torch.no_grad():
            loss, _ = module.network.loss(rest[1])  # type: ignore[union-attr, operator]
        self.seen.append(float(loss))


def averaged(module: LitInferenceNetwork, path: Path) -> dict[str, Tensor]:
    return {k: v for k, v in checkpoint.load(path)[0].state_dict().items() if isinstance(v, Tensor)}


def test_validates_and_exports_averages_and_trains_with_its_own(data: Path, tmp_path: Path) -> None:
    """Training itself is what it is without averages."""
    words = ["trainer.max_epochs=3", "scheduler=constant"]
    without = fit(settings(data, tmp_path / "without", *words))
    module = fit(settings(data, tmp_path / "with", *words, "callbacks.average.decay=0.9"))
    mine, other = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("with", "without")
    )
    assert "average" in mine
    assert "average" not in other
    for name, weights in other["state_dict"].items():
        if isinstance(weights, Tensor):
            assert torch.equal(weights, mine["state_dict"][name]), name
    last = averaged(module, tmp_path / "with" / "checkpoints" / "last.ckpt")
    moved = 0.0
    for name, weights in module.network.state_dict().items():
        if isinstance(weights, Tensor):
            assert torch.equal(weights, last[name]), "in the end the network has its averages"
            moved += float((weights - without.network.state_dict()[name]).abs().sum())
    assert moved > 0.1
    best = averaged(module, tmp_path / "with" / "checkpoints" / "best.ckpt")
    exported = averaged(module, tmp_path / "with" / "network.pt")
    for name, weights in best.items():
        assert torch.equal(weights, exported[name]), name


def test_a_checkpoint_saved_while_the_network_has_its_averages_keeps_both(data: Path, tmp_path: Path) -> None:
    module = fit(settings(data, tmp_path, "trainer.max_epochs=1", "callbacks.average.decay=0.9"))
    trainer = module.trainer
    assert isinstance(trainer, Trainer)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    last, after = (
        torch.load(path, weights_only=True)
        for path in (tmp_path / "checkpoints" / "last.ckpt", tmp_path / "after.ckpt")
    )
    exported = averaged(module, tmp_path / "network.pt")
    again = averaged(module, tmp_path / "after.ckpt")
    for name, weights in last["state_dict"].items():
        if isinstance(weights, Tensor):
            assert torch.equal(weights, after["state_dict"][name]), f"{name} is not the training's own"
            name = name.removeprefix("network.")
            assert torch.equal(exported[name], again[name]), f"{name} is not the average"
            assert torch.equal(exported[name], module.network.state_dict()[name]), f"{name} has not come back"


def test_losses_are_of_the_averages(data: Path, tmp_path: Path) -> None:
    config = settings(data, tmp_path, "trainer.max_epochs=2", "callbacks.average.decay=0.95", "data.valid_fraction=0.1")
    config["callbacks"]["losses"] = {"_target_": f"{__name__}.Losses"}
    Losses.seen.clear()
    module = fit(config)
    network, _ = checkpoint.load(tmp_path / "checkpoints" / "last.ckpt")
    assert len(Losses.seen) == 2
    assert isinstance(module.trainer, Trainer)
    with torch.no_grad():
        (batch,) = list(module.trainer.datamodule.val_dataloader())
        assert float(network.loss(batch)[0]) == pytest.approx(Losses.seen[-1], rel=1e-6)
    assert float(module.trainer.callback_metrics["loss/valid"]) == pytest.approx(Losses.seen[-1], rel=1e-6)


class StopAfter(Callback):
    """Pulls the plug after an epoch."""

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("the plug was pulled")


def test_resumed_averages_equal_uninterrupted_ones(data: Path, tmp_path: Path) -> None:
    words = ["trainer.max_epochs=3", "callbacks.average.decay=0.9"]
    fit(settings(data, tmp_path / "whole", *words))
    config = settings(data, tmp_path / "pieces", *words)
    config["callbacks"]["stop"] = {"_target_": f"{__name__}.StopAfter"}
    with pytest.raises(RuntimeError, match="plug"):
        fit(config)
    module = fit(settings(data, tmp_path / "pieces", *words))
    one, two = (averaged(module, tmp_path / name / "network.pt") for name in ("whole", "pieces"))
    for name, weights in one.items():
        torch.testing.assert_close(weights, two[name], rtol=0.0, atol=0.0, msg=name)


@pytest.mark.parametrize("decay", ["1.5", "often"])
def test_settings_that_can_not_be(data: Path, tmp_path: Path, decay: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=r"average\.decay"):
        fit(settings(data, tmp_path, f"callbacks.average.decay={decay}"))
