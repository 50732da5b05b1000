"""Where in an epoch training is: kept with the data, and put right in Lightning's own counts."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from etalumis.datamodules.tracked import TrackedDataModule

_PROGRESS = "epoch_loop.batch_progress"


class Position(Callback):
    """Counts the minibatches behind the optimiser's finished steps, and makes training go on right after them.

    Lightning counts minibatches of one rank. A checkpoint that was made with another number of ranks, or between the
    minibatches of one accumulation, is therefore put right when it is loaded: what of an accumulation was lost is
    done again, and the rest of the epoch counts as the last minibatches of an epoch with as many ranks as there are
    now. Needs a :class:`.TrackedDataModule`; does nothing with other data.
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
        epochs, progress = loops["epoch_progress"]["current"], loops[_PROGRESS]
        if epochs["ready"] == epochs["processed"]:
            return  # between two epochs: nothing is counted
        if epochs["processed"] == data.epoch:
            _put_right(progress, data.resumed.before, data.resumed.minibatches)
        elif data.resumed.world_size != data.world_size:  # at the end of an epoch
            _put_right(progress, progress["current"]["processed"], data.epoch_length)


def _put_right(progress: dict[str, Any], counted: int, meant: int) -> None:
    """Rewrite Lightning's count of an epoch's minibatches.

    Args:
        progress: of the epoch's loop.
        counted: up to the optimiser's last finished step, in minibatches of the ranks there were.
        meant: the same in minibatches of the ranks there are.
    """
    now = dict(progress["current"])
    finished = now["processed"] == counted and now["ready"] == now["started"] == now["processed"]
    if not finished:
        progress["is_last_batch"] = False
    for counts in (progress["current"], progress["total"]):
        shift = meant - now["processed"]
        end = counts["processed"] + shift
        for key in counts:
            # A minibatch that is over but for its hooks stays so.
            counts[key] = counts[key] + shift if finished else end


def _data(trainer: Trainer) -> TrackedDataModule | None:
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, TrackedDataModule) else None
