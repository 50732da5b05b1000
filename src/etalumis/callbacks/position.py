"""Where in an epoch training is: kept with the data, and put right in Lightning's own counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from etalumis.datamodules.traces import TracesDataModule

_PROGRESS = "epoch_loop.batch_progress"


class Position(Callback):
    """Counts the minibatches behind the optimiser's finished steps, and makes training go on right after them.

    Lightning counts minibatches of one rank. A checkpoint that was made with another number of ranks, or between the
    minibatches of one accumulation, is therefore put right when it is loaded: what of an accumulation was lost is
    done again, and the rest of the epoch counts as the last minibatches of an epoch with as many ranks as there are
    now. Needs a :class:`.TracesDataModule`; does nothing with other data.
    """

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        data, loop = _data(trainer), trainer.fit_loop.epoch_loop
        if data is not None and not loop._should_accumulate():
            data.finished(trainer.current_epoch, number + 1, loop._num_ready_batches_reached())

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        data = _data(trainer)
        if data is None:
            return
        loops = checkpoint["loops"]["fit_loop"]
        progress = loops[_PROGRESS]
        if data.position.dealt:
            _put_right(progress, data.minibatches_done)
        elif progress["current"]["ready"] and _within_epoch(loops):
            whole = len(data.train_dataloader_length())
            _put_right(progress, whole)


def _data(trainer: Trainer) -> TracesDataModule | None:
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, TracesDataModule) else None
