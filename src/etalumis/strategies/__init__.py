"""Training on many ranks: collectives over MPI and torch.distributed, and the exchange of row gradients."""

from etalumis.strategies.choice import ddp_rows, launched_ranks, mpi
from etalumis.strategies.collective import Collective, CollectiveError
from etalumis.strategies.exchange import Exchanged, RowExchange
from etalumis.strategies.strategy import RowStrategy

__all__ = [
    "Collective",
    "CollectiveError",
    "Exchanged",
    "RowExchange",
    "RowStrategy",
    "ddp_rows",
    "launched_ranks",
    "mpi",
]
