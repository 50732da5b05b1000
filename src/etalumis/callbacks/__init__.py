"""Lightning callbacks."""

from etalumis.callbacks.export import Export
from etalumis.callbacks.lines import Lines
from etalumis.callbacks.throughput import Throughput

__all__ = ["Export", "Lines", "Throughput"]
