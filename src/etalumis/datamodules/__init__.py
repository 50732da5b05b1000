"""Lightning data modules."""

from etalumis.datamodules.traces import TracesDataModule

__all__ = ["TracesDataModule"]
