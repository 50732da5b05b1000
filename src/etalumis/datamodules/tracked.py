"""What data modules share that know how far training is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from pytorch_lightning import LightningDataModule

from etalumis.datamodules.minibatches import ValidationOrder
from etalumis.execution import TraceBatch
from etalumis.networks.layout import Layout, Row, rows_of
from etalumis.networks.observed import met_observations
from etalumis.storage.sites import Seen, join_observed, observed
from etalumis.strategies import Collective

# What is added where a position can't be gone on from.
AS_MANY = "; with minibatch=..., more ranks may need smaller parts: go on with as many, or with fewer"


class Resumed(NamedTuple):
    """Where training was gone on with.

    Attributes:
        world_size: the ranks there were.
        before: minibatches of each of those ranks that the epoch had had.
        minibatches: the same in minibatches of as many ranks as there are now.
    """

    world_size: int = 1
    before: int = 0
    minibatches: int = 0


class Told(NamedTuple):
    """What traces tell a network: shapes of observations by name, and the rows of addresses."""

    observations: dict[str, tuple[int, ...]]
    rows: list[Row]

    @classmethod
    def of(cls, seen: Seen, rows: Iterable[Row]) -> Told:
        """The same of what :func:`etalumis.storage.sites.observed` says of the traces, and rows, some maybe twice."""
        return cls({name: met.whole for name, met in met_observations(seen).items()}, list(dict.fromkeys(rows)))


class TrackedDataModule(LightningDataModule):
    """Data whose state is the position in the epoch, counted from the optimiser's finished steps.

    :class:`etalumis.callbacks.Position` tells of them. Rank and number of ranks are the trainer's, never guessed
    from the environment.

    Attributes:
        rank, world_size: which rank of how many reads.
        resumed: where training was gone on with.
        valid_order: minibatches to validate with.
        grow: whether the network may gain rows while it is trained.
        discarded: traces that were not trained with for their addresses, of all ranks up to where training was gone on
            with, since then of this one; None where none ever is.
        waiting: called now and then while the next minibatch is not there, where that may take long; what it raises
            ends training, as for a request to stop.
    """

    valid_order: ValidationOrder
    grow = False
    discarded: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.world_size = 0, 1
        self._collective: Collective | None = None
        self.resumed = Resumed()
        self.waiting: Callable[[], None] = lambda: None

    @staticmethod
    def workers_on(cores: int) -> int:
        """Processes that make minibatches, where nothing is said of them and the training process has so many cores."""
        return int(cores > 1)

    def setup(self, stage: str) -> None:
        if self.trainer is not None:
            self.deal_to(self.trainer.global_rank, self.trainer.world_size)
            self._collective = getattr(self.trainer.strategy, "collective", None)

    def deal_to(self, rank: int, world_size: int) -> None:
        """Say which rank of how many reads; before any loader is made."""
        self.rank, self.world_size = rank, world_size

    @property
    @abstractmethod
    def model(self) -> str:
        """The model's name."""

    @property
    def test_traces(self) -> int:
        """How many traces are kept to test with."""
        return 0

    def attach(self, layout: Layout) -> None:
        """Say which network minibatches are packed for; before any loader is made."""
        self._layout = layout

    @abstractmethod
    def batches(self) -> Iterator[TraceBatch]:
        """All traces at hand, for a network to learn its addresses from; those of :meth:`sample` come first."""

    def sample(self) -> TraceBatch:
        """Traces from which a network takes its statistics."""
        return next(iter(self.batches()))

    def training_batches(self) -> Iterator[TraceBatch]:
        """Those of the traces at hand that are trained with."""
        return self.batches()

    def tell(self, ahead: bool = False) -> Told:
        """What a network has to know of the data.

        Args:
            ahead: rows for everything at hand, instead of for the traces to train with only.
        """
        seen: Seen = {}
        rows: list[Row] = []
        for batch in self.batches() if ahead else self.training_batches():
            seen = join_observed([seen, observed(batch)])
            rows += rows_of(batch)
        return Told.of(seen, rows)

    @property
    @abstractmethod
    def epoch(self) -> int:
        """The epoch (from 0) of the next minibatch to train with."""

    @property
    @abstractmethod
    def epoch_length(self) -> int:
        """Minibatches of this rank in a whole epoch."""

    @abstractmethod
    def finished(self, epoch: int, minibatches: int, last: bool) -> None:
        """Note that the optimiser has made a step.

        Args:
            epoch: counted from 0.
            minibatches: of this rank in this epoch that are over, with those before a resumption.
            last: the epoch is over.
        """
