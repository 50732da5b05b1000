"""Figures of a diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from etalumis.inference import diagnostics
from etalumis.inference.address_values import AddressValues, address_values
from etalumis.inference.by_address import chain_columns
from etalumis.inference.diagnosis_chains import DENSITY, RHAT_BAD, rows_elsewhere
from etalumis.inference.figures.canvas import canvas, finished
from etalumis.inference.figures.style import LOOKS, PRIOR, axis_label, wrapped
from etalumis.inference.figures.weights import weights_figure
from etalumis.inference.origin import Origin

if TYPE_CHECKING:
    from etalumis.inference.diagnosis import Diagnosis
    from etalumis.inference.posterior import Posterior

_MOST_VARIABLES, _MOST_ADDRESSES = 8, 25
_POINTS = 1500  # of a line
_COLOURS = tuple(look.colour for look in LOOKS)
_LONGEST = 40


def draw(diagnosis: Diagnosis) -> dict[str, Any]:
    """All figures by name; none where every weight is zero."""
    posterior = diagnosis.posterior
    if not diagnosis.table:
        return {}
    figures = {}
    if posterior.markov:
        found = address_values(posterior.traces)
        named = [*diagnosis.table, *rows_elsewhere(posterior, found, diagnosis.addresses)]
        figures["chains"] = chains_figure(posterior, named, found)
        if any(row["moves"] for row in diagnosis.addresses):
            figures["moves"] = moves_figure(diagnosis.addresses)
    elif Origin.of(posterior.info) is None:  # equal weights after resampling would look settled
        figures["weights"] = weights_figure(posterior)
    if posterior.numbers:
        figures["marginals"] = posterior.plot()
    return figures


def chains_figure(posterior: Posterior, named: list[dict[str, Any]], found: Mapping[str, AddressValues]) -> Any:
    """For the variables that mix worst: their chains, autocorrelation against lag, and R̂ against iteration."""
    ranked = sorted(named, key=lambda row: -np.nan_to_num(row["rhat"], nan=0.0, posinf=np.inf))[:_MOST_VARIABLES]
    figure, axes = canvas(len(ranked), 3, 4.2, 1.9)
    for panels, row in zip(axes, ranked, strict=True):
        chains = _chains(posterior, row, found)
        label = axis_label(row["name"]) + (" met" if row.get("of") == "presence" else "")
        _trace(panels[0], chains, label, row["discrete"])
        if row["category"] is not None:
            chains, label = (chains == row["category"]).astype(np.float64), f"{label} = {row['category']}"
        _autocorrelation(panels[1], chains, label)
        _gelman_rubin(panels[2], chains, label, RHAT_BAD)
    axes[-1, 0].set_xlabel("kept state")
    axes[-1, 1].set_xlabel("lag, kept states")
    axes[-1, 2].set_xlabel("kept states per chain")
    for place, title in zip(axes[0], ("chains", "autocorrelation", "Gelman–Rubin (1992) R̂"), strict=True):
        place.set_title(title)
    return finished(figure)


def _chains(posterior: Posterior, row: Mapping[str, Any], found: Mapping[str, AddressValues]) -> NDArray[np.float64]:
    """What a row judges, shape (C, S)."""
    if row["name"] == DENSITY:
        density = posterior.traces.log_likelihood + posterior.traces.log_prior
        return posterior.by_chain(density[posterior.rows])
    if "address" in row:
        return chain_columns(posterior, found[row["address"]])[row["of"]]
    return posterior.by_chain(posterior.values(row["name"]).astype(np.float64))


def _trace(axes: Any, chains: NDArray[np.float64], label: str, discrete: bool) -> None:
    step = max(1, chains.shape[1] // _POINTS)
    places = np.arange(0, chains.shape[1], step)
    shift = 0.08 * (np.arange(len(chains)) - 0.5 * (len(chains) - 1)) if discrete else np.zeros(len(chains))
    for number, chain in enumerate(chains):
        colour = _COLOURS[number % len(_COLOURS)]
        style = {"marker": ".", "markersize": 1.5, "linestyle": "none"} if discrete else {"linewidth": 0.5}
        axes.plot(places, chain[::step] + shift[number], color=colour, alpha=0.8, **style)
    axes.set_ylabel(wrapped(label))


def _autocorrelation(axes: Any, chains: NDArray[np.float64], label: str) -> None:
    axes.axhline(0.0, color="#444444", linewidth=0.6)
    axes.set_ylim(-0.25, 1.05)
    if np.ptp(chains) == 0.0:
        axes.text(0.5, 0.5, "never changed", transform=axes.transAxes, ha="center")
        return
    time = diagnostics.autocorrelation_time(chains)
    lags = int(min(max(10.0 * np.nan_to_num(time, nan=10.0), 20.0), chains.shape[1] // 2))
    axes.plot(diagnostics.autocorrelation(chains, lags), color=_COLOURS[0], linewidth=1.4)
    axes.text(0.97, 0.88, f"τ = {time:.3g}", transform=axes.transAxes, ha="right")


def _gelman_rubin(axes: Any, chains: NDArray[np.float64], label: str, limit: float) -> None:
    if len(chains) < 2 or chains.shape[1] < 4 or np.ptp(chains) == 0.0:
        axes.text(0.5, 0.5, "one chain" if len(chains) < 2 else "–", transform=axes.transAxes, ha="center")
        return
    lengths = np.unique(np.geomspace(4, chains.shape[1], 80).astype(np.int64))
    curve = diagnostics.gelman_rubin(chains, lengths)
    axes.axhline(1.0, color="#444444", linewidth=0.6)
    axes.axhline(limit, color="#444444", linewidth=0.8, linestyle=(0, (2, 1.5)))
    axes.plot(lengths, np.where(np.isfinite(curve), curve, np.nan), color=_COLOURS[0], linewidth=1.4)
    axes.set_xscale("log")
    finite = curve[np.isfinite(curve)]
    axes.set_ylim(0.98, float(np.clip(finite.max(initial=1.2), 1.2, 3.0)))
    if curve[-1] > 3.0:
        axes.text(0.97, 0.85, f"R̂ = {curve[-1]:.3g}", transform=axes.transAxes, ha="right")


def moves_figure(addresses: list[Mapping[str, Any]] | list[dict[str, Any]]) -> Any:
    """The share of accepted moves, and of reused values, at the addresses where most moves began."""
    rows = sorted((row for row in addresses if row["moves"]), key=lambda row: -row["moves"])[:_MOST_ADDRESSES]
    figure, axes = canvas(1, 2, 4.2, 0.9 + 0.24 * len(rows))
    places = np.arange(len(rows))
    names = [row["name"] or row["address"] for row in rows]
    for panel, key, title in zip(axes[0], ("accepted", "reused"), ("accepted moves", "values reused"), strict=True):
        shares = [row[key] for row in rows]
        panel.barh(places, np.ones(len(rows)), height=0.7, color=PRIOR, alpha=0.4, zorder=1)
        panel.barh(places, [share or 0.0 for share in shares], height=0.7, color=_COLOURS[0], zorder=2)
        for place, share in zip(places, shares, strict=True):
            panel.text(1.02, place, "–" if share is None else f"{share:.1%}", va="center", fontsize=8)
        panel.set_xlim(0.0, 1.0)
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.set_title(title)
    axes[0, 0].set_yticks(places, [n if len(n) <= _LONGEST else f"…{n[-_LONGEST:]}" for n in names], fontsize=8)
    axes[0, 1].set_yticks([])
    return finished(figure)
