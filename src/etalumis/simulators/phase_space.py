"""Relativistic phase space of n bodies as a ladder of two-body decays.

James, "Monte Carlo phase space", CERN 68-15 (1968): with μ_k the invariant mass of the first k of n products,

    dΦ_n ∝ Π_{k=2}^{n} p(μ_k; μ_{k−1}, m_k) dμ_2 … dμ_{n−1} × isotropic angles of each two-body decay,

where p(M; m, m') is the momentum of the products of a two-body decay. A resonance of the first k products
multiplies this by a relativistic Breit–Wigner |μ_k² − M² + i M Γ|⁻². Masses alone are drawn by rejection;
angles are independent of them. Four-momenta are tuples (p_x, p_y, p_z, E) in GeV: for so few numbers plain
floats are faster than arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

Momentum = tuple[float, float, float, float]

# Proposed numbers may sit on the ends of the unit interval, where the ratios of densities are 0 / 0.
_EDGE = 1e-9


def decay_momentum(parent: float, mass_1: float, mass_2: float) -> float:
    """Momentum of both products in the rest frame of ``parent``; 0 below threshold."""
    product = (
        (parent - mass_1 - mass_2)
        * (parent + mass_1 + mass_2)
        * (parent - mass_1 + mass_2)
        * (parent + mass_1 - mass_2)
    )
    return math.sqrt(product) / (2.0 * parent) if product > 0.0 else 0.0


def two_body(
    parent: Momentum, mass: float, mass_1: float, mass_2: float, cos_theta: float, phi: float
) -> tuple[Momentum, Momentum]:
    """Decay ``parent`` of mass ``mass`` into masses ``mass_1`` and ``mass_2``.

    Args:
        cos_theta, phi: direction of the first product in the parent's rest frame, on axes along the lab's.
    """
    px, py, pz, energy = parent
    momentum = decay_momentum(mass, mass_1, mass_2)
    transverse = momentum * math.sqrt(max(0.0, 1.0 - cos_theta * cos_theta))
    x, y, z = transverse * math.cos(phi), transverse * math.sin(phi), momentum * cos_theta
    energy_1 = math.sqrt(momentum * momentum + mass_1 * mass_1)
    boosted = (energy * energy_1 + px * x + py * y + pz * z) / mass
    along = (energy_1 + boosted) / (energy + mass)
    x, y, z = x + along * px, y + along * py, z + along * pz
    return (x, y, z, boosted), (px - x, py - y, pz - z, energy - boosted)


class Resonance(NamedTuple):
    """A relativistic Breit–Wigner of constant width; both in GeV."""

    mass: float
    width: float


class MassProposal(Protocol):
    """A map from a uniform number to an invariant mass between two limits."""

    def __call__(self, uniform: float, low: float, high: float) -> tuple[float, float]:
        """The mass, and the target's resonance factor times d(mass) / d(uniform)."""


class PhaseSpaceMass:
    """μ = low + (high − low) x with x of density a b x^(a−1) (1 − x^a)^(b−1) (Kumaraswamy 1980).

    It follows phase space in both limits: at low mass the density of k bodies vanishes like x^(3(k−1)/2 − 1)
    or faster, at high mass the momentum of the next product like (1 − x)^½, or (1 − x) if it is massless.
    Exponents up to these keep the weight bounded; 1.5 + 1.35 (k − 2) was fitted to the acceptance of the τ's
    decays.
    """

    def __init__(self, bodies: int, next_mass: float) -> None:
        self.inverse_a = 1.0 / (1.5 + 1.35 * (bodies - 2))
        self.inverse_b = 1.0 / (2.0 if next_mass == 0.0 else 1.5)

    def __call__(self, uniform: float, low: float, high: float) -> tuple[float, float]:
        log_rest = math.log1p(-uniform) * self.inverse_b  # ln(1 − x^a)
        power = -math.expm1(log_rest)  # x^a
        x = power**self.inverse_a
        derivative = self.inverse_a * self.inverse_b * (x / power) * math.exp(log_rest) / (1.0 - uniform)
        return low + (high - low) * x, (high - low) * derivative


class BreitWignerMass:
    """μ² by the inverse of the Breit–Wigner's distribution function between the limits."""

    def __init__(self, resonance: Resonance) -> None:
        self.square = resonance.mass**2
        self.product = resonance.mass * resonance.width

    def __call__(self, uniform: float, low: float, high: float) -> tuple[float, float]:
        first = math.atan((low * low - self.square) / self.product)
        span = math.atan((high * high - self.square) / self.product) - first
        mass = math.sqrt(max(low * low, self.square + self.product * math.tan(first + uniform * span)))
        mass = min(mass, high)
        return mass, span / mass


class MassLadder:
    """Proposal and acceptance of the invariant masses μ_{n−1}, …, μ_2 of one decay.

    Args:
        parent: mass of the decaying particle, GeV.
        masses: of its products m_1, …, m_n, n ≥ 3, in the order of the ladder.
        resonances: Breit–Wigner of the first k products, by k.

    Attributes:
        bound: the largest weight, so that weight / bound is the probability to accept.
    """

    def __init__(
        self, parent: float, masses: Sequence[float], resonances: Mapping[int, Resonance] | None = None
    ) -> None:
        resonances = resonances or {}
        self.parent = parent
        self.first, self.second = masses[0], masses[1]
        # Of each inner system: its least mass, the mass of the next product, the proposal of its own mass.
        self.rungs: list[tuple[float, float, MassProposal]] = []
        for bodies in range(len(masses) - 1, 1, -1):
            proposal: MassProposal
            if bodies in resonances:
                proposal = BreitWignerMass(resonances[bodies])
            else:
                proposal = PhaseSpaceMass(bodies, masses[bodies])
            self.rungs.append((sum(masses[:bodies]), masses[bodies], proposal))
        # The search stops within about 1e-6 of the maximum; the margin covers that.
        self.bound = 1.0
        self.bound = 1.0001 * _maximum(lambda point: self.masses(point)[1], len(self.rungs))

    def masses(self, uniforms: Sequence[float]) -> tuple[list[float], float]:
        """Invariant masses from the outermost (n − 1 bodies) inwards, and the probability to accept them."""
        weight = 1.0 / self.bound
        mass = self.parent
        ladder = []
        for uniform, (low, next_mass, proposal) in zip(uniforms, self.rungs, strict=True):
            inside = min(max(uniform, _EDGE), 1.0 - _EDGE)
            inner, factor = proposal(inside, low, mass - next_mass)
            weight *= factor * decay_momentum(mass, inner, next_mass)
            ladder.append(inner)
            mass = inner
        return ladder, weight * decay_momentum(mass, self.first, self.second)


def _maximum(function: Callable[[Sequence[float]], float], dimensions: int) -> float:
    """Maximum on the unit cube by a pattern search from each corner of an inner cube."""
    best = 0.0
    for corner in range(2**dimensions):
        point = [0.75 if corner >> i & 1 else 0.25 for i in range(dimensions)]
        value, step = function(point), 0.25
        while step > 1e-5:
            improved = False
            for i in range(dimensions):
                for move in (step, -step):
                    trial = [*point]
                    trial[i] = min(max(trial[i] + move, 0.0), 1.0)
                    score = function(trial)
                    if score > value:
                        point, value, improved = trial, score, True
            if not improved:
                step *= 0.5
        best = max(best, value)
    return best
