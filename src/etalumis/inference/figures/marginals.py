"""Figures of posteriors: a grid of marginals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etalumis.inference.figures.canvas import canvas, finished
from etalumis.inference.figures.panels import categories, marginal
from etalumis.inference.figures.samples import Sample
from etalumis.inference.figures.style import LOOKS, PRIOR, TRUTH

Labels = Mapping[str, Sequence[str]]
NO_LABELS: Labels = {}


def marginals_figure(
    samples: Sequence[Sample],
    variables: Sequence[str],
    prior: Sample | None = None,
    truth: Mapping[str, float] | None = None,
    labels: Labels = NO_LABELS,
    title: str = "",
    path: str | Path | None = None,
) -> Any:
    """A panel per variable, as square a grid as they make.

    Args:
        samples: posteriors, at most five; the first is filled.
        variables: what to show.
        prior: drawn grey behind.
        truth: true values by name.
        labels: for discrete variables, what each value is called.
        title: a line on top.
        path: where to write the figure.
    """
    check_number(samples)
    truth = truth or {}
    columns = len(variables) if len(variables) <= 3 else min(4, math.ceil(math.sqrt(len(variables))))
    rows = math.ceil(len(variables) / columns)
    figure, axes = canvas(rows, columns, extra=0.7)
    for place, name in zip(axes.flat, variables, strict=False):
        draw_panel(place, name, samples, prior, truth, labels)
    for place in axes.flat[len(variables) :]:
        place.set_visible(False)
    legend(figure, samples, prior is not None, any(name in truth for name in variables), title)
    return finished(figure, path)


def draw_panel(
    axes: Any, name: str, samples: Sequence[Sample], prior: Sample | None, truth: Mapping[str, float], labels: Labels
) -> None:
    """One variable: bars where it is discrete, else histograms."""
    if samples[0].is_discrete(name):
        categories(axes, name, samples, prior, truth.get(name), labels.get(name, ()))
    else:
        marginal(axes, name, samples, prior, truth.get(name))


def check_number(samples: Sequence[Sample]) -> None:
    """No more posteriors than there are looks.

    Raises:
        ValueError: there are.
    """
    if len(samples) > len(LOOKS):
        raise ValueError(f"a figure holds at most {len(LOOKS)} posteriors; got {len(samples)}")


def legend(figure: Any, samples: Sequence[Sample], prior: bool, truth: bool, title: str) -> None:
    """What the colours and lines mean, above all panels, under the title."""
    from matplotlib import rc_context
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from etalumis.inference.figures.style import RC

    handles: list[Any] = []
    with rc_context(RC):
        for sample, look in zip(samples, LOOKS, strict=False):
            handles.append(Line2D([], [], color=look.colour, linestyle=look.dash, linewidth=2.0, label=sample.label))
        if prior:
            handles.append(Patch(color=PRIOR, label="prior"))
        if truth:
            handles.append(Line2D([], [], color=TRUTH, linestyle=(0, (2, 1.5)), linewidth=1.3, label="true value"))
        figure.legend(
            handles=handles, loc="outside upper center", ncols=len(handles), title=title or None, title_fontsize=13
        )
