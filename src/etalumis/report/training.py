"""Figures of trainings: the range test of learning rates, and searches over settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from etalumis.inference.figures.style import LOOKS, PRIOR, RC, TRUTH, axis_label

_MARKERS = "os^Dv*PX"
_AREAS = (16.0, 36.0, 64.0, 100.0, 144.0)  # of points, square units of type
_HEADROOM = 2.0  # above the losses of networks that learned nothing, in their distance from the best
_NAMES = {"seconds": "seconds of training", "optimizer.lr": "learning rate"}
LOSS = "loss, mean of $-\\log q(x|y)$ [nats]"


def draw_range_test(
    rates: Sequence[float], losses: Sequence[float], smooth: Sequence[float], suggestion: float
) -> Figure:
    """Loss against a learning rate that rose from step to step.

    Args:
        rates, losses, smooth: of each step; ``smooth`` the averaged losses.
        suggestion: the learning rate to mark.
    """
    with rc_context(RC):
        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.semilogx(rates, losses, color=PRIOR, label="minibatch")
        axes.semilogx(rates, smooth, color=LOOKS[0].colour, label="averaged")
        axes.axvline(suggestion, color=TRUTH, linestyle="dashed", linewidth=1.0, label=f"suggestion {suggestion:.2g}")
        low, high = min(smooth), max(smooth[0], min(smooth))
        axes.set_ylim(low - 0.2 * (high - low) - 0.1, high + 0.5 * (high - low) + 0.1)
        axes.set_xlabel("learning rate")
        axes.set_ylabel(LOSS)
        axes.legend()
    return figure


def draw_search(
    rows: Sequence[Mapping[str, Any]], across: Sequence[str], swept: Sequence[str], lines: str | None, loss: str
) -> Figure:
    """Losses of a search, against sizes, times or settings in a panel each.

    Args:
        rows: of the table; those without a loss are left out.
        across: columns to draw against.
        swept: settings that differ; without ``lines`` the first three are colour, marker and size.
        lines: the setting whose values have a line each; None draws points.
        loss: the column with the losses.
    """
    drawn = [row for row in rows if row.get(loss) is not None and math.isfinite(row[loss])]
    with rc_context(RC):
        figure = Figure(figsize=(1.5 + 4.5 * len(across), 4.2), layout="constrained")
        panels = figure.subplots(1, len(across), squeeze=False, sharey=True)[0]
        for axes, column in zip(panels, across, strict=True):
            found = [row for row in drawn if isinstance(row.get(column), (int, float))]
            if lines is not None:
                _lines(axes, found, column, lines, loss)
            else:
                _points(axes, found, column, swept, loss)
            positive = [row[column] for row in found if row[column] > 0]
            if positive and max(positive) > 10 * min(positive):
                axes.set_xscale("log")
            axes.set_xlabel(_NAMES.get(column, axis_label(column)))
        panels[0].set_ylabel(LOSS)
        _limit(panels[0], [row[loss] for row in drawn])
        handles = _line_legend(drawn, lines) if lines is not None else _point_legend(drawn, swept)
        figure.legend(handles=handles, loc="outside right upper")
    return figure


def _lines(axes: Axes, rows: Sequence[Mapping[str, Any]], across: str, lines: str, loss: str) -> None:
    for number, value in enumerate(_values(rows, lines)):
        line = sorted((row[across], row[loss]) for row in rows if row.get(lines) == value)
        look = LOOKS[number % len(LOOKS)]
        axes.plot(*zip(*line, strict=True), color=look.colour, marker=_MARKERS[number % len(_MARKERS)], markersize=5)


def _points(axes: Axes, rows: Sequence[Mapping[str, Any]], across: str, swept: Sequence[str], loss: str) -> None:
    for row in rows:
        colour, marker, area = _appearance(rows, row, swept)
        axes.scatter(row[across], row[loss], c=colour, marker=marker, s=area, alpha=0.8, linewidths=0.0)


def _appearance(
    rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any], swept: Sequence[str]
) -> tuple[str, str, float]:
    places = [_values(rows, key).index(row.get(key)) for key in swept[:3]]
    first, second, third = [*places, *[0] * (2 - len(places)), 1][:3]
    return LOOKS[first % len(LOOKS)].colour, _MARKERS[second % len(_MARKERS)], _AREAS[third % len(_AREAS)]


def _values(rows: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """The values of a setting, numbers in order."""
    found = {row.get(key) for row in rows}
    return sorted(found, key=lambda value: (isinstance(value, str), value if value is not None else ""))


def _limit(axes: Axes, losses: Sequence[float]) -> None:
    """Leave room for networks that learned little; what a high learning rate blew up lies beyond."""
    if len(losses) > 1:
        low, middle = min(losses), sorted(losses)[3 * len(losses) // 4]
        room = max(middle - low, 0.1)
        axes.set_ylim(low - 0.1 * room, min(max(losses) + 0.1 * room, low + _HEADROOM * room))


def _line_legend(rows: Sequence[Mapping[str, Any]], lines: str) -> list[Line2D]:
    return [
        Line2D(
            [], [], color=LOOKS[n % len(LOOKS)].colour, marker=_MARKERS[n % len(_MARKERS)], label=_label(lines, value)
        )
        for n, value in enumerate(_values(rows, lines))
    ]


def _point_legend(rows: Sequence[Mapping[str, Any]], swept: Sequence[str]) -> list[Line2D]:
    handles: list[Line2D] = []
    for place, key in enumerate(swept[:3]):
        for n, value in enumerate(_values(rows, key)):
            colour = LOOKS[n % len(LOOKS)].colour if place == 0 else TRUTH
            marker = _MARKERS[n % len(_MARKERS)] if place == 1 else "o"
            size = math.sqrt(_AREAS[n % len(_AREAS)] if place == 2 else _AREAS[1])
            handles.append(
                Line2D([], [], color=colour, marker=marker, markersize=size, linestyle="", label=_label(key, value))
            )
    return handles


def _label(key: str, value: Any) -> str:
    return f"{key.rpartition('.')[2]} {value}"
