"""The figure of a report: the panels of figure 8 of the paper for a τ decay, a grid of marginals otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from etalumis.report.panels import categories, joint, marginal
from etalumis.report.samples import TAU_ENERGIES, TAU_MARGINALS, TAU_VARIABLES, Sample
from etalumis.report.style import LOOKS, PRIOR, RC, TRUTH

FORMATS = ("png", "svg", "pdf")


def draw(
    samples: Sequence[Sample],
    variables: Sequence[str],
    prior: Sample | None = None,
    truth: Mapping[str, float] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    title: str = "",
) -> Figure:
    """A figure of these variables of all posteriors.

    Args:
        samples: posteriors, at most five; the first is filled.
        variables: what to show; those of a τ decay get the layout of the paper's figure 8.
        prior: drawn grey behind.
        truth: true values by name.
        labels: for discrete variables, what each value is called.
        title: a line on top.
    """
    if len(samples) > len(LOOKS):
        raise ValueError(f"a figure holds at most {len(LOOKS)} posteriors; got {len(samples)}")
    layout = _tau_layout if set(TAU_VARIABLES) <= set(variables) else _grid_layout
    with rc_context(RC):
        figure = layout(samples, variables, prior, truth or {}, labels or {})
        _legend(figure, samples, prior is not None, bool(truth), title)
        figure.draw_without_rendering()
    return figure


def save(figure: Figure, folder: Path, name: str = "posterior") -> list[Path]:
    """Write the figure as PNG, SVG and PDF."""
    paths = [folder / f"{name}.{extension}" for extension in FORMATS]
    for path in paths:
        stamp = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[path.suffix[1:]]
        with rc_context(RC):
            figure.savefig(path, dpi=160, metadata=stamp)
    return paths


def _tau_layout(
    samples: Sequence[Sample],
    variables: Sequence[str],
    prior: Sample | None,
    truth: Mapping[str, float],
    labels: Mapping[str, Sequence[str]],
) -> Figure:
    """px, py, pz and missing energy above; both energies, their joint posterior and the channel below."""
    figure = Figure(figsize=(12.5, 6.4), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    axes = figure.subplots(2, 4)
    places = [axes[0, 0], axes[0, 1], axes[0, 2], axes[0, 3], axes[1, 0], axes[1, 1]]
    for place, name in zip(places, TAU_MARGINALS, strict=True):
        marginal(place, name, samples, prior, truth.get(name))
    joint(axes[1, 2], TAU_ENERGIES, samples, prior, truth)
    channel = "decay_channel"
    categories(axes[1, 3], channel, samples, prior, truth.get(channel), labels.get(channel, ()))
    return figure


def _grid_layout(
    samples: Sequence[Sample],
    variables: Sequence[str],
    prior: Sample | None,
    truth: Mapping[str, float],
    labels: Mapping[str, Sequence[str]],
) -> Figure:
    """A panel per variable, as square a grid as they make."""
    columns = len(variables) if len(variables) <= 3 else min(4, math.ceil(math.sqrt(len(variables))))
    rows = math.ceil(len(variables) / columns)
    figure = Figure(figsize=(max(3.3 * columns, 5.0), 2.6 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(grid, variables, strict=False):
        if samples[0].is_discrete(name):
            categories(axes, name, samples, prior, truth.get(name), labels.get(name, ()))
        else:
            marginal(axes, name, samples, prior, truth.get(name))
    for axes in grid[len(variables) :]:
        axes.set_visible(False)
    return figure


def _legend(figure: Figure, samples: Sequence[Sample], prior: bool, truth: bool, title: str) -> None:
    handles: list[Any] = []
    for sample, look in zip(samples, LOOKS, strict=False):
        handles.append(Line2D([], [], color=look.colour, linestyle=look.dash, linewidth=2.0, label=sample.label))
    if prior:
        handles.append(Patch(color=PRIOR, label="prior"))
    if truth:
        handles.append(Line2D([], [], color=TRUTH, linestyle=(0, (2, 1.5)), linewidth=1.3, label="true value"))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), title=title or None, title_fontsize=13
    )
