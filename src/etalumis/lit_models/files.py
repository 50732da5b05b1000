"""How Lightning's checkpoints get onto disk and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from etalumis.networks import checkpoint as files


class CheckpointFiles(CheckpointIO):
    """Checkpoints that appear complete or not at all, even where the process is killed while it writes.

    Lightning's own are written to the folder of temporary files first, which may lie on another file system, from
    where they are copied in place bit by bit.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a file."""
        files.write(path, checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a file, onto the CPU; it can hold tensors and plain containers only."""
        return files.read(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a file."""
        Path(path).unlink(missing_ok=True)
