"""Pythia 8 decays τ leptons, and asks the running execution for each random number that it uses.

Pythia (https://pythia.org, pip package pythia8mc) takes uniform numbers from an external engine where it is given
one; the engine here answers with ``sample(Uniform(0, 1))`` at the address of the native call stack that asked.

The number that chooses the τ's decay channel is the exception: it is drawn as ``Categorical(branching ratios)``
named ``decay_channel`` and a number within the channel's bin, which together are the same uniform number.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from enum import Enum
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import Categorical, Uniform
from etalumis.execution import sample
from etalumis.simulators.native_stack import NativeStack
from etalumis.simulators.particles import NEUTRINOS

_TAU = 15
# Decay products whose energies are ranked: e, μ, π and K, as the pure Python τ does.
_RANKED = frozenset((11, 13, 111, 130, 211, 310, 311, 321))

_UNIT = Uniform(0.0, 1.0)
# Proposals may end on the edges of the unit interval, where Pythia takes log 0 or divides 0 by 0. Its own generator
# stays 6e-8 away from them.
_EDGE = 1e-9
# How far a number stays from the edges of a channel's bin, lest Pythia's rounding takes the neighbour.
_BIN_MARGIN = 1e-13

_GLUE = "PyCallBack_"  # prefix of the functions through which the Python binding of Pythia calls Python
_PICK_CHANNEL = "Pythia8::ParticleDataEntry::pickChannel()"
_CREATE_CHILDREN = "Pythia8::TauDecays::createChildren("
_EXPONENTIAL = "Pythia8::Rndm::exp()"
_SETS_LIFETIMES = ("Pythia8::ParticleDecays::decay(", "Pythia8::TauDecays::writeDecay(")
# With matrix elements (modes above 0) Pythia 8.317 picks a channel ten times and decays by the last one.
_PICKS = 10


class Role(Enum):
    """What a draw is good for."""

    NAMED = "momentum or channel of the τ"
    VISIBLE = "moves visible particles"
    HIDDEN = "moves nothing that is seen: lifetimes, channels that Pythia picks and drops"


class FinalState(NamedTuple):
    """What is left of a τ.

    Attributes:
        pdg_ids, momenta: n visible stable particles; (n, 4) array of (p_x, p_y, p_z, E) in GeV.
        energies: of e, μ, π and K before π⁰ → γγ, GeV, highest first; what a π or K decays to is not counted again.
        missing_et: transverse momentum of the neutrinos together, GeV.
        channel: index of the decay channel.
    """

    pdg_ids: list[int]
    momenta: NDArray[np.float64]
    energies: list[float]
    missing_et: float
    channel: int


class TauGenerator:
    """One Pythia instance and the engine that answers it. Used by one thread at a time.

    Args:
        mode, settings: Pythia's ``TauDecays:mode`` and further lines of settings.
        controls: whether draws at (base address, role) are controlled.
        max_instances: how many of them in one event.
    """

    def __init__(
        self, mode: int, settings: Sequence[str], controls: Callable[[str, Role], bool], max_instances: float
    ) -> None:
        pythia8 = import_pythia()
        self._controls = controls
        self._max_instances = max_instances
        self._stack = NativeStack(pythia8.__file__, glue=_GLUE)
        # Numbers that Pythia may want before its first event belong to no trace.
        self._answer: Callable[[], float] = random.Random(0).random
        self._sites: dict[str, tuple[Callable[[str, bool], float], bool]] = {}
        self._counts: dict[str, int] = {}
        self._picks = 0
        self._channel = -1

        self._pythia = pythia8.Pythia("", False)
        quiet = ("Print:quiet = on", "ProcessLevel:all = off", f"TauDecays:mode = {mode}")
        for line in (*quiet, *settings):
            if not self._pythia.readString(line, False):
                raise ValueError(f"Pythia refuses the setting {line!r}; see its manual for names and ranges")
        engine = type("Engine", (pythia8.RndmEngine,), {"flat": lambda _: self._answer()})
        self._engine = engine()  # Pythia holds the C++ half only
        self._pythia.setRndmEnginePtr(self._engine)
        if not self._pythia.init():
            raise ValueError(f"Pythia does not start with the settings {list(settings)}")
        self._event = self._pythia.event
        self._mass = self._pythia.particleData.m0(_TAU)
        self._read_channels()
        self._answer = self._draw

    def _read_channels(self) -> None:
        data = self._pythia.particleData
        entry = data.particleDataEntryPtr(_TAU)
        channels = [entry.channel(i) for i in range(entry.sizeChannels())]
        self.channels = [[data.name(c.product(i)) for i in range(c.multiplicity())] for c in channels]
        # Channels switched on for the particle (1: for both, 2: not for the antiparticle) share the sum.
        ratios = [c.bRatio() if c.onMode() in (1, 2) else 0.0 for c in channels]
        edges = [0.0, *accumulate(ratios)]
        self._ratios = Categorical(ratios)
        self._bins = [(low / edges[-1], high / edges[-1]) for low, high in pairwise(edges)]

    def decay(self, px: float, py: float, pz: float) -> FinalState:
        """Decay a τ⁻ of this momentum (GeV), drawing from the current execution."""
        self._counts = {}
        self._picks = 0
        self._channel = -1
        event = self._event
        event.reset()
        energy = math.sqrt(self._mass**2 + px**2 + py**2 + pz**2)
        event.append(_TAU, 1, 0, 0, px, py, pz, energy, self._mass)
        if not self._pythia.next():
            raise RuntimeError(f"Pythia failed to decay a τ of momentum ({px}, {py}, {pz}) GeV")
        return self._final_state()

    def _final_state(self) -> FinalState:
        event = self._event
        pdg_ids: list[int] = []
        momenta: list[tuple[float, float, float, float]] = []
        energies: list[float] = []
        missing_x = missing_y = 0.0
        counted = [False, False]  # by place in the event record, where 0 is the system and 1 the τ
        for place in range(2, event.size()):
            particle = event[place]
            pdg_id = particle.id()
            kind = abs(pdg_id)
            before = counted[particle.mother1()]
            counted.append(before or kind in _RANKED)
            if counted[place] and not before:
                energies.append(particle.e())
            if kind in NEUTRINOS:
                missing_x += particle.px()
                missing_y += particle.py()
            elif particle.isFinal():
                pdg_ids.append(pdg_id)
                momenta.append((particle.px(), particle.py(), particle.pz(), particle.e()))
        energies.sort(reverse=True)
        array = np.array(momenta, dtype=np.float64).reshape(-1, 4)
        return FinalState(pdg_ids, array, energies, math.hypot(missing_x, missing_y), self._channel)

    def _draw(self) -> float:
        """The next random number: a draw at the place in Pythia that asks for it."""
        address = self._stack.address()
        site = self._sites.get(address)
        if site is None:
            site = self._sites[address] = self._new_site(address)
        answer, controlled = site
        return answer(address, controlled)

    def _new_site(self, address: str) -> tuple[Callable[[str, bool], float], bool]:
        """How draws at this address are answered, and whether they are controlled."""
        frames = address[1:-1].split("; ")
        innermost, caller = frames[-1], frames[-2] if len(frames) > 1 else ""
        if innermost.startswith(_PICK_CHANNEL):
            if caller.startswith(_CREATE_CHILDREN):
                return self._draw_pick, self._controls(address, Role.HIDDEN)
            return self._draw_pick_of_any, self._controls(address, Role.VISIBLE)
        hidden = innermost.startswith(_EXPONENTIAL) and caller.startswith(_SETS_LIFETIMES)
        return self._draw_number, self._controls(address, Role.HIDDEN if hidden else Role.VISIBLE)

    def _draw_number(self, address: str, controlled: bool) -> float:
        counts = self._counts
        count = counts[address] = counts.get(address, 0) + 1
        number: float = sample(_UNIT, None, controlled and count <= self._max_instances, address)
        return number if _EDGE < number < 1.0 - _EDGE else min(max(number, _EDGE), 1.0 - _EDGE)

    def _draw_pick(self, address: str, controlled: bool) -> float:
        """A pick of the τ's channel where Pythia keeps the last of ten."""
        self._picks += 1
        if self._picks % _PICKS:
            return self._draw_number(address, controlled)
        return self._draw_channel(address, named=self._picks == _PICKS)

    def _draw_pick_of_any(self, address: str, controlled: bool) -> float:
        """A pick of the channel of whatever decays: the τ (more than once if no masses fit), then its products."""
        if not self._event[1].isFinal():
            return self._draw_number(address, controlled)
        self._picks += 1
        return self._draw_channel(address, named=self._picks == 1)

    def _draw_channel(self, address: str, named: bool) -> float:
        """The uniform number that makes Pythia pick a drawn channel.

        Pythia takes the first channel whose summed branching ratios reach u × their total.
        """
        name = "decay_channel" if named else None
        channel = int(sample(self._ratios, name, self._controls(address, Role.NAMED), address))
        within = f"{address[:-1]}; within channel]"
        fraction: float = sample(_UNIT, None, self._controls(within, Role.HIDDEN), within)
        low, high = self._bins[channel]
        self._channel = channel
        return min(max(low + fraction * (high - low), low + _BIN_MARGIN), high - _BIN_MARGIN)


def import_pythia() -> Any:
    """The module pythia8mc.

    Raises:
        ImportError: where it is not installed.
    """
    try:
        import pythia8mc
    except ImportError as error:
        raise ImportError("the simulator pythia_tau needs Pythia 8: pip install 'etalumis[pythia]'") from error
    return pythia8mc
