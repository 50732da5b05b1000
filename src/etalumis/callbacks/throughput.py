"""How fast training goes, and how much of the time it waits for data."""

from __future__ import annotations

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs ``throughput/traces_per_s`` and ``throughput/wait_share``, the share of time without a minibatch.

    Rates are over the steps since the last log; validation does not count. Figures of the whole training, with those
    before it was gone on with, are attributes.

    Attributes:
        traces, seconds, waited: of all training steps so far.
    """

    def __init__(self) -> None:
        self.traces = 0
        self.seconds = 0.0
        self.waited = 0.0
        self._since = (0, 0.0, 0.0)
        self._waited_before = 0.0
        self._ended = 0.0

    @property
    def rate(self) -> float:
        """Traces per second over the whole run."""
        return self.traces / self.seconds if self.seconds else 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._ended = time.perf_counter()  # epochs that are gone on with in the middle do not start again

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._ended = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._ended = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        now = time.perf_counter()
        self.traces += batch.num_traces
        self.seconds += now - self._ended
        self._ended = now
        self.waited = self._waited_before + getattr(trainer.train_dataloader, "waited", 0.0)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by one of its connectors
        if (number + 1) % every == 0:
            traces, seconds, waited = self._since
            self._since = (self.traces, self.seconds, self.waited)
            past = self.seconds - seconds
            module.log("throughput/traces_per_s", (self.traces - traces) / past, prog_bar=True, batch_size=1)
            module.log("throughput/wait_share", (self.waited - waited) / past, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """The figures so far."""
        return {"traces": self.traces, "seconds": self.seconds, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.traces, self.seconds, self.waited = (state_dict[key] for key in ("traces", "seconds", "waited"))
        self._waited_before = self.waited
        self._since = (self.traces, self.seconds, self.waited)
