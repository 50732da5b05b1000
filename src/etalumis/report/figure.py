"""The figure of a report: the panels of figure 8 of the paper for a τ decay, a grid of marginals otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from etalumis.inference.figures.canvas import canvas, finished
from etalumis.inference.figures.marginals import check_number, draw_panel, legend, marginals_figure
from etalumis.inference.figures.panels import joint
from etalumis.inference.figures.samples import Sample
from etalumis.inference.figures.style import RC
from etalumis.report.variables import TAU_ENERGIES, TAU_MARGINALS, TAU_VARIABLES

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
    layout = _tau_figure if set(TAU_VARIABLES) <= set(variables) else marginals_figure
    return layout(samples, variables, prior, truth or {}, labels or {}, title)


def save(figure: Figure, folder: Path, name: str = "posterior") -> list[Path]:
    """Write the figure as PNG, SVG and PDF."""
    paths = [folder / f"{name}.{extension}" for extension in FORMATS]
    for path in paths:
        stamp = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[path.suffix[1:]]
        with rc_context(RC):
            figure.savefig(path, dpi=160, metadata=stamp)
    return paths


def _tau_figure(
    samples: Sequence[Sample],
    variables: Sequence[str],
    prior: Sample | None,
    truth: Mapping[str, float],
    labels: Mapping[str, Sequence[str]],
    title: str,
) -> Figure:
    """px, py, pz and missing energy above; both energies, their joint posterior and the channel below."""
    check_number(samples)
    figure, axes = canvas(2, 4, 3.1, 2.85, extra=0.7)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    shown = dict(zip((*TAU_MARGINALS, "decay_channel"), [*axes[0], *axes[1, [0, 1, 3]]], strict=True))
    for name, place in shown.items():
        draw_panel(place, name, samples, prior, truth, labels)
    joint(axes[1, 2], TAU_ENERGIES, samples, prior, truth)
    legend(figure, samples, prior is not None, bool(truth), title)
    return finished(figure)
