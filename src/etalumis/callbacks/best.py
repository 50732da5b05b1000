"""The checkpoint with the best loss, wherever its folder lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from etalumis.storage.manifest import write_atomically


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, for one file; what it remembers moves with the folder.

    A training that goes on from a checkpoint in another folder takes the best one beside that along; where there is
    none, it is forgotten, and the next validation makes one.
    """

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        # The checkpoint to go on from has been loaded.
        if not self.best_model_path or trainer.ckpt_path is None:
            return
        here, there = Path(self.best_model_path), Path(trainer.ckpt_path).parent / Path(self.best_model_path).name
        if trainer.strategy.broadcast(there.is_file()):  # as rank 0 sees it: all must remember the same
            if trainer.is_global_zero and here.resolve() != there.resolve():
                here.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(here, there.read_bytes())
        else:
            self.best_model_path = self.kth_best_model_path = ""
            self.best_model_score = self.current_score = None
            self.best_k_models = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, of this folder or of one that has been moved or copied here."""
        super().load_state_dict(
            state_dict
            | {
                "dirpath": self.dirpath,
                "best_k_models": {self._here(path): score for path, score in state_dict["best_k_models"].items()},
                **{key: self._here(state_dict[key]) for key in state_dict if key.endswith("_model_path")},
            }
        )

    def _here(self, path: str) -> str:
        return str(Path(self.dirpath or ".") / Path(path).name) if path else path
