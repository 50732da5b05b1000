"""``etalumis train``: from settings to a trained network on disk."""

from __future__ import annotations

import json
import logging
import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from etalumis.callbacks import Balance, Export, LastCheckpoint, Paused, Position, is_trial
from etalumis.callbacks.requests import StopRequests, leave_if_asked, seconds_of
from etalumis.conf.build import ConfigError, build, locate
from etalumis.datamodules.tracked import TrackedDataModule
from etalumis.distributions import derived_seed
from etalumis.execution.pool import share_of_cores
from etalumis.execution.signals import JOB_SIGNALS
from etalumis.lit_models.inference_network import TEST_LOSS, VALID_LOSS, LitInferenceNetwork, MakeOptimizer
from etalumis.lit_models.job import LeaveSignals, job
from etalumis.lit_models.lock import locked
from etalumis.lit_models.minibatch import with_minibatch
from etalumis.lit_models.plugins import CheckpointFiles, DoubleMinibatches
from etalumis.lit_models.resume import Stored, check_checkpoint, clear, find_checkpoint, read_checkpoint, sweep
from etalumis.lit_models.start import start
from etalumis.networks import ProposalError, checkpoint
from etalumis.networks.autocast import has_bf16_products
from etalumis.optim import scaled_lr
from etalumis.storage.manifest import write_atomically
from etalumis.strategies import RowStrategy

# Said by Lightning about things that are meant.
MEANT = (
    ".*does not have many workers.*",
    ".*`training_step` returned `None`.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*is smaller than the logging interval.*",
    ".*Total length of `list` across ranks is zero.*",
    ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
)

LOCK = "lock"  # the file by which a training holds its output folder
_SEEDS = 2**32  # how many NumPy's global generator has
_DOUBLE = ("64", "64-true")
_HALF = ("16", "16-mixed", "16-true")  # numbers that need their gradients scaled, which no bank row's would be


def fit(config: Mapping[str, Any]) -> LitInferenceNetwork:
    """Train as ``conf/train.yaml`` describes; returns the module with its last weights.

    Raises:
        DatasetError: a dataset is missing or damaged.
        CheckpointError: the checkpoint to go on from is damaged.
        ConfigError: settings that don't go together, or an output folder that holds another training, or in which
            one is at work.
        ProposalError: the weights have blown up; result.json says so.
        Paused: on SIGTERM, SIGUSR1, SIGUSR2 or at the time limit; everything is saved.
        KeyboardInterrupt: on Ctrl-C; says how to go on.
    """
    output, trial = Path(config["output"]), bool(config["trainer"].get("fast_dev_run"))
    taken = f"another training is at work in {output}; wait for it, or give another output=..."
    requests = StopRequests(seconds_of(config["time_limit"]))
    requests.listen(JOB_SIGNALS)
    try:
        with job(config.get("strategy")) as strategy, ExitStack() as stack:
            stack.push(partial(_give_back_after_errors, requests))
            if not trial and (strategy is None or strategy.is_global_zero):
                stack.enter_context(locked(output / LOCK, taken))
                sweep(output)
            resume = None if trial else _resumed(config, output, strategy)
            ranks = 1 if strategy is None else strategy.world_size
            config = with_minibatch(config, ranks, None if resume is None else resume.batch_size)
            if strategy is not None:
                config = among_ranks(config, share_of_cores(strategy.collective.all_gather_bytes))
            leave_if_asked(requests, strategy)
            return _fit(config, output, resume, strategy, requests)
    except Paused as paused:
        if paused.signal == signal.SIGINT:
            raise KeyboardInterrupt(str(paused)) from None
        raise
    finally:
        requests.close()


def _give_back_after_errors(requests: StopRequests, kind: type[BaseException] | None, *rest: object) -> None:
    """A rank that waits for the first to say what is wrong must end when the launcher ends the job."""
    if kind is not None and not issubclass(kind, Paused):
        requests.close()


def _resumed(config: Mapping[str, Any], output: Path, strategy: RowStrategy | None) -> Stored | None:
    """The checkpoint to go on from, as rank 0 finds it: others may see its folder later."""
    alone = strategy is None or strategy.is_global_zero
    path = find_checkpoint(config["resume"], output) if alone else None
    if strategy is not None:
        found = strategy.broadcast(None if path is None else str(path))
        path = None if found is None else Path(found)
    return None if path is None else read_checkpoint(path)


