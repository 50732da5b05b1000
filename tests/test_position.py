"""Training that was interrupted at any step goes on as if it had not been."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

import etalumis as et
from etalumis.callbacks import Position
from etalumis.datamodules.deal import Dealt
from etalumis.datamodules.traces import TracesDataModule
from etalumis.lit_models.inference_network import VALID_LOSS, LitInferenceNetwork
from etalumis.networks import InferenceNetwork, TrainingBatch
from etalumis.optim import RowAdam as Adam
from etalumis.simulators.classics import branching
from etalumis.storage import DatasetError, simulate

pytestmark = [
    pytest.mark.timeout(100),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

NETWORK = {
    "observation_embedding": 8, "address_embedding": 4, "core": {"kind": "lstm", "hidden": 8},
    "head": {"kind": "per_address", "hidden": 8}, "components": 2,
}  # fmt: skip
EPOCHS = 3


def model() -> et.Model:
    return et.Model(branching)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "branching"
    simulate(model, path, 230, model="branching", workers=0, chunk_size=40)
    return path


class Recorder(Callback):
    """Keeps each training minibatch's traces and loss, and each validation's loss."""

    def __init__(self) -> None:
        self.train: dict[tuple[int, int], float] = {}
        self.valid: list[tuple[int, float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: TrainingBatch, number: int
    ) -> None:
        assert (trainer.current_epoch, number) not in self.train
        self.train[trainer.current_epoch, number] = float(outputs["loss"])

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.valid.append((trainer.global_step, float(trainer.callback_metrics[VALID_LOSS])))


class PulledError(Exception):
    """The plug was pulled."""


class Plug(Callback):
    """Saves after so many minibatches of the whole training, whatever they were, and pulls the plug."""

    def __init__(self, path: Path, after: int, more: int = 0) -> None:
        self._path, self._left, self._more = path, after, more

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: TrainingBatch, number: int
    ) -> None:
        self._left -= 1
        if self._left == 0:
            trainer.save_checkpoint(self._path)
        if self._left == -self._more:
            raise PulledError


def train(
    data: Path, *callbacks: Callback, resume: Path | None = None, accumulate: int = 1, epochs: int = EPOCHS,
    world_size: int = 1, **settings: Any,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Train a small network in float64; returns its weights."""
    module_data = TracesDataModule(
        str(data), **{"batch_size": 16, "valid_fraction": 0.2, "workers": 0, "seed": 5, **settings}
    )
    if world_size > 1:
        # One of several ranks, alone: what it reads is what counts here.
        module_data.setup = lambda stage: module_data.deal_to(0, world_size)  # type: ignore[method-assign]
    network = InferenceNetwork.for_batches(NETWORK, module_data.batches(), "branching").double()
    module_data.attach(network.layout)
    module = LitInferenceNetwork(network, lambda n: Adam(n, lr=1e-2))
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[Position(), *callbacks], accumulate_grad_batches=accumulate,
        val_check_interval=0.5, num_sanity_val_steps=0, use_distributed_sampler=False, default_root_dir=data.parent,
    )  # fmt: skip
    with warnings.catch_warnings():
        for message in (".*does not have many workers.*", ".*LeafSpec.*", ".*is smaller than the logging.*"):
            warnings.filterwarnings("ignore", message)
        trainer.fit(module, datamodule=module_data, ckpt_path=resume, weights_only=True)
    return dict(network.state_dict())


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name], name


BUCKETS = {"buckets": 2, "max_draws": 60}


@pytest.mark.parametrize(
    ("accumulate", "settings", "places"),
    [
        (1, {}, [4]),
        (2, {}, [17]),
        (2, {"workers": 1}, [20]),
        (3, BUCKETS, [19]),
        pytest.param(1, {}, range(1, 36, 7), marks=pytest.mark.slow),
        pytest.param(2, {}, range(2, 36, 7), marks=pytest.mark.slow),
        pytest.param(3, BUCKETS, range(1, 36, 7), marks=pytest.mark.slow),
    ],
)
def test_gone_on_with_is_never_interrupted(
    data: Path, tmp_path: Path, accumulate: int, settings: dict[str, Any], places: list[int]
) -> None:
    """After any minibatch, also between those of one accumulation, with validation in mid-epoch."""
    whole = Recorder()
    weights = train(data, whole, accumulate=accumulate, **settings)
    steps = len(whole.train) // EPOCHS
    assert len(whole.train) == EPOCHS * steps >= 36
    for after in places:
        first, second = Recorder(), Recorder()
        with pytest.raises(PulledError):
            train(data, first, Plug(tmp_path / "last.ckpt", after, more=1), accumulate=accumulate, **settings)
        resumed = train(data, second, resume=tmp_path / "last.ckpt", accumulate=accumulate, **settings)
        assert_equal(resumed, weights)
        assert {**first.train, **second.train} == whole.train
        lost = 0 if after % steps == 0 else after % steps % accumulate
        assert min(second.train) == divmod(after - lost, steps)


