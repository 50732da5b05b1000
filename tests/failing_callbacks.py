"""Callbacks that let a rank fail, for trainings that are started as programs in this folder; and one that looks on."""

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class At(Callback):
    """Something happens to one rank, at a moment of its training.

    Args:
        rank: to which one; -1 for all.
        what: a signal's name, ``error``, ``loader`` (which kills a process that reads data), or ``full``: no room for
            files.
        step: the minibatch, counted from 1 in this process.
        moment: ``setup``, ``train`` or ``validation``.
        note: file in which to write down when it happened (``time.time``); where it exists, nothing happens any more.
    """

    def __init__(self, rank: int, what: str, step: int = 3, moment: str = "train", note: str | None = None) -> None:
        self._rank, self._what, self._left, self._moment, self._note = rank, what, step, moment, note

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._count(trainer, "setup")

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, number: int) -> None:
        self._count(trainer, "train")

    def on_validation_batch_start(self, trainer: Trainer, module: LightningModule, *rest: Any) -> None:
        self._count(trainer, "validation")

    def _count(self, trainer: Trainer, moment: str) -> None:
        if moment != self._moment or self._rank not in (-1, trainer.global_rank):
            return
        self._left -= 1
        if self._left or (self._note and Path(self._note).exists()):
            return
        if self._note:
            Path(self._note).write_text(str(time.time()))
        if self._what == "error":
            raise ValueError("something is wrong here")
        if self._what == "loader":
            multiprocessing.active_children()[0].kill()
        elif self._what == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # bytes that a file may have
        else:
            os.kill(os.getpid(), signal.Signals[self._what])


class Met(Callback):
    """Writes down which traces a rank trains with, by the values of their draws (one a trace), for finished steps."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._values: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, number: int) -> None:
        self._values += torch.cat([group.columns["z"] for group in batch.groups]).flatten().tolist()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *rest: Any) -> None:
        with Path(f"{self._path}.{trainer.global_rank}").open("a", encoding="utf-8") as file:
            file.writelines(f"{trainer.current_epoch} {value!r}\n" for value in self._values)
        self._values = []
