"""Looks for everything that is wrong with a dataset, in all of its files, and goes on after the first find."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etalumis.execution.pool import Pool
from etalumis.execution.pool_worker import Desk, OwnDesk
from etalumis.storage.dataset import Dataset
from etalumis.storage.errors import MALFORMED, DatasetError
from etalumis.storage.manifest import INDEX, MANIFEST, SORTING, Manifest, shard_name
from etalumis.storage.tar import END_OF_ARCHIVE

SAMPLED = 10  # of so many chunks, one has its densities computed anew
_UNFINISHED = re.compile(r"\.part$|^unfinished\.jsonl$|^shard-\d+\.jsonl$")
_SHARD = re.compile(r"^shard-\d+\.tar$")
_SHOWN = 5  # trace indices that a message names


def validate(
    directory: str | Path, *, workers: int = 1, full: bool = False, report: Callable[[int], None] | None = None
) -> Iterator[str]:
    """Everything that is wrong with a dataset, one message each; nothing where all is well.

    Every file is looked at, and every byte of the shards: checksums, forms, counts, ids, and that numbers are finite.

    Args:
        directory: the dataset's folder.
        workers: processes; 0 works in this one.
        full: compute the densities of all traces anew, instead of one chunk in ten.
        report: called with the number of chunks done.
    """
    if workers < 0:
        raise ValueError(f"workers is a number of processes, or 0 for none; got {workers}")
    directory = Path(directory)
    report = report or (lambda chunks: None)
    yield from _strangers(directory)
    try:
        manifest = Manifest.load(directory)
    except DatasetError as error:
        yield str(error)
        return
    yield from _manifest(manifest)
    try:
        dataset = Dataset(directory, check=False)
        yield from _index(dataset)
    except DatasetError as error:  # without them no chunk can be understood
        yield str(error)
        return
    absent = set[int]()
    for shard, wrong in dataset.misfits():
        yield wrong
        if not (directory / shard_name(shard)).is_file():
            absent.add(shard)
    yield from (
        wrong for shard in range(len(manifest.shards)) if shard not in absent for wrong in _ends(dataset, shard)
    )
    todo = [number for number, chunk in enumerate(manifest.chunks) if chunk.shard not in absent]
    yield from _chunks(directory, todo, workers, full, report)


class ChunkCheck:
    """The work of a process: checks chunks of one dataset."""

    def __init__(self, directory: Path, every: int) -> None:
        self._dataset = Dataset(directory, check=False)
        self._every = every

    def __call__(self, number: int, desk: Desk) -> str:
        """What is wrong with a chunk; empty where nothing is."""
        try:
            self._dataset.verify(number, densities=number % self._every == 0)
        except DatasetError as error:
            return str(error)
        except (*MALFORMED, OSError) as error:
            return f"chunk {number} can't be checked: {type(error).__name__}: {error}"
        return ""


def _chunks(directory: Path, todo: list[int], workers: int, full: bool, report: Callable[[int], None]) -> Iterator[str]:
    make = partial(ChunkCheck, directory, 1 if full else SAMPLED)
    with ExitStack() as stack:
        if workers < 1 or len(todo) < 2:
            check, desk = make(), OwnDesk()
            found: Iterator[str] = (check(number, desk) for number in todo)
        else:
            found = stack.enter_context(Pool[int, str](make, min(workers, len(todo)))).run(todo)
        report(0)
        for done, wrong in enumerate(found, start=1):
            if wrong:
                yield wrong
            report(done)


def _strangers(directory: Path) -> Iterator[str]:
    """Files of work that was not finished, and shards that the manifest does not list."""
    if not directory.is_dir():
        return
    listed = set[str]()
    try:
        listed = {shard_name(number) for number in range(len(Manifest.load(directory).shards))}
    except DatasetError:  # said elsewhere
        return
    for path in sorted(directory.iterdir()):
        if _UNFINISHED.search(path.name) or path.name == SORTING:
            yield (
                f"{path} was left by a command that was killed while it finished: repeat the command that made the "
                "dataset, which tidies up, or delete it"
            )
        elif _SHARD.match(path.name) and path.name not in listed:
            yield f"{path} is not in the manifest: it is of another dataset; delete it, or copy the whole folder again"


def _manifest(manifest: Manifest) -> Iterator[str]:
    """Counts that contradict each other."""
    chunks = manifest.chunks
    sums = {key: sum(getattr(chunk, key) for chunk in chunks) for key in ("traces", "draws", "controlled")}
    extremes = {
        "shortest": min((chunk.shortest for chunk in chunks), default=0),
        "longest": max((chunk.longest for chunk in chunks), default=0),
    }
    for key, found in (sums | extremes).items():
        if getattr(manifest, key) != found:
            yield f"{MANIFEST} says {key} {getattr(manifest, key)}, but its chunks make {found}"
    places = [(chunk.shard, chunk.offset, chunk.size) for chunk in chunks]
    for (shard, offset, size), following in pairwise(places):
        next_shard = following[0] > shard and following[1] == 0  # one between may hold nothing
        if following[:2] != (shard, offset + size) and not next_shard:
            yield f"{MANIFEST}: the chunk at byte {following[1]} of shard {following[0]} does not follow the one before"


def _index(dataset: Dataset) -> Iterator[str]:
    """Every trace once, and those that are missing accounted for."""
    manifest, index = dataset.manifest, dataset.index
    for key, ours, theirs in (
        ("traces", len(index), manifest.traces),
        ("trace types", len(index.types), manifest.trace_types),
    ):
        if ours != theirs:
            yield f"{INDEX} holds {ours} {key}, {MANIFEST} says {theirs}"
    found, counts = np.unique(index.index, return_counts=True)
    if (twice := found[counts > 1]).size:
        yield f"{INDEX}: {twice.size} trace indices come twice: {_some(twice)}"
    total = manifest.origin.num_traces
    if total is None:
        return
    if (outside := found[(found < 0) | (found >= total)]).size:
        yield f"{INDEX}: trace indices outside 0 to {total - 1}: {_some(outside)}"
    failed = np.array(manifest.failures.get("indices", ()), dtype=np.int64)
    if (both := np.intersect1d(found, failed)).size:
        yield f"{MANIFEST} counts traces as failed that are stored: {_some(both)}"
    if len(found) + len(failed) != total:
        yield f"{MANIFEST}: {len(found)} traces stored and {len(failed)} failed do not make {total}"


def _ends(dataset: Dataset, shard: int) -> Iterator[str]:
    """A shard that does not end as archives do."""
    path = dataset.directory / shard_name(shard)
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - len(END_OF_ARCHIVE), 0))
        if file.read() != END_OF_ARCHIVE:
            yield f"{path} does not end as a tar archive does: it is truncated or damaged; copy it again"


def _some(indices: NDArray[np.int64]) -> str:
    shown = ", ".join(map(str, indices[:_SHOWN].tolist()))
    return shown if len(indices) <= _SHOWN else f"{shown}, …"