def test_at_the_end_of_an_epoch(data: Path, tmp_path: Path) -> None:
    whole, second = Recorder(), Recorder()
    weights = train(data, whole, accumulate=2)
    steps = len(whole.train) // EPOCHS
    with pytest.raises(PulledError):
        train(data, Plug(tmp_path / "last.ckpt", steps), accumulate=2)
    assert_equal(train(data, second, resume=tmp_path / "last.ckpt", accumulate=2), weights)
    assert min(second.train) == (1, 0)


def test_a_longer_training_goes_on_from_the_end(data: Path, tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    second = Recorder()
    weights = train(data, Recorder())
    train(data, Save(), epochs=1)
    assert_equal(train(data, second, resume=tmp_path / "last.ckpt"), weights)
    assert min(second.train) == (1, 0)


@pytest.mark.parametrize(("before", "now", "accumulate"), [(2, 1, 1), (2, 1, 2), (1, 2, 1), (3, 2, 2)])
def test_with_another_number_of_ranks(data: Path, tmp_path: Path, before: int, now: int, accumulate: int) -> None:
    """The rest of the epoch is dealt to the ranks there are now, and the next one is as long as any."""
    first, second, alone = Recorder(), Recorder(), Recorder()
    with pytest.raises(PulledError):
        train(data, first, Plug(tmp_path / "last.ckpt", 3), world_size=before, accumulate=accumulate)
    done = 3 - 3 % accumulate
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["TracesDataModule"]
    assert state["dealt"] == [[before, done]]
    train(data, alone, world_size=now, epochs=1)
    train(data, second, resume=tmp_path / "last.ckpt", world_size=now, accumulate=accumulate, epochs=2)
    epoch = len(alone.train)
    rest = [number for e, number in second.train if e == 0]
    assert rest == list(range(epoch - len(rest), epoch)), "counted as the last ones of an epoch"
    assert abs(len(rest) * now - (_minibatches(data) - done * before)) < now
    assert [number for e, number in second.train if e == 1] == list(range(epoch))
    assert len(second.valid) >= 3, "validation goes on as before"


def _minibatches(data: Path) -> int:
    return len(TracesDataModule(str(data), batch_size=16, valid_fraction=0.2, workers=0, seed=5).order)


def test_other_data_within_an_epoch(data: Path, tmp_path: Path) -> None:
    with pytest.raises(PulledError):
        train(data, Plug(tmp_path / "last.ckpt", 3))
    for other in ({"batch_size": 8}, {"seed": 6}, {"buckets": 2}, {"limit": 100}):
        with pytest.raises(DatasetError, match="in the middle of epoch 1 of other data"):
            train(data, resume=tmp_path / "last.ckpt", **other)


def test_the_position_counts_steps_of_the_optimiser(data: Path) -> None:
    module = TracesDataModule(str(data), batch_size=16, workers=0)
    module.deal_to(1, 2)
    module.finished(4, 3, last=False)
    assert module.position.dealt == (Dealt(2, 3),)
    module.load_state_dict(module.state_dict())
    module.finished(4, 5, last=False)
    assert (module.position.epoch, module.position.dealt) == (4, (Dealt(2, 5),))
    module.deal_to(0, 1)
    module.load_state_dict(module.state_dict())
    done = module.resumed.minibatches
    assert done == 10, "five minibatches of two ranks are ten of one"
    module.finished(4, done + 2, last=False)
    assert module.position.dealt == (Dealt(2, 5), Dealt(1, 2))
    module.finished(4, done + 3, last=True)
    assert (module.position.epoch, module.position.dealt) == (5, ())
