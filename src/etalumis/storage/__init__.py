"""Traces on disk: WebDataset-compatible shards of JSON and .npy members, their manifest, and who makes them."""

from etalumis.storage.chunk import Encoding, decode, encode
from etalumis.storage.dataset import Dataset
from etalumis.storage.errors import DatasetError, SimulationError
from etalumis.storage.index import TraceIndex
from etalumis.storage.manifest import ChunkEntry, Manifest, Origin
from etalumis.storage.simulate import simulate
from etalumis.storage.sort import sort
from etalumis.storage.writer import ShardWriter

__all__ = [
    "ChunkEntry",
    "Dataset",
    "DatasetError",
    "Encoding",
    "Manifest",
    "Origin",
    "ShardWriter",
    "SimulationError",
    "TraceIndex",
    "decode",
    "encode",
    "simulate",
    "sort",
]
