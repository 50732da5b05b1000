"""Searches over settings: many trainings, each an ordinary one in a process and a folder of its own."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etalumis.callbacks.requests import Paused, StopRequests, seconds_of
from etalumis.conf.build import ConfigError
from etalumis.conf.sweep import Point, expand, quoted
from etalumis.execution.pool import cores
from etalumis.lit_models.inference_network import VALID_LOSS
from etalumis.lit_models.lock import locked
from etalumis.report.training import draw_search
from etalumis.storage.manifest import write_atomically

_POLL_S = 0.1
_SHOWN = 5  # of the best points
_DONE, _FAILED, _DIVERGED, _OPEN = "done", "failed", "diverged", "not finished"


class SearchError(RuntimeError):
    """Points of a search failed; all others are done."""


class Running(NamedTuple):
    """A point at work."""

    point: Point
    process: subprocess.Popen[bytes]
    started: float


def search(overrides: Sequence[str], config_dir: str | None = None) -> str:
    """Train all points that are not done yet, tabulate and draw; returns what to say.

    Below the output folder: ``points/NAME`` with each training and its ``log.txt``, ``table.csv``, ``table.json``,
    ``figure.png``.

    Args:
        overrides: of ``etalumis train`` with a search.
        config_dir: folder with config groups of the user's own.

    Raises:
        ConfigError: settings that are none, or an output folder with a search of others.
        SearchError: points failed; table and figure show the others.
        Paused: on SIGTERM, SIGUSR1, SIGUSR2, Ctrl-C or at the time limit.
    """
    config, points = expand(overrides, config_dir)
    output = Path(config["output"])
    workers = config["search"]["workers"] or 1
    requests = StopRequests(seconds_of(config["time_limit"]))
    taken = f"another search, or a training that it left, is at work in {output}"
    with locked(output / "search.lock", taken) as lock:
        for point in points:
            _remember(output, point)
        requests.listen()
        try:
            failed = _train_all(output, points, workers, requests, (lock, config_dir, config["threads"]))
        finally:
            requests.close()
        rows = [_row(output, point, failed.get(point.name)) for point in points]
        write_table(output, rows)
        figure = config["search"]["figure"]
        drawn = draw_search(rows, figure["x"], list(points[0].values), figure["lines"], VALID_LOSS)
        drawn.savefig(output / "figure.png", dpi=160)
    done = sum(row["state"] in (_DONE, _DIVERGED) for row in rows)
    if requests.reason and done < len(points):
        raise Paused(
            f"stopped by {requests.reason} with {done} of {len(points)} points done: the same command goes on",
            requests.signal,
        )
    text = summary(output, rows)
    if failed:
        names = ", ".join(f"{name} ({why})" for name, why in failed.items())
        raise SearchError(f"{len(failed)} of {len(points)} points failed, the same command tries them again: {names}")
    return text


def summary(output: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """The best points in a few lines."""
    done = sorted((row for row in rows if row.get(VALID_LOSS) is not None), key=lambda row: row[VALID_LOSS])
    lines = [f"{output}/figure.png and table.csv show {len(rows)} points, {len(done)} with a loss; the best:"]
    return "\n".join([*lines, *(f"  {row[VALID_LOSS]:10.4f}  {row['name']}" for row in done[:_SHOWN])])


def write_table(output: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All points with their values and results, as CSV and JSON."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(output / "table.csv", text.getvalue().encode())
    write_atomically(output / "table.json", (json.dumps(list(rows), indent=2) + "\n").encode())


# --- points ---------------------------------------------------------------------------------------------------------


def folder_of(output: Path, point: Point) -> Path:
    """Where a point is trained."""
    return output / "points" / point.name


def _remember(output: Path, point: Point) -> None:
    """Write a point's settings down, or see that its folder is of the same."""
    path = folder_of(output, point) / "overrides.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(point.overrides, indent=2, ensure_ascii=False) + "\n").encode())
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    if set(stored) != set(point.overrides):
        others = ", ".join(sorted(set(stored) ^ set(point.overrides)))
        raise ConfigError(f"{output} holds a search with other settings ({others}); give another output=...")


def _train_all(
    output: Path, points: Sequence[Point], workers: int, requests: StopRequests, how: tuple[int, str | None, int | None]
) -> dict[str, str]:
    """Train what is not done, so many side by side; returns why points failed, by name."""
    waiting = [p for p in points if not (folder_of(output, p) / "result.json").exists()]
    running: list[Running] = []
    failed: dict[str, str] = {}
    first, started = len(points) - len(waiting), time.monotonic()
    if first:
        _say(f"{first} of {len(points)} points are done already")
    while running or (waiting and not requests.reason):
        while waiting and len(running) < workers and not requests.reason:
            point = waiting.pop(0)
            running.append(Running(point, _start(output, point, workers, how), time.monotonic()))
        time.sleep(_POLL_S)
        if requests.reason:
            for run in running:
                run.process.send_signal(signal.SIGTERM)
            for run in running:
                run.process.wait()
        for run in [run for run in running if run.process.poll() is not None]:
            running.remove(run)
            row = _row(output, run.point, _failure(output, run, asked=bool(requests.reason)))
            if row["state"] == _FAILED:
                failed[run.point.name] = row["why"]
            done = len(points) - len(waiting) - len(running)
            left = (time.monotonic() - started) / max(1, done - first) * (len(points) - done)
            loss = f" loss {row[VALID_LOSS]:.4f}" if row.get(VALID_LOSS) is not None else f" {row['state']}"
            took = time.monotonic() - run.started
            _say(f"{done} of {len(points)} points, {run.point.name}:{loss} in {took:.0f} s, {left:.0f} s left")
    return failed


def _start(
    output: Path, point: Point, workers: int, how: tuple[int, str | None, int | None]
) -> subprocess.Popen[bytes]:
    lock, config_dir, threads = how
    folder = folder_of(output, point)
    words = [*point.overrides, quoted("output", str(folder)), f"threads={threads or max(1, cores() // workers)}"]
    words += ["--config-dir", config_dir] if config_dir else []
    command = [sys.executable, "-m", "etalumis.cli", "train", *words]
    with (folder / "log.txt").open("ab") as log:
        # The lock goes with the process: while one is at work, no second search starts. A session of its own: Ctrl-C
        # comes here only.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(lock,), start_new_session=True
        )


def _failure(output: Path, run: Running, asked: bool) -> str | None:
    """Why a process failed; None where it did not, or where the search has asked it to stop."""
    code = run.process.returncode
    if code == 0 or (asked and code in (Paused.exit_code, -signal.SIGTERM)):
        return None
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    log = folder_of(output, run.point) / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = [line for line in lines if line.startswith("etalumis train:")]
    return (said or lines or [f"exit code {code}"])[-1]


def _row(output: Path, point: Point, why: str | None) -> dict[str, Any]:
    """A line of the table."""
    row: dict[str, Any] = {"name": point.name, **point.values, "state": _OPEN}
    path = folder_of(output, point) / "result.json"
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
        row |= {"state": _DIVERGED if "diverged" in result else _DONE, **result}
    elif why is not None:
        row |= {"state": _FAILED, "why": why}
    return row


def _say(text: str) -> None:
    sys.stderr.write(f"search: {text}\n")
    sys.stderr.flush()
