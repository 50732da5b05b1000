"""Sorts datasets by trace type: like traces come together, so that minibatches are dense.

An external merge sort in two steps (Knuth, The Art of Computer Programming 3, section 5.4): :mod:`.plan` decides from
the index what goes where, :mod:`.runs` moves the data. Both steps are tasks that any process of any rank can do; what
is done is on disk, and a sort that was interrupted goes on with what is left.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from etalumis.execution.pool import Loss, Pool
from etalumis.execution.pool_worker import Desk
from etalumis.storage.chunk import Encoding
from etalumis.storage.errors import DatasetError, writing
from etalumis.storage.index import TraceIndex
from etalumis.storage.manifest import (
    JOURNAL,
    SORTING,
    ChunkEntry,
    Manifest,
    Origin,
    complete,
    finished,
    to_bytes,
    write_atomically,
)
from etalumis.storage.merge import Sources, checksum
from etalumis.storage.plan import budget, make_plan
from etalumis.storage.ranks import Ranks
from etalumis.storage.runs import Workshop
from etalumis.storage.sites import Sites
from etalumis.storage.sorted_shard import SortedShard
from etalumis.storage.writer import SHARD_BYTES

Report = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Report]]


def sort(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    workers: int = 1,
    memory_mb: float = 1024.0,
    chunk_size: int | None = None,
    shard_bytes: float = SHARD_BYTES,
    encoding: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Manifest:
    """Write the traces of some datasets, sorted by trace type, as a new one.

    The bytes written depend on the inputs and on the settings, never on ``workers`` or on the number of ranks. A sort
    that was interrupted is gone on with; one that is complete is left alone, and refused where its inputs changed.

    Args:
        inputs: folders of datasets of one model; see :mod:`.merge` for how several become one.
        output: folder of the sorted dataset.
        workers: processes of this rank; 0 works in this one.
        memory_mb: MiB that each process may use.
        chunk_size: most traces to a storage chunk; None keeps the inputs'.
        shard_bytes: about how large a shard becomes.
        encoding: settings of :class:`.Encoding` that differ from the inputs'.
        progress: from a step's name and its number of traces to a context manager with a function that is called
            with the number done.
        ranks: those of the job; found where None.

    Raises:
        DatasetError: an input is not whole, ``output`` holds something else, or ``memory_mb`` is too little. What
            was finished stays; run again to go on.
    """
    if workers < 0:
        raise ValueError(f"workers is a number of processes, or 0 for none; got {workers}")
    job = _Sort(
        [str(Path(i)) for i in ([inputs] if isinstance(inputs, (str, Path)) else inputs)],
        Path(output),
        ranks or Ranks.of_job(),
        workers,
        progress or (lambda step, total: nullcontext(lambda done: None)),
    )
    with writing(Path(output)):
        return job.run(chunk_size, shard_bytes, memory_mb, encoding or {})


class _Sort:
    def __init__(self, inputs: list[str], output: Path, ranks: Ranks, workers: int, progress: Progress) -> None:
        self._inputs = inputs
        self._output = output
        self._ranks = ranks
        self._workers = workers
        self._progress = progress
        self._directory = output / SORTING

    def run(
        self, chunk_size: int | None, shard_bytes: float, memory_mb: float, encoding: Mapping[str, Any]
    ) -> Manifest:
        def look() -> tuple[Workshop, Origin, bool]:
            if any(Path(i).resolve() == self._output.resolve() for i in self._inputs):
                raise DatasetError(f"{self._output} is an input; choose another folder for the sorted dataset")
            sources = Sources(self._inputs)
            origin = sources.origin(chunk_size, shard_bytes, encoding)
            workshop = Workshop(
                self._directory, tuple(self._inputs), tuple(sources.shifts), Encoding(**origin.encoding)
            )
            workshop.__dict__["sources"] = sources
            return workshop, origin, finished(self._output, origin) is not None

        with ExitStack() as stack:
            workshop, origin, done = self._together(look)
            if not done:
                self._together(self._first_only(lambda: self._begin(stack, workshop, origin, memory_mb)))
                self._together(lambda: self._divide(workshop))
                self._together(lambda: self._assemble(workshop, memory_mb))
                self._together(self._first_only(lambda: self._finish(workshop, origin)))
            elif self._ranks.rank == 0:
                shutil.rmtree(self._directory, ignore_errors=True)
        return Manifest.load(self._output)

    def _first_only(self, step: Callable[[], None]) -> Callable[[], None]:
        return step if self._ranks.rank == 0 else lambda: None

    def _together(self, step: Callable[[], Any]) -> Any:
        """A step that every rank takes; it is over when it is over for all, and fails where it fails for one."""
        result, failure = None, None
        try:
            result = step()
        except Exception as error:
            failure = error
        self._ranks.agree(failure)
        return result

    # --- planning ---------------------------------------------------------------------------------------------

    def _begin(self, stack: ExitStack, workshop: Workshop, origin: Origin, memory_mb: float) -> None:
        self._lock(stack)
        sources = workshop.sources
        settings = {
            "origin": asdict(origin),
            "memory_mb": memory_mb,
            "inputs": [checksum(dataset) for dataset in sources.datasets],
        }
        if not self._resumes(settings):
            assert origin.chunk_size is not None
            assert origin.shard_bytes is not None
            workshop.publish(make_plan(sources, origin.chunk_size, origin.shard_bytes, memory_mb))
            write_atomically(self._directory / "settings.json", to_bytes(settings))

    def _lock(self, stack: ExitStack) -> None:
        """Keep other sorts out of the work folder; the system lets go of it when this process ends."""
        self._refuse_other_data()
        self._directory.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context((self._directory / "lock").open("wb"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DatasetError(
                f"another process is sorting into {self._output}; wait for it, or choose another folder"
            ) from error

    def _refuse_other_data(self) -> None:
        if not self._directory.exists() and (
            (self._output / JOURNAL).exists() or any(self._output.glob("shard-*.tar*"))
        ):
            raise DatasetError(f"{self._output} holds other shards; choose another folder, or delete them first")

    def _resumes(self, settings: dict[str, Any]) -> bool:
        """Whether the work folder holds a plan, made for these settings or for less memory."""
        path = self._directory / "settings.json"
        if not path.exists():
            return False
        ours, theirs = json.loads(to_bytes(settings)), json.loads(path.read_bytes())
        differing = [key for key in ours if ours[key] != theirs.get(key)]
        if differing == ["memory_mb"] and ours["memory_mb"] > theirs["memory_mb"]:
            return True  # what was planned for less fits
        if differing:
            raise DatasetError(
                f"{self._output} holds an unfinished sort with other settings ({', '.join(differing)}): repeat its own "
                "command to finish it, choose another folder, or delete it"
            )
        return True

    # --- moving -----------------------------------------------------------------------------------------------

    def _mine(self, count: int) -> range:
        """This rank's among ``count`` tasks."""
        return range(self._ranks.rank, count, self._ranks.size)

    def _do(self, work: Callable[[Any], list[bytes]], tasks: Sequence[Any]) -> Generator[list[bytes], None, None]:
        """The results of tasks in order, by this rank's processes."""
        workers = min(self._workers, len(tasks))
        if workers < 1:
            yield from map(work, tasks)
            return
        with Pool(partial(_Duty, work), workers) as pool:
            yield from pool.run(tasks, recover=_give_up)

    def _divide(self, workshop: Workshop) -> None:
        plan, places = workshop.plan, workshop.sources.places
        starts = [places[first].position for first in plan.runs[:-1]] + [len(plan.rank)]
        todo = self._mine(len(starts) - 1)
        sizes = {run: starts[run + 1] - starts[run] for run in todo}
        left = [run for run in todo if not workshop.run_path(run).exists()]
        with self._progress("read", sum(sizes.values())) as report:
            done = sum(sizes[run] for run in todo) - sum(sizes[run] for run in left)
            report(done)
            for run, _ in zip(left, self._do(workshop.divide, left), strict=True):
                done += sizes[run]
                report(done)

    def _assemble(self, workshop: Workshop, memory_mb: float) -> None:
        plan, weight = workshop.plan, workshop.weights()
        most = budget(memory_mb, len(plan.rank), float(weight.max()))
        shards = [
            SortedShard(self._output, self._directory, number, plan) for number in self._mine(len(plan.shards) - 1)
        ]
        tasks = [(shard, task) for shard in shards for task in shard.tasks(weight, most)]
        total = sum(int(plan.chunks[shard.stop] - plan.chunks[shard.start]) for shard in shards)
        with self._progress("write", total) as report:
            done = sum(shard.traces for shard in shards)
            report(done)
            results = self._do(workshop.assemble, [task for _, task in tasks])
            for (shard, _), parts in zip(tasks, results, strict=True):
                for header, content in zip(parts[::2], parts[1::2], strict=True):
                    done += shard.append(header, content)
                report(done)
            for shard in shards:
                shard.close()

    def _finish(self, workshop: Workshop, origin: Origin) -> None:
        plan = workshop.plan
        entries: list[ChunkEntry] = []
        pieces: list[TraceIndex] = []
        sites: list[Sites] = []
        for number in range(len(plan.shards) - 1):
            for line in SortedShard(self._output, self._directory, number, plan).lines:
                entries.append(ChunkEntry(**line["chunk"]))
                pieces.append(TraceIndex.from_text(line["index"]))
                sites.append(Sites.from_text(line["sites"]))
        complete(
            self._output,
            origin,
            entries,
            len(plan.shards) - 1,
            workshop.addresses,
            TraceIndex.concatenate(pieces),
            Sites.concatenate(sites, map(len, pieces)),
            workshop.sources.observes,
            workshop.sources.failures,
        )
        shutil.rmtree(self._directory)


class _Duty:
    """What a worker does with each of its tasks."""

    def __init__(self, work: Callable[[Any], list[bytes]]) -> None:
        self._work = work

    def __call__(self, task: Any, desk: Desk) -> list[bytes]:
        return self._work(task)


def _give_up(loss: Loss) -> NoReturn:
    raise DatasetError(
        f"a worker process {loss.reason}: memory ran out, or it was killed. What was finished is kept: run the same "
        "command again to go on, with fewer workers if memory is short"
    )
