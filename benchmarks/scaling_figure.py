"""The figure of weak scaling: efficiency against ranks, for several ways to make minibatches."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.minibatch_times import WAYS
from benchmarks.synchronous import Simulated, efficiency
from etalumis.inference.figures.canvas import finished
from etalumis.inference.figures.style import RC, TRUTH

PAPER = {"Edison": 0.79, "Cori": 0.5}
PAPER_RANKS = 2048
_COLOURS = {
    "mixed": "#999999",
    "plain": "#d55e00",
    "bucketed": "#0072b2",
    "dynamic": "#e69f00",
    "both": "#009e73",
    "accumulated": "#cc79a7",
    "accumulated_bf16": "#cc79a7",
    "bucketed_overlap": "#0072b2",
    "accumulated_overlap": "#cc79a7",
}


def draw(path: Path, predicted: dict[str, dict[str, dict[int, Simulated]]], measured: dict[int, float]) -> Figure:
    """Predicted curves, what was measured on this machine, and the paper's points.

    Args:
        path: of the file.
        predicted: by title of a panel, then by way and number of ranks.
        measured: efficiency by number of ranks.
    """
    with rc_context(RC):
        panels = list(predicted.items())
        figure = Figure(figsize=(5.5 * len(panels), 4.6), layout="constrained")
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, curves) in zip(row, panels, strict=True):
            _curves(axes, curves)
            axes.set_title(title)
        row[-1].plot(list(measured), list(measured.values()), "k+", markersize=9, label="measured here", zorder=4)
        row[0].set_ylabel("weak-scaling efficiency")
        handles, labels = row[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return finished(figure, path)


def _curves(axes: Axes, curves: dict[str, dict[int, Simulated]]) -> None:
    for way, of in curves.items():
        ranks = list(of)
        values = [efficiency(of[number], of[1]) for number in ranks]
        dash = "dashed" if WAYS[way].compression < 1.0 else "dotted" if WAYS[way].overlap else "solid"
        axes.plot(ranks, values, color=_COLOURS[way], linestyle=dash, marker="o", markersize=3, label=WAYS[way].about)
    for number, (system, value) in enumerate(PAPER.items()):
        axes.plot(PAPER_RANKS, value, "D^"[number], color=TRUTH, label=f"paper: {system}", zorder=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1024"])
    axes.set_ylim(0.0, 1.05)
    axes.set_xlabel("ranks")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
