"""Traces straight from a simulator, used once: storage chunks made by other processes while training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from etalumis.conf.build import build_model, close
from etalumis.datamodules.loader import Ahead
from etalumis.execution import AddressBook, TraceBatch
from etalumis.execution.cancellation import Cancellation
from etalumis.networks.packing import TrainingBatch
from etalumis.storage import DatasetError, Encoding, Origin, ShardWriter, SimulationError, decode
from etalumis.storage.chunk import EncodedChunk, chunk_key
from etalumis.storage.failures import FailurePolicy
from etalumis.storage.manifest import JOURNAL, MANIFEST, finished, write_atomically
from etalumis.storage.simulate import make_chunks
from etalumis.storage.tar import unpack_span
from etalumis.storage.worker import Made

_KEPT_JOURNAL = "journal.jsonl"  # of a finished copy
_ALL = 1 << 62  # traces that a run may have


class Source:
    """Makes storage chunks of traces by their numbers: the same chunks as a dataset of the same settings has.

    Args:
        simulator: configuration of the model.
        seed: of the random numbers.
        chunk_size: traces to a chunk.
        workers: processes; 0 runs in this one.
        failures: what a failed execution means.
        inflation: by how much the priors of controlled draws are widened; None leaves them.

    Attributes:
        name: the model's name.
        addresses: what the address ids of all traces mean; grows.
    """

    def __init__(
        self,
        simulator: Mapping[str, Any],
        seed: int,
        chunk_size: int,
        workers: int,
        failures: FailurePolicy,
        inflation: float | None = None,
    ) -> None:
        model = build_model(simulator)
        self.name = model.name
        close(model)
        self.addresses = AddressBook()
        self._factory = partial(build_model, simulator)
        self._workers = workers
        self._failures = failures
        self._inflation = inflation
        self._origin = Origin(
            model=self.name,
            seed=seed,
            num_traces=_ALL,
            chunk_size=chunk_size,
            simulator=dict(simulator),
            encoding=Encoding().to_json(),
        )

    def chunks(
        self,
        numbers: Sequence[int],
        workers: int | None = None,
        from_prior: bool = False,
        cancellation: Cancellation | None = None,
    ) -> Iterator[Made]:
        """The chunks of these numbers in order, made ahead where there are ``workers``.

        With ``from_prior`` they come from the priors as they are, in spite of ``inflation``. Another thread ends the
        work through ``cancellation``.
        """
        count = self._workers if workers is None else workers
        inflation = None if from_prior else self._inflation
        made = make_chunks(self._factory, self._origin, numbers, count, self._failures, inflation, cancellation)
        with closing(made):
            yield from made

    @property
    def run(self) -> dict[str, Any]:
        """The traces there may be, as :func:`etalumis.storage.merge.runs_of` describes those of datasets."""
        o = self._origin
        return {"model": o.model, "seed": o.seed, "simulator": dict(o.simulator), "first": 0, "last": _ALL}

    def traces(self, number: int, chunk: EncodedChunk) -> TraceBatch:
        """A chunk's traces, with ids of :attr:`addresses`."""
        batch = decode(unpack_span(chunk_key(number), bytearray(chunk.span)), chunk.addresses)
        return batch.remap(self.addresses.merge(chunk.addresses), self.addresses)

    def copy_to(self, directory: str | Path) -> Copy:
        """A dataset that chunks are written to as well."""
        return Copy(directory, Origin(**{**self._origin.__dict__, "num_traces": None}))


