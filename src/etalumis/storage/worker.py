"""A simulation worker: runs chunks of trace indices and sends each back encoded, as bytes.

Messages to a worker: a chunk's number, or nothing to end. Messages back, as pairs: JSON and bytes: the encoded
chunk, or ``{"failed": what}`` and the traceback.
"""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection

from etalumis.execution import Batched, Observations, Prior, Simulator, TraceBatch, run
from etalumis.storage.chunk import EncodedChunk, Encoding, encode_chunk
from etalumis.storage.manifest import Origin

Factory = Callable[[], Simulator]

_THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class ChunkError(Exception):
    """A chunk can't be made: what failed ("the execution of trace 7"), and the traceback of what was raised."""

    def __init__(self, what: str, report: str) -> None:
        super().__init__(what, report)
        self.what = what
        self.report = report


class ChunkRunner:
    """Makes the chunks of one dataset, each from its number alone."""

    def __init__(self, model: Simulator, origin: Origin) -> None:
        assert origin.num_traces is not None
        assert origin.chunk_size is not None
        self._model = model
        self._total, self._size = origin.num_traces, origin.chunk_size
        self._seed = origin.seed
        self._encoding = Encoding(**origin.encoding)

    def __call__(self, number: int) -> EncodedChunk:
        """Run and encode chunk ``number``.

        Raises:
            ChunkError: naming the trace whose execution raised, or that traces can't be stored, or are all dropped.
        """
        first = number * self._size
        indices = range(first, min(first + self._size, self._total))
        batches = self._execute(indices)
        these = f"traces {indices[0]} to {indices[-1]}"
        if not sum(map(len, batches)):
            raise ChunkError(
                f"the execution of every one of {these}",
                'The simulator\'s policy ("drop") left all of them out; policy "raise" shows what is wrong with it.',
            )
        try:
            return encode_chunk(number, TraceBatch.concatenate(batches), self._encoding)
        except Exception as error:
            raise ChunkError(f"the storing of {these}", traceback.format_exc()) from error

    def _execute(self, indices: range) -> list[TraceBatch]:
        model, draw = self._model, self._encoding.observes == "both"
        if isinstance(model, Batched):
            try:
                return list(model.batches(indices, self._seed, Observations(), draw))
            except Exception as error:
                what = f"the execution of one of traces {indices[0]} to {indices[-1]}"
                raise ChunkError(what, traceback.format_exc()) from error
        current = indices[0]

        def each() -> Iterator[int]:
            nonlocal current
            for index in indices:
                current = index
                yield index

        try:
            traces = list(run(model, Prior(), {}, each(), self._seed, draw_observations=draw))
        except Exception as error:
            raise ChunkError(f"the execution of trace {current}", traceback.format_exc()) from error
        return [TraceBatch.from_traces(traces, model.addresses)]


def serve(connection: Connection, factory: Factory, origin: Origin) -> None:
    """Body of a worker process."""
    # Ctrl-C reaches every process of the terminal: the main one decides, workers end with its connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)  # what the model holds, such as simulator processes, is let go of
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the main process needs no more, or is gone
        try:
            model = factory()
        except Exception:
            _send(connection, {"failed": None}, traceback.format_exc().encode())
            return
        with ExitStack() as stack:
            if hasattr(model, "close"):
                stack.callback(model.close)
            _answer(connection, ChunkRunner(model, origin))


def _answer(connection: Connection, runner: ChunkRunner) -> None:
    while request := connection.recv_bytes():
        try:
            chunk = runner(int(request))
        except ChunkError as failure:
            _send(connection, {"failed": failure.what}, failure.report.encode())
            return
        connection.send_bytes(chunk.header())
        connection.send_bytes(chunk.span)


def _end(number: int, frame: object) -> None:
    raise SystemExit(1)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started inside run numerical libraries on one thread: the workers fill the cores."""
    before = {name: os.environ.get(name) for name in _THREAD_SETTINGS}
    os.environ.update(dict.fromkeys(_THREAD_SETTINGS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _send(connection: Connection, head: dict[str, object], body: bytes) -> None:
    connection.send_bytes(json.dumps(head).encode())
    connection.send_bytes(body)
