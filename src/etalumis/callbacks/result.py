"""What came out of a training, for programs to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from etalumis.callbacks.balance import Balance
from etalumis.callbacks.export import is_trial
from etalumis.lit_models.inference_network import DISCARDED, VALID_LOSS
from etalumis.networks import InferenceNetwork, banks_of
from etalumis.storage.manifest import write_atomically


class Result(Callback):
    """Writes losses, sizes and times of a training that has come to its end; there is no file before.

    Args:
        path: the JSON file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._losses: dict[str, float] = {}
        self._began = False

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, number: int) -> None:
        if not self._began and trainer.is_global_zero and not is_trial(trainer):
            self.path.unlink(missing_ok=True)
        self._began = True

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            metrics = trainer.callback_metrics
            self._losses = {name: float(metrics[name]) for name in sorted(metrics) if name.startswith(VALID_LOSS)}

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero or is_trial(trainer) or (self.path.exists() and not self._began):
            return
        network = module.network
        assert isinstance(network, InferenceNetwork)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (json.dumps(self._result(trainer, network), indent=2) + "\n").encode())

    def state_dict(self) -> dict[str, Any]:
        """The losses of the last validation."""
        return {"losses": self._losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._losses = dict(state_dict["losses"])

    def _result(self, trainer: Trainer, network: InferenceNetwork) -> dict[str, Any]:
        result: dict[str, Any] = {"steps": trainer.global_step, "parameters": count_parameters(network)}
        result["addresses"] = len(network.layout)
        result |= self._losses
        if DISCARDED in trainer.callback_metrics:
            result[DISCARDED] = int(trainer.callback_metrics[DISCARDED])
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by one of its connectors
            if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_score is not None:
                result[f"best {callback.monitor}"] = float(callback.best_model_score)
            elif isinstance(callback, Balance):
                result |= {"traces": callback.traces, "seconds": callback.seconds, "traces_per_s": callback.rate}
                result |= {"imbalance": callback.imbalance} if trainer.world_size > 1 else {}
        return result


def count_parameters(network: InferenceNetwork) -> int:
    """How many numbers training adjusts; of the banks, those in rows that an address has."""
    banks = banks_of(network).values()
    pages = {id(page) for bank in banks for page in bank.pages}
    dense = sum(p.numel() for p in network.parameters() if id(p) not in pages)
    return dense + sum(bank.rows.numel() for bank in banks)
