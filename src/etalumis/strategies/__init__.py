"""Training on many ranks: collectives over MPI and torch.distributed, and the exchange of row gradients.

Collectives and the exchange need torch only; :class:`RowStrategy`, which brings Lightning, comes on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from etalumis.strategies.collective import Collective, CollectiveError
from etalumis.strategies.exchange import Exchanged, RowExchange

if TYPE_CHECKING:
    from etalumis.strategies.choice import launched_ranks
    from etalumis.strategies.strategy import RowStrategy

__all__ = ["Collective", "CollectiveError", "Exchanged", "RowExchange", "RowStrategy", "launched_ranks"]


def __getattr__(name: str) -> Any:
    if name in ("RowStrategy", "launched_ranks"):
        from etalumis.strategies import choice

        return getattr(choice, name)
    raise AttributeError(f"module 'etalumis.strategies' has no attribute {name!r}")
