"""``etalumis simulate``: a dataset from settings, with progress and a summary."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NoReturn

from etalumis.conf.build import ConfigError, build_model, close
from etalumis.conf.tracebacks import wants_traceback
from etalumis.execution.pool import share_of_cores
from etalumis.inference.engine import left_out
from etalumis.inference.progress import progress_bar
from etalumis.storage import Dataset, Encoding, simulate
from etalumis.storage.failures import FailurePolicy
from etalumis.storage.inspect import facts
from etalumis.storage.manifest import write_atomically
from etalumis.storage.ranks import RankError, Ranks
from etalumis.storage.simulate import Report

SUMMARY = "summary.json"
_LINE_SECONDS = 15.0  # between two lines of progress where there is no terminal
_REASONS = 3  # failures that the summary shows
_PATIENCE_S = 5.0  # for the rank that failed to end the job


def run(config: Mapping[str, Any]) -> Dataset:
    """Make the dataset that ``conf/simulate.yaml`` describes, or go on with it; rank 0 prints what came out."""
    simulator, total = config["simulator"], config["num_traces"]
    if total is None:
        raise ConfigError("num_traces must be given: num_traces=...")
    ranks = Ranks.of_job()
    with one_for_all(ranks), ExitStack() as stack:
        # Made here once too, so that a wrong setting or a missing package is said before any process starts.
        model = build_model(simulator)
        name = model.name
        close(model)
        workers = share_of_cores(ranks.all) if config["workers"] is None else config["workers"]
        run = _Run(workers, ranks.size)
        shown = stack.enter_context(progress(f"simulate {name}", total)) if ranks.rank == 0 else None

        def report(executions: int) -> None:
            run.count(executions)
            if shown is not None:
                shown(executions)

        stack.enter_context(terminated_like_interrupted())
        try:
            simulate(
                partial(build_model, simulator),
                config["output"],
                total,
                model=name,
                seed=config["seed"],
                workers=workers,
                chunk_size=config["chunk_size"],
                encoding=Encoding(**config["encoding"]),
                shard_traces=config["shard_traces"],
                simulator=simulator,
                failures=FailurePolicy(config["failures"], config["max_failures"], config["timeout"]),
                ranks=ranks,
                progress=report,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("what was finished is kept; the same command again goes on") from None
    dataset = Dataset(config["output"])
    if ranks.rank == 0:
        keep_summary(dataset, run)
        sys.stdout.write(f"{summary(dataset)}\n  time           {run.describe()}\n")
    return dataset


@contextmanager
def one_for_all(ranks: Ranks) -> Iterator[None]:
    """An error on one rank ends the job, where the others would wait for it for ever; what is on disk stays.

    What has an exit code of its own is no error: all ranks leave by it together.
    """
    try:
        yield
    except BaseException as error:
        if ranks.size > 1 and not (isinstance(error, SystemExit) or hasattr(error, "exit_code")):
            if isinstance(error, RankError):
                time.sleep(_PATIENCE_S)  # the rank that failed says why, and ends the job
            if wants_traceback(sys.argv):  # nothing is said after the end
                traceback.print_exc()
            sys.stderr.write(f"etalumis: rank {ranks.rank} of {ranks.size}: {str(error) or type(error).__name__}\n")
            sys.stderr.flush()
            ranks.abort()
        raise


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, as batch systems send it, ends the work in as orderly a way as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Run:
    """What this run did of a dataset's work."""

    def __init__(self, workers: int, ranks: int) -> None:
        self._workers, self._ranks = workers, ranks
        self._started = time.monotonic()
        self._first: int | None = None
        self.executions = 0

    def count(self, executions: int) -> None:
        """Told the number of executions on disk; the first time before any of this run."""
        self._first = executions if self._first is None else self._first
        self.executions = executions - self._first

    def to_json(self) -> dict[str, Any]:
        seconds = time.monotonic() - self._started
        return {
            "executions": self.executions,
            "seconds": round(seconds, 3),
            "executions_per_s": round(self.executions / seconds, 3),
            "workers": self._workers,
            "ranks": self._ranks,
        }

    def describe(self) -> str:
        said = self.to_json()
        rate = f", {said['executions_per_s']:,.0f} traces/s" if self.executions else ""
        return f"{said['seconds']:.1f} s{rate}"


def keep_summary(dataset: Dataset, run: _Run) -> None:
    """Write ``summary.json`` beside a dataset: what it holds and, of its last run, how long it took."""
    path = dataset.directory / SUMMARY
    if not run.executions and path.exists():
        return
    write_atomically(path, (json.dumps(facts(dataset) | {"last_run": run.to_json()}, indent=2) + "\n").encode())


def summary(dataset: Dataset) -> str:
    """What a dataset holds, in a few lines."""
    m, said = dataset.manifest, facts(dataset)
    observes = ", ".join(f"{name} {tuple(o['shapes'][0]) or ''}".strip() for name, o in m.observes.items()) or "nothing"
    lost = said["failed"]
    reasons = [f"{r['count']:,} × {r['message']} (first in trace {r['first']})" for r in m.failures.get("messages", ())]
    return "\n".join(
        (
            f"{dataset.directory}: {m.traces:,} traces of {m.origin.model}",
            f"  size           {m.bytes / 1e6:,.1f} MB, {m.bytes / m.traces:,.0f} bytes per trace, "
            f"{len(m.chunks)} chunks in {len(m.shards)} shard{'s' if len(m.shards) > 1 else ''}",
            f"  draws          {m.draws / m.traces:.1f} per trace (from {m.shortest} to {m.longest}, median "
            f"{said['lengths']['median']:g}), {m.controlled / m.traces:.1f} of them controlled",
            f"  trace types    {m.trace_types:,}",
            f"  addresses      {len(dataset.addresses):,}",
            f"  observes       {observes}",
            *(f"  warning        {message}" for message in left_out(m.traces + lost, lost)),
            *(f"  failed         {reason}" for reason in reasons[:_REASONS]),
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
