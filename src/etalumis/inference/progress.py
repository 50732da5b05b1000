"""A progress bar with rate, note and time left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from etalumis.inference.workers import Report

#: Whether to show a bar (None: on a terminal only), or a function that is told ``(amount, note)`` instead.
Progress = bool | Report | None


@contextmanager
def progress_bar(description: str, total: int | None, unit: str, show: Progress = None) -> Iterator[Report]:
    """Yields ``report(amount, note)``.

    Args:
        description: what goes on.
        total: how many there will be; None where nobody knows.
        unit: of the rate.
        show: None shows it on a terminal only; a function takes the bar's place.
    """
    if callable(show):
        yield show
        return
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda amount, note: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, rate="", note="")

        def report(amount: int, note: str) -> None:
            state = progress.tasks[0]
            elapsed = state.elapsed or 0.0
            rate = f"{(state.completed + amount) / elapsed:,.0f} {unit}/s" if elapsed > 0.0 else ""
            progress.update(task, advance=amount, note=note, rate=rate)

        yield report
