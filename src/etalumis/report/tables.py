"""The numbers of a report for people (terminal, Markdown) and for programs (JSON)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from etalumis.report.summary import Agreement, Quality, Summary

_DASH = "–"


@dataclass(frozen=True)
class Grid:
    """A table before it has a form: title, column heads, rows of text."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for place, head in enumerate(self.heads):
            table.add_column(head, justify="left" if place == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For documents."""
        lines = [f"**{self.title}**", "", _line(self.heads), _line(["---", *["---:"] * (len(self.heads) - 1)])]
        return "\n".join([*lines, *map(_line, self.rows)]) + "\n"


def quality_grid(summary: Summary) -> Grid:
    """ESS, k̂, R̂, time and executions of every posterior."""
    heads = ("posterior", "ESS", "k̂", "R̂", "traces", "executions", "time", "ESS/s")
    return Grid("Quality and cost", heads, tuple(_quality_row(quality) for quality in summary.quality))


def moments_grid(summary: Summary) -> Grid:
    """Mean ± standard deviation of every continuous variable under every posterior."""
    labels = [quality.label for quality in summary.quality]
    shrinks = any(m.shrinkage is not None for row in summary.moments.values() for m in row)
    heads = ("mean ± sd", *labels, *([f"sd / prior's ({labels[0]})"] if shrinks else []))
    rows = []
    for name, row in summary.moments.items():
        texts = [f"{_number(m.mean)} ± {_number(m.std)}" for m in row]
        rows.append((name, *texts, *([_number(row[0].shrinkage)] if shrinks else [])))
    return Grid("Posterior marginals", heads, tuple(rows))


def agreement_grid(summary: Summary) -> Grid:
    """How far every other posterior is from the first, variable by variable."""
    heads = ("", "pair", "|Δ mean| / sd", "ratio of sds", "max |Δ P|")
    return Grid("Agreement", heads, tuple(_agreement_row(item) for item in summary.agreement))


def grids(summary: Summary) -> tuple[Grid, ...]:
    """Every table that has rows."""
    return tuple(g for g in (quality_grid(summary), moments_grid(summary), agreement_grid(summary)) if g.rows)


def as_markdown(title: str, tables: Iterable[Grid]) -> str:
    """All tables as one document."""
    return "\n".join([f"# {title}\n", *(table.markdown() for table in tables)])


def as_json(summary: Summary, **more: Any) -> str:
    """All numbers as one JSON object; what is infinite or not a number becomes null."""
    numbers = {
        "posteriors": [asdict(quality) for quality in summary.quality],
        "marginals": {name: [asdict(m) for m in row] for name, row in summary.moments.items()},
        "agreement": [asdict(item) for item in summary.agreement],
        **more,
    }
    return json.dumps(_plain(numbers), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _quality_row(quality: Quality) -> tuple[str, ...]:
    rhat = _DASH if quality.rhat is None else f"{quality.rhat:.3f}"
    if quality.worst is not None and quality.rhat is None:
        rhat = "∞"
    return (
        quality.label,
        _count(quality.ess),
        _DASH if quality.pareto_k is None else f"{quality.pareto_k:.2f}",
        rhat,
        _count(quality.traces),
        _count(quality.executions),
        _duration(quality.wall_time_s),
        _number(quality.ess_per_second),
    )


def _agreement_row(item: Agreement) -> tuple[str, ...]:
    numbers = (item.mean_shift, item.std_ratio, item.probability_shift)
    pair = f"{item.first} / {item.second}"
    return (item.variable, pair, *(_DASH if n is None else f"{n:.3f}" for n in numbers))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _count(value: float | None) -> str:
    return _DASH if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:.3g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _DASH
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
