"""What the benchmarks share: pinning, alternating repeats, medians, and one JSON object on the last line.

A comparison measures two things alternately in one run on the same core, so that a slow minute of the machine
hits both. Reported are medians; ``ratio`` is written so that larger is better, unless the result's name says
cost, share, us or bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Measure = Callable[[], float]
FULL_REPEATS, QUICK_REPEATS = 5, 3


@dataclass(frozen=True)
class Result:
    """One line of a benchmark. ``theirs`` and ``ratio`` are None where only one thing was measured, ``ours`` too where
    nothing could be."""

    name: str
    ratio: float | None
    target: float | None
    ours: float | None
    theirs: float | None
    unit: str
    repeats: int
    note: str = ""


@dataclass(frozen=True)
class Settings:
    """How long a benchmark may take: five repeats, or three short ones under a minute in all (``quick``)."""

    quick: bool = False

    @property
    def repeats(self) -> int:
        """The least number of repeats of a comparison."""
        return QUICK_REPEATS if self.quick else FULL_REPEATS


def alternate(measures: Iterable[Measure], repeats: int) -> list[float]:
    """Median of each measure over ``repeats`` rounds, after one round of warm-up."""
    measures = list(measures)
    for measure in measures:
        measure()
    rounds = [[measure() for measure in measures] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def compare(
    name: str,
    ours: Measure,
    theirs: Measure | None,
    *,
    unit: str,
    target: float | None,
    settings: Settings,
    smaller_is_better: bool = False,
    note: str = "",
    rounds: int = 1,
) -> Result:
    """Measure two things alternately; ``smaller_is_better`` measures (times, bytes) give ``theirs / ours``.

    ``rounds`` multiplies the repeats: many short ones withstand a busy machine better than few long ones.
    With ``theirs`` None (a peer that cannot be had; ``note`` says why) only ours is measured.
    """
    repeats = rounds * settings.repeats
    if theirs is None:
        (value,) = alternate([ours], repeats)
        return Result(name, None, target, significant(value), None, unit, repeats, note)
    mine, other = alternate([ours, theirs], repeats)
    ratio = other / mine if smaller_is_better else mine / other
    return Result(name, significant(ratio), target, significant(mine), significant(other), unit, repeats, note)


def single(
    name: str,
    measure: Measure,
    *,
    unit: str,
    target: float | None,
    settings: Settings,
    note: str = "",
    rounds: int = 1,
) -> Result:
    """A single measured value: ``ratio`` and ``theirs`` are None."""
    return compare(name, measure, None, unit=unit, target=target, settings=settings, note=note, rounds=rounds)


def rate(work: Callable[[int], object], count: int) -> Measure:
    """A measure of ``work(count)`` in items per second."""

    def measure() -> float:
        start = time.perf_counter()
        work(count)
        return count / (time.perf_counter() - start)

    return measure


def significant(value: float, digits: int = 4) -> float:
    """The value with ``digits`` significant digits: more would only pretend precision."""
    return float(f"{value:.{digits}g}")


def pin() -> int | None:
    """Keep this process and its future children on one core; None where the system cannot pin."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def machine(core: int | None) -> dict[str, Any]:
    """What the figures depend on."""
    packages = {}
    for package in ("numpy", "torch"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "pinned_to": core,
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **packages,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main(
    benchmark: str,
    results: Callable[[Settings], Iterator[Result]],
    argv: list[str] | None = None,
    pinned: bool = True,
) -> int:
    """Run a benchmark: results to standard error as they come, the JSON object last to standard output.

    ``pinned=False`` is for benchmarks that measure several cores and do their own placing.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark}")
    parser.add_argument("--json", action="store_true", help="print one JSON object last on standard output")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_REPEATS} short repeats, under a minute")
    arguments = parser.parse_args(argv)
    core = pin() if pinned else None
    tell(benchmark, results(Settings(quick=arguments.quick)), arguments.json, core)
    return 0


def tell(benchmark: str, results: Iterable[Result], as_json: bool, core: int | None = None) -> None:
    """Results to standard error as they come, and as a JSON object to standard output where it is wanted."""
    report = {"benchmark": benchmark, "machine": machine(core), "results": []}
    for result in results:
        report["results"].append(asdict(result))
        print(describe(result), file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps(report), flush=True)


def describe(result: Result) -> str:
    """One line for people."""
    theirs = "" if result.theirs is None else f" against {result.theirs:g}"
    ratio = "" if result.ratio is None else f", ratio {result.ratio:g}"
    target = "" if result.target is None else f" (target {result.target:g})"
    note = f"  [{result.note}]" if result.note else ""
    ours = "-" if result.ours is None else f"{result.ours:g}"
    return f"{result.name}: {ours}{theirs} {result.unit}{ratio}{target}{note}"
