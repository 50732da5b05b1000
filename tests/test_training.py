"""Training with Lightning: what the network package can do must survive the trainer around it."""

import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

import etalumis as et
from etalumis import cli
from etalumis.conf.build import ConfigError, build
from etalumis.conf.compose import compose, plain
from etalumis.conf.help import choices
from etalumis.distributions import Normal
from etalumis.lit_models.fit import build_optimizer, check_validation, fit, make_trainer, summary
from etalumis.lit_models.inference_network import LitInferenceNetwork
from etalumis.lit_models.start import make_network
from etalumis.networks import CheckpointError, InferenceNetwork, banks_of, checkpoint
from etalumis.storage import simulate
from training_runs import SMALL, assert_equal_state, branching_model, gaussian_model, settings, tau_model

pytestmark = [
    pytest.mark.timeout(100),
    # Lightning and TensorBoard use what newer packages discourage; nothing we could change.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets by model name."""
    path = tmp_path_factory.mktemp("data")
    for make, count in ((gaussian_model, 1500), (tau_model, 200), (branching_model, 100)):
        name = make().name
        simulate(make, path / name, count, model=name, workers=0, chunk_size=100)
    simulate(branching_model, path / "uneven", 130, model="branching", workers=0, chunk_size=100)
    return path


@pytest.fixture(autouse=True)
def threads_unchanged() -> Any:
    yield
    torch.set_grad_enabled(True)


def train(train_data: Path, output: Path, *overrides: str) -> LitInferenceNetwork:
    return fit(settings(train_data, output, *overrides))


def losses_by_hand(module: LitInferenceNetwork, config: dict[str, Any]) -> list[tuple[float, int]]:
    """Validation loss and number of traces of each minibatch."""
    datamodule = build(config["data"])
    datamodule.attach(module.network.layout)
    with torch.no_grad():
        return [(float(module.network.loss(b)[0]), b.num_traces) for b in datamodule.val_dataloader()]


class StopAfter(Callback):
    """Pulls the plug after an epoch."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch == self._epochs:
            raise RuntimeError("the plug was pulled")


# --- from traces to a posterior -------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LitInferenceNetwork]:
    output = tmp_path_factory.mktemp("trained")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = train(
            data / "gaussian", output, "trainer.max_epochs=8", "optimizer.lr=1e-2", "logger=tensorboard",
            "trainer.log_every_n_steps=5",
        )  # fmt: skip
    return output, module


def test_trained_network_finds_the_posterior(trained: tuple[Path, LitInferenceNetwork]) -> None:
    output, _ = trained
    observe = {"obs0": 8.0, "obs1": 9.0}
    post = et.posterior(gaussian_model(), observe, et.IC(output / "network.pt"), num_traces=1000, seed=1)
    assert post.ess > 400, "the prior alone reaches about 30"
    assert abs(post.mean("mu") - 7.25) < 5 * post.mcse("mu")


def test_lightning_checkpoints_are_networks_too(trained: tuple[Path, LitInferenceNetwork]) -> None:
    output, module = trained
    best, extra = checkpoint.load(output / "checkpoints" / "best.ckpt", simulator="gaussian")
    exported, said = checkpoint.load(output / "network.pt", simulator="gaussian")
    last, _ = checkpoint.load(output / "checkpoints" / "last.ckpt", simulator="gaussian")
    assert_equal_state(best.state_dict(), exported.state_dict())
    assert_equal_state(last.state_dict(), module.network.state_dict())
    assert said["loss/valid"] < 2.0
    assert isinstance(extra, dict)
    observe = {"obs0": 8.0, "obs1": 9.0}
    posts = [
        et.posterior(gaussian_model(), observe, et.IC(output / name), num_traces=50)
        for name in ("network.pt", "checkpoints/best.ckpt")
    ]
    assert posts[0].log_weights.tolist() == posts[1].log_weights.tolist()


def test_checkpoints_are_tensors_and_plain_containers(trained: tuple[Path, LitInferenceNetwork]) -> None:
    output, _ = trained
    for name in ("network.pt", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        content = torch.load(output / name, weights_only=True)
        assert content
    state = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
    assert json.loads(json.dumps(state["settings"]))["network"]["core"]["hidden"] == 16
    assert "hyper_parameters" not in state


def test_logs(trained: tuple[Path, LitInferenceNetwork]) -> None:
    output, _ = trained
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "logs"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss/train", "loss/valid", "throughput/traces_per_s", "throughput/wait_share"} <= tags
    rates = [event.value for event in events.Scalars("learning_rate")]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 9e-3 > 1e-4 > rates[-1]
    losses = [event.value for event in events.Scalars("loss/valid")]
    assert losses[-1] < losses[0]
    assert all(event.value > 0 for event in events.Scalars("throughput/traces_per_s"))


def test_network_of_another_simulator(
    trained: tuple[Path, LitInferenceNetwork], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["simulator=branching", "observe.obs0=6", "output=x", f"checkpoint={trained[0] / 'network.pt'}"]
    assert cli.main(["infer", *words]) == 1
    said = capsys.readouterr().err
    assert "'gaussian', not for 'branching'" in said
    assert "Traceback" not in said


def test_train_and_infer_from_the_command_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"data.train={data / 'branching'}", f"output={tmp_path / 'run'}", *SMALL, "trainer.max_epochs=2"]
    assert cli.main(["train", *words]) == 0
    assert "network.pt" in capsys.readouterr().out
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert written == [
        f"run/{name}"
        for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "lock", "network.pt", "result.json")
    ]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["best loss/valid"] <= result["loss/valid"]
    assert (result["traces"], result["steps"]) == (2 * 95, 4)
    words = ["simulator=branching", "observe.obs0=6", f"output={tmp_path / 'post'}", "num_traces=100"]
    assert cli.main(["infer", *words, f"checkpoint={tmp_path / 'run' / 'network.pt'}"]) == 0
    assert len(et.Posterior.load(tmp_path / "post")) == 100


# --- what the trainer must leave intact -----------------------------------------------------------


def test_resumed_training_equals_uninterrupted(data: Path, tmp_path: Path) -> None:
    """Weights, moments, learning rate and best loss, to the last bit."""
    words = ["trainer.max_epochs=3", "trainer.accumulate_grad_batches=2"]
    train(data / "tau", tmp_path / "whole", *words)
    config = settings(data / "tau", tmp_path / "pieces", *words)
    config["callbacks"]["stop"] = {"_target_": f"{__name__}.StopAfter", "epochs": 1}
    with pytest.raises(RuntimeError, match="plug"):
        fit(config)
    assert not (tmp_path / "pieces" / "network.pt").exists()
    train(data / "tau", tmp_path / "pieces", *words, "resume=true")
    whole, pieces = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "pieces")
    )
    assert whole["global_step"] > 0
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert_equal_state(whole[key], pieces[key], key)
    one, other = (checkpoint.load(tmp_path / name / "network.pt") for name in ("whole", "pieces"))
    assert_equal_state(one[0].state_dict(), other[0].state_dict())
    assert one[1] == other[1]


class Rates(Callback):
    """Keeps the learning rate of each iteration and what else the optimiser goes by."""

    seen: list[dict[str, Any]] = []  # noqa: RUF012  # read by the test, which does not make the object

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, number: int) -> None:
        group = trainer.optimizers[0].param_groups[0]
        self.seen.append({key: value for key, value in group.items() if key != "params"})


@pytest.mark.parametrize("scheduler", ["polynomial", "constant"])
def test_resumed_training_goes_by_the_settings_given(data: Path, tmp_path: Path, scheduler: str) -> None:
    words = [f"scheduler={scheduler}", "optimizer.lr=1e-3"]
    train(data / "branching", tmp_path, *words, "trainer.max_epochs=2")
    words = [f"scheduler={scheduler}", "optimizer.lr=1e-2", "optimizer.weight_decay=0.1", "resume=true"]
    config = settings(data / "branching", tmp_path, *words, "trainer.max_epochs=4")
    config["callbacks"]["rates"] = {"_target_": f"{__name__}.Rates"}
    Rates.seen.clear()
    fit(config)
    half = len(Rates.seen)
    end = config["scheduler"].get("end_lr")
    expected = [
        1e-2 if end is None else end + (1e-2 - end) * (1.0 - i / (2 * half)) ** 2 for i in range(half, 2 * half)
    ]
    assert [group["lr"] for group in Rates.seen] == pytest.approx(expected)
    assert {group["weight_decay"] for group in Rates.seen} == {0.1}


def test_accumulation_equals_larger_steps_by_hand(data: Path, tmp_path: Path) -> None:
    words = ["trainer.accumulate_grad_batches=2", "trainer.max_epochs=1", "trainer.gradient_clip_val=null"]
    words += ["optimizer=sgd", "scheduler=constant", "data.valid_fraction=0.0"]
    module = train(data / "tau", tmp_path, *words)
    config = settings(data / "tau", tmp_path, *words)
    datamodule = build(config["data"])
    network = make_network(config["network"], datamodule)
    datamodule.attach(network.layout)
    optimizer = build_optimizer(config["optimizer"])[0](network)
    batches = list(datamodule.train_dataloader())
    assert len(batches) % 2 == 0
    for first in range(0, len(batches), 2):
        optimizer.zero_grad()
        for batch in batches[first : first + 2]:
            (network.loss(batch)[0] / 2).backward()
        optimizer.step()
    for name, ours in network.state_dict().items():
        theirs = module.network.state_dict()[name]
        if isinstance(ours, torch.Tensor):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_uneven_minibatches_count_by_their_traces(data: Path, tmp_path: Path) -> None:
    """One iteration of plain descent with rate 1 moves by the mean gradient over all its traces."""
    words = ["trainer.accumulate_grad_batches=7", "trainer.max_epochs=1", "trainer.gradient_clip_val=null"]
    words += ["optimizer=sgd", "optimizer.lr=1.0", "optimizer.momentum=0", "scheduler=constant"]
    words += ["data.valid_fraction=0.0", "data.batch_size=90"]
    module = train(data / "uneven", tmp_path, *words)
    assert module.trainer.global_step == 1
    config = settings(data / "uneven", tmp_path, *words)
    datamodule = build(config["data"])
    network = make_network(config["network"], datamodule)
    datamodule.attach(network.layout)
    before = {name: value for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}
    optimizer = build_optimizer(config["optimizer"])[0](network)
    batches = list(datamodule.train_dataloader())
    assert len(batches) < 7
    assert len({batch.num_traces for batch in batches}) > 1
    for batch in batches:
        (network.loss(batch)[0] * (batch.num_traces / datamodule.order.traces)).backward()
    optimizer.step()
    moved = 0.0
    for name, ours in network.state_dict().items():
        if isinstance(ours, torch.Tensor):
            torch.testing.assert_close(ours, module.network.state_dict()[name], rtol=1e-4, atol=1e-6, msg=name)
            moved += float((ours - before[name]).norm())
    assert moved > 0.1


def test_learning_rate_scales_with_the_whole_minibatch(data: Path, tmp_path: Path) -> None:
    words = ["optimizer.lr=1e-3", "optimizer.scaling=square_root", "optimizer.reference_minibatch=16"]
    words += ["trainer.accumulate_grad_batches=4", "scheduler=constant", "trainer.max_epochs=1"]
    module = train(data / "branching", tmp_path, *words)
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(4e-3)
    with pytest.raises(ValueError, match="needs reference_minibatch"):
        train(data / "branching", tmp_path / "other", "optimizer.scaling=linear")


@pytest.mark.parametrize(("limit", "clipped"), [(1e-3, True), (1e9, False)])
def test_clipping_counts_rows(data: Path, tmp_path: Path, limit: float, clipped: bool) -> None:
    """A step of plain descent with learning rate 1 is as long as the clipped gradient."""
    words = [f"trainer.gradient_clip_val={limit}", "trainer.max_steps=1", "optimizer=sgd", "optimizer.momentum=0.0"]
    words += ["scheduler=constant", "optimizer.lr=1.0", "data.valid_fraction=0.0"]
    config = settings(data / "tau", tmp_path, *words)
    before = make_network(config["network"], build(config["data"]))
    module = train(data / "tau", tmp_path, *words)

    def weights(network: InferenceNetwork) -> torch.Tensor:
        banks = [bank.rows.flatten() for bank in banks_of(network).values()]
        inside = {id(p) for bank in banks_of(network).values() for p in bank.parameters()}
        dense = [p.detach().flatten() for p in network.parameters() if id(p) not in inside]
        return torch.cat([*banks, *dense]).double()

    moved = float((weights(module.network) - weights(before)).norm())
    if clipped:
        assert math.isclose(moved, limit, rel_tol=1e-2)
    else:
        assert moved > 0.1


def test_clipping_by_value_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clipped by norm only"):
        train(data / "tau", tmp_path, "+trainer.gradient_clip_algorithm=value", "debug=fast")


@pytest.mark.parametrize("hardware", [True, False])
def test_bf16_without_hardware_for_it_is_warned_of(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware: bool
) -> None:
    monkeypatch.setattr("etalumis.lit_models.fit.has_bf16_products", lambda: hardware)
    config = settings(data / "gaussian", tmp_path, "trainer.precision=bf16-mixed", "trainer.accelerator=cpu")
    with nullcontext() if hardware else pytest.warns(UserWarning, match="this processor has no bf16 products"):
        make_trainer(config, validation=True)


@pytest.mark.filterwarnings("ignore:.*this processor has no bf16 products")
def test_mixed_precision_learns_too(data: Path, tmp_path: Path) -> None:
    modules = {}
    for precision in ("32-true", "bf16-mixed"):
        words = [f"trainer.precision={precision}", "trainer.max_epochs=2", "optimizer.lr=1e-2"]
        modules[precision] = train(data / "gaussian", tmp_path / precision, *words)
    config = settings(data / "gaussian", tmp_path)
    losses = {
        precision: sum(loss * n for loss, n in losses_by_hand(module, config))
        / sum(n for _, n in losses_by_hand(module, config))
        for precision, module in modules.items()
    }
    assert abs(losses["bf16-mixed"] - losses["32-true"]) < 0.15
    for module in modules.values():
        assert {p.dtype for p in module.network.parameters()} == {torch.float32}
    states = [module.network.state_dict()["core.bias"] for module in modules.values()]
    assert not torch.equal(*states), "mixed precision was on"


def test_validation_loss_is_the_mean_over_traces(data: Path, tmp_path: Path) -> None:
    """Minibatches of unequal size weigh by their traces."""
    words = ["trainer.max_epochs=1", "data.valid_fraction=0.3", "data.batch_size=33"]
    module = train(data / "tau", tmp_path, *words)
    by_hand = losses_by_hand(module, settings(data / "tau", tmp_path, *words))
    assert len({n for _, n in by_hand}) > 1
    mean = sum(loss * n for loss, n in by_hand) / sum(n for _, n in by_hand)
    logged = checkpoint.load(tmp_path / "network.pt")[1]["loss/valid"]
    assert math.isclose(mean, logged, rel_tol=1e-5)


def test_loss_of_the_exported_network_on_traces_kept_for_it(data: Path, tmp_path: Path) -> None:
    words = ["data.test_fraction=0.3", "data.valid_fraction=0.2", "trainer.max_epochs=3", "optimizer.lr=0.3"]
    config = settings(data / "gaussian", tmp_path, *words)
    module = fit(config)
    datamodule = build(config["data"])
    network, _ = checkpoint.load(tmp_path / "network.pt")
    datamodule.attach(network.layout)
    with torch.no_grad():
        losses = [(float(network.loss(batch)[0]), batch.num_traces) for batch in datamodule.test_dataloader()]
    expected = sum(loss * traces for loss, traces in losses) / sum(traces for _, traces in losses)
    assert sum(traces for _, traces in losses) == datamodule.test_traces > 0
    assert module.tested["loss/test"] == module.tested["loss/test_known"] == pytest.approx(expected, rel=1e-6)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["loss/test"] == module.tested["loss/test"]
    assert result["best loss/valid"] != result["loss/test"]
    assert f"loss/test      {expected:.4f}" in summary(module)


def test_early_stopping_and_the_best_network(data: Path, tmp_path: Path) -> None:
    """With a learning rate that ruins the network, the first epoch's is exported and training ends early."""
    words = ["trainer.max_epochs=30", "callbacks.early_stopping.patience=2", "optimizer.lr=0.0", "scheduler=constant"]
    module = train(data / "branching", tmp_path, *words)
    assert module.trainer.current_epoch == 3
    state = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert state["epoch"] == 0


def test_without_validation_the_last_network_is_exported(data: Path, tmp_path: Path) -> None:
    module = train(data / "branching", tmp_path, "data.valid_fraction=0.0", "trainer.max_epochs=2")
    network, _ = checkpoint.load(tmp_path / "network.pt")
    assert_equal_state(network.state_dict(), module.network.state_dict())


@pytest.mark.slow
def test_interrupted_by_hand_and_gone_on_with(data: Path, tmp_path: Path) -> None:
    """Ctrl-C in a real process with a loader process: a message, the exit code of interruption, then on."""
    words = [f"data.train={data / 'gaussian'}", f"output={tmp_path}", "trainer.max_epochs=40000", "logger=none"]
    words += ["callbacks.early_stopping.patience=1000000"]  # it must not end before it says how far it is
    command = [sys.executable, "-m", "etalumis.cli", "train", *words, "data.workers=1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if re.search(r"epoch \d+", line):
                break
        os.killpg(process.pid, signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert re.search(
        r"interrupted: stopped by Ctrl-C after [\d,]+ steps, saved in .*last\.ckpt: the same command", said
    )
    assert "Traceback" not in said
    epoch = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["epoch"]
    config = plain(compose("train", [*words, "data.workers=0", f"trainer.max_epochs={epoch + 3}"]))
    assert fit(config).trainer.current_epoch == epoch + 3


def varying_model() -> et.Model:
    """Its first traces observe a name less often than later ones."""
    count = itertools.count()

    def varying() -> None:
        mu = et.sample(Normal(0.0, 1.0), name="mu")
        for _ in range(1 + next(count) // 40):
            et.observe(Normal(mu, 1.0), name="y")

    return et.Model(varying)


def test_a_name_observed_a_varying_number_of_times(tmp_path: Path) -> None:
    simulate(varying_model, tmp_path / "data", 100, model="varying", workers=0, chunk_size=20)
    module = train(tmp_path / "data", tmp_path / "run", "trainer.max_epochs=1", "data.batch_size=16")
    assert module.network.layout.observations == {"y": (3,)}


# --- every choice runs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        *([f"experiment={name}"] for name in choices("experiment")),
        *([f"network={name}"] for name in choices("network") if name != "paper"),
        *([f"optimizer={name}"] for name in choices("optimizer")),
        *([f"scheduler={name}"] for name in choices("scheduler")),
        *([f"logger={name}"] for name in choices("logger")),
    ],
    ids=lambda words: words[0],
)
def test_choices_train(data: Path, tmp_path: Path, words: list[str]) -> None:
    # fmt: off
    module = fit(plain(compose("train", [
        f"data.train={data / 'tau'}", f"output={tmp_path}", "data.workers=0", "debug=fast", *words,
    ])))
    # fmt: on
    assert module.trainer.global_step == 1
    assert not list(tmp_path.iterdir())
    assert "nothing was written" in summary(module)


def test_loader_process_feeds_the_trainer(data: Path, tmp_path: Path) -> None:
    module = train(data / "tau", tmp_path, "data.workers=1", "trainer.max_epochs=2")
    reference = train(data / "tau", tmp_path / "reference", "trainer.max_epochs=2")
    assert_equal_state(module.network.state_dict(), reference.network.state_dict())


def test_errors(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no checkpoint .*last\.ckpt to go on from"):
        train(data / "tau", tmp_path, "resume=true")
    with pytest.raises(ValueError, match="needs to know how long training is"):
        train(data / "tau", tmp_path, "trainer.max_epochs=-1")
    with pytest.raises(ValueError, match="unknown network settings"):
        train(data / "tau", tmp_path, "+network.hidden=3", "debug=fast")


def test_fewer_traces_to_validate_with_than_ranks_are_refused() -> None:
    data: Any = SimpleNamespace(valid_order=SimpleNamespace(traces=3))
    strategy: Any = SimpleNamespace(world_size=4)
    with pytest.raises(ConfigError, match=r"3 traces to validate with are too few for 4 ranks.*data\.valid_fraction=0"):
        check_validation(data, strategy)
    check_validation(data, None)
    data.valid_order.traces = 0
    check_validation(data, strategy)


def test_no_callback_is_there_twice(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(settings(data / "gaussian", tmp_path), validation=True)
    names = [type(callback).__name__ for callback in trainer.callbacks]
    assert "Position" in names
    assert len(names) == len(set(names)), names


@pytest.mark.parametrize("precision", ["16", "16-mixed", "16-true"])
def test_half_precision_is_refused(data: Path, tmp_path: Path, precision: str) -> None:
    with pytest.raises(ConfigError, match=f"trainer.precision={precision}: .* take bf16-mixed"):
        train(data / "gaussian", tmp_path, f"trainer.precision={precision}", "trainer.accelerator=cpu")


@pytest.mark.parametrize("words", [["trainer.devices=2"], ["+trainer.num_nodes=2"]])
def test_several_ranks_are_refused(data: Path, tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(ConfigError, match="launch them: mpirun -n 4 etalumis train strategy=mpi"):
        train(data / "gaussian", tmp_path, "trainer.accelerator=cpu", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.precision=fp7"], "trainer: .*fp7"),
        (["trainer.accelerator=abacus"], "trainer: .*abacus"),
        (["trainer.max_epochs=-7"], "trainer: .*max_epochs"),
        (["trainer.val_check_interval='00:10:00'"], "val_check_interval=00:10:00: give a share of an epoch"),
        (["trainer.accumulate_grad_batches=0"], r"trainer\.accumulate_grad_batches=0 must be a whole number"),
        (["minibatch=64", "data.batch_size=0"], r"data\.batch_size=0 must be a whole number"),
        (["seed=-1"], "seed=-1: .* from 0 to 4294967295"),
        (["seed=4294967296"], "seed=4294967296: .* from 0 to 4294967295"),
    ],
)
def test_settings_that_the_trainer_does_not_take(data: Path, tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        train(data / "gaussian", tmp_path, *words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.max_epochs=3"], r"best\.ckpt reached epoch [4-8].* trainer\.max_epochs=3"),
        (["network.core.hidden=8"], r"best\.ckpt .* another network: .*core\.hidden=8 .*was 16"),
        (["network.components=3", "network.head.kind=shared"], r"components=3 \(was 5\), .*head\.kind=shared"),
    ],
)
def test_checkpoints_that_do_not_fit(
    trained: tuple[Path, LitInferenceNetwork], data: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    resume = trained[0] / "checkpoints" / "best.ckpt"
    with pytest.raises(ConfigError, match=said):
        train(data / "gaussian", tmp_path, f"resume={resume}", "trainer.max_epochs=9", *words)


def test_files_that_are_no_checkpoints(trained: tuple[Path, LitInferenceNetwork], data: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.ckpt"
    garbage.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"garbage\.ckpt is no checkpoint"):
        train(data / "gaussian", tmp_path, f"resume={garbage}")
    with pytest.raises(ConfigError, match=r"network\.pt holds a network without .* checkpoints/last\.ckpt"):
        train(data / "gaussian", tmp_path, f"resume={trained[0] / 'network.pt'}")
    with pytest.raises(ConfigError, match="another network: simulator=branching"):
        train(data / "branching", tmp_path, f"resume={trained[0] / 'checkpoints' / 'last.ckpt'}")


_BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pytorch_lightning", "lightning", "lightning_fabric", "hydra", "omegaconf",
                                      "tensorboard", "webdataset", "torchmetrics"}:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Blocked())
import etalumis as et
from etalumis.simulators.classics import gaussian
post = et.posterior(et.Model(gaussian), {"obs0": 8.0, "obs1": 9.0}, engine=et.IC(sys.argv[1]), num_traces=300, seed=0)
print(post.mean("mu"), post.ess)
"""


@pytest.mark.parametrize("file", ["network.pt", "checkpoints/last.ckpt"])
def test_inference_without_lightning_or_hydra(trained: tuple[Path, LitInferenceNetwork], file: str) -> None:
    """A trained network needs nothing that trained it."""
    command = [sys.executable, "-c", _BLOCKED, str(trained[0] / file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    mean, ess = map(float, done.stdout.split())
    assert abs(mean - 7.25) < 0.6
    assert ess > 30
