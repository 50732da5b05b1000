"""Plugins of Lightning's trainer: how checkpoints get onto disk and back, and minibatches in double precision."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from pytorch_lightning.plugins.precision import DoublePrecision

from etalumis.lit_models.resume import Stored
from etalumis.networks import TrainingBatch
from etalumis.networks import checkpoint as files

_MOST = 2  # copies in memory: last.ckpt and best.ckpt are due one after the other at the end of an epoch


class CheckpointFiles(CheckpointIO):
    """Checkpoints that appear complete or not at all, even where the process is killed while it writes.

    Lightning's own are written to the folder of temporary files first, which may lie on another file system, from
    where they are copied in place bit by bit.

    Args:
        background: write while training goes on, from a copy in memory. Whoever needs a file in its place calls
            :meth:`wait` first; reading, deleting and the end of a training do.
        stored: a file that has been read already; it is handed out once.
    """

    def __init__(self, background: bool = False, stored: Stored | None = None) -> None:
        self._stored = stored
        self._writer = ThreadPoolExecutor(1, "checkpoints") if background else None
        self._writing: deque[Future[None]] = deque()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a file, or see to it that it is written.

        Raises:
            CheckpointError: it, or one before, can't be written.
        """
        if self._writer is None:
            files.write(path, checkpoint)
            return
        self.wait(_MOST - 1)
        self._writing.append(self._writer.submit(files.write, path, snapshot(checkpoint)))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a file, onto the CPU; it can hold tensors and plain containers only."""
        self.wait()
        stored, self._stored = self._stored, None
        return stored.content if stored is not None and stored.path == Path(path) else files.read(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a file."""
        self.wait()
        Path(path).unlink(missing_ok=True)

    def check(self) -> None:
        """See that nothing went wrong so far, without waiting.

        Raises:
            CheckpointError: a file can't be written.
        """
        self.wait(len(self._writing))

    def wait(self, at_most: int = 0) -> None:
        """Until no more than so many files are still to be written.

        Raises:
            CheckpointError: one can't be written.
        """
        while self._writing and (len(self._writing) > at_most or self._writing[0].done()):
            self._writing.popleft().result()

    def teardown(self) -> None:
        """All files are in their places."""
        self.wait()


def snapshot(value: Any) -> Any:
    """A copy of nested containers with copies of their tensors, on the CPU, that later steps don't change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        result: Any = copy.copy(value)  # of its kind: versions of modules lie beside the items of a state_dict
        for key, item in value.items():
            result[key] = snapshot(item)
        return result
    return type(value)(map(snapshot, value)) if isinstance(value, (list, tuple)) else value


class DoubleMinibatches(DoublePrecision):
    """Double precision for minibatches too, whose dataclasses Lightning can't change."""

    def convert_input(self, data: TrainingBatch) -> TrainingBatch:
        """A minibatch in float64."""
        return data.double()
