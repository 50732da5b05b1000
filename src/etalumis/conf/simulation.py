"""``etalumis simulate``: a dataset from settings, with progress and a summary."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from etalumis.conf.build import ConfigError, build_model, close
from etalumis.inference.engine import left_out
from etalumis.inference.progress import progress_bar
from etalumis.storage import Dataset, Encoding, simulate
from etalumis.storage.simulate import Report

_LINE_SECONDS = 15.0  # between two lines of progress where there is no terminal


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(config: Mapping[str, Any]) -> Dataset:
    """Make the dataset that ``conf/simulate.yaml`` describes, or go on with it; prints what came out."""
    simulator, total = config["simulator"], config["num_traces"]
    if total is None:
        raise ConfigError("num_traces must be given: num_traces=...")
    # Made here once too, so that a wrong setting or a missing package is said before any process starts.
    model = build_model(simulator)
    name = model.name
    close(model)
    started = time.monotonic()
    try:
        with progress(f"simulate {name}", total) as report:
            simulate(
                partial(build_model, simulator),
                config["output"],
                total,
                model=name,
                seed=config["seed"],
                workers=cores() if config["workers"] is None else config["workers"],
                chunk_size=config["chunk_size"],
                encoding=Encoding(**config["encoding"]),
                shard_bytes=int(config["shard_mb"] * 2**20),
                simulator=simulator,
                progress=report,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what was finished is kept; the same command again goes on") from None
    dataset = Dataset(config["output"])
    sys.stdout.write(f"{summary(dataset)}\n  time           {time.monotonic() - started:.1f} s\n")
    return dataset


def summary(dataset: Dataset) -> str:
    """What a dataset holds, in a few lines."""
    m = dataset.manifest
    failed = 0 if m.origin.num_traces is None else m.origin.num_traces - m.traces
    observes = ", ".join(f"{name} {tuple(o['shape']) or ''}".strip() for name, o in m.observes.items()) or "nothing"
    return "\n".join(
        (
            f"{dataset.directory}: {m.traces:,} traces of {m.origin.model}",
            f"  size           {m.bytes / 1e6:,.1f} MB, {m.bytes / m.traces:,.0f} bytes per trace, "
            f"{len(m.chunks)} chunks in {len(m.shards)} shard{'s' if len(m.shards) > 1 else ''}",
            f"  draws          {m.draws / m.traces:.1f} per trace (from {m.shortest} to {m.longest}), "
            f"{m.controlled / m.traces:.1f} of them controlled",
            f"  trace types    {m.trace_types:,}",
            f"  addresses      {len(dataset.addresses):,}",
            f"  observes       {observes}",
            *(f"  warning        {message}" for message in left_out(m.traces + failed, failed)),
        )
    )


@contextmanager
def progress(description: str, total: int, unit: str = "traces") -> Iterator[Report]:
    """Yields a function to call with the number of ``unit`` done; the first call tells where the work starts from.

    A bar with rate and time left on a terminal, else a line now and then.
    """
    with ExitStack() as stack:
        bar = _Bar(stack, description, total, unit) if sys.stderr.isatty() else _Lines(description, total, unit)
        yield bar


class _Bar:
    def __init__(self, stack: ExitStack, description: str, total: int, unit: str) -> None:
        self._stack, self._description, self._total, self._unit = stack, description, total, unit
        self._done = -1

    def __call__(self, done: int) -> None:
        if self._done < 0:
            bar = progress_bar(self._description, self._total - done, self._unit, True)
            self._report = self._stack.enter_context(bar)
        else:
            self._report(done - self._done, "")
        self._done = done


class _Lines:
    def __init__(self, description: str, total: int, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._first = -1

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if self._first < 0:
            self._first, self._started, self._next = done, now, now + _LINE_SECONDS
            return
        if now < self._next:
            return
        self._next = now + _LINE_SECONDS
        rate = (done - self._first) / (now - self._started)
        left = (self._total - done) / rate if rate else float("inf")
        sys.stderr.write(
            f"{self._description}: {done:,} of {self._total:,} {self._unit}, {rate:,.0f} {self._unit}/s, "
            f"{left:.0f} s left\n"
        )
        sys.stderr.flush()
