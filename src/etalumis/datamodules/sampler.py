"""What one rank reads, in order."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch.utils.data import Sampler

from etalumis.datamodules.deal import EpochPlan, EpochPosition, Order, iterations
from etalumis.datamodules.reading import Place

_log = logging.getLogger(__name__)


class RankSampler(Sampler):
    """The minibatches of one rank: those of one epoch, as Lightning tells which through :meth:`set_epoch`.

    Rank and number of ranks are given, never guessed from the environment.

    Args:
        order: of the minibatches of all ranks.
        seed: see :class:`.EpochPlan`.
        rank, world_size: which rank of how many.
        position: where the first epoch is gone on with.

    Attributes:
        left_out: traces of the epoch read last that no rank gets: fewer than ranks for each bucket.
    """

    def __init__(
        self, order: Order, seed: int, rank: int = 0, world_size: int = 1, position: EpochPosition | None = None
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} ranks: ranks are counted from 0")
        self._order = order
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._position = position or EpochPosition()
        self._epoch = self._position.epoch
        self.left_out = 0

    def __len__(self) -> int:
        """Minibatches of this rank in a whole epoch."""
        return iterations(self._order, self._world_size)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Place]:
        epoch = self._epoch
        position = self._position if epoch == self._position.epoch else EpochPosition(epoch)
        plan = EpochPlan(self._order, self._world_size, self._seed, position)
        self.left_out = plan.left_out
        if plan.left_out:
            _log.info("epoch %d leaves out %d traces, too few for %d ranks", epoch + 1, plan.left_out, self._world_size)
        return ((epoch, ranks[self._rank]) for ranks in plan.iterations)