class Copy:
    """A dataset of the chunks that were made, in order of their numbers; goes on where it was left.

    A finished one is gone on with when there is more: its journal is kept beside it (``journal.jsonl``) for that.

    Args:
        directory: its folder.
        origin: what it is made from.

    Raises:
        DatasetError: the folder holds another dataset.
    """

    def __init__(self, directory: str | Path, origin: Origin) -> None:
        self._directory, self._origin = Path(directory), origin
        manifest = finished(self._directory, origin)
        self._finished = len(manifest.chunks) if manifest is not None else 0
        self._writer = None if manifest is not None else ShardWriter(directory, origin)

    def write(self, number: int, made: Made) -> None:
        """Write a chunk, and which executions it lacks, unless it is there.

        Raises:
            DatasetError: an earlier one is not, or what is finished can't be gone on with.
        """
        there = self._finished if self._writer is None else len(self._writer.chunks)
        if number > there:
            raise DatasetError(
                f"{self._directory} holds {there} chunks, training is at the {number + 1}th: the traces "
                "before were not kept; go on without data.tee"
            )
        if number == there:
            if self._writer is None:
                self._writer = self._reopened()
            self._writer.append(*made)

    def end(self, complete: bool) -> None:
        """Finish the dataset, or leave it to be gone on with."""
        if self._writer is None:
            return
        if complete and self._writer.chunks:
            kept = self._directory / _KEPT_JOURNAL
            write_atomically(kept, (self._directory / JOURNAL).read_bytes())
            self._writer.close()
        else:
            self._writer.suspend()

    def _reopened(self) -> ShardWriter:
        """The finished dataset, unfinished again."""
        kept = self._directory / _KEPT_JOURNAL
        if not kept.exists():
            raise DatasetError(
                f"{self._directory} holds a finished dataset without its {kept.name}, which it takes to go on with it; "
                "go on without data.tee"
            )
        kept.replace(self._directory / JOURNAL)
        (self._directory / MANIFEST).unlink()
        return ShardWriter(self._directory, self._origin)


class SimulationLoader:
    """Minibatches of new traces, in epochs of equal length; no trace comes twice.

    Args:
        stream: chunk numbers and traces, in order; iterated in a thread of its own, once; ends when cancelled.
        prepare: from traces to a packed minibatch; called in the thread that trains, between two of its steps.
        parts: minibatches that each chunk is cut into.
        length: minibatches of an epoch.
        skipped: of the first epoch, that are behind; of its first chunk those that ``skipped`` leaves a part of.
        given: see below, at the start.
        waiting: called now and then while there are no traces; what it raises leaves the iteration.

    Attributes:
        waited: seconds that whoever iterates has spent waiting for traces.
        given: minibatches given out, ``skipped`` ones of the first chunk included.
    """

    def __init__(
        self,
        stream: Callable[[Cancellation], Iterator[tuple[int, TraceBatch]]],
        prepare: Callable[[TraceBatch], TrainingBatch],
        parts: int,
        length: int,
        skipped: int,
        given: int,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._waiting = waiting
        self._stream = stream
        self._prepare = prepare
        self._parts = parts
        self._length = length
        self._skipped = skipped
        self._ahead: Ahead[tuple[int, TraceBatch]] | None = None
        self._rows: Iterator[TraceBatch] = iter(())
        self._first_part = given % parts
        self.given = given
        self.waited = 0.0

    def __len__(self) -> int:
        """Minibatches of an epoch."""
        return self._length

    def __iter__(self) -> Iterator[TrainingBatch]:
        skipped, self._skipped = self._skipped, 0
        return self._epoch(self._length - skipped)

    def _epoch(self, count: int) -> Iterator[TrainingBatch]:
        for _ in range(count):
            started = time.perf_counter()
            traces = self._next()
            self.waited += time.perf_counter() - started
            self.given += 1
            yield self._prepare(traces)

    def _next(self) -> TraceBatch:
        if self._ahead is None:
            work = Cancellation()
            self._ahead = Ahead(self._stream(work), cancel=work.cancel, waiting=self._waiting)
        while (traces := next(self._rows, None)) is None:
            number, chunk = next(self._ahead)
            if len(chunk) < self._parts:
                raise SimulationError(
                    f"storage chunk {number} has {len(chunk)} traces, too few for {self._parts} minibatches: the other "
                    "executions failed"
                )
            rows = np.array_split(np.arange(len(chunk)), self._parts)[self._first_part :]
            self._rows, self._first_part = map(chunk.select, rows), 0
        return traces

    def close(self) -> None:
        """End the processes, whatever they do."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module keeps the position. Lightning asks whether training can go on within an epoch."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