def _fit(
    config: Mapping[str, Any],
    output: Path,
    resume: Stored | None,
    strategy: RowStrategy | None,
    requests: StopRequests,
) -> LitInferenceNetwork:
    module, data = make_module(config, resume)
    leave_if_asked(requests, strategy)
    if strategy is not None:
        torch.manual_seed(derived_seed(config["seed"], strategy.global_rank))  # for what draws while it trains
    check_validation(data, strategy)
    trainer = make_trainer(config, data.valid_order.traces > 0, strategy=strategy, stored=resume, requests=requests)
    leave_if_asked(requests, strategy)  # from here on callbacks look, if there is one that does
    trial = is_trial(trainer)
    if str(config["trainer"].get("precision")) in _DOUBLE:
        module.double()  # before a checkpoint is loaded into it, which Lightning does first
    if resume is not None:
        check_checkpoint(resume, module.network, config)
    elif not trial:
        trainer.strategy.barrier()  # all have read what they begin with, maybe from the same folder
        if trainer.is_global_zero:
            clear(output)
    with warnings.catch_warnings():
        for message in MEANT:
            warnings.filterwarnings("ignore", message)
        try:
            path = None if resume is None else resume.path
            trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
            trainer.strategy.barrier()  # what rank 0 has left behind is there
            if not trial and data.test_traces:
                module.tested = _test(trainer, module, data, output)
        except ProposalError as error:
            if not trial:
                write_diverged(output / "result.json", trainer.global_step, error, trainer.global_rank)
            raise
        except SystemExit:  # what Lightning makes of a second Ctrl-C
            if trainer.interrupted:
                raise KeyboardInterrupt("the same command goes on from the last checkpoint") from None
            raise
    return module


def _test(trainer: Trainer, module: LitInferenceNetwork, data: TrackedDataModule, output: Path) -> dict[str, float]:
    """Losses of the network that is left, on traces that were kept for that; result.json has them, too."""
    path = output / "network.pt"
    left = trainer.strategy.broadcast(path.exists())  # as rank 0, which wrote it, sees it
    last = LitInferenceNetwork(checkpoint.load(path)[0], module.make_optimizer) if left else module
    last.to(dtype=next(module.parameters()).dtype)
    tested = trainer.test(last, datamodule=data, verbose=False)
    if not tested:  # each rank gets as many minibatches as the others, and none is empty
        warnings.warn(
            f"{data.test_traces} traces to test with are too few for {trainer.world_size} ranks: nothing was tested",
            stacklevel=2,
        )
        return {}
    (losses,) = tested
    result = output / "result.json"
    if trainer.is_global_zero and result.exists():
        found = json.loads(result.read_text(encoding="utf-8")) | losses
        write_atomically(result, (json.dumps(found, indent=2) + "\n").encode())
    return {name: float(loss) for name, loss in losses.items()}


def make_module(
    config: Mapping[str, Any], resume: Stored | None = None
) -> tuple[LitInferenceNetwork, TrackedDataModule]:
    """A network with its losses and optimiser, and the data that it learns from.

    Args:
        config: all settings.
        resume: the checkpoint that it will go on from.

    Raises:
        DatasetError: a dataset is missing or damaged.
        ConfigError: the seed is none.
    """
    if not 0 <= config["seed"] < _SEEDS:
        raise ConfigError(f"seed={config['seed']}: training takes seeds from 0 to {_SEEDS - 1}")
    seed_everything(config["seed"], verbose=False)
    data = build(config["data"])
    assert isinstance(data, TrackedDataModule)
    network, missing = start(config, data, resume)
    data.attach(network.layout)
    optimizer, scale = build_optimizer(config["optimizer"])
    scheduler = build_optional(config["scheduler"])
    return LitInferenceNetwork(network, optimizer, scheduler, dict(config), scale, missing), data


def build_optimizer(group: Mapping[str, Any]) -> tuple[MakeOptimizer, Callable[[float, int], float]]:
    """From a network to its optimiser, and from (learning rate, traces to an iteration) to the learning rate."""
    settings = dict(group)
    rule, reference = settings.pop("scaling", "none"), settings.pop("reference_minibatch", None)
    return build(settings), lambda lr, minibatch: scaled_lr(lr, rule, minibatch, reference)


def among_ranks(config: Mapping[str, Any], cores: int) -> dict[str, Any]:
    """The settings of one of several ranks that share a machine: what is left open becomes its share of it.

    Args:
        config: all settings.
        cores: of this rank.
    """
    if config["threads"] is None:
        torch.set_num_threads(cores)
    data = config["data"]
    if data["workers"] is None:
        data = data | {"workers": locate(data["_target_"]).workers_on(cores)}
    return {**config, "data": data}


def summary(module: LitInferenceNetwork) -> str:
    """What came out of a training, in a few lines."""
    trainer = module.trainer
    if is_trial(trainer):
        losses = ", ".join(f"{name} {float(value):.4f}" for name, value in sorted(trainer.callback_metrics.items()))
        return f"trainer.fast_dev_run: all parts work together ({losses}); nothing was written"
    lines = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by one of its connectors
        if isinstance(callback, Export):
            lines.append(
                f"{callback.path}: {len(module.network.layout):,} addresses, trained {trainer.global_step:,} steps"
            )
        elif isinstance(callback, ModelCheckpoint) and callback.best_model_score is not None and callback.monitor:
            lines.append(f"  {callback.monitor}     {float(callback.best_model_score):.4f} at best")
        elif isinstance(callback, Balance):
            waited = callback.waited / callback.seconds if callback.seconds else 0.0
            lines.append(f"  throughput     {callback.rate:,.0f} traces/s, {waited:.1%} of the time waiting for data")
            if callback.imbalance:
                lines.append(
                    f"  load balance   {callback.imbalance:.1%} of an iteration's best time waiting for other ranks"
                )
    if module.tested:
        lines.append(f"  {TEST_LOSS}      {module.tested[TEST_LOSS]:.4f} of traces kept for it")
    return "\n".join(sorted(lines, key=lambda line: line.startswith(" ")))


