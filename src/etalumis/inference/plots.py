"""Figures of diagnostics; Matplotlib comes with the extra ``report`` and is imported when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etalumis.inference.errors import InferenceError

if TYPE_CHECKING:
    from etalumis.inference.calibration import Calibration

_GREY, _BLUE = "#d9d9d9", "#0072b2"
_COLUMNS = 4


def canvas(rows: int, columns: int, width: float = 3.0, height: float = 2.4) -> tuple[Any, Any]:
    """A Matplotlib figure without a window, and its axes (rows, columns).

    Raises:
        InferenceError: Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InferenceError("figures need Matplotlib; install it with: pip install 'etalumis[report]'") from error
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def finished(figure: Any, path: str | Path | None) -> Any:
    """The figure, written where a path is given."""
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def calibration_figure(calibration: Calibration, raw: bool, path: str | Path | None) -> Any:
    """For each variable the cumulative ranks less the diagonal, within the band that 95 % of calibrated engines keep.

    A curve that rises at both ends and dips between belongs to a posterior too narrow, the opposite to one too wide;
    one that stays on one side of zero to a shift.
    """
    ranks = calibration.raw_ranks if raw else calibration.ranks
    assert ranks is not None
    count, variables = ranks.shape
    columns = min(variables, _COLUMNS)
    figure, axes = canvas(-(-variables // columns), columns)
    grid = np.linspace(0.0, 1.0, 101)
    # Simultaneous over the whole curve: Kolmogorov's 95 % distance.
    band = 1.358 / np.sqrt(count)
    for place, panel in enumerate(axes.flat):
        if place >= variables:
            panel.axis("off")
            continue
        empirical = np.searchsorted(np.sort(ranks[:, place]), grid, side="right") / count
        panel.fill_between(grid, -band, band, color=_GREY, linewidth=0)
        panel.plot(grid, empirical - grid, color=_BLUE, linewidth=1.4)
        panel.axhline(0.0, color="#444444", linewidth=0.6)
        panel.set_title(calibration.names[place], fontsize=9)
        panel.set_xlim(0.0, 1.0)
        panel.set_xlabel("rank of the truth", fontsize=8)
    return finished(figure, path)
