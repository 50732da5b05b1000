"""A τ lepton decayed by Pythia 8, an event generator that knows nothing of this package, and seen by a calorimeter.

Every random number of Pythia is a draw of the model at an address made from Pythia's own call stack, as with Sherpa
in the paper (Baydin et al., "Etalumis", SC'19, section 5).
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from etalumis.distributions import Normal, Uniform
from etalumis.execution import observe, sample, tag
from etalumis.simulators.detector import Detector
from etalumis.simulators.pythia_generator import Role, TauGenerator, import_pythia

_MODES = range(6)
_PRESETS: dict[str, frozenset[Role]] = {
    "all": frozenset(Role),
    "visible": frozenset((Role.NAMED, Role.VISIBLE)),
    "momentum_and_channel": frozenset((Role.NAMED,)),
}


class PythiaTau:
    """Model of a τ⁻ that Pythia decays and a calorimeter that sees the products.

    Draws ``px``, ``py``, ``pz`` (GeV) and whatever Pythia wants, among it ``decay_channel``; observes ``detector``,
    the voxels' energies in GeV; tags ``missing_et``, ``energy_1``, ``energy_2`` (the two highest energies of e, μ, π
    and K before π⁰ → γγ, 0 where there is none) and ``visible_energy``, all in GeV. Returns the channel.

    Any number of threads may call one object at the same time: it keeps idle Pythia instances (0.15 s and a few MB
    each) and takes one for each call. Pickling carries the arguments only.

    Args:
        detector: the calorimeter; 8×14×14 voxels with a noise of 0.4 GeV by default.
        px, py, pz: limits of the uniform momentum components in GeV.
        control: which draws the network shall propose: "visible" (all that moves a visible particle; lifetimes come
            from the prior), "momentum_and_channel", "all", or a regular expression searched in the addresses.
        max_instances: draws at one address beyond this many in one event come from the prior, except with "all":
            they belong to rejection loops, where nothing can be learnt.
        mode: Pythia's ``TauDecays:mode``; 0 decays by phase space (about 20 draws an event), 2 with matrix elements
            (about 500, by rejection).
        settings: more lines for Pythia, such as ``"15:onIfAny = 211"``.

    Raises:
        ImportError: where Pythia is not installed.
        ValueError: for a control that is neither a preset nor a regular expression, a mode that Pythia does not have,
            and, when it first runs, for a setting that Pythia refuses.
    """

    # Draws arrive inside a callback of native code, where a coroutine must not be suspended.
    suspendable = False

    def __init__(
        self,
        detector: Detector | None = None,
        px: Sequence[float] = (-3.0, 3.0),
        py: Sequence[float] = (-3.0, 3.0),
        pz: Sequence[float] = (40.0, 60.0),
        control: str = "visible",
        max_instances: int = 4,
        mode: int = 0,
        settings: Sequence[str] = (),
    ) -> None:
        import_pythia()
        self.detector = Detector(shape=(8, 14, 14), noise=0.4) if detector is None else detector
        self.px, self.py, self.pz = (Uniform(float(low), float(high)) for low, high in (px, py, pz))
        self.control = control
        self.max_instances = max_instances
        self.mode = mode
        self.settings = tuple(settings)
        if mode not in _MODES:
            raise ValueError(f"TauDecays:mode is one of {list(_MODES)}; got {mode!r}")
        if control not in _PRESETS:
            try:
                re.compile(control)
            except re.error as error:
                presets = ", ".join(_PRESETS)
                message = f"control={control!r} is neither of {presets} nor a regular expression: {error}"
                raise ValueError(message) from error
        self._idle: deque[TauGenerator] = deque()

    def __call__(self) -> float:
        px = sample(self.px, "px", self.controls("tau/px", Role.NAMED), "tau/px")
        py = sample(self.py, "py", self.controls("tau/py", Role.NAMED), "tau/py")
        pz = sample(self.pz, "pz", self.controls("tau/pz", Role.NAMED), "tau/pz")
        generator = self._take()
        try:
            final = generator.decay(px, py, pz)
        finally:
            # Also after an exception: Pythia starts each event afresh.
            self._idle.append(generator)
        voxels = self.detector.deposit(final.pdg_ids, final.momenta)
        observe(Normal(voxels, self.detector.noise), name="detector", address="detector")
        first, second, *_ = (*final.energies, 0.0, 0.0)
        tag(final.missing_et, "missing_et")
        tag(first, "energy_1")
        tag(second, "energy_2")
        tag(float(final.momenta[:, 3].sum()), "visible_energy")
        return float(final.channel)

    def controls(self, address: str, role: Role) -> bool:
        """Whether the network shall propose draws of this role at this base address."""
        roles = _PRESETS.get(self.control)
        return role in roles if roles is not None else re.search(self.control, address) is not None

    @property
    def channels(self) -> list[list[str]]:
        """Names of the products of each decay channel, by the values of ``decay_channel``."""
        generator = self._take()
        self._idle.append(generator)
        return generator.channels

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """What the values of ``decay_channel`` are called: their products, such as ``"nu_tau pi-"``."""
        return {"decay_channel": tuple(" ".join(products) for products in self.channels)}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_idle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _idle=deque())

    def _take(self) -> TauGenerator:
        with suppress(IndexError):
            return self._idle.pop()
        limit = math.inf if self.control == "all" else self.max_instances
        return TauGenerator(self.mode, self.settings, self.controls, limit)
