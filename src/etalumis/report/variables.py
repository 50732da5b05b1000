"""What is reported of a τ decay: the variables of the paper's figure 8."""

from __future__ import annotations

TAU_ENERGIES = ("energy_1", "energy_2")
TAU_MARGINALS = ("px", "py", "pz", "missing_et", *TAU_ENERGIES)
TAU_VARIABLES = (*TAU_MARGINALS, "decay_channel")
