"""Pairs of variables: marginals on the diagonal, joint posteriors below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etalumis.inference.figures.canvas import canvas, finished
from etalumis.inference.figures.marginals import NO_LABELS, Labels, check_number, legend
from etalumis.inference.figures.panels import CONTOURED, joint, marginal, most_probable
from etalumis.inference.figures.samples import Sample
from etalumis.inference.figures.style import LOOKS, PRIOR, TRUTH, axis_label, category_label, wrapped

_BUBBLE = 420.0  # area of a certain pair of values, square points
_POINTS = 60.0  # areas of a sample's points together, square points times its effective sample size
_SMALLEST_POINT, _FAINTEST, _MOST_POINTS = 3.0, 1e-3, 600
_FEWEST = 10.0  # effective draws that intervals take
_CROSS = {"marker": "+", "markersize": 9, "markeredgewidth": 1.6, "color": TRUTH, "zorder": 5, "clip_on": False}


def pairs_figure(
    samples: Sequence[Sample],
    variables: Sequence[str],
    prior: Sample | None = None,
    truth: Mapping[str, float] | None = None,
    labels: Labels = NO_LABELS,
    title: str = "",
    path: str | Path | None = None,
) -> Any:
    """The lower triangle of all pairs; the arguments are those of :func:`.marginals.marginals_figure`.

    Two continuous variables: regions of 50 and 90 % of the mass, or points where a sample is too small for them.
    A continuous and a discrete one: median, 50 and 90 % intervals for each value. Two discrete ones: circles whose
    areas are probabilities.
    """
    check_number(samples)
    truth = truth or {}
    count = len(variables)
    figure, axes = canvas(count, count, 2.2, 2.0, extra=0.7)
    panel = _Pairs(samples, prior, truth, labels)
    for row, second in enumerate(variables):
        for column, first in enumerate(variables):
            place = axes[row, column]
            if column > row:
                place.set_visible(False)
            elif column == row:
                panel.alone(place, first)
            else:
                panel.together(place, first, second)
            place.set_xlabel(wrapped(place.get_xlabel()) if row == count - 1 else "")
            place.set_ylabel(wrapped(place.get_ylabel()) if row and not column else "")
    legend(figure, samples, prior is not None, any(name in truth for name in variables), title)
    return finished(figure, path)


class _Pairs:
    """Draws the panels."""

    def __init__(
        self, samples: Sequence[Sample], prior: Sample | None, truth: Mapping[str, float], labels: Labels
    ) -> None:
        self._samples, self._prior, self._truth, self._labels = samples, prior, truth, labels
        self._values: dict[str, list[int]] = {}

    def alone(self, axes: Any, name: str) -> None:
        """A panel of the diagonal."""
        if not self._samples[0].is_discrete(name):
            marginal(axes, name, self._samples, self._prior, self._truth.get(name))
            return
        values = self._shown(name)
        places = np.arange(len(values))
        if self._prior is not None and name in self._prior.values:
            before = self._prior.probabilities(name)
            axes.bar(places, [before.get(v, 0.0) for v in values], width=0.86, color=PRIOR, zorder=1)
        for offset, sample, look in self._side_by_side():
            mass = sample.probabilities(name)
            width = 0.7 / len(self._samples)
            axes.bar(places + offset, [mass.get(v, 0.0) for v in values], width=width, color=look.colour, zorder=2)
        if name in self._truth:
            axes.axvline(
                values.index(int(self._truth[name])), color=TRUTH, linewidth=1.3, linestyle=(0, (2, 1.5)), zorder=4
            )
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis_label(name))
        self._name_values(axes, "x", name)

    def together(self, axes: Any, first: str, second: str) -> None:
        """A panel below the diagonal: ``first`` to the right, ``second`` upwards."""
        kinds = [self._samples[0].is_discrete(name) for name in (first, second)]
        if not any(kinds):
            joint(axes, (first, second), self._samples, self._prior, self._truth)
            self._points(axes, first, second)
            return
        if all(kinds):
            self._circles(axes, first, second)
        else:
            self._intervals(axes, first, second, upwards=kinds[0])
        for axis, name, discrete in zip("xy", (first, second), kinds, strict=True):
            if discrete:
                self._name_values(axes, axis, name)
        axes.set_xlabel(axis_label(first))
        axes.set_ylabel(axis_label(second))
        if first in self._truth and second in self._truth:
            axes.plot(self._place(first, self._truth[first]), self._place(second, self._truth[second]), **_CROSS)

    def _points(self, axes: Any, first: str, second: str) -> None:
        for sample, look in zip(self._samples, LOOKS, strict=False):
            ess = min(sample.ess_of(first), sample.ess_of(second))
            if ess < CONTOURED:
                x, y = sample.values[first], sample.values[second]
                seen = np.flatnonzero(sample.weights > _FAINTEST * sample.weights.max())
                seen = seen[:: -(-len(seen) // _MOST_POINTS)]
                sizes = np.maximum(_POINTS * sample.weights[seen] * np.sqrt(ess), _SMALLEST_POINT)
                axes.scatter(x[seen], y[seen], s=sizes, color=look.colour, alpha=0.5, linewidths=0.0, zorder=3)

    def _intervals(self, axes: Any, first: str, second: str, upwards: bool) -> None:
        """The continuous variable for each value of the discrete one."""
        discrete, continuous = (first, second) if upwards else (second, first)
        for offset, sample, look in self._side_by_side():
            mass = sample.probabilities(discrete)
            for place, value in enumerate(self._shown(discrete)):
                if mass.get(value, 0.0) * sample.ess < _FEWEST:
                    continue  # intervals of a handful of points would be a fiction
                among = Sample(
                    sample.label,
                    {continuous: sample.values[continuous]},
                    np.where(sample.values[discrete] == value, sample.log_weights, -np.inf),
                )
                ends = among.quantiles(continuous, np.array([0.05, 0.25, 0.5, 0.75, 0.95]))
                for low, high, width in ((0, 4, 1.2), (1, 3, 4.0)):
                    along, across = [ends[low], ends[high]], [place + offset] * 2
                    line = (across, along) if upwards else (along, across)
                    axes.plot(*line, color=look.colour, linewidth=width, solid_capstyle="butt", zorder=2)
                point = (place + offset, ends[2]) if upwards else (ends[2], place + offset)
                axes.plot(*point, "o", color="white", markersize=2.6, zorder=3)

    def _circles(self, axes: Any, first: str, second: str) -> None:
        for offset, sample, look in self._side_by_side():
            pairs, which = np.unique(
                np.stack([sample.values[first], sample.values[second]]), axis=1, return_inverse=True
            )
            mass = np.bincount(which.ravel(), sample.weights)
            for (x, y), probability in zip(pairs.T.tolist(), mass.tolist(), strict=True):
                if x in self._shown(first) and y in self._shown(second):
                    place = self._place(first, x) + offset, self._place(second, y)
                    axes.scatter(*place, s=_BUBBLE * probability, color=look.colour, alpha=0.7, linewidths=0.0)

    def _side_by_side(self) -> list[tuple[float, Sample, Any]]:
        width = 0.7 / len(self._samples)
        offsets = (np.arange(len(self._samples)) - 0.5 * (len(self._samples) - 1)) * width
        return list(zip(offsets.tolist(), self._samples, LOOKS, strict=False))

    def _shown(self, name: str) -> list[int]:
        if name not in self._values:
            masses = [sample.probabilities(name) for sample in self._samples]
            self._values[name] = sorted(most_probable(masses, self._truth.get(name)))
        return self._values[name]

    def _place(self, name: str, value: float) -> float:
        return self._shown(name).index(int(value)) if self._samples[0].is_discrete(name) else value

    def _name_values(self, axes: Any, axis: str, name: str) -> None:
        values, known = self._shown(name), self._labels.get(name, ())
        texts = [category_label(known[v]) if 0 <= v < len(known) else str(v) for v in values]
        places = range(len(values))
        if axis == "x":
            axes.set_xticks(places, texts, rotation=60 if max(map(len, texts)) > 2 else 0)
            axes.set_xlim(-0.6, len(values) - 0.4)
        else:
            axes.set_yticks(places, texts)
            axes.set_ylim(-0.6, len(values) - 0.4)
