"""Training progress in lines, for logs and pipes where a bar makes no sense."""

from __future__ import annotations

import sys
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from etalumis.lit_models.inference_network import TRAIN_LOSS, VALID_LOSS

_COLUMNS = {
    TRAIN_LOSS: "loss {:.3f}",
    VALID_LOSS: "valid {:.3f}",
    "throughput/traces_per_s": "{:,.0f} traces/s",
}


class Lines(Callback):
    """Prints a line every ``seconds`` and after each validation.

    Args:
        seconds: between two lines.
        on_terminal: print on a terminal too, where the bar says the same.
    """

    def __init__(self, seconds: float = 15.0, on_terminal: bool = False) -> None:
        self._seconds = seconds
        self._on = on_terminal or not sys.stderr.isatty()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._said = self._began = time.monotonic()
        self._first = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        if time.monotonic() - self._said >= self._seconds:
            self._say(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._say(trainer)

    def _say(self, trainer: Trainer) -> None:
        now = self._said = time.monotonic()
        if not self._on or not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics | trainer.progress_bar_metrics
        parts = [f"epoch {trainer.current_epoch + 1}", f"step {trainer.global_step:,}"]
        total = trainer.estimated_stepping_batches
        if total < float("inf"):
            parts[1] += f" of {int(total):,}"
        parts += [text.format(float(metrics[name])) for name, text in _COLUMNS.items() if name in metrics]
        done = trainer.global_step - self._first
        if total < float("inf") and done:
            parts.append(f"{(now - self._began) / done * (int(total) - trainer.global_step):.0f} s left")
        sys.stderr.write("train: " + ", ".join(parts) + "\n")
        sys.stderr.flush()
