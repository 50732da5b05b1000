"""A calibration on disk: figures, numbers, and a document for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etalumis.inference.figures.calibration import calibration_figure
from etalumis.storage.manifest import write_atomically

if TYPE_CHECKING:
    from etalumis.inference.calibration import Calibration

LEVELS = (0.5, 0.68, 0.9, 0.95)


def save(calibration: Calibration, folder: Path, title: str) -> None:
    """Write ``calibration.png``, ``calibration_raw.png`` where there are raw ranks, and the numbers.

    Raises:
        InferenceError: Matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = ["calibration"]
    calibration_figure(calibration, False, folder / "calibration.png")
    if calibration.raw_ranks is not None:
        figures.append("calibration_raw")
        calibration_figure(calibration, True, folder / "calibration_raw.png")
    write_atomically(folder / "calibration.json", as_json(calibration).encode())
    text = f"# {title}\n\n```\n{calibration!r}\n```\n\n" + "\n".join(f"![{f}]({f}.png)\n" for f in figures)
    write_atomically(folder / "calibration.md", text.encode())


def as_json(calibration: Calibration) -> str:
    """All numbers, ranks of every event included."""
    raw = calibration.raw_ranks is not None
    whole: dict[str, Any] = {
        "events": len(calibration),
        "without_information": int((calibration.draws == 0).sum()),
        "miscalibrated": calibration.miscalibrated(),
        "notes": calibration.notes,
        "ess": {"median": float(np.median(calibration.ess)), "least": float(calibration.ess.min())},
        "levels": LEVELS,
        "variables": _variables(calibration, False),
        "proposal_alone": _variables(calibration, True) if raw else None,
        "ranks": calibration.ranks.tolist(),
    }
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _variables(calibration: Calibration, raw: bool) -> dict[str, Any]:
    p_values, coverage = calibration.p_values(raw), calibration.coverage(LEVELS, raw)
    return {
        name: {"p_value": p_values[name], "coverage": covered}
        for name, covered in zip(calibration.names, coverage.tolist(), strict=True)
    }
