"""``etalumis inspect`` and ``etalumis validate``: what a dataset holds, and whether it is whole."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etalumis.conf.build import ConfigError
from etalumis.conf.simulation import progress, summary
from etalumis.execution.pool import cores
from etalumis.storage import Dataset, DatasetError
from etalumis.storage.inspect import inspect
from etalumis.storage.manifest import Manifest
from etalumis.storage.validate import SAMPLED, validate

_BAR, _WIDTH = 40, 90  # characters


def run_inspect(config: Mapping[str, Any]) -> dict[str, Any]:
    """Print what ``conf/inspect.yaml`` asks for."""
    if config["format"] not in ("text", "json"):
        raise ConfigError(f"format is text or json; got {config['format']!r}")
    dataset = Dataset(config["dataset"])
    found = inspect(dataset, config["top"])
    if config["format"] == "json":
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("\n".join([summary(dataset), *describe(found)]) + "\n")
    if config["figure"] is not None:
        draw(found, Path(config["figure"]))
    return found


def run_validate(config: Mapping[str, Any]) -> None:
    """Check what ``conf/validate.yaml`` names; prints every problem.

    Raises:
        DatasetError: there are any.
    """
    directory, started = Path(config["dataset"]), time.monotonic()
    workers = cores() if config["workers"] is None else config["workers"]
    try:
        total = len(Manifest.load(directory).chunks)
    except DatasetError:  # reported below, like everything else
        total = 0
    problems = 0
    with progress(f"validate {directory}", total, "chunks") as report:
        for problem in validate(directory, workers=workers, full=config["full"], report=report):
            problems += 1
            sys.stdout.write(f"{problem}\n")
            sys.stdout.flush()
    if problems:
        raise DatasetError(f"{problems} problem{'s' if problems > 1 else ''} in {directory}")
    manifest = Manifest.load(directory)
    every = "all densities" if config["full"] else f"densities of one chunk in {SAMPLED} (full=true for all)"
    sys.stdout.write(
        f"{directory}: nothing wrong in {manifest.traces:,} traces, {manifest.bytes / 1e6:,.1f} MB: checksums, "
        f"counts, addresses, offsets, supports, {every}; {time.monotonic() - started:.1f} s\n"
    )


def describe(found: Mapping[str, Any]) -> Iterator[str]:
    """The text of an inspection, after the summary."""
    origin, sample, order = found["origin"], found["sampled"], found["sorted"]
    yield f"  made from      seed {origin['seed']}, {_settings(origin['simulator'])}"
    yield f"  encoding       {_settings(origin['encoding'])}"
    yield (
        f"  sorted         {'yes' if order['sorted'] else 'no'}, {order['chunks_of_one_type']:,} of "
        f"{found['chunks']:,} chunks hold one trace type"
    )
    yield f"\ntrace types ({found['trace_types']:,}, {found['types']['single']:,} of one trace only)"
    most = found["types"]["top"][0]["traces"]
    for entry in found["types"]["top"]:
        yield (
            f"  {entry['type']}  {entry['traces']:>12,}  {entry['share']:6.2%}  {entry['controlled']:>5} controlled  "
            f"{_bar(entry['traces'], most)}"
        )
    yield "\ndraws per trace"
    most = max(row["traces"] for row in found["histogram"])
    for row in found["histogram"]:
        span = str(row["from"]) if row["from"] == row["to"] else f"{row['from']}–{row['to']}"
        yield f"  {span:>16}  {row['traces']:>12,}  {_bar(row['traces'], most)}"
    yield f"\naddresses ({found['addresses']:,}): {_counts(found['families'])} draws"
    if sample["chunks"] < found["chunks"]:
        yield f"from here on of {sample['traces']:,} traces in {sample['chunks']} of {found['chunks']:,} chunks"
    for entry in found["visited"]:
        yield f"  {entry['per_trace']:10.4f} per trace  {_ending(entry['address'])}"
    yield "\nobservations"
    for name, entry in found["observes"].items():
        kept = "drawn anew when read" if entry["drawn_when_read"] else "given" if entry["given"] else "values kept"
        yield f"  {name:<20} {entry['family']}{tuple(entry['shape'])} {entry['dtype']}, {kept}"
    yield "\ntags and result"
    for name, entry in found["tags"].items():
        yield f"  {name:<20} {entry['dtype']} {tuple(entry['shape']) or ''}".rstrip()
    total = sum(found["members"].values())
    yield f"\nbytes per trace ({total / sample['traces']:,.1f})"
    for name, size in list(found["members"].items())[: len(found["visited"]) or 10]:
        yield f"  {name:<28} {size / sample['traces']:10.2f}  {size / total:6.1%}"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Trace types and lengths as a figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    shares = [entry["share"] for entry in found["types"]["top"]]
    left.bar(range(1, len(shares) + 1), shares, color="tab:blue")
    left.set(xlabel="trace type, by frequency", ylabel="share of traces")
    left.set_title(f"{found['trace_types']:,} types, {found['types']['single']:,} of one trace", fontsize="medium")
    rows = found["histogram"]
    widths = [row["to"] - row["from"] + 1 for row in rows]
    heights = [row["traces"] / width for row, width in zip(rows, widths, strict=True)]
    right.bar([row["from"] - 0.5 for row in rows], heights, widths, align="edge", color="tab:orange")
    right.set(xlabel="draws per trace", ylabel="traces per length", yscale="log")
    right.set_title(f"{found['traces']:,} traces of {found['model']}", fontsize="medium")
    figure.savefig(path, dpi=150)


def _bar(count: int, most: int) -> str:
    return "█" * max(round(_BAR * count / most), 1 if count else 0)


def _ending(address: str) -> str:
    """An address's innermost frames, which tell most."""
    return address if len(address) <= _WIDTH else f"…{address[-_WIDTH:]}"


def _counts(families: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {family}" for family, count in families.items()) or "no"


def _settings(node: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> str:
    """Nested settings in one line."""
    if not isinstance(node, Mapping):
        return str(node)
    parts = []
    for key, value in node.items():
        parts.append(_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else f"{prefix}{key}={value}")
    return " ".join(parts) or "nothing"
