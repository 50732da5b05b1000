"""How figures look: one colour and one line per posterior, no ornament.

The colours are of the palette of Okabe and Ito (2008), which people with any colour vision tell apart; lines
also differ in dash and fill, so that a grey print still reads.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from dataclasses import dataclass
from typing import Any

RC: dict[str, Any] = {
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.labelsize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": "#444444",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.frameon": False,
    "legend.fontsize": 10.0,
    "mathtext.fontset": "dejavusans",
    "svg.hashsalt": "etalumis",
}

PRIOR = "#d9d9d9"
TRUTH = "#111111"


@dataclass(frozen=True)
class Look:
    """How one posterior is drawn; the fill is the opacity under its histogram."""

    colour: str
    dash: Any
    width: float
    fill: float


LOOKS = (
    Look("#0072b2", "solid", 1.4, 0.22),
    Look("#d55e00", "solid", 1.6, 0.0),
    Look("#009e73", (0, (4, 1.6)), 1.2, 0.0),
    Look("#cc79a7", (0, (1, 1.2)), 1.4, 0.0),
    Look("#56b4e9", (0, (5, 1.5, 1, 1.5)), 1.3, 0.0),
)

# What the variables of particle simulators are called on paper.
_AXES = {
    "px": "$p_x$ [GeV]",
    "py": "$p_y$ [GeV]",
    "pz": "$p_z$ [GeV]",
    "energy_1": "energy of leading product [GeV]",
    "energy_2": "energy of 2nd product [GeV]",
    "missing_et": "missing $E_T$ [GeV]",
    "visible_energy": "visible energy [GeV]",
    "decay_channel": "decay channel",
}
_PARTICLES = {
    "pi0": "π⁰",
    "pi-": "π⁻",
    "pi+": "π⁺",
    "pi": "π",
    "mu-": "μ⁻",
    "mu": "μ",
    "e-": "e⁻",
    "eta": "η",
    "omega": "ω",
    "gamma": "γ",
    "rho0": "ρ⁰",
    "K0": "K⁰",
    "K-": "K⁻",
    "K+": "K⁺",
    "Kbar0": "K̄⁰",
    "K_S0": "K⁰_S",
    "K_L0": "K⁰_L",
    "K*-": "K*⁻",
}


def axis_label(name: str) -> str:
    """What a variable is called on an axis."""
    return _AXES.get(name, name.replace("_", " "))


def category_label(name: str) -> str:
    """A decay channel's visible products in symbols: "nu_tau pi0 pi0 pi-" becomes "2π⁰ π⁻"."""
    counts = Counter(word for word in name.split() if not word.startswith("nu"))
    return " ".join(f"{count if count > 1 else ''}{_symbol(word)}" for word, count in counts.items()) or name


def wrapped(label: str) -> str:
    """A label in lines of at most 18 characters, for narrow panels."""
    return "\n".join(textwrap.wrap(label, 18, break_long_words=False))


def _symbol(word: str) -> str:
    count, particle = re.fullmatch(r"(\d*)(.*)", word).groups()  # type: ignore[union-attr]
    return count + _PARTICLES.get(particle, particle)
