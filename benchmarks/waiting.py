"""A callback that tells how much of a training was spent waiting for data, once it is under way."""

from __future__ import annotations

import json
import sys
from typing import Any

from pytorch_lightning import LightningModule, Trainer

from etalumis.callbacks import Balance

_FIRST = 4  # steps that start everything


class Probe(Balance):
    """In place of the callback that it extends: prints ``{"wait_share": …}`` on standard error at the end."""

    _start = (0.0, 0.0)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        super().on_train_batch_end(trainer, module, outputs, batch, number)
        if trainer.global_step == _FIRST:
            self._start = (self.seconds, self.waited)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_end(trainer, module)
        seconds, waited = self._start
        share = (self.waited - waited) / (self.seconds - seconds)
        print(json.dumps({"wait_share": share}), file=sys.stderr, flush=True)
