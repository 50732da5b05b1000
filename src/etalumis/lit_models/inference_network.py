"""The inference network as a Lightning module: losses, optimiser, clipping, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from etalumis.networks import InferenceNetwork, TrainingBatch, checkpoint
from etalumis.optim import clip_grad_norm

TRAIN_LOSS = "loss/train"
VALID_LOSS = "loss/valid"

MakeOptimizer = Callable[[InferenceNetwork], Optimizer]
MakeScheduler = Callable[..., Any]


class LitInferenceNetwork(LightningModule):
    """Trains a network on −log q(x | y), the mean over the traces of a minibatch.

    Args:
        network: what is trained; it already has rows for all addresses of the data.
        optimizer: from the network to its optimiser.
        scheduler: from (optimiser, number of iterations of the whole training) to a learning rate schedule that
            is stepped once per iteration; None keeps the learning rate.
        settings: how all this was configured; plain JSON, kept in checkpoints.

    Logs ``loss/train``, ``loss/valid`` (mean over traces, whatever the sizes of minibatches) and the learning rate.
    """

    def __init__(
        self,
        network: InferenceNetwork,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._settings = dict(settings or {})

    def training_step(self, batch: TrainingBatch, number: int) -> Tensor:
        loss, _ = self.network.loss(batch)
        self.log(TRAIN_LOSS, loss.detach(), batch_size=batch.num_traces, prog_bar=True)
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=1)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: TrainingBatch, number: int) -> None:
        if 0 <= self.trainer.max_steps <= self.trainer.global_step:
            self.trainer.should_stop = True  # validates what is left, which the end by itself does not

    def validation_step(self, batch: TrainingBatch, number: int) -> None:
        loss, _ = self.network.loss(batch)
        self.log(VALID_LOSS, loss, batch_size=batch.num_traces, prog_bar=True, on_epoch=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.network)
        if self._make_scheduler is None:
            return optimizer
        iterations = self.trainer.estimated_stepping_batches
        if iterations == float("inf"):
            raise ValueError(
                "the learning rate schedule needs to know how long training is: set trainer.max_epochs or "
                "trainer.max_steps, or take scheduler=constant"
            )
        scheduler = self._make_scheduler(optimizer, int(iterations))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm over all gradients; those of bank rows, which no parameter holds, count too."""
        if not gradient_clip_val:
            return
        if str(gradient_clip_algorithm or "norm").rpartition(".")[2].lower() != "norm":
            raise ValueError(f"gradients are clipped by norm only; got algorithm {gradient_clip_algorithm!r}")
        norm = clip_grad_norm(getattr(optimizer, "optimizer", optimizer), gradient_clip_val)
        self.log("gradient_norm", float(norm))

    def on_save_checkpoint(self, state: dict[str, Any]) -> None:
        """Add what :func:`etalumis.networks.checkpoint.load` needs beside the weights: ``et.IC`` reads these files."""
        state["etalumis"] = checkpoint.describe(self.network)
        state["settings"] = self._settings