def write_diverged(path: Path, steps: int, error: ProposalError, rank: int = 0) -> None:
    """Note that a training came to no good end; several ranks may find that out at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f".{path.name}.{rank}")
    write_atomically(own, (json.dumps({"diverged": str(error), "steps": steps}, indent=2) + "\n").encode())
    own.replace(path)


def make_trainer(
    config: Mapping[str, Any],
    validation: bool,
    callbacks: Sequence[Callback] = (),
    strategy: RowStrategy | None = None,
    stored: Stored | None = None,
    requests: StopRequests | None = None,
) -> Trainer:
    """Lightning's trainer with our callbacks.

    Args:
        config: all settings.
        validation: whether there are traces to validate with.
        callbacks: beside those of the settings.
        strategy: of several ranks; None trains in this process alone.
        stored: the checkpoint that it will go on from.
        requests: to stop, which listen already; no longer where no callback looks at them.

    Raises:
        ConfigError: settings that it does not take, or with which training would be wrong.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    settings = config["trainer"]
    if str(settings.get("precision")) in _HALF:
        raise ConfigError(
            f"trainer.precision={settings['precision']}: gradients of bank rows would stay scaled; take bf16-mixed"
        )
    if settings.get("max_time") is not None:
        raise ConfigError("trainer.max_time stops without saving where it is; give time_limit=DD:HH:MM:SS")
    every = settings.get("val_check_interval")
    if isinstance(every, bool) or not isinstance(every, (int, float, type(None))):
        raise ConfigError(
            f"trainer.val_check_interval={every}: give a share of an epoch, or a number of minibatches; ranks that "
            "went by their own clocks would not validate together"
        )
    plugins: list[Any] = [CheckpointFiles(config["checkpoint_background"], stored)]
    if str(settings.get("precision")) in _DOUBLE:
        plugins, settings = [*plugins, DoubleMinibatches()], {**settings, "precision": None}
    watching = [Position(), *callbacks, *(build(c) for c in callbacks_of(config["callbacks"] or {}, validation))]
    parts = {
        "plugins": plugins,
        "callbacks": watching,
        "logger": build_optional(config["logger"]) or False,
        "enable_progress_bar": False,  # callbacks.progress shows the whole training
    }
    if strategy is None:  # said, because Lightning would start MPI to find out
        plugins.append(LightningEnvironment())
    else:
        parts["strategy"] = strategy
    try:
        trainer: Trainer = build({**settings, **parts})
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    trainer._signal_connector = LeaveSignals(trainer)
    if requests is not None:
        looking = [callback for callback in watching if isinstance(callback, LastCheckpoint)]
        for callback in looking:
            callback.requests = requests
        if not looking:
            requests.close()
    if trainer.num_devices != 1 or trainer.num_nodes != 1:
        raise ConfigError(
            f"trainer.devices makes {trainer.num_devices} on {trainer.num_nodes} nodes: the ranks of a launcher train "
            "with one device each; leave trainer.devices=1, and launch them: mpirun -n 4 etalumis train strategy=mpi"
        )
    if trainer.precision == "bf16-mixed" and trainer.strategy.root_device.type == "cpu" and not has_bf16_products():
        warnings.warn(
            "trainer.precision=bf16-mixed: this processor has no bf16 products, and is much faster with 32-true",
            stacklevel=2,
        )
    return trainer


def check_validation(data: TrackedDataModule, strategy: RowStrategy | None) -> None:
    """See that each rank gets some traces to validate with, where there are any.

    Raises:
        ConfigError: they are fewer than the ranks.
    """
    traces, ranks = data.valid_order.traces, 1 if strategy is None else strategy.world_size
    if 0 < traces < ranks:
        raise ConfigError(
            f"{traces} traces to validate with are too few for {ranks} ranks, each of which needs one: give more by "
            "data.valid or data.valid_fraction, or data.valid_fraction=0 to train without validation"
        )


def callbacks_of(group: Mapping[str, Mapping[str, Any]], validation: bool) -> list[Mapping[str, Any]]:
    """The settings of all callbacks; without those that watch the validation loss where there is none."""
    return [c for c in group.values() if validation or c.get("monitor") != VALID_LOSS]


def build_optional(config: Mapping[str, Any] | None) -> Any:
    """What a group describes; None where its ``_target_`` is null."""
    return build(config) if config and config.get("_target_") else None
