"""``etalumis sort``: a sorted dataset from settings, with progress and a summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from etalumis.conf.simulation import one_for_all, progress, summary, terminated_like_interrupted
from etalumis.execution.pool import cores
from etalumis.storage import Dataset, sort
from etalumis.storage.ranks import Ranks
from etalumis.storage.sort import Report


def run(config: Mapping[str, Any]) -> Dataset:
    """Sort as ``conf/sort.yaml`` describes, or go on with it; rank 0 prints what came out."""
    ranks = Ranks.of_job()
    workers = config["workers"]
    if workers is None:
        workers = cores() if ranks.size == 1 else 0
    started = time.monotonic()
    inputs = config["input"]
    with one_for_all(ranks), terminated_like_interrupted():
        try:
            sort(
                [inputs] if isinstance(inputs, str) else inputs,
                config["output"],
                workers=workers,
                memory_mb=config["memory_mb"],
                chunk_size=config["chunk_size"],
                shard_bytes=config["shard_mb"] * 2**20,
                encoding=config["encoding"],
                progress=_progress if ranks.rank == 0 else None,
                ranks=ranks,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("what was finished is kept; the same command again goes on") from None
    dataset = Dataset(config["output"])
    if ranks.rank == 0:
        types = [chunk.types for chunk in dataset.chunks]
        sys.stdout.write(
            f"{summary(dataset)}\n"
            f"  sorted         {sum(t == 1 for t in types):,} of {len(types):,} chunks hold one trace type\n"
            f"  time           {time.monotonic() - started:.1f} s\n"
        )
    return dataset


@contextmanager
def _progress(step: str, total: int) -> Iterator[Report]:
    with progress(f"sort: {step}", total) as report:
        yield report
