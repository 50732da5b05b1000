"""Figures of pairs and of calibrations hold what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from etalumis.inference.calibration import Calibration
from etalumis.inference.figures.pairs import pairs_figure
from etalumis.inference.figures.samples import Sample
from etalumis.inference.figures.style import wrapped


def sample(label: str, size: int, shift: float = 0.0) -> Sample:
    rng = np.random.default_rng(size)
    x = rng.normal(size=size)
    values = {"x": x, "y": x + rng.normal(size=size) + shift, "k": rng.choice(3, size), "n": rng.poisson(2.0, size)}
    return Sample(label, values, rng.normal(0.0, 0.3, size))


def test_pairs_of_every_kind() -> None:
    samples = [sample("IC", 3000), sample("IS", 40)]
    truth = {"x": 0.5, "y": 1.0, "k": 1.0, "n": 9.0}
    figure = pairs_figure(samples, ["x", "y", "k", "n"], sample("prior", 500), truth, {"k": ("a", "b", "c")}, "title")
    axes = np.array(figure.axes).reshape(4, 4)
    assert [[place.get_visible() for place in row] for row in axes] == np.tri(4, dtype=bool).tolist()
    # Two numbers: regions of the large sample, points of the small one, the truth.
    assert len(axes[1, 0].collections) == 3
    assert axes[1, 0].get_lines()[0].get_xydata().tolist() == [[0.5, 1.0]]
    # A number and a category: the category's names, intervals for the samples that have enough draws of it.
    assert [text.get_text() for text in axes[2, 0].get_yticklabels()] == ["a", "b", "c"]
    medians = [line for line in axes[2, 0].get_lines() if line.get_marker() == "o"]
    assert 3 <= len(medians) <= 6
    assert medians[0].get_xdata()[0] == pytest.approx(0.0, abs=0.15)
    # Two discrete ones: areas are probabilities; the true value is shown though no draw has it.
    areas = [float(c.get_sizes()[0]) for c in axes[3, 2].collections]
    assert sum(areas) == pytest.approx(2 * 420.0, rel=0.05)
    assert axes[3, 3].get_xticklabels()[-1].get_text() == "9"
    # Labels on the outside only.
    assert [place.get_xlabel() for place in axes[3]] == ["x", "y", "k", "n"]
    assert axes[1, 0].get_xlabel() == axes[2, 1].get_ylabel() == ""


def test_no_more_posteriors_than_looks() -> None:
    with pytest.raises(ValueError, match="at most 5"):
        pairs_figure([sample("IC", 50)] * 6, ["x"])


def test_long_labels_are_broken() -> None:
    assert wrapped("energy of leading product [GeV]") == "energy of leading\nproduct [GeV]"
    assert wrapped("short") == "short"


def test_a_narrow_posterior_leaves_the_band(tmp_path: Path) -> None:
    """Ranks at both ends: the curve rises at both ends and dips between, beyond the grey."""
    rng = np.random.default_rng(0)
    good = rng.random(400)
    narrow = np.where(rng.random(400) < 0.5, 0.2 * good, 1.0 - 0.2 * good)
    ranks = np.stack([good, narrow], axis=1)
    found = Calibration(("good", "narrow"), ranks, None, np.full(400, 50), np.full(400, 1000.0))
    figure = found.plot(tmp_path / "ranks.png")
    curves = [place.get_lines()[0].get_ydata() for place in figure.axes]
    band = 1.358 / 20.0
    assert np.abs(curves[0]).max() < band < np.abs(curves[1]).max()
    assert curves[1][20] > band
    assert curves[1][80] < -band
    assert (tmp_path / "ranks.png").exists()
