"""Figures of trainings: the range test of learning rates, and searches over settings."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from etalumis.report.style import LOOKS, PRIOR, RC, TRUTH

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
