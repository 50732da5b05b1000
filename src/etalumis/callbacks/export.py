"""What is left of a training: one file that ``et.IC`` needs nothing beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from etalumis.networks import InferenceNetwork, checkpoint


class Export(Callback):
    """Writes the network of the best validation loss (the last one where nothing was validated) after training.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero or is_trial(trainer):
            return
        network, extra = _best(trainer)
        last = module.network
        assert isinstance(last, InferenceNetwork)
        checkpoint.save(self.path, network or last, extra=extra)


def is_trial(trainer: Trainer) -> bool:
    """Whether this is a short run that finds mistakes, and leaves nothing behind."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set by one of its connectors


def _best(trainer: Trainer) -> tuple[InferenceNetwork | None, dict[str, Any]]:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            network, _ = checkpoint.load(callback.best_model_path)
            score = callback.best_model_score
            return network, {callback.monitor: float(score) if isinstance(score, torch.Tensor) else score}
    return None, {}
