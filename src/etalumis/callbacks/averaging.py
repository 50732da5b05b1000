"""Validating with, and leaving behind, weights averaged over the steps."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from etalumis.networks import checkpoint
from etalumis.optim import AverageModel, RowOptimizer


class Average(Callback):
    """Keeps an exponential moving average of the weights; see :class:`etalumis.optim.AverageModel`.

    Validation, the network that is written in the end, and a network loaded from a checkpoint have the averaged
    weights. Training goes on with its own; checkpoints keep both.

    Args:
        decay: of the average in one step, as 0.999; None does nothing.
        warm_up: see :class:`etalumis.optim.AverageModel`.
    """

    def __init__(self, decay: float | None = None, warm_up: bool = True) -> None:
        if decay is not None and not 0.0 < decay < 1.0:
            raise ValueError(f"callbacks.average.decay must be above 0 and below 1, or null; got {decay}")
        self._decay, self._warm_up = decay, warm_up
        self._average: AverageModel | None = None
        self._stored: dict[str, Any] | None = None

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, state: dict[str, Any]) -> None:
        self._stored = state.get(checkpoint.AVERAGE)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._decay is None:
            return
        (optimizer,) = trainer.optimizers
        assert isinstance(optimizer, RowOptimizer)
        self._average = AverageModel(optimizer, self._decay, self._warm_up)
        if self._stored is not None:
            self._average.load_state_dict(self._stored)
            self._stored = None
        optimizer.before_update.append(self._average.update)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._give(averaged=True)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._give(averaged=False)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._give(averaged=True)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._give(averaged=False)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, state: dict[str, Any]) -> None:
        if self._average is None:
            return
        swapped = self._average.swapped
        self._give(averaged=False)
        if swapped:
            own = trainer.strategy.lightning_module_state_dict()
            # Copies: the weights change places again before the file is written.
            state["state_dict"] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in own.items()}
        state[checkpoint.AVERAGE] = self._average.state_dict()
        self._give(averaged=swapped)

    def _give(self, averaged: bool) -> None:
        """Let the network have its averaged weights, or its own."""
        if self._average is not None and self._average.swapped is not averaged:
            self._average.swap()
