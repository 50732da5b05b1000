"""The inference network as a Lightning module: losses, optimiser, clipping, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from etalumis.networks import InferenceNetwork, Row, TrainingBatch, checkpoint
from etalumis.optim import Accumulation, Schedule, clip_grad_norm

TRAIN_LOSS = "loss/train"
VALID_LOSS = "loss/valid"
KNOWN_LOSS = "loss/valid_known"
TEST_LOSS = "loss/test"
TEST_KNOWN_LOSS = "loss/test_known"
UNKNOWN_DRAWS = "unknown_draws"
DISCARDED = "discarded_traces"

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
        scale: from the optimiser's learning rate and the traces to an iteration, over all ranks and everything
            accumulated, to the learning rate to begin with; None takes the optimiser's.
        missing: rows of addresses to append, where the network lacks them, when a checkpoint has been loaded.

    An iteration's gradient is that of the mean over all its traces, however they are divided into minibatches and
    ranks; but for weighted traces, whose weights are normalised in each minibatch.

    Logs ``loss/train``, the mean over an iteration's traces, and the learning rate; in validation ``loss/valid`` (mean
    over traces, whatever the sizes of minibatches), ``loss/valid_known``, the same without draws of addresses that the
    network has no row for, which the prior proposes, and the number of these, ``unknown_draws``. A test logs
    ``loss/test`` and ``loss/test_known``, the same of other traces. Where traces are left out for their addresses,
    ``discarded_traces`` says how many there were.

    Attributes:
        tested: what the test after a training logged; empty without one.
    """

    def __init__(
        self,
        network: InferenceNetwork,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        settings: Mapping[str, Any] | None = None,
        scale: Callable[[float, int], float] | None = None,
        missing: Sequence[Row] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.accumulation = Accumulation()
        self._weight = 1.0
        self._losses: list[tuple[Tensor, int]] = []  # of the iteration's minibatches, with their traces
        self._scale = scale
        self._missing = missing
        self._begin_schedule = False
        self.tested: dict[str, float] = {}
        self.make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._settings = dict(settings or {})

    def on_fit_start(self) -> None:
        self.network.grow(self._missing)  # a loaded checkpoint has said which there are

    def training_step(self, batch: TrainingBatch, number: int) -> Tensor | None:
        loss, _ = self.network.loss(batch)
        self._weight = self.accumulation.add(batch.num_traces)
        self._losses.append((loss.detach(), batch.num_traces))
        if loss.requires_grad:
            return loss
        # No draw of these traces has an address that is known. Where there are other ranks, their traces may have some.
        return loss + loss.new_zeros((), requires_grad=True) if self.trainer.world_size > 1 else None

    def on_load_checkpoint(self, state: dict[str, Any]) -> None:
        self._begin_schedule = not state.get("lr_schedulers")

    def on_train_start(self) -> None:
        self.accumulation.start()
        self._losses.clear()
        if self._begin_schedule:  # gone on with from a training that had a constant learning rate
            for config in self.trainer.lr_scheduler_configs:
                if isinstance(config.scheduler, Schedule):
                    config.scheduler.go_on_from(self.trainer.global_step)
            self._begin_schedule = False

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward pass of a minibatch, weighted by its traces; see :class:`etalumis.optim.Accumulation`."""
        super().backward(loss if self._weight == 1.0 else loss * self._weight, *args, **kwargs)

    def pending_gradients(self) -> tuple[int, float, float]:
        """This rank's traces of the iteration, the factor that makes the gradient that of the mean over them, and the
        sum of their losses."""
        losses, traces = zip(*self._losses, strict=True)
        total = torch.stack(losses).double().cpu() @ torch.tensor(traces, dtype=torch.float64)
        factor = self.accumulation.factor(self.trainer.accumulate_grad_batches)
        return self.accumulation.traces, factor, float(total)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        exchanged = getattr(self.trainer.strategy, "exchanged", None)
        if exchanged is None:
            traces, _, total = self.pending_gradients()
            loss = total / traces
            self.accumulation.finish(getattr(optimizer, "optimizer", optimizer), self.trainer.accumulate_grad_batches)
        else:  # a strategy of many ranks has completed the gradient
            loss = exchanged.loss
            self.accumulation.start()
        self._losses.clear()
        self.log(TRAIN_LOSS, loss, batch_size=1, prog_bar=True)
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=1)

    def on_train_batch_end(self, outputs: Any, batch: TrainingBatch, number: int) -> None:
        if 0 <= self.trainer.max_steps <= self.trainer.global_step:
            self.trainer.should_stop = True  # validates what is left, which the end by itself does not

    def on_train_epoch_end(self) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # set by one of its connectors
        discarded = getattr(data, "discarded", None)
        if discarded is not None:
            self.log(DISCARDED, float(discarded), reduce_fx="sum", sync_dist=True)

    def validation_step(self, batch: TrainingBatch, number: int) -> None:
        loss, info = self.network.loss(batch)
        how: dict[str, Any] = {"batch_size": batch.num_traces, "on_epoch": True, "sync_dist": True}
        self.log(VALID_LOSS, loss, prog_bar=True, **how)
        self.log(KNOWN_LOSS, loss - info["unknown_loss"], **how)
        self.log(UNKNOWN_DRAWS, info["unknown_draws"], reduce_fx="sum", **how)

    def test_step(self, batch: TrainingBatch, number: int) -> None:
        loss, info = self.network.loss(batch)
        how: dict[str, Any] = {"batch_size": batch.num_traces, "on_epoch": True, "sync_dist": True}
        self.log(TEST_LOSS, loss, **how)
        self.log(TEST_KNOWN_LOSS, loss - info["unknown_loss"], **how)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.network)
        if self._scale is not None:
            group = optimizer.param_groups[0]
            group["lr"] = self._scale(group["lr"], self._minibatch)
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

    @property
    def _minibatch(self) -> int:
        """Traces to an iteration."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # set by one of its connectors
        return int(data.batch_size * self.trainer.accumulate_grad_batches * self.trainer.world_size)

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
