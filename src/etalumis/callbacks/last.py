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
from etalumis.callbacks.requests import GOES_ON, StopRequests, leave_if_asked, paused
from etalumis.datamodules.tracked import TrackedDataModule
from etalumis.lit_models.plugins import CheckpointFiles

_LOOK_S = 5.0  # between two looks at requests; ranks wait for each other there


class LastCheckpoint(Checkpoint):
    """Saves the training every so many minutes, at the end of every epoch, and when it is asked to stop.

    It saves between two minibatches, and never where a validation is due, so that going on from the file gives what an
    uninterrupted training gives. A request lets the iteration at work finish, or as much of it as is done in some
    seconds, which is done again later; it lets a validation finish; then it saves, and leaves by :class:`Paused`. It
    does not wait for traces that are still simulated. Before the first step and while the network that is left is
    tested there is nothing to save.

    Args:
        path: the file; replaced each time.
        minutes: between two saves; None saves at the ends of epochs only.

    Attributes:
        requests: to stop; whoever made them listens to signals, but for Ctrl-C.
    """

    def __init__(self, path: str, minutes: float | None = 10.0) -> None:
        if minutes is not None and not minutes > 0.0:
            raise ValueError(f"checkpoint_minutes must be above 0, or null; got {minutes}")
        self.path = Path(path)
        self.requests = StopRequests()
        self._every = None if minutes is None else 60.0 * minutes
        self._saved = self._looked = time.monotonic()
        self._steps = 0
        self._parts = 0  # minibatches since the last look
        self._next = 1  # of them before the next one
        self._again = True  # whether what is done of an iteration can be done again
        self._cut = False

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        leave_if_asked(self.requests, trainer.strategy)
        self.requests.listen([signal.SIGINT])
        self._saved = time.monotonic()
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, TrackedDataModule):
            data.waiting = partial(self._waiting, trainer)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, number: int) -> None:
        self._steps = trainer.global_step
        if not self._parts:
            self._looked = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        files = _files(trainer)
        if files is not None:
            files.check()
        loop, data = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        self._parts += 1
        whole = trainer.global_step > self._steps
        self._again |= whole
        assert data is not None
        if loop._num_ready_batches_reached() or loop._should_check_val_fx(data):
            return  # more follows: a validation, the end of the epoch
        if not whole and (self._parts < self._next or not self._again):
            return
        due = whole and self._every is not None and time.monotonic() - self._saved >= self._every
        due, request = self._look(trainer, due)
        if due or request:
            self._save(trainer)
        self._leave(trainer, request)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._again &= trainer.global_step > self._steps  # else it would be validated twice

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        # Where max_steps or early stopping cut the epoch short, a longer training goes on in the middle of it.
        self._cut = not trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        self._save(trainer)
        self._cut = False
        self._leave(trainer, self._look(trainer)[1])

    def on_test_batch_end(self, trainer: Trainer, module: LightningModule, *rest: Any) -> None:
        request = self._agree(trainer, self.requests.number)
        if request:
            raise paused(request, f"while the network was tested{GOES_ON}")

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._cut:
            epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]
            for counts in (epochs["total"], epochs["current"]):
                counts["processed"] -= 1

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self.requests.close([signal.SIGINT])

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self.requests.close([signal.SIGINT])

    def _waiting(self, trainer: Trainer) -> None:
        """No minibatch comes for a while: an iteration is not begun, or half of it is at hand and is done again.

        With several ranks the others may be anywhere in theirs: they stop together, when the minibatch has come.
        """
        if self.requests.number and trainer.world_size == 1 and self._again:
            self._save(trainer)
            self._leave(trainer, self.requests.number)

    def _look(self, trainer: Trainer, due: bool = False) -> tuple[bool, int]:
        """Whether to save and what is asked for, on any rank: each has its own clock, and not all hear a signal."""
        seconds = (time.monotonic() - self._looked) / max(self._parts, 1)
        asked = torch.tensor([float(due), self.requests.number, seconds], dtype=torch.float64)
        due, request, seconds = trainer.strategy.reduce(asked, reduce_op="max").tolist()
        self._parts, self._next = 0, max(int(_LOOK_S / max(seconds, 1e-6)), 1)
        return bool(due), int(request)

    @staticmethod
    def _agree(trainer: Trainer, request: int) -> int:
        """What is asked for on any rank."""
        return int(trainer.strategy.reduce(torch.tensor(request), reduce_op="max"))

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
        where = "" if is_trial(trainer) else f", saved in {self.path}{GOES_ON}"
        raise paused(request, f"after {trainer.global_step:,} steps{where}")


def _files(trainer: Trainer) -> CheckpointFiles | None:
    files = trainer.strategy.checkpoint_io
    return files if isinstance(files, CheckpointFiles) else None
