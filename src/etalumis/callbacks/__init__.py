"""Lightning callbacks."""

from etalumis.callbacks.export import Export
from etalumis.callbacks.progress import Progress
from etalumis.callbacks.throughput import Throughput

__all__ = ["Export", "Progress", "Throughput"]
