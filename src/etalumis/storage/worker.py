"""A simulation worker: runs chunks of trace indices and sends each back encoded, as bytes.

Messages to a worker: a chunk's number, or nothing to end. Messages back, as pairs: JSON and bytes: the encoded
chunk, or ``{"failed": trace index}`` and the traceback.
"""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection

from etalumis.execution import Batched, Observations, Prior, Simulator, Trace, TraceBatch, run
from etalumis.storage.chunk import EncodedChunk, Encoding, encode_chunk
from etalumis.storage.manifest import Origin

Factory = Callable[[], Simulator]

_THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class ExecutionError(Exception):
    """An execution failed; its index and the traceback of what the simulator raised."""

    def __init__(self, index: int, report: str) -> None:
        super().__init__(index, report)
        self.index = index
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
            ExecutionError: naming the trace whose execution raised.
        """
        index = number * self._size
        indices = range(index, min(index + self._size, self._total))
        draw = self._encoding.observes == "both"
        traces: list[Trace] = []
        try:
            if isinstance(self._model, Batched):
                batches = list(self._model.batches(indices, self._seed, Observations(), draw))
                return encode_chunk(number, TraceBatch.concatenate(batches), self._encoding)
            for trace in run(self._model, Prior(), {}, indices, self._seed, draw_observations=draw):
                traces.append(trace)
            batch = TraceBatch.from_traces(traces, self._model.addresses)
            return encode_chunk(number, batch, self._encoding)
        except Exception as error:
            raise ExecutionError(index + min(len(traces), len(indices) - 1), traceback.format_exc()) from error


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
        except ExecutionError as failure:
            _send(connection, {"failed": failure.index}, failure.report.encode())
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
