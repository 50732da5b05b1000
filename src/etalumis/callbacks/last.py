"""The checkpoint that training goes on from, and stopping in an orderly way."""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from etalumis.callbacks.export import is_trial
from etalumis.callbacks.requests import TIME_LIMIT, Paused, StopRequests, reason_of, seconds_of
from etalumis.datamodules.tracked import TrackedDataModule
from etalumis.lit_models.plugins import CheckpointFiles


class LastCheckpoint(Checkpoint):
    """Saves the training every so many minutes, at the end of every epoch, and when it is asked to stop.

    It saves between two iterations only, never with gradients of half a minibatch at hand or with a validation due,
    so that going on from the file gives what an uninterrupted training gives. SIGTERM, SIGUSR1, Ctrl-C and the time
    limit let the iteration (or the validation) at work finish, save, and leave by :class:`Paused`; they don't wait for
    traces that are still simulated.

    Args:
        path: the file; replaced each time.
        minutes: between two saves; None saves at the ends of epochs only.
        time_limit: ``DD:HH:MM:SS`` or seconds, from the making of this callback on; None has none.
    """

    def __init__(self, path: str, minutes: float | None = 10.0, time_limit: str | float | None = None) -> None:
        if minutes is not None and not minutes > 0.0:
            raise ValueError(f"checkpoint_minutes must be above 0, or null; got {minutes}")
        self.path = Path(path)
        self.requests = StopRequests(seconds_of(time_limit))
        self._every = None if minutes is None else 60.0 * minutes
        self._saved = time.monotonic()
        self._steps = 0
        self._cut = False

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._saved = time.monotonic()
        self.requests.listen()
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, TrackedDataModule):
            data.waiting = partial(self._waiting, trainer)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, number: int) -> None:
        self._steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        files = _files(trainer)
        if files is not None:
            files.check()
        loop, data = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        if trainer.global_step == self._steps:
            return  # gradients of half an iteration
        assert data is not None
        if loop._num_ready_batches_reached() or loop._should_check_val_fx(data):
            return  # more follows: a validation, the end of the epoch
        due = self._every is not None and time.monotonic() - self._saved >= self._every
        due, request = self._agree(trainer, due)
        if due or request:
            self._save(trainer)
        self._leave(trainer, request)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        # Where max_steps or early stopping cut the epoch short, a longer training goes on in the middle of it.
        self._cut = not trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        self._save(trainer)
        self._cut = False
        self._leave(trainer, self._agree(trainer)[1])

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._cut:
            epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]
            for counts in (epochs["total"], epochs["current"]):
                counts["processed"] -= 1

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self.requests.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self.requests.close()

    def _waiting(self, trainer: Trainer) -> None:
        """No minibatch comes for a while: an iteration is not begun, or half of it is at hand and is done again.

        With several ranks the others may be anywhere in theirs: they stop together, when the minibatch has come.
        """
        if self.requests.number and trainer.world_size == 1:
            self._save(trainer)
            self._leave(trainer, self.requests.number)

    def _agree(self, trainer: Trainer, due: bool = False) -> tuple[bool, int]:
        """Whether to save and what is asked for, on any rank: each has its own clock, and not all hear a signal."""
        asked = torch.tensor([int(due), self.requests.number])
        due, request = trainer.strategy.reduce(asked, reduce_op="max").tolist()
        return bool(due), request

    def _save(self, trainer: Trainer) -> None:
        if is_trial(trainer):
            return
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()

    def _leave(self, trainer: Trainer, request: int) -> None:
        if not request or trainer.fit_loop.done:
            return
        files = _files(trainer)
        if files is not None:
            files.wait()
        where = "" if is_trial(trainer) else f", saved in {self.path}: the same command goes on"
        number = None if request == TIME_LIMIT else signal.Signals(request)
        raise Paused(f"stopped by {reason_of(request)} after {trainer.global_step:,} steps{where}", number)


def _files(trainer: Trainer) -> CheckpointFiles | None:
    files = trainer.strategy.checkpoint_io
    return files if isinstance(files, CheckpointFiles) else None
