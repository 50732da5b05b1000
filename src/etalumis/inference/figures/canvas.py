"""Matplotlib figures without a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from etalumis.inference.errors import InferenceError
from etalumis.inference.figures.style import RC


def canvas(rows: int, columns: int, width: float = 3.3, height: float = 2.6, extra: float = 0.0) -> tuple[Any, Any]:
    """A figure in the common style, and its axes (rows, columns).

    Args:
        rows, columns: of panels.
        width, height: of a panel, inches.
        extra: height of what stands above all panels.

    Raises:
        InferenceError: Matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InferenceError("figures need Matplotlib; install it with: pip install 'etalumis[report]'") from error
    with rc_context(RC):
        figure = Figure(figsize=(max(width * columns, 4.0), height * rows + extra), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, squeeze=False)


def finished(figure: Any, path: str | Path | None = None) -> Any:
    """The figure, laid out in the common style, and written where a path is given (PNG, SVG, PDF by its suffix)."""
    from matplotlib import rc_context

    with rc_context(RC):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # everything has its place: don't find it again for every file
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
    return figure
