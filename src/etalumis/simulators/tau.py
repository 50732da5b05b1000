"""Decay of a τ⁻ lepton in flight, seen by a calorimeter: the default simulator, in plain Python.

Draws in order: the three momentum components, the decay channel, then for each decay its invariant masses (in
a rejection loop, :mod:`etalumis.simulators.phase_space`) and two angles per two-body step, on axes parallel
to the lab's. Length and type of a trace follow the channel and the passes of its loops. Products decay by
phase space times the resonances of :data:`CHANNELS`; spins, matrix elements and lifetimes are not simulated.

Addresses are explicit and spell the chain of decays like a call stack, "tau; pi_2pi0; pi0.1; cos2": what one draw
means differs by channel, while frames that channels share let a network start a rare one near its relatives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from etalumis.distributions import Bernoulli, Categorical, Normal, Uniform
from etalumis.execution import observe, sample, tag
from etalumis.simulators.detector import Detector
from etalumis.simulators.particles import CHANNELS, NEUTRINOS, PARTICLES, RANKED
from etalumis.simulators.phase_space import MassLadder, Momentum, Resonance, two_body

_UNIT = Uniform(0.0, 1.0)
_COSINE = Uniform(-1.0, 1.0)
_AZIMUTH = Uniform(-math.pi, math.pi)

# Passes of a rejection loop whose draws a proposal may control; the rest come from the prior.
MAX_CONTROLLED_PASSES = 4


@dataclass
class Event:
    """What one τ decay left behind.

    Attributes:
        pdg_ids, momenta: particles after all prompt decays, neutrinos included; (p_x, p_y, p_z, E) in GeV.
        energies: of e, μ, π and K before π⁰ → γγ, GeV; the products of a K⁰ are not counted again.
    """

    pdg_ids: list[int] = field(default_factory=list)
    momenta: list[Momentum] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)

    @property
    def visible_energy(self) -> float:
        """Sum of the energies of all particles but neutrinos, GeV."""
        visible = zip(self.pdg_ids, self.momenta, strict=True)
        return math.fsum(p[3] for pdg_id, p in visible if abs(pdg_id) not in NEUTRINOS)

    @property
    def missing_et(self) -> float:
        """Transverse momentum of the neutrinos together, GeV."""
        invisible = [p for i, p in zip(self.pdg_ids, self.momenta, strict=True) if abs(i) in NEUTRINOS]
        return math.hypot(math.fsum(p[0] for p in invisible), math.fsum(p[1] for p in invisible))


class _Step(NamedTuple):
    """One two-body step: the system of the first k products and the next product leave the parent system."""

    next_mass: float
    cosine: str  # addresses of its two angles
    azimuth: str
    control: bool


class _Decay:
    """A decay with all that is known before an execution: masses, addresses, control, further decays."""

    def __init__(
        self,
        parent: float,
        products: Sequence[str],
        resonances: Mapping[int, Resonance],
        path: str,
        control: bool,
    ) -> None:
        masses = [PARTICLES[name].mass for name in products]
        self.mass = parent
        self.first_mass = masses[0]
        visible = [abs(PARTICLES[name].pdg_id) not in NEUTRINOS for name in products]
        bodies = range(len(products), 1, -1)
        # A step that turns only neutrinos moves nothing visible.
        self.steps = [
            _Step(masses[k - 1], f"{path}; cos{k}", f"{path}; phi{k}", control and any(visible[:k])) for k in bodies
        ]
        self.ladder = MassLadder(parent, masses, resonances) if len(products) > 2 else None
        self.mass_addresses = [f"{path}; mass{k}" for k in bodies[1:]]
        self.accept_address = f"{path}; accept"
        self.control = control
        self.products = [_Product(name, f"{path}; {name}.{i}", control) for i, name in enumerate(products)]

    def invariant_masses(self) -> list[float]:
        """Masses of the inner systems, from the outermost inwards: a rejection loop over masses only."""
        if self.ladder is None:
            return [self.first_mass]
        passes = 0
        while True:
            control = self.control and passes < MAX_CONTROLLED_PASSES
            uniforms = [sample(_UNIT, None, control, address) for address in self.mass_addresses]
            masses, acceptance = self.ladder.masses(uniforms)
            if sample(Bernoulli(min(1.0, acceptance)), None, control, self.accept_address):
                return [*masses, self.first_mass]
            passes += 1

    def run(self, momentum: Momentum, event: Event, ranked: bool) -> None:
        """Draw the decay of a particle of four-momentum ``momentum`` and everything that follows from it."""
        if not self.steps:  # a state that is a mixture, as K⁰ of K⁰_L and K⁰_S: the same particle goes on
            self.products[0].run(momentum, event, ranked)
            return
        mass = self.mass
        leaving: list[Momentum] = []
        for inner, step in zip(self.invariant_masses(), self.steps, strict=True):
            cos_theta = sample(_COSINE, None, step.control, step.cosine)
            phi = sample(_AZIMUTH, None, step.control, step.azimuth)
            momentum, product = two_body(momentum, mass, inner, step.next_mass, cos_theta, phi)
            leaving.append(product)
            mass = inner
        leaving.append(momentum)
        for plan, product in zip(self.products, reversed(leaving), strict=True):
            plan.run(product, event, ranked)


class _Product:
    """A particle that a decay made, at its place in the chain of decays."""

    def __init__(self, name: str, path: str, control: bool) -> None:
        particle = PARTICLES[name]
        self.pdg_id = particle.pdg_id
        self.ranked = name in RANKED
        self.follows = name not in ("K0", "Kbar0")  # whose products are not ranked again
        self.control = control
        self.mode_address = f"{path}; mode"
        self.modes = Categorical([mode.ratio for mode in particle.modes]) if len(particle.modes) > 1 else None
        self.decays = [
            _Decay(particle.mass, mode.products, {}, f"{path}; {i}" if self.modes else path, control)
            for i, mode in enumerate(particle.modes)
        ]

    def run(self, momentum: Momentum, event: Event, ranked: bool) -> None:
        if ranked and self.ranked:
            event.energies.append(momentum[3])
        if not self.decays:
            event.pdg_ids.append(self.pdg_id)
            event.momenta.append(momentum)
            return
        mode = sample(self.modes, None, self.control, self.mode_address) if self.modes else 0
        self.decays[mode].run(momentum, event, ranked and self.follows)


class Tau:
    """A τ⁻ of unknown momentum decays in front of a detector; call it inside an execution.

    Draws ``px``, ``py``, ``pz`` (GeV) and ``decay_channel``, an index into :data:`CHANNELS`; observes
    ``detector``, the voxels' energies in GeV; tags ``missing_et``, ``energy_1``, ``energy_2`` (the two
    highest energies of e, μ, π and K before π⁰ → γγ, 0 where there is none) and ``visible_energy``, all in
    GeV. Returns the channel.

    Args:
        detector: the calorimeter; 8×14×14 voxels by default.
        px, py, pz: limits of the uniform momentum components in GeV.
        control: which draws a network may propose: ``"visible"``, all that move a visible particle, up to the
            4th pass of each rejection loop; or ``"momentum_and_channel"`` alone. The others come from the
            prior.
    """

    def __init__(
        self,
        detector: Detector | None = None,
        px: Sequence[float] = (-3.0, 3.0),
        py: Sequence[float] = (-3.0, 3.0),
        pz: Sequence[float] = (40.0, 60.0),
        control: Literal["visible", "momentum_and_channel"] = "visible",
    ) -> None:
        if control not in ("visible", "momentum_and_channel"):
            raise ValueError(f'control must be "visible" or "momentum_and_channel"; got {control!r}')
        self.detector = Detector(shape=(8, 14, 14)) if detector is None else detector
        self.px, self.py, self.pz = (Uniform(float(low), float(high)) for low, high in (px, py, pz))
        self.channel = Categorical([channel.ratio for channel in CHANNELS])
        self.mass = PARTICLES["tau-"].mass
        self.decays = [
            _Decay(
                self.mass,
                channel.products,
                dict(channel.resonances),
                f"tau; {channel.label.replace(' ', '_')}",
                control == "visible",
            )
            for channel in CHANNELS
        ]

    def __call__(self) -> float:
        px = sample(self.px, "px", True, "tau; px")
        py = sample(self.py, "py", True, "tau; py")
        pz = sample(self.pz, "pz", True, "tau; pz")
        channel = sample(self.channel, "decay_channel", True, "tau; decay_channel")
        energy = math.sqrt(px * px + py * py + pz * pz + self.mass * self.mass)
        event = self.decay(channel, (px, py, pz, energy))
        voxels = self.detector.deposit(event.pdg_ids, event.momenta)
        observe(Normal(voxels, self.detector.noise), name="detector")
        energies = [*sorted(event.energies, reverse=True), 0.0, 0.0]
        tag(event.missing_et, name="missing_et")
        tag(energies[0], name="energy_1")
        tag(energies[1], name="energy_2")
        tag(event.visible_energy, name="visible_energy")
        return float(channel)

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """What the values of ``decay_channel`` are called."""
        return {"decay_channel": tuple(channel.label for channel in CHANNELS)}

    def decay(self, channel: int, momentum: Momentum) -> Event:
        """Draw the decay of a τ⁻ of four-momentum ``momentum`` through ``CHANNELS[channel]``."""
        event = Event()
        self.decays[channel].run(momentum, event, True)
        return event
