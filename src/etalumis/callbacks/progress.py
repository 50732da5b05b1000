"""How far training is: a bar with time left on a terminal, lines in logs and pipes."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from etalumis.inference.progress import progress_bar
from etalumis.lit_models.inference_network import TRAIN_LOSS, VALID_LOSS

_SHOWN = {
    TRAIN_LOSS: "loss {:.2f}",
    VALID_LOSS: "valid {:.2f}",
    "throughput/traces_per_s": "{:,.0f} traces/s",
}


class Progress(Callback):
    """Counts the iterations of the whole training, with losses and traces per second.

    Args:
        seconds: between two lines where there is no terminal; validations have lines of their own, but no more than
            three in that time.
    """

    def __init__(self, seconds: float = 15.0) -> None:
        self._seconds = seconds
        self._bar = ExitStack()
        self._said = self._began = 0.0
        self._first = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._said = self._began = time.monotonic()
        self._first = self._last = self._told = trainer.global_step
        self._terminal = sys.stderr.isatty() and trainer.is_global_zero
        total = trainer.estimated_stepping_batches
        self._total = int(total) if total < float("inf") else None
        if self._terminal:
            left = None if self._total is None else self._total - self._first
            self._report = self._bar.enter_context(progress_bar("train", left, "steps", True))
        elif self._first:
            self._write(trainer, [f"goes on after step {self._first:,}", *self._parts(trainer)])

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        if self._terminal:
            self._report(trainer.global_step - self._last, " ".join(self._parts(trainer)[1:]))
            self._last = trainer.global_step
        elif time.monotonic() - self._said >= self._seconds:
            self._say(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        quiet = self._terminal or trainer.sanity_checking
        if not quiet and time.monotonic() - self._said >= self._seconds / 3:
            self._say(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not self._terminal and trainer.global_step > self._told:
            self._say(trainer)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._bar.close()

    def _say(self, trainer: Trainer) -> None:
        now = self._said = time.monotonic()
        self._told = trainer.global_step
        done = trainer.global_step - self._first
        parts = [f"step {trainer.global_step:,}" + (f" of {self._total:,}" if self._total is not None else "")]
        parts += self._parts(trainer)
        if self._total is not None and done:
            parts.append(f"{(now - self._began) / done * (self._total - trainer.global_step):.0f} s left")
        self._write(trainer, parts)

    @staticmethod
    def _write(trainer: Trainer, parts: list[str]) -> None:
        if trainer.is_global_zero:
            sys.stderr.write(f"train: {', '.join(parts)}\n")
            sys.stderr.flush()

    @staticmethod
    def _parts(trainer: Trainer) -> list[str]:
        metrics = trainer.callback_metrics | trainer.progress_bar_metrics
        shown = [text.format(float(metrics[name])) for name, text in _SHOWN.items() if name in metrics]
        return [f"epoch {max(1, trainer.fit_loop.epoch_progress.current.ready)}", *shown]
