"""The inference network: torch only, usable without Lightning.

    network = InferenceNetwork.for_batch(config, batch, simulator="tau")   # shapes, addresses, standardisation
    network.grow(another_batch)                                            # rows for addresses it doesn't know yet
    training = pack(batch, network.layout, seed=0, epoch=3)                # TraceBatch -> TrainingBatch (NumPy only)
    loss, info = network.loss(training.to(device))                         # mean over traces of -log q(x|y)
    optimizer = RowAdam(network, lr=1e-3)                                  # etalumis.optim; zero_grad clears banks
    checkpoint.save("network.pt", network, extra={"epoch": 3})
    network, extra = checkpoint.load("network.pt", simulator="tau")
    proposer = network.proposer()                                          # for run_lockstep

``network.layout`` is a small picklable object: what a data-loading process needs to pack.
"""

from __future__ import annotations

from etalumis.networks import checkpoint
from etalumis.networks.banks import Bank, RowGrad, banks_of
from etalumis.networks.errors import CheckpointError, NetworkConfigError, ProposalError
from etalumis.networks.layout import Layout, Row, rows_of
from etalumis.networks.network import InferenceNetwork
from etalumis.networks.packing import TrainingBatch, pack
from etalumis.networks.proposer import NetworkProposer
from etalumis.networks.settings import DEFAULTS

__all__ = [
    "DEFAULTS",
    "Bank",
    "CheckpointError",
    "InferenceNetwork",
    "Layout",
    "NetworkConfigError",
    "NetworkProposer",
    "ProposalError",
    "Row",
    "RowGrad",
    "TrainingBatch",
    "banks_of",
    "checkpoint",
    "pack",
    "rows_of",
]
