"""The panels of a figure, one function each: a histogram, a bar chart of categories, a joint contour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etalumis.inference.figures.samples import Array, Sample
from etalumis.inference.figures.style import LOOKS, PRIOR, TRUTH, axis_label, category_label

_RELIABLE = 30.0  # effective draws below which a sample does not set the axes
_CATEGORIES_SHOWN = 8
_SMALLEST_SHOWN = 0.005
CONTOURED = 100.0  # effective draws below which a sample gets no contour
_CROSS = {"markeredgewidth": 1.8, "clip_on": False, "zorder": 5}
_JOINT_CELLS = 60
_JOINT_SMOOTHING = 1.8  # cells
_JOINT_LEVELS = (0.9, 0.5)  # posterior mass inside the contours


def marginal(axes: Any, name: str, samples: Sequence[Sample], prior: Sample | None, truth: float | None) -> None:
    """Weighted histograms of a continuous variable: a step line per posterior, the prior grey behind."""
    low, high = span(name, samples, prior, truth)
    if prior is not None and name in prior.values:
        axes.stairs(*_histogram(prior, name, low, high), fill=True, color=PRIOR, zorder=1)
    for sample, look in zip(samples, LOOKS, strict=False):
        density, edges = _histogram(sample, name, low, high)
        if look.fill:
            axes.stairs(density, edges, fill=True, color=look.colour, alpha=look.fill, zorder=2)
        axes.stairs(
            density, edges, color=look.colour, linestyle=look.dash, linewidth=look.width, baseline=None, zorder=3
        )
    if truth is not None:
        mark_truth(axes, truth)
    axes.set_xlim(low, high)
    axes.set_ylim(0.0, None)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(axis_label(name))


def categories(
    axes: Any,
    name: str,
    samples: Sequence[Sample],
    prior: Sample | None,
    truth: float | None,
    labels: Sequence[str] = (),
) -> None:
    """Horizontal bars with the probabilities of a discrete variable, most probable values on top."""
    masses = [sample.probabilities(name) for sample in samples]
    shown = most_probable(masses, truth)
    rows = np.arange(len(shown))
    if prior is not None and name in prior.values:
        before = prior.probabilities(name)
        axes.barh(rows, [before.get(v, 0.0) for v in shown], height=0.86, color=PRIOR, zorder=1)
    height = 0.72 / len(samples)
    for place, (mass, look) in enumerate(zip(masses, LOOKS, strict=False)):
        heights = rows + (place - 0.5 * (len(samples) - 1)) * height
        axes.barh(heights, [mass.get(v, 0.0) for v in shown], height=0.86 * height, color=look.colour, zorder=2)
    texts = [category_label(labels[v]) if 0 <= v < len(labels) else str(v) for v in shown]
    axes.set_yticks(rows, [f"{t} ◂" if v == truth else t for t, v in zip(texts, shown, strict=True)])
    axes.tick_params(axis="y", length=0)
    for text, value in zip(axes.get_yticklabels(), shown, strict=True):
        text.set_fontweight("bold" if value == truth else "normal")
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"probability of {axis_label(name)}")


def joint(
    axes: Any,
    names: tuple[str, str],
    samples: Sequence[Sample],
    prior: Sample | None,
    truth: Mapping[str, float],
) -> None:
    """Regions that hold 50 % and 90 % of each joint posterior, smoothed, with the true point."""
    spans = [span(name, samples, prior, truth.get(name)) for name in names]
    for sample, look in zip(samples, LOOKS, strict=False):
        if min(map(sample.ess_of, names)) < CONTOURED:
            continue  # a contour through a handful of points would be a fiction
        x, y, density, levels = _smooth_density(sample, names, spans)
        if look.fill:
            axes.contourf(x, y, density, [*levels, np.inf], colors=[look.colour], alpha=look.fill, zorder=2)
        axes.contour(
            x, y, density, levels, colors=[look.colour], linestyles=[look.dash], linewidths=look.width, zorder=3
        )
    if all(name in truth for name in names):
        axes.plot(*(truth[name] for name in names), marker="+", markersize=12, color=TRUTH, **_CROSS)
    axes.set_xlim(*spans[0])
    axes.set_ylim(*spans[1])
    axes.set_xlabel(axis_label(names[0]))
    axes.set_ylabel(axis_label(names[1]))


def mark_truth(axes: Any, value: float) -> None:
    """A vertical line at the true value."""
    axes.axvline(value, color=TRUTH, linewidth=1.3, linestyle=(0, (2, 1.5)), zorder=4)


def span(name: str, samples: Sequence[Sample], prior: Sample | None, truth: float | None) -> tuple[float, float]:
    """Limits of an axis: the bulk of every posterior and the truth, a margin, never beyond the prior's support."""
    reliable = [s for s in samples if s.ess_of(name) >= _RELIABLE] or list(samples)
    ends = np.concatenate([s.quantiles(name, np.array([0.002, 0.998])) for s in reliable])
    if truth is not None:
        ends = np.append(ends, truth)
    low, high = float(ends.min()), float(ends.max())
    margin = 0.25 * (high - low) or 0.5 * max(abs(high), 1.0)
    if prior is None or name not in prior.values:
        return low - margin, high + margin
    least, most = float(prior.values[name].min()), float(prior.values[name].max())
    return max(low - margin, min(least, low)), min(high + margin, max(most, high))


def _histogram(sample: Sample, name: str, low: float, high: float) -> tuple[Array, Array]:
    """Density and edges of a weighted histogram with as many bins as the sample can fill."""
    bins = int(np.clip(3.0 * sample.ess_of(name) ** (1.0 / 3.0), 8, 50))
    counts, edges = np.histogram(sample.values[name], bins, (low, high), weights=sample.weights)
    return counts / np.diff(edges), edges


def most_probable(masses: Sequence[Mapping[int, float]], truth: float | None) -> list[int]:
    """The values of a discrete variable worth showing, most probable first; the true one is always there."""
    largest: dict[int, float] = {}
    for mass in masses:
        for value, probability in mass.items():
            largest[value] = max(largest.get(value, 0.0), probability)
    ranked = sorted(largest, key=lambda value: -largest[value])
    shown = [value for value in ranked if largest[value] >= _SMALLEST_SHOWN][:_CATEGORIES_SHOWN]
    if truth is not None and int(truth) not in shown:
        shown.append(int(truth))
    return shown


def _smooth_density(
    sample: Sample, names: tuple[str, str], spans: Sequence[tuple[float, float]]
) -> tuple[Array, Array, Array, Array]:
    """Cell centres, smoothed density (y, x) and rising contour levels that enclose ``_JOINT_LEVELS`` of it."""
    from scipy.ndimage import gaussian_filter

    x, y = (sample.values[name] for name in names)
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=_JOINT_CELLS, range=spans, weights=sample.weights)
    density = gaussian_filter(counts.T, _JOINT_SMOOTHING, mode="reflect")  # nothing leaks over the edge of the support
    ranked = np.sort(density, axis=None)[::-1]
    enclosed = np.cumsum(ranked) / ranked.sum()
    levels = ranked[np.searchsorted(enclosed, _JOINT_LEVELS)]
    return 0.5 * (x_edges[1:] + x_edges[:-1]), 0.5 * (y_edges[1:] + y_edges[:-1]), density, np.unique(levels)
