"""A diagnosis for people (text, Markdown) and for programs (JSON)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etalumis.storage.manifest import write_atomically

if TYPE_CHECKING:
    from etalumis.inference.diagnosis import Diagnosis

_COLUMNS = ("name", "mean", "std", "q05", "q95", "mcse", "ess", "ess_tail", "rhat", "autocorrelation_time")
_ADDRESS_COLUMNS = ("address", "name", "probability", "mean", "std", "rhat", "ess", "moves", "accepted", "reused")
_HEADS = {"autocorrelation_time": "τ", "rhat": "R̂", "ess_tail": "ESS tail", "ess": "ESS", "accepted": "accepted"}
_MOST_ROWS, _MOST_ADDRESSES = 20, 40
_LONGEST_ADDRESS = 70


def describe(diagnosis: Diagnosis) -> str:
    """The verdict, the numbers, a line per variable, and what to do."""
    who = diagnosis.posterior.info
    verdict = "no fault found" if diagnosis.ok else "DON'T TRUST IT YET"
    lines = [f"Diagnosis of {who.get('model', 'a model')} by {who.get('engine', 'hand')}: {verdict}"]
    lines.append("  " + ", ".join(f"{key.replace('_', ' ')} {_text(value)}" for key, value in _known(diagnosis)))
    heads, rows = _cells(diagnosis.table[:_MOST_ROWS], _COLUMNS)
    if rows:
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        for row in [heads, *rows]:
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  " + "  ".join(cells))
    if len(diagnosis.table) > _MOST_ROWS:
        lines.append(f"  and {len(diagnosis.table) - _MOST_ROWS} more: see .table")
    lines += [f"problem: {text}" for text in diagnosis.problems]
    lines += [f"note: {text}" for text in diagnosis.notes]
    return "\n".join(lines)


def save(diagnosis: Diagnosis, folder: Path) -> None:
    """Write figures, numbers and document."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in diagnosis.figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    write_atomically(folder / "diagnosis.json", as_json(diagnosis).encode())
    write_atomically(folder / "diagnosis.md", as_markdown(diagnosis).encode())


def as_json(diagnosis: Diagnosis) -> str:
    """All numbers; what is infinite or not a number becomes null."""
    whole = {
        "ok": diagnosis.ok,
        "problems": diagnosis.problems,
        "notes": diagnosis.notes,
        "numbers": diagnosis.numbers,
        "table": diagnosis.table,
        "addresses": diagnosis.addresses,
    }
    return json.dumps(plain(whole), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_markdown(diagnosis: Diagnosis) -> str:
    """The document, with the figures."""
    who = diagnosis.posterior.info
    lines = [f"# Diagnosis of {who.get('model', 'a model')} by {who.get('engine', 'hand')}", ""]
    lines += ["**No fault found.**" if diagnosis.ok else "**Don't trust it yet.**", ""]
    lines += [f"- **problem**: {text}" for text in diagnosis.problems]
    lines += [f"- {text}" for text in diagnosis.notes]
    lines += ["", "| | |", "|---|---:|"]
    lines += [f"| {key.replace('_', ' ')} | {_text(value)} |" for key, value in _known(diagnosis)]
    lines += ["", *_table(diagnosis.table, _COLUMNS), ""]
    lines += [f"![{name}]({name}.png)\n" for name in diagnosis.figures]
    lines += ["## By address", "", *_table(diagnosis.addresses[:_MOST_ADDRESSES], _ADDRESS_COLUMNS)]
    if len(diagnosis.addresses) > _MOST_ADDRESSES:
        lines.append(f"\nand {len(diagnosis.addresses) - _MOST_ADDRESSES} more in diagnosis.json")
    return "\n".join(lines) + "\n"


def plain(value: Any) -> Any:
    """What JSON can say, with None for infinities and what is not a number."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):  # NumPy's too
        return float(value) if math.isfinite(value) else None
    return value


def _known(diagnosis: Diagnosis) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in diagnosis.numbers.items() if value is not None]


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    heads, cells = _cells(rows, columns)
    if not cells:
        return []
    marks = ["---", *["---:"] * (len(heads) - 1)]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    return ["| " + " | ".join(row) + " |" for row in [heads, marks, *escaped]]


def _cells(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    there = [column for column in columns if any(column in row for row in rows)]
    return [_HEADS.get(column, column) for column in there], [[_text(row.get(c)) for c in there] for row in rows]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_ADDRESS else f"…{value[-_LONGEST_ADDRESS:]}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}".replace("inf", "∞")
