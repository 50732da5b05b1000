"""A range test of learning rates (Smith 2017): train a copy of the network while the rate rises from step to step."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer

from etalumis.conf.build import ConfigError
from etalumis.lit_models.fit import MEANT, build_optimizer, make_module, make_trainer
from etalumis.lit_models.inference_network import LitInferenceNetwork
from etalumis.lit_models.minibatch import with_minibatch
from etalumis.lit_models.resume import find_checkpoint
from etalumis.networks import InferenceNetwork, ProposalError, checkpoint
from etalumis.report.training import draw_range_test
from etalumis.storage.manifest import write_atomically

_MEMORY = 0.9  # of the smoothed loss, from one step to the next
_FEWEST = 10  # steps that tell anything


@dataclass(frozen=True)
class RangeTest:
    """The losses met while the learning rate rose.

    Attributes:
        rates: learning rate of each step.
        losses: of the minibatch before the step that this rate took.
        smooth: the same, averaged over some steps.
        suggestion: where the loss falls fastest with the logarithm of the rate, before the minimum.
    """

    rates: list[float]
    losses: list[float]
    smooth: list[float]
    suggestion: float


def tune(config: Mapping[str, Any]) -> str:
    """Test, write ``lr_finder.json`` and ``lr_finder.png`` below the output folder; returns what to say.

    Args:
        config: of a training, with ``tune`` as ``conf/tune/lr.yaml`` describes.
    """
    config = with_minibatch(config)
    module, data = make_module(config)
    if config["resume"] != "auto" and (path := find_checkpoint(config["resume"], Path(config["output"]))):
        trained, _ = checkpoint.load(path, module.network.simulator)
        module.network.load_state_dict(trained.state_dict())
    found = range_test(module.network, data, config)
    output = Path(config["output"])
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "lr_finder.json", (json.dumps(asdict(found), indent=2) + "\n").encode())
    figure = output / "lr_finder.png"
    draw_range_test(found.rates, found.losses, found.smooth, found.suggestion).savefig(figure, dpi=160)
    return f"{figure} shows {len(found.rates)} steps; suggestion: optimizer.lr={found.suggestion:.2g}"


def range_test(network: InferenceNetwork, data: Any, config: Mapping[str, Any]) -> RangeTest:
    """Train a copy of a network, with the optimiser and the minibatches of a training.

    Args:
        network: to start from; it does not change.
        data: module with the training minibatches, packed for this network.
        config: all settings of the training.

    Raises:
        ConfigError: rates that don't rise, or too few steps; losses that nothing can be told from.
    """
    start, end, steps = (config["tune"][key] for key in ("start", "end", "steps"))
    if not 0.0 < start < end or steps < _FEWEST:
        raise ConfigError(f"tune: needs 0 < start < end and at least {_FEWEST} steps; got {start}, {end}, {steps}")
    rising = _Rising(np.geomspace(start, end, steps).tolist())
    trainer = {"max_steps": steps, "max_epochs": -1, "limit_val_batches": 0, "enable_checkpointing": False}
    trainer["fast_dev_run"] = False
    quiet = {**config, "trainer": config["trainer"] | trainer, "logger": None, "callbacks": {}}
    runner = make_trainer(quiet, validation=False, callbacks=[rising])
    module = LitInferenceNetwork(copy.deepcopy(network), build_optimizer(config["optimizer"])[0])
    with warnings.catch_warnings():
        for message in MEANT:
            warnings.filterwarnings("ignore", message)
        try:
            runner.fit(module, datamodule=data)
        except ProposalError:  # weights blown up
            rising.losses.append(math.inf)
    return suggest(rising.rates, rising.losses)


def suggest(rates: list[float], losses: list[float]) -> RangeTest:
    """Smooth the losses up to where they blow up, and find their steepest descent.

    Args:
        rates: learning rates, rising by the same factor from step to step.
        losses: as many, or fewer where the test ended early.

    Raises:
        ConfigError: the losses never fall, or blow up too soon after they have.
    """
    kept = [loss for loss in losses if math.isfinite(loss)]
    smooth: list[float] = []
    mean = 0.0
    for number, loss in enumerate(kept, 1):
        mean = _MEMORY * mean + (1.0 - _MEMORY) * loss
        smooth.append(mean / (1.0 - _MEMORY**number))
    lowest = int(np.argmin(smooth)) if smooth else 0
    reach = max(3, len(kept) // 10)
    if lowest <= reach:
        raise ConfigError(
            f"the loss rises from the first steps on, at a learning rate of {rates[0]:.2g}: lower tune.start"
        )
    if len(kept) <= 2 * reach:  # no step has so many on each side
        raise ConfigError(
            f"{len(kept)} steps with a loss, up to a learning rate of {rates[len(kept) - 1]:.2g}, are too few to tell "
            "where it falls fastest: lower tune.end, or give more tune.steps"
        )
    return RangeTest(rates[: len(kept)], kept, smooth, rates[_steepest(np.array(kept), lowest, reach)])


def _steepest(losses: NDArray[np.float64], lowest: int, reach: int) -> int:
    """The step, not after ``lowest``, around which the line fitted to ``reach`` losses on each side falls fastest."""
    centres = range(reach, min(lowest, len(losses) - 1 - reach) + 1)
    steps = np.arange(-reach, reach + 1)
    slopes = [steps @ losses[centre - reach : centre + reach + 1] for centre in centres]
    return centres[int(np.argmin(slopes))]


class _Rising(Callback):
    """Sets the learning rate of each iteration and keeps its loss; ends where that has lost all it had gained."""

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates
        self.losses: list[float] = []
        self._parts: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, number: int) -> None:
        self._step = trainer.global_step
        trainer.optimizers[0].param_groups[0]["lr"] = self.rates[self._step]

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        self._parts.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)
        if trainer.global_step == self._step:
            return
        self.losses.append(float(np.mean(self._parts)))
        self._parts.clear()
        gained = self.losses[0] - min(self.losses)
        if not math.isfinite(self.losses[-1]) or self.losses[-1] > self.losses[0] + max(gained, 1.0) + 1.0:
            trainer.should_stop = True
