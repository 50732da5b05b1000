"""The figure of a calibration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etalumis.inference.figures.canvas import canvas, finished
from etalumis.inference.figures.style import LOOKS, PRIOR

if TYPE_CHECKING:
    from etalumis.inference.calibration import Calibration

_COLUMNS = 4


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
        panel.fill_between(grid, -band, band, color=PRIOR, linewidth=0)
        panel.plot(grid, empirical - grid, color=LOOKS[0].colour, linewidth=1.4)
        panel.axhline(0.0, color="#444444", linewidth=0.6)
        panel.set_title(calibration.names[place])
        panel.set_xlim(0.0, 1.0)
        panel.set_xlabel("rank of the truth")
    return finished(figure, path)
