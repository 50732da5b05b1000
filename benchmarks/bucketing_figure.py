"""The figure of minibatches of like traces: validation loss against traces, and rates of ranks that wait or don't."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from etalumis.inference.figures.style import LOOKS, RC
from etalumis.report.training import LOSS

if TYPE_CHECKING:
    from benchmarks.bucketing import Times
    from benchmarks.trainings import Training


def draw(
    times: Mapping[str, Times], found: Mapping[str, Sequence[Training]], ranks: int, traces: int, path: Path
) -> None:
    """Both panels.

    Args:
        times: of the schemes that were timed.
        found: the trainings of each scheme.
        ranks: how many there are in ``times``.
        traces: that each training saw.
        path: of the file.
    """
    looks = dict(zip(found, LOOKS, strict=False))
    with rc_context(RC):
        figure = Figure(figsize=(10.0, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for scheme, several in found.items():
            look = looks[scheme]
            curves = np.array([training.losses for training in several])
            across = np.array(several[0].steps) * (traces / several[0].steps[-1])
            line = {"color": look.colour, "linestyle": look.dash}
            left.plot(across, curves.mean(0), marker="o", markersize=3, label=scheme, **line)
            if len(curves) > 1:
                left.fill_between(across, curves.min(0), curves.max(0), color=look.colour, alpha=0.2, linewidth=0.0)
        later = [loss for several in found.values() for training in several for loss in training.losses[1:]]
        if later:  # the first may be far above all others
            left.set_ylim(min(later) - 0.2, max(later) + 0.4)
        left.set_xlabel("traces seen")
        left.set_ylabel(f"validation {LOSS}")
        left.legend()
        places = np.arange(len(times))
        colours = [looks[scheme].colour for scheme in times]
        right.bar(places, [one.together / ranks for one in times.values()], color=colours)
        best = [one.balanced / ranks for one in times.values()]
        right.plot(places, best, "k_", markersize=28, label="if none had to wait")
        right.set_ylim(0.0, 1.25 * max(best))
        right.set_xticks(places, list(times))
        right.set_ylabel(f"traces a second of each of {ranks} ranks")
        right.legend(loc="upper left")
        figure.savefig(path, dpi=150)
