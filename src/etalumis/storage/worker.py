"""Makes storage chunks: each from its number alone, in whatever process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from etalumis.execution import Batched, DensityError, Inflated, Observations, Prior, Simulator, TraceBatch, run
from etalumis.execution.pool_worker import NOWHERE, Desk
from etalumis.storage.chunk import EncodedChunk, Encoding, encode_chunk
from etalumis.storage.failures import FailedTrace, FailurePolicy
from etalumis.storage.manifest import Origin

Factory = Callable[[], Simulator]


class ChunkError(Exception):
    """A chunk can't be made.

    Attributes:
        what: failed, as "the execution of trace 7"; None where the model can't be made.
        report: the traceback of what was raised.
        index: of the trace that failed, where it is known.
    """

    def __init__(self, what: str | None, report: str, index: int | None = None) -> None:
        super().__init__(what, report, index)
        self.what = what
        self.report = report
        self.index = index


class ChunkTask(NamedTuple):
    """A chunk to make.

    Attributes:
        number: of the chunk.
        lost: executions that took their worker process with them, not to be tried again.
    """

    number: int
    lost: tuple[FailedTrace, ...] = ()


class Made(NamedTuple):
    """A chunk, and the executions that it lacks because they failed."""

    chunk: EncodedChunk
    failures: tuple[FailedTrace, ...]


class ChunkRunner:
    """Makes the chunks of one dataset.

    Args:
        factory: makes the model.
        origin: of the dataset.
        policy: what a failed execution means.
        inflation: by how much priors of controlled draws are widened; None leaves them.
        empty: whether a chunk may have no traces, where the policy lets all of its executions fail.

    Raises:
        ChunkError: the model can't be made.
        ValueError: the model executes by itself, where no timeout can be kept.
    """

    def __init__(
        self,
        factory: Factory,
        origin: Origin,
        policy: FailurePolicy,
        inflation: float | None = None,
        empty: bool = False,
    ) -> None:
        assert origin.num_traces is not None
        assert origin.chunk_size is not None
        self._total, self._size = origin.num_traces, origin.chunk_size
        self._seed = origin.seed
        self._encoding = Encoding(**origin.encoding)
        self._draw = self._encoding.observes == "both"
        self._policy = policy
        self._empty = empty
        self._controller = Prior() if inflation is None else Inflated(inflation)
        try:
            self._model = factory()
        except Exception as error:
            raise ChunkError(None, traceback.format_exc()) from error
        self._by_itself = isinstance(self._model, Batched) and isinstance(self._controller, Prior)
        if self._by_itself and policy.timeout is not None:
            self.close()
            raise ValueError(
                f"timeout={policy.timeout:g} can't be kept by {origin.model!r}, a simulator that executes many traces "
                "by itself: leave timeout out, and set the simulator's own (simulator.timeout) if it has one"
            )

    def close(self) -> None:
        """Let go of what the model holds, such as simulator processes."""
        if hasattr(self._model, "close"):
            self._model.close()

    def indices(self, number: int) -> range:
        """Trace indices of a chunk."""
        first = number * self._size
        return range(first, min(first + self._size, self._total))

    def __call__(self, task: ChunkTask, desk: Desk) -> Made:
        """Run and encode a chunk.

        Raises:
            ChunkError: naming the trace whose execution failed, or that traces can't be stored, or that too many
                executions failed.
        """
        indices = self.indices(task.number)
        these = f"traces {indices[0]} to {indices[-1]}"
        failures = _Failures(self._policy, indices, task.lost)
        batches: list[TraceBatch] = []
        for span in _without(indices, {failure.trace_index for failure in task.lost}):
            execute = self._in_batches if self._by_itself else self._one_by_one
            batches += execute(span, failures, desk)
        desk.at(NOWHERE)
        batches = [self._checked(batch, failures) for batch in sorted(batches, key=lambda batch: int(batch.index[0]))]
        if not sum(map(len, batches)):
            if self._empty and failures.all_allowed():
                return Made(EncodedChunk.empty(), failures.found())
            raise ChunkError(
                f"the execution of every one of {these}",
                failures.last
                or 'The simulator\'s policy ("drop") left all of them out; policy "raise" shows what is wrong with it.',
            )
        traces = TraceBatch.concatenate(batches)
        failures.complete(traces, self._model)
        try:
            return Made(encode_chunk(task.number, traces, self._encoding), failures.found())
        except Exception as error:
            raise ChunkError(f"the storing of {these}", traceback.format_exc()) from error

    def _one_by_one(self, span: range, failures: _Failures, desk: Desk) -> list[TraceBatch]:
        indices = iter(span)
        current = span.start

        def each() -> Iterator[int]:
            nonlocal current
            for current in indices:
                desk.at(current)
                yield current

        traces = []
        while True:
            try:
                for trace in run(self._model, self._controller, {}, each(), self._seed, draw_observations=self._draw):
                    traces.append(trace)
                return [TraceBatch.from_traces(traces, self._model.addresses)] if traces else []
            except Exception as error:
                failures.add(current, error)

    def _in_batches(self, span: range, failures: _Failures, desk: Desk) -> list[TraceBatch]:
        """The same from a model that executes many traces by itself; which one failed is found by halves."""
        assert isinstance(self._model, Batched)
        batches: list[TraceBatch] = []
        todo = [span]
        while todo:
            span = todo.pop()
            following = span.start
            try:
                for batch in self._model.batches(span, self._seed, Observations(), self._draw):
                    batches.append(batch)
                    following = int(batch.index[-1]) + 1
            except Exception as error:
                rest = range(following, span.stop)
                named = getattr(error, "trace_index", rest.start if len(rest) == 1 else None)
                index = named if named in rest else None
                if index is not None:
                    failures.add(index, error)
                    todo += [range(index + 1, rest.stop), range(rest.start, index)]
                elif not self._policy.skips or len(rest) < 2:  # or it is no execution that is to blame
                    raise ChunkError(
                        f"the execution of one of traces {rest.start} to {rest.stop - 1}", traceback.format_exc()
                    ) from error
                else:
                    middle = (rest.start + rest.stop) // 2
                    todo += [range(middle, rest.stop), range(rest.start, middle)]
                todo = [part for part in todo if part]
        return batches

    def _checked(self, batch: TraceBatch, failures: _Failures) -> TraceBatch:
        """The traces whose densities are numbers: another process may have computed them."""
        good = np.isfinite(batch.log_prior) | ~batch.finished
        good &= ~(np.isnan(batch.log_likelihood) | np.isposinf(batch.log_likelihood))
        for index in batch.index[~good].tolist():
            try:
                raise DensityError(f"a log density of trace {index} is not a number, or infinite")
            except DensityError as error:
                failures.add(index, error)
        return batch if good.all() else batch.select(good)


class _Failures:
    """The failed executions of one chunk."""

    def __init__(self, policy: FailurePolicy, indices: range, lost: Iterable[FailedTrace]) -> None:
        self._policy, self._indices = policy, indices
        self._found = list(lost)
        self.last = self._found[-1].message if self._found else ""

    def add(self, index: int, error: Exception) -> None:
        """Count a failure that was just raised.

        Raises:
            ChunkError: the policy does not let it pass.
        """
        report = traceback.format_exc()
        if not self._policy.skips:
            raise ChunkError(f"the execution of trace {index}", report, index) from error
        self._found.append(FailedTrace.by(index, error))
        self.last = report
        allowed = self._policy.allowed(len(self._indices))
        if len(self._found) > allowed:
            raise ChunkError(
                f"the execution of {len(self._found)} of traces {self._indices[0]} to {self._indices[-1]}, more than "
                f"failures=skip lets pass in one chunk (max_failures={self._policy.max_share:g}), the last of them "
                f"trace {index}",
                report,
                index,
            ) from error

    def complete(self, traces: TraceBatch, model: Simulator) -> None:
        """Add those that the simulator's own policy left out."""
        known = {failure.trace_index for failure in self._found} | set(traces.index.tolist())
        reasons = {failure.trace_index: failure.reason for failure in getattr(model, "failures", ())}
        for index in set(self._indices) - known:
            reason = reasons.get(index)
            self._found.append(FailedTrace(index, f"left out by the simulator's policy{f': {reason}' * bool(reason)}"))

    def all_allowed(self) -> bool:
        """Whether all of the chunk's executions failed, and may."""
        count = len(self._indices)
        return self._policy.skips and len(self._found) == count <= self._policy.allowed(count)

    def found(self) -> tuple[FailedTrace, ...]:
        return tuple(sorted(self._found))


def _without(indices: range, left_out: set[int]) -> Iterator[range]:
    """The maximal ranges of indices between those left out."""
    start = indices.start
    for index in (*sorted(left_out), indices.stop):
        if start < index:
            yield range(start, index)
        start = index + 1
