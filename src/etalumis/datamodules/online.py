"""Training on traces that are simulated while it goes on, and used once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from etalumis.conf.build import ConfigError
from etalumis.datamodules.loader import Loader
from etalumis.datamodules.minibatches import ValidationOrder
from etalumis.datamodules.reading import Minibatches, Reader
from etalumis.datamodules.sampler import RankSampler
from etalumis.datamodules.simulation import Copy, SimulationLoader, Source
from etalumis.datamodules.sources import Held, JoinedDatasets
from etalumis.datamodules.split import limited
from etalumis.datamodules.tracked import AS_MANY, Resumed, TrackedDataModule
from etalumis.execution import Address, TraceBatch
from etalumis.execution.cancellation import Cancellation
from etalumis.execution.pool import cores
from etalumis.networks import InferenceNetwork
from etalumis.networks.layout import UNKNOWN, Row, rows_of, without_unknown
from etalumis.networks.packing import TrainingBatch, pack
from etalumis.storage import DatasetError
from etalumis.storage.failures import FailurePolicy
from etalumis.storage.merge import refuse_doubles, runs_of

_APART = 1 << 40  # where the trace indices of validation begin: training never gets there
_UNKNOWN = ("grow", "prior", "discard")
_ENDLESS = 1 << 52  # chunks of a training of unknown length


class OnlineDataModule(TrackedDataModule):
    """Training minibatches straight from a simulator: each trace is used once and dropped.

    Processes execute the simulator in storage chunks, each from its number alone, so that a training is the same
    whatever their number. Trace i is trace i of ``etalumis simulate`` with the same simulator and seed. Minibatches
    are packed where the network is trained, because it may grow: traces with new addresses add rows to it, between
    two steps. All ranks add the rows that any of them has met, in the same order. Where the network may not grow, such
    draws count with their prior density, or (``unknown="discard"``, as in the paper) the traces that have them are
    left out.

    The traces come from the prior p, or, with ``inflation``, from the wider p̃. Weighted by p(x)/p̃(x), normalised in
    each minibatch, the loss is that of the prior, and proposals are trained for p(x | y); what is rare under the prior
    is met more often, and counts less. Not ``weighted``, proposals are trained for p̃(x | y) ∝ p̃(x) p(y | x), which is
    wider; importance weights know the prior, so inference is exact with either. Validation is with the prior.

    Its state is the position in the run of chunks, counted from the optimiser's finished steps. Going on with another
    number of ranks drops the rest of the chunks that were in work.

    Args:
        simulator: configuration of the model, as in ``conf/simulator``.
        valid: folders to validate with; None simulates ``valid_traces`` at the start.
        valid_traces: see ``valid``; 0 does not validate.
        epoch_traces: traces to what is called an epoch, rounded up to whole chunks on each rank.
        batch_size: traces to a minibatch at most, on each rank.
        chunk_size: traces that a process executes at a time.
        sample_traces: of the run's beginning, from which the network learns its first addresses, the constants that
            standardise observations, and what it observes; they are trained with like all others.
        unknown: what an address means that the network has no row for: ``"grow"``, it gets one; ``"prior"``, its draws
            count with their prior density; ``"discard"``, traces with such draws are not trained with.
        tee: folder of a dataset that all traces are written to as well; with one rank only.
        workers: simulating processes; 0 simulates in the training process, None takes all cores but one.
        inflation: factor by which the priors of controlled draws are widened (:meth:`.Distribution.inflated`).
        weighted: weigh traces back to the prior, so that the loss is that without ``inflation``.
        failures: what a failed execution means, ``"stop"`` or ``"skip"``.
        max_failures: share of a chunk's traces that may fail where they are skipped; see :class:`.FailurePolicy`.
        timeout: seconds after which an execution in a worker process counts as hanging; None waits for ever.
        cache_mb: MiB of decoded validation chunks to keep.
        seed: of the traces, and of observation noise.

    Raises:
        ConfigError: no simulator is chosen, or traces from wider priors shall be kept.
        SimulationError: an execution failed or a process died.
    """

    def __init__(
        self,
        simulator: Mapping[str, Any] | None,
        valid: str | Sequence[str] | None = None,
        valid_traces: int = 1024,
        epoch_traces: int = 65_536,
        batch_size: int = 256,
        chunk_size: int = 1024,
        sample_traces: int = 1024,
        unknown: str = "grow",
        tee: str | None = None,
        workers: int | None = None,
        inflation: float | None = None,
        weighted: bool = False,
        failures: str = "stop",
        max_failures: float = 0.1,
        timeout: float | None = None,
        cache_mb: float = 512.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not simulator:
            raise ConfigError("data=online needs a simulator: simulator=tau, for example")
        for name, value in (("batch_size", batch_size), ("chunk_size", chunk_size), ("epoch_traces", epoch_traces)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if inflation is not None and tee is not None:
            raise ConfigError("data.tee keeps traces from the prior, data.inflation widens it: give one of them")
        if inflation is not None and not inflation > 0.0:
            raise ValueError(f"inflation must be above 0; got {inflation}")
        self.workers = self.workers_on(cores()) if workers is None else workers
        if timeout is not None and self.workers < 1:
            raise ConfigError("data.timeout needs processes that can be ended: set data.workers of at least 1")
        self.batch_size = batch_size
        self._aside = int(timeout is not None)
        policy = FailurePolicy(failures, max_failures, timeout)  # type: ignore[arg-type]
        self.source = Source(simulator, seed, chunk_size, self.workers, policy, inflation)
        self._weighted = weighted and inflation is not None
        self._chunk_size = chunk_size
        self._parts = -(-chunk_size // batch_size)
        self._epoch_chunks = -(-epoch_traces // chunk_size)
        self._sample = TraceBatch.concatenate(list(self._made(range(-(-max(sample_traces, 1) // chunk_size)))))
        if unknown not in _UNKNOWN:
            raise ConfigError(f"data.unknown={unknown!r} is one of {', '.join(_UNKNOWN)}")
        self.grow = unknown == "grow"
        self.discarded = self._discarded = 0 if unknown == "discard" else None  # and up to the last step
        self._tee = tee
        self._cache_mb = cache_mb
        self._seed = seed
        if valid is None:
            first = _APART // chunk_size + 1
            self.valid_data: JoinedDatasets | Held = Held(
                self._made(range(first, first - (-valid_traces // chunk_size)), True)
            )
        else:
            self.valid_data = JoinedDatasets([valid] if isinstance(valid, str) else list(valid))
            if self.valid_data.name != self.source.name:
                raise DatasetError(
                    f"{valid} holds traces of {self.valid_data.name!r}, the simulator is {self.source.name!r}"
                )
            refuse_doubles([self.source.run, *(run for d in self.valid_data.datasets for run in runs_of(d))])
        rows = [np.arange(chunk.traces) for chunk in self.valid_data.chunks]
        if valid is None and valid_traces:
            rows = limited(rows, valid_traces, seed)
        self.valid_order = ValidationOrder(rows, batch_size)
        self._copy: Copy | None = None
        self._loader: SimulationLoader | None = None
        self._place = (0, 0, 0)  # epoch; first chunk; minibatches of this rank from there on
        self._minibatches = 0

    @staticmethod
    def workers_on(cores: int) -> int:
        return max(cores - 1, 1)

    @property
    def model(self) -> str:
        return self.source.name

    def batches(self) -> Iterator[TraceBatch]:
        yield from self.training_batches()
        yield from self.valid_data.batches()

    def training_batches(self) -> Iterator[TraceBatch]:
        yield self._sample

    # --- position ---------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return self._place[0]

    @property
    def epoch_length(self) -> int:
        return -(-self._epoch_chunks // self.world_size) * self._parts

    def finished(self, epoch: int, minibatches: int, last: bool) -> None:
        assert self._loader is not None
        self._place = (epoch + last, self._place[1], self._loader.given)
        self._minibatches = 0 if last else minibatches
        self._discarded = self.discarded

    def state_dict(self) -> dict[str, Any]:
        """The position; equal on all ranks, which make it together."""
        epoch, first, given = self._place
        discarded = self._discarded
        if discarded is not None and self._collective is not None:
            discarded = int(self._collective.all_reduce(torch.tensor(discarded)))
        return {
            "epoch": epoch,
            "first_chunk": first,
            "given": given,
            "minibatches": self._minibatches,
            "world_size": self.world_size,
            "discarded": discarded,
            "form": [self._chunk_size, self._parts, self._epoch_chunks],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a position, maybe with another number of ranks.

        Raises:
            DatasetError: chunks or epochs are of another size.
        """
        if state_dict["form"] != [self._chunk_size, self._parts, self._epoch_chunks]:
            raise DatasetError(
                "the checkpoint is of a training with another chunk_size, batch_size or epoch_traces: give its settings"
                f"{AS_MANY}"
            )
        epoch, first, given, before, ranks = (
            int(state_dict[key]) for key in ("epoch", "first_chunk", "given", "minibatches", "world_size")
        )
        done = before
        if ranks != self.world_size:
            first, given = first + -(-given // self._parts) * ranks, 0
            left = max(self._epoch_chunks - -(-before // self._parts) * ranks, 0)
            done = max(self.epoch_length - -(-left // self.world_size) * self._parts, 0) if before else 0
        self._place = (epoch, first, given)
        if self.discarded is not None and self.rank == 0:
            self.discarded = self._discarded = state_dict["discarded"] or 0
        self.resumed = Resumed(ranks, before, done)
        self._minibatches = done

    # --- loaders ----------------------------------------------------------------------------------------------

    def train_dataloader(self) -> SimulationLoader:
        epoch, first, given = self._place
        if self._tee is not None:
            if self.world_size > 1:
                raise ConfigError("data.tee writes one dataset: train with one rank, or simulate it beforehand")
            self._copy = self._copy or self.source.copy_to(self._tee)
        if self._loader is not None:
            self._loader.close()
        begin = given // self._parts  # chunks of this rank that are over
        limit = None if self.trainer is None else self.trainer.max_epochs
        end = _ENDLESS
        if limit is not None and limit >= 0:
            left = max((limit - epoch) * self.epoch_length - self.resumed.minibatches, 0)
            end = begin - (-(given % self._parts + left) // self._parts)
        numbers = range(first + begin * self.world_size + self.rank, first + end * self.world_size, self.world_size)
        self._loader = SimulationLoader(
            partial(self._stream, numbers),
            self._prepare,
            self._parts,
            self.epoch_length,
            self.resumed.minibatches,
            given,
            lambda: self.waiting(),
        )
        return self._loader

    def val_dataloader(self) -> Loader | list[Loader]:
        places = list(RankSampler(self.valid_order, self._seed, self.rank, self.world_size))
        if not places:
            return []
        # Packed here: other processes would not see the network grow.
        data = Minibatches(Reader(self.valid_data, self._cache_mb), self._layout, ~self._seed, False)
        return Loader.of(data, places, 0, None)

    def teardown(self, stage: str) -> None:
        self._end(complete=True)

    def on_exception(self, exception: BaseException) -> None:
        self._end(complete=False)

    def _end(self, complete: bool) -> None:
        """End the processes, and the dataset: it can be gone on with unless it is complete."""
        if self._loader is not None:
            self._loader.close()
        if self._copy is not None:
            self._copy.end(complete)
            self._copy = None

    def _stream(self, numbers: Sequence[int], cancellation: Cancellation) -> Iterator[tuple[int, TraceBatch]]:
        for number, made in zip(numbers, self.source.chunks(numbers, cancellation=cancellation), strict=True):
            if self._copy is not None:
                self._copy.write(number, made)
            yield number, self.source.traces(number, made.chunk)

    def _prepare(self, traces: TraceBatch) -> TrainingBatch:
        if self.grow:
            self._learn([row for row in rows_of(traces) if self._layout.find(*row).row == UNKNOWN])
        elif self.discarded is not None:
            left = without_unknown(traces, self._layout)
            if len(left):  # else they count with their prior density
                self.discarded += len(traces) - len(left)
                traces = traces.select(left)
        return pack(traces, self._layout, seed=self._seed, weighted=self._weighted)

    def _learn(self, rows: list[Row]) -> None:
        """Let the network have rows that it lacks, and those that it lacks on other ranks."""
        if self._collective is not None:
            words = self._collective.all_gather_bytes(json.dumps(rows).encode() if rows else b"")
            rows = [Row(Address(*address), count) for said in words if said for address, count in json.loads(said)]
        if rows:
            assert self.trainer is not None
            network = self.trainer.lightning_module.network
            assert isinstance(network, InferenceNetwork)
            network.grow(rows)

    def _made(self, numbers: Sequence[int], from_prior: bool = False) -> Iterator[TraceBatch]:
        """Traces of some chunks, made in this process, or in another if they may hang."""
        for number, made in zip(numbers, self.source.chunks(numbers, self._aside, from_prior), strict=True):
            yield self.source.traces(number, made.chunk)
