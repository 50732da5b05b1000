"""The figure of load balance: the paper's figure 4, and each rank's phases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from etalumis.callbacks.phases import (
    BACKWARD,
    EXCHANGE,
    FORWARD,
    OPTIMISE,
    OTHER,
    PHASES,
    READ,
    WAITING,
)
from etalumis.inference.figures.canvas import finished
from etalumis.inference.figures.style import RC, TRUTH

if TYPE_CHECKING:
    from etalumis.report.balance import Phases

# Okabe and Ito's palette; what is no work is pale or hatched.
COLOURS = {
    READ: "#e69f00",
    FORWARD: "#0072b2",
    BACKWARD: "#56b4e9",
    WAITING: "#ffffff",
    EXCHANGE: "#d55e00",
    OPTIMISE: "#009e73",
    OTHER: "#bbbbbb",
}
_STACK = (READ, FORWARD, BACKWARD, OPTIMISE, EXCHANGE, OTHER, WAITING)  # waiting last: what is below is the best
_BY_NAME = 32  # ranks up to which each has its name on the axis
_SHOWN = 0.01  # of an iteration: the imbalance of a shorter phase is not drawn


def draw(phases: Phases, path: Path | None = None, title: str = "") -> Figure:
    """Actual time of an iteration against the best, each rank's phases, and imbalance while training went on.

    Args:
        phases: of a log.
        path: of the file to write, by its suffix.
        title: a line on top.
    """
    several = phases.ranks > 1
    with rc_context(RC):
        figure = Figure(figsize=(11.0 if several else 8.0, 4.0), layout="constrained")
        widths = [1.0, min(3.0, 1.0 + 0.25 * phases.ranks), 2.4] if several else [0.7, 3.0]
        panels = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
        if several:
            _actual_and_best(panels[0], phases)
            _ranks(panels[1], phases)
            _imbalance(panels[2], phases)
        else:
            _bars(panels[0], ["iteration"], phases.of_ranks)
            _over_time(panels[1], phases)
        panels[0].set_ylabel("time of an iteration [ms]")
        figure.legend(handles=_legend(phases), loc="outside lower center", ncols=len(PHASES))
        if title:
            figure.suptitle(title)
    return finished(figure, path)


def _actual_and_best(axes: Axes, phases: Phases) -> None:
    best = phases.of_phases.copy()
    best[PHASES.index(WAITING)] = 0.0
    _bars(axes, ["actual", "best"], np.array([phases.of_phases, best]))
    axes.set_title(f"{phases.actual / phases.best - 1.0:.1%} above best")
    axes.set_xlabel("mean over ranks")


def _ranks(axes: Axes, phases: Phases) -> None:
    rows = phases.of_ranks
    if phases.ranks <= _BY_NAME:
        _bars(axes, [str(rank) for rank in range(phases.ranks)], rows)
        axes.set_xlabel("rank")
    else:
        _bars(axes, [], rows[np.argsort(rows[:, PHASES.index(WAITING)])])
        axes.set_xlabel(f"{phases.ranks:,} ranks, by waiting")
    axes.axhline(1e3 * phases.best, color=TRUTH, linestyle="dashed", linewidth=1.0)
    axes.set_title("each rank, best dashed")


def _bars(axes: Axes, names: list[str], rows: np.ndarray) -> None:
    """Stacked phases, (bars, phases)."""
    places = np.arange(len(rows))
    bottom = np.zeros(len(rows))
    for name in _STACK:
        height = 1e3 * rows[:, PHASES.index(name)]
        axes.bar(places, height, 0.8 if names else 1.0, bottom, **_look(name))
        bottom += height
    axes.set_xticks(places if names else [], names)


def _imbalance(axes: Axes, phases: Phases) -> None:
    """By phase, and of whole iterations, over the intervals of the log."""
    total = phases.seconds.sum(2).mean(1)
    best = total - phases.seconds[:, :, PHASES.index(WAITING)].mean(1)
    for number, name in enumerate(PHASES):
        if name not in (WAITING, EXCHANGE) and phases.of_phases[number] >= _SHOWN * phases.actual:
            axes.plot(phases.steps, 100.0 * phases.imbalance[:, number], color=COLOURS[name], linewidth=1.2)
    axes.plot(phases.steps, 100.0 * (total / best - 1.0), color=TRUTH, linewidth=1.8, label="actual over best")
    axes.set_ylim(0.0, None)
    axes.set_xlabel("iteration")
    axes.set_ylabel("slowest rank over mean − 1 [%]")
    axes.set_title("imbalance")
    axes.legend(loc="upper right")


def _over_time(axes: Axes, phases: Phases) -> None:
    """Phases of one rank over the intervals of the log."""
    ends = phases.steps
    edges = np.concatenate([[ends[0] - phases.iterations[0]], ends])
    bottom = np.zeros(len(ends))
    for name in _STACK:
        top = bottom + 1e3 * phases.seconds[:, 0, PHASES.index(name)]
        axes.stairs(top, edges, baseline=bottom, fill=True, color=COLOURS[name], linewidth=0.0)
        bottom = top
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("iteration")


def _look(name: str) -> dict[str, Any]:
    if name != WAITING:
        return {"facecolor": COLOURS[name]}
    return {"facecolor": COLOURS[name], "hatch": "////", "edgecolor": "#888888", "linewidth": 0.0}


def _legend(phases: Phases) -> list[Patch]:
    shown = [name for name in _STACK if phases.ranks > 1 or name not in (WAITING, EXCHANGE)]
    return [Patch(label=name, **_look(name)) for name in shown]
