"""The figure of importance weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from etalumis.inference import diagnostics
from etalumis.inference.figures.canvas import canvas, finished
from etalumis.inference.figures.style import LOOKS, PRIOR

if TYPE_CHECKING:
    from etalumis.inference.posterior import Posterior

_POINTS = 400  # of a curve
_LOWEST = 30.0  # nats below the largest weight that are still shown


def weights_figure(posterior: Posterior) -> Any:
    """Log weights, the largest of them before and after Pareto smoothing, and the running evidence."""
    figure, axes = canvas(1, 3, 3.9, 3.0)
    log_weights = posterior.log_weights
    relative = log_weights[np.isfinite(log_weights)] - log_weights.max()
    _histogram(axes[0, 0], relative, len(posterior) + posterior.num_dropped)
    _tail(axes[0, 1], posterior)
    _evidence(axes[0, 2], posterior)
    return finished(figure)


def _histogram(axes: Any, relative: Any, count: int) -> None:
    shown = relative[relative > -_LOWEST]
    low = min(float(shown.min()), -1.0)
    edges = np.linspace(low, 0.0, int(np.clip(math.sqrt(len(shown)), 10, 60)) + 1)
    traces, _ = np.histogram(shown, edges)
    mass, _ = np.histogram(shown, edges, weights=np.exp(shown))
    axes.stairs(traces / count, edges, fill=True, color=PRIOR, label="of the traces")
    axes.stairs(mass / np.exp(relative).sum(), edges, color=LOOKS[0].colour, linewidth=1.4, label="of the weight")
    axes.set_xlabel("log weight less the largest")
    axes.set_ylabel("share")
    axes.legend(loc="upper left", frameon=False)


def _tail(axes: Any, posterior: Posterior) -> None:
    """The largest weights, as shares of all, by rank."""
    count = min(len(posterior), max(20, 2 * math.ceil(3.0 * math.sqrt(len(posterior)))))
    ranks = np.arange(1, count + 1)
    raw = np.sort(posterior.weights)[::-1][:count]
    smooth = np.sort(posterior.smoothed().weights)[::-1][:count]
    axes.loglog(ranks, np.where(raw > 0.0, raw, np.nan), ".", color=LOOKS[0].colour, markersize=4, label="as they are")
    axes.loglog(ranks, np.where(smooth > 0.0, smooth, np.nan), color=LOOKS[1].colour, linewidth=1.4, label="smoothed")
    axes.set_xlabel("rank")
    axes.set_ylabel("share of the weight")
    limit = diagnostics.pareto_k_threshold(len(posterior) + posterior.num_dropped)
    axes.set_title(f"k̂ = {posterior.pareto_k:.2f} (limit {limit:.2f}), ESS {posterior.ess:,.0f}")
    axes.legend(loc="lower left", frameon=False)


def _evidence(axes: Any, posterior: Posterior) -> None:
    """Log of the mean of the first n weights, ± its standard error: jumps are lucky traces."""
    log_weights = posterior.log_weights
    numbers = np.arange(1, len(log_weights) + 1)
    first = np.logaddexp.accumulate(log_weights)
    second = np.logaddexp.accumulate(2.0 * log_weights)
    # Samples left out have weight zero, at places of which nothing is known.
    scale = math.log(len(log_weights) / (len(log_weights) + posterior.num_dropped))
    picked = np.unique(np.geomspace(1, len(numbers), _POINTS).astype(np.int64)) - 1
    picked = picked[np.isfinite(first[picked])]
    level = first[picked] - np.log(numbers[picked]) + scale
    share = np.exp(second[picked] - 2.0 * first[picked])  # 1 / ESS
    error = np.sqrt(np.maximum(share - 1.0 / numbers[picked], 0.0))
    axes.fill_between(numbers[picked], level - error, level + error, color=LOOKS[0].colour, alpha=0.2, linewidth=0)
    axes.plot(numbers[picked], level, color=LOOKS[0].colour, linewidth=1.4)
    axes.set_xscale("log")
    late = level[len(level) // 4 :]
    spread = max(3.0 * float(error[-1]), float(np.ptp(late)), 1e-3)
    axes.set_ylim(float(level[-1]) - 1.5 * spread, float(level[-1]) + 1.5 * spread)
    axes.set_xlabel("traces")
    axes.set_ylabel("log evidence")
