"""Particles and decay channels of the τ⁻: masses, branching ratios and resonances as data.

Values: Particle Data Group, Phys. Rev. D 110 (2024) 030001, rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from etalumis.simulators.phase_space import Resonance


class Mode(NamedTuple):
    """One way to decay: its probability among the modes of a particle, and the products."""

    ratio: float
    products: tuple[str, ...]


class Particle(NamedTuple):
    """PDG Monte Carlo code, mass in GeV, and modes of prompt decay (none: it reaches the detector)."""

    pdg_id: int
    mass: float
    modes: tuple[Mode, ...] = ()


_KAON = 0.497611
_KAON_MODES = (  # half K⁰_L, which reaches the detector, half K⁰_S
    Mode(0.5, ("K0_L",)),
    Mode(0.346, ("pi+", "pi-")),
    Mode(0.154, ("pi0", "pi0")),
)

PARTICLES: Mapping[str, Particle] = {
    "tau-": Particle(15, 1.77693),
    "nu_tau": Particle(16, 0.0),
    "e-": Particle(11, 0.000510999),
    "nubar_e": Particle(-12, 0.0),
    "mu-": Particle(13, 0.1056584),
    "nubar_mu": Particle(-14, 0.0),
    "gamma": Particle(22, 0.0),
    "pi-": Particle(-211, 0.13957039),
    "pi+": Particle(211, 0.13957039),
    "pi0": Particle(111, 0.1349768, (Mode(1.0, ("gamma", "gamma")),)),
    "K-": Particle(-321, 0.493677),
    "K+": Particle(321, 0.493677),
    "K0_L": Particle(130, _KAON),
    "K0": Particle(311, _KAON, _KAON_MODES),
    "Kbar0": Particle(-311, _KAON, _KAON_MODES),
    "eta": Particle(
        221,
        0.547862,
        (
            Mode(0.405, ("gamma", "gamma")),
            Mode(0.336, ("pi0", "pi0", "pi0")),
            Mode(0.259, ("pi+", "pi-", "pi0")),
        ),
    ),
    "omega": Particle(
        223,
        0.78266,
        (
            Mode(0.900, ("pi+", "pi-", "pi0")),
            Mode(0.084, ("pi0", "gamma")),
            Mode(0.016, ("pi+", "pi-")),
        ),
    ),
}

NEUTRINOS = frozenset(abs(p.pdg_id) for name, p in PARTICLES.items() if name.startswith("nu"))
# Visible products that the tags energy_1 and energy_2 rank: e, μ, π, K.
RANKED = frozenset(("e-", "mu-", "pi-", "pi+", "pi0", "K-", "K+", "K0", "Kbar0"))


class Channel(NamedTuple):
    """A decay channel of the τ⁻.

    ``products`` are in the order of the ladder of invariant masses: rung k is the system of the first k; the
    last one leaves the τ itself. ``resonances`` gives the Breit–Wigner of rung k.
    """

    label: str
    ratio: float
    products: tuple[str, ...]
    resonances: tuple[tuple[int, Resonance], ...] = ()


_RHO = ((2, Resonance(0.77511, 0.1491)),)
_KSTAR = ((2, Resonance(0.89167, 0.0514)),)
_A1 = ((3, Resonance(1.230, 0.420)),)

# Branching fractions in per cent; "ex" modes of the PDG fit, so that ω, η and K⁰ count once.
_TABLE = (
    Channel("e", 17.82, ("nu_tau", "nubar_e", "e-")),
    Channel("mu", 17.39, ("nu_tau", "nubar_mu", "mu-")),
    Channel("pi", 10.82, ("pi-", "nu_tau")),
    Channel("pi pi0", 25.49, ("pi-", "pi0", "nu_tau"), _RHO),
    Channel("pi 2pi0", 9.26, ("pi0", "pi0", "pi-", "nu_tau"), _A1),
    Channel("3pi", 8.99, ("pi-", "pi+", "pi-", "nu_tau"), _A1),
    Channel("3pi pi0", 2.74, ("pi-", "pi+", "pi-", "pi0", "nu_tau")),
    Channel("pi omega", 1.95, ("omega", "pi-", "nu_tau")),
    Channel("pi 3pi0", 1.04, ("pi0", "pi0", "pi0", "pi-", "nu_tau")),
    Channel("K", 0.696, ("K-", "nu_tau")),
    Channel("K pi0", 0.433, ("K-", "pi0", "nu_tau"), _KSTAR),
    Channel("pi K0", 0.838, ("Kbar0", "pi-", "nu_tau"), _KSTAR),
    Channel("pi pi0 omega", 0.41, ("omega", "pi-", "pi0", "nu_tau")),
    Channel("pi K0 pi0", 0.382, ("pi-", "pi0", "Kbar0", "nu_tau")),
    Channel("K 2pi", 0.293, ("K-", "pi+", "pi-", "nu_tau")),
    Channel("pi 2K0", 0.155, ("K0", "Kbar0", "pi-", "nu_tau")),
    Channel("K K0 pi0", 0.150, ("K-", "K0", "pi0", "nu_tau")),
    Channel("K K0", 0.1486, ("K-", "K0", "nu_tau")),
    Channel("2K pi", 0.1435, ("K-", "K+", "pi-", "nu_tau")),
    Channel("pi pi0 eta", 0.139, ("eta", "pi-", "pi0", "nu_tau")),
    Channel("pi 4pi0", 0.11, ("pi-", "pi0", "pi0", "pi0", "pi0", "nu_tau")),
    Channel("3pi 2pi0", 0.10, ("pi-", "pi+", "pi-", "pi0", "pi0", "nu_tau")),
    Channel("5pi", 0.082, ("pi-", "pi+", "pi-", "pi+", "pi-", "nu_tau")),
    Channel("K 2pi0", 0.065, ("pi0", "pi0", "K-", "nu_tau")),
)
_TOTAL = math.fsum(channel.ratio for channel in _TABLE)

#: Decay channels in the order of the values of ``decay_channel``; ratios sum to 1.
CHANNELS = tuple(channel._replace(ratio=channel.ratio / _TOTAL) for channel in _TABLE)
