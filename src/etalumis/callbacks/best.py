"""The checkpoint with the best loss, wherever its folder lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, for one file; what it remembers moves with the folder."""

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
