"""Makes datasets: worker processes execute the model, this process puts their chunks on disk in order.

Trace i depends on (seed, i) alone and a chunk's bytes on its traces alone, so equal settings give equal files,
byte for byte, whatever the number of workers and however often the work was interrupted.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from etalumis.storage.chunk import EncodedChunk, Encoding
from etalumis.storage.errors import DatasetError, SimulationError
from etalumis.storage.manifest import MANIFEST, Manifest, Origin
from etalumis.storage.worker import ChunkError, ChunkRunner, Factory, one_thread_each, serve
from etalumis.storage.writer import SHARD_BYTES, ShardWriter

CHUNK_SIZE = 1024
_GRACE_S = 1.0  # for a worker to end by itself
_AHEAD = 4  # chunks per worker that may wait for an earlier one

Report = Callable[[int], None]


def simulate(
    factory: Factory,
    output: str | Path,
    num_traces: int,
    *,
    model: str,
    seed: int = 0,
    workers: int = 1,
    chunk_size: int = CHUNK_SIZE,
    encoding: Encoding | None = None,
    shard_bytes: int = SHARD_BYTES,
    simulator: Mapping[str, Any] | None = None,
    progress: Report | None = None,
) -> Manifest:
    """Execute a model from its prior and store the traces.

    A dataset that was interrupted is gone on with; one that is complete is left alone.

    Args:
        factory: returns the model; called once in each worker process, which imports it by name.
        output: the dataset's folder.
        num_traces: how many.
        model: the model's name.
        seed: of the random numbers.
        workers: processes; 0 runs in this one.
        chunk_size: traces to a storage chunk.
        encoding: how chunks are stored.
        shard_bytes: size from which a new shard is begun.
        simulator: the configuration behind ``factory`` as plain JSON, kept in the manifest.
        progress: called with the number of traces on disk after each chunk.

    Raises:
        DatasetError: ``output`` holds another dataset.
        SimulationError: an execution failed or a worker died. What was finished stays; run again to go on.
    """
    if num_traces < 1 or chunk_size < 1:
        raise ValueError(f"simulate needs num_traces ≥ 1 and chunk_size ≥ 1; got {num_traces} and {chunk_size}")
    origin = Origin(
        model=model,
        seed=seed,
        num_traces=num_traces,
        chunk_size=chunk_size,
        simulator=dict(simulator or {}),
        encoding=(encoding or Encoding()).to_json(),
    )
    report = progress or (lambda traces: None)
    if (done := finished(Path(output), origin)) is not None:
        report(done.traces)
        return done
    writer = ShardWriter(output, origin, shard_bytes)
    with writer:
        report(writer.traces)
        todo = range(len(writer.chunks), -(-num_traces // chunk_size))
        with closing(_chunks(factory, origin, todo, workers)) as chunks:
            for chunk in chunks:
                writer.append(chunk)
                report(writer.traces)
    return Manifest.load(writer.directory)


def finished(output: Path, origin: Origin) -> Manifest | None:
    """The manifest in a folder where it holds exactly this dataset, None where it holds none.

    Raises:
        DatasetError: it holds another dataset.
    """
    if not (output / MANIFEST).exists():
        return None
    found = Manifest.load(output)
    ours, theirs = json.loads(json.dumps(asdict(origin))), asdict(found.origin)
    differing = [key for key in ours if ours[key] != theirs[key]]
    if differing:
        raise DatasetError(
            f"{output} already holds a dataset made with other settings ({', '.join(differing)}); "
            "choose another folder, or delete it first"
        )
    return found


def _chunks(factory: Factory, origin: Origin, todo: range, workers: int) -> Generator[EncodedChunk, None, None]:
    """The chunks in order, made in this process or in others."""
    if not todo:
        return
    if workers < 1:
        runner = ChunkRunner(factory(), origin)
        for number in todo:
            try:
                yield runner(number)
            except ChunkError as failure:
                raise _failure(origin, failure.what, failure.report) from failure
        return
    with closing(_Pool(factory, origin, min(workers, len(todo)))) as pool:
        yield from pool.run(todo)


class _Pool:
    """Worker processes; spawned, so that threads and open files of this one don't leak into them."""

    def __init__(self, factory: Factory, origin: Origin, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._origin = origin
        self._workers: dict[Connection, SpawnProcess] = {}
        self._assigned: dict[Connection, list[int]] = {}
        with one_thread_each():
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=serve, args=(theirs, factory, origin), daemon=True)
                process.start()
                theirs.close()
                self._workers[ours] = process
                self._assigned[ours] = []

    def run(self, todo: range) -> Generator[EncodedChunk, None, None]:
        """The chunks in order of their numbers; made in any order."""
        numbers = iter(todo)
        ready: dict[int, EncodedChunk] = {}
        following = todo.start
        for _ in range(2):  # one in work, one waiting, so that no worker idles
            for connection in self._workers:
                self._assign(connection, next(numbers, None))
        while following < todo.stop:
            for readable in wait(list(self._workers)):
                assert isinstance(readable, Connection)
                number, chunk = self._receive(readable)
                ready[number] = chunk
            while following in ready:
                yield ready.pop(following)
                following += 1
            for connection, assigned in self._assigned.items():
                while len(assigned) < 2 and len(ready) < _AHEAD * len(self._workers):
                    number_or_none = next(numbers, None)
                    if number_or_none is None:
                        break
                    self._assign(connection, number_or_none)

    def close(self) -> None:
        for connection in self._workers:
            connection.close()  # ends a worker that has nothing to do
        for process in self._workers.values():
            process.join(_GRACE_S)
            process.terminate()
            process.join(_GRACE_S)
            process.kill()
            process.join()

    def _assign(self, connection: Connection, number: int | None) -> None:
        if number is None:
            return
        self._assigned[connection].append(number)
        with suppress(OSError):  # it ended: what it said before, or that it said nothing, comes up on receiving
            connection.send_bytes(str(number).encode())

    def _receive(self, connection: Connection) -> tuple[int, EncodedChunk]:
        try:
            head, body = connection.recv_bytes(), connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._death(connection) from error
        if head.startswith(b'{"failed"'):
            raise _failure(self._origin, json.loads(head)["failed"], body.decode())
        return self._assigned[connection].pop(0), EncodedChunk.restore(head, body)

    def _death(self, connection: Connection) -> SimulationError:
        process, size = self._workers[connection], self._origin.chunk_size
        process.join(timeout=5)
        assert size is not None
        first = min(self._assigned[connection], default=0) * size
        return SimulationError(
            f"a worker process died (exit code {process.exitcode}) while it ran trace {first} or one of the "
            f"{size} after it: the simulator crashed, or memory ran out. What was finished is kept: run the same "
            "command again to go on, with fewer workers if memory is short"
        )


def _failure(origin: Origin, what: str | None, report: str) -> SimulationError:
    if what is None:
        return SimulationError(f"the model {origin.model!r} can't be made:\n{report.rstrip()}")
    return SimulationError(
        f"{what} (seed {origin.seed}) of {origin.model!r} failed; what was finished is kept: "
        f"correct the simulator and run the same command again to go on. It raised:\n{report.rstrip()}"
    )
