"""A fast three-dimensional calorimeter: from particles to the energy in each voxel.

The detector looks along z. Its transverse axes are the angles atan2(p_x, p_z) and atan2(p_y, p_z), the third
axis is depth in radiation lengths. A shower is a product of three profiles,

    energy(k, j, i) = E · D_k · Y_j · X_i,

with Gaussian lateral profiles integrated over cells (differences of error functions) and the longitudinal
profile of Longo and Sestili (NIM 128 (1975) 283), dE/dt ∝ t^(a−1) exp(−b t), integrated over layers. Every
factor is a smooth function of angle and energy, so that voxels carry information below the size of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_NEUTRINOS = frozenset((12, 14, 16))
_MUON = 13
_FIRST_HADRON = 100  # PDG codes of hadrons have at least three digits

_CRITICAL_ENERGY = 0.01  # GeV: electromagnetic showers stop multiplying below it
_HADRON_WIDTH = 1.6  # lateral width of hadronic showers over that of electromagnetic ones


class _Response(NamedTuple):
    """Shower maximum at offset + slope · ln(floor + E / unit) radiation lengths; relative width."""

    offset: float
    slope: float
    floor: float
    unit: float
    width: float
    showers: bool = True


# PDG, "Passage of particles through matter": t_max = ln(E / E_c) − 0.5 for electrons and + 0.5 for photons;
# ln(2 + …) keeps it positive and smooth at low energy. Hadrons: one interaction length of 12 radiation
# lengths to the first collision, and (0.2 ln E + 0.7) interaction lengths from there.
_ELECTRON = _Response(-0.5, 1.0, 2.0, _CRITICAL_ENERGY, 1.0)
_PHOTON = _Response(0.5, 1.0, 2.0, _CRITICAL_ENERGY, 1.0)
_HADRON = _Response(20.4, 2.4, 1.0, 1.0, _HADRON_WIDTH)
_TRACK = _Response(1.0, 0.0, 1.0, 1.0, 1.0, showers=False)
# A neutral pion that was not decayed showers like its photons.
_RESPONSES = {11: _ELECTRON, 22: _PHOTON, 111: _PHOTON, _MUON: _TRACK}


def _response(pdg_id: int) -> _Response:
    code = abs(pdg_id)
    if code in _RESPONSES:
        return _RESPONSES[code]
    if code > _FIRST_HADRON:
        return _HADRON
    raise ValueError(f"no response to PDG code {pdg_id}: the detector takes e, μ, photons, hadrons and neutrinos")


def scaled_noise(noise: float, from_shape: Sequence[int], to_shape: Sequence[int]) -> float:
    """Noise per voxel that keeps the information of an image when the number of voxels changes.

    Splitting voxels into n parts divides the energy of each by n, and the squared signal-to-noise summed over
    voxels by n; σ must fall with 1/√n, hence σ' = σ · √(voxels / voxels').

    Args:
        noise: standard deviation per voxel in GeV at ``from_shape``.
        from_shape, to_shape: numbers of voxels along each axis.
    """
    return noise * math.sqrt(math.prod(from_shape) / math.prod(to_shape))


class Detector:
    """A calorimeter in front of a beam along +z.

    Args:
        shape: layers in depth, rows in the y angle, columns in the x angle.
        half_angle: acceptance in radians: both transverse angles lie within ± ``half_angle``.
        shower_width: standard deviation of electromagnetic showers in cells (hadronic ones are 1.6 times
            wider); at least about one, or the position within a cell is lost.
        noise: standard deviation of the Gaussian noise per voxel in GeV, for the likelihood
            ``observe(Normal(voxels, detector.noise), name="detector")``. An image of another granularity
            carries the same information if the noise scales with 1/√voxels (:func:`scaled_noise`) and
            ``shower_width`` with the number of cells per axis.
        thickness: depth in radiation lengths.
        track_energy: energy in GeV that a muon leaves over the whole depth.
    """

    def __init__(
        self,
        shape: Sequence[int] = (20, 35, 35),
        half_angle: float = 0.14,
        shower_width: float = 1.2,
        noise: float = 0.2,
        thickness: float = 60.0,
        track_energy: float = 2.0,
    ) -> None:
        self.shape = tuple(int(n) for n in shape)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape must be three positive numbers (depth, rows, columns); got {shape}")
        for name, value in (
            ("half_angle", half_angle),
            ("shower_width", shower_width),
            ("noise", noise),
            ("thickness", thickness),
            ("track_energy", track_energy),
        ):
            if not value > 0.0:
                raise ValueError(f"{name} must be positive; got {value}")
        self.half_angle = float(half_angle)
        self.shower_width = float(shower_width)
        self.noise = float(noise)
        self.thickness = float(thickness)
        self.track_energy = float(track_energy)
        layers, rows, columns = self.shape
        self._layer_edges = np.linspace(0.0, self.thickness, layers + 1)
        self._row_edges = [float(edge) for edge in range(rows + 1)]
        self._column_edges = [float(edge) for edge in range(columns + 1)]

    def deposit(self, pdg_ids: Sequence[int], momenta: ArrayLike) -> NDArray[np.float32]:
        """Energy in each voxel without noise, in GeV.

        Args:
            pdg_ids: PDG Monte Carlo codes of n particles; the sign does not matter. Neutrinos leave nothing.
            momenta: (n, 4) array of (p_x, p_y, p_z, E) in GeV.

        Returns:
            float32 array of shape ``shape``; a particle outside the acceptance leaves what reaches in.

        Raises:
            ValueError: for a particle that is neither a lepton, a photon nor a hadron.
        """
        rows: list[list[float]] = []
        columns: list[list[float]] = []
        kept: list[tuple[float, float, bool]] = []
        layers, height, width = self.shape
        for pdg_id, (px, py, pz, energy) in zip(pdg_ids, np.asarray(momenta).tolist(), strict=True):
            if abs(pdg_id) in _NEUTRINOS:
                continue
            response = _response(pdg_id)
            peak = response.offset + response.slope * math.log(response.floor + energy / response.unit)
            kept.append((energy, peak, response.showers))
            precision = 1.0 / (math.sqrt(2.0) * self.shower_width * response.width)
            x = 0.5 * width * (1.0 + math.atan2(px, pz) / self.half_angle)
            y = 0.5 * height * (1.0 + math.atan2(py, pz) / self.half_angle)
            columns.append([math.erf((edge - x) * precision) for edge in self._column_edges])
            rows.append([math.erf((edge - y) * precision) for edge in self._row_edges])
        if not kept:
            return np.zeros(self.shape, dtype=np.float32)
        # The share of a cell is half a difference of error functions: the quarter is in the depth profile.
        # Single precision makes far cells exactly zero.
        depth = self._depth_profiles(np.array(kept))
        y_profile = np.array(rows, dtype=np.float32)
        x_profile = np.array(columns, dtype=np.float32)
        y_profile = y_profile[:, 1:] - y_profile[:, :-1]
        x_profile = x_profile[:, 1:] - x_profile[:, :-1]
        lateral = y_profile[:, :, None] * x_profile[:, None, :]
        voxels = depth.T @ lateral.reshape(len(kept), height * width)
        return voxels.reshape(layers, height, width)

    def _depth_profiles(self, kept: NDArray[np.float64]) -> NDArray[np.float32]:
        """A quarter of the energy per layer, (n, layers); rows of ``kept`` are energy, peak, showers."""
        energy, peak, showers = kept[:, 0:1], kept[:, 1:2], kept[:, 2:3]
        # Shape a = 4 with the maximum at (a − 1) / b: the incomplete gamma function is elementary.
        t = 3.0 * self._layer_edges / peak
        remaining = np.exp(-t) * (1.0 + t * (1.0 + t * (0.5 + t / 6.0)))
        profile = remaining[:, :-1] - remaining[:, 1:]
        track = (self.track_energy / self.shape[0]) * -np.expm1(-energy / self.track_energy)
        per_layer = showers * energy * profile + (1.0 - showers) * track
        return (0.25 * per_layer).astype(np.float32)
