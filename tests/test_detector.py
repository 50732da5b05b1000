"""The calorimeter against direct integration of its profiles, and what a reader of images relies on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from etalumis.simulators.detector import Detector, scaled_noise

ELECTRON, MUON, NEUTRINO, PHOTON, PION, PI_ZERO, KAON = 11, 13, 16, 22, 211, 111, 321


def momentum(x_angle: float, y_angle: float, energy: float) -> list[float]:
    """A massless particle at two transverse angles."""
    x, y = math.tan(x_angle), math.tan(y_angle)
    z = energy / math.sqrt(1.0 + x * x + y * y)
    return [x * z, y * z, z, energy]


def mean_depth(image: np.ndarray) -> float:
    return float((image.sum(axis=(1, 2)) * (np.arange(len(image)) + 0.5)).sum() / image.sum())


def column_spread(image: np.ndarray) -> float:
    profile = image.sum(axis=(0, 1), dtype=np.float64)
    columns = np.arange(len(profile)) + 0.5
    mean = (profile * columns).sum() / profile.sum()
    return float(math.sqrt((profile * (columns - mean) ** 2).sum() / profile.sum()))


def test_default_is_the_detector_of_the_paper() -> None:
    image = Detector().deposit([PHOTON], [momentum(0.0, 0.0, 10.0)])
    assert image.shape == (20, 35, 35)
    assert image.dtype == np.float32


def test_voxels_integrate_the_shower_density() -> None:
    """Against a midpoint sum over a grid 20 times finer per axis, from the density's formula alone."""
    detector = Detector(shape=(6, 9, 11), half_angle=0.1, shower_width=1.3, thickness=30.0)
    energy, x_angle, y_angle = 20.0, 0.031, -0.017
    image = detector.deposit([ELECTRON], [momentum(x_angle, y_angle, energy)])

    def lateral(cells: int, angle: float) -> np.ndarray:
        fine = (np.arange(20 * cells) + 0.5) / 20.0
        centre = 0.5 * cells * (1.0 + angle / 0.1)
        density = np.exp(-0.5 * ((fine - centre) / 1.3) ** 2) / (1.3 * math.sqrt(2.0 * math.pi))
        return density.reshape(cells, 20).sum(axis=1) / 20.0

    peak = math.log(2.0 + energy / 0.01) - 0.5
    fine = (np.arange(6 * 200) + 0.5) * 30.0 / 1200
    rate = 3.0 / peak
    density = rate**4 * fine**3 * np.exp(-rate * fine) / 6.0
    depth = density.reshape(6, 200).sum(axis=1) * 30.0 / 1200
    expected = energy * np.einsum("k,j,i->kji", depth, lateral(9, y_angle), lateral(11, x_angle))
    np.testing.assert_allclose(image, expected, atol=2e-4 * expected.max())


def test_energy_is_contained_and_adds_up() -> None:
    detector = Detector(shape=(8, 14, 14), thickness=60.0)
    photon, pion = momentum(0.01, 0.02, 15.0), momentum(-0.05, 0.0, 25.0)
    alone = [detector.deposit([PHOTON], [photon]), detector.deposit([PION], [pion])]
    assert alone[0].sum() == pytest.approx(15.0, rel=1e-3)
    assert 0.8 * 25.0 < alone[1].sum() < 0.95 * 25.0  # hadronic showers leak out at the back
    np.testing.assert_allclose(detector.deposit([PHOTON, PION], [photon, pion]), alone[0] + alone[1], atol=1e-5)
    assert min(image.min() for image in alone) >= 0.0


def test_species_look_different() -> None:
    detector = Detector(shape=(20, 35, 35))
    images = {i: detector.deposit([i], [momentum(0.0, 0.0, 20.0)]) for i in (ELECTRON, PHOTON, PION, MUON)}
    assert mean_depth(images[ELECTRON]) < mean_depth(images[PHOTON]) < 0.5 * mean_depth(images[PION])
    assert column_spread(images[ELECTRON]) == pytest.approx(math.sqrt(1.2**2 + 1.0 / 12.0), rel=0.01)
    assert column_spread(images[PION]) > 1.4 * column_spread(images[ELECTRON])
    per_layer = images[MUON].sum(axis=(1, 2))
    np.testing.assert_allclose(per_layer, per_layer[0], rtol=1e-5)
    assert per_layer.sum() == pytest.approx(2.0, rel=1e-3)


def test_signs_and_families_of_codes() -> None:
    detector = Detector(shape=(4, 6, 6))
    at = [momentum(0.02, 0.0, 10.0)]
    np.testing.assert_array_equal(detector.deposit([ELECTRON], at), detector.deposit([-ELECTRON], at))
    np.testing.assert_array_equal(detector.deposit([PION], at), detector.deposit([-KAON], at))
    np.testing.assert_array_equal(detector.deposit([PI_ZERO], at), detector.deposit([PHOTON], at))
    with pytest.raises(ValueError, match="PDG code 24"):
        detector.deposit([24], at)


def test_neutrinos_and_nothing_leave_nothing() -> None:
    detector = Detector(shape=(4, 6, 6))
    for image in (
        detector.deposit([NEUTRINO, -12], [momentum(0.0, 0.0, 30.0)] * 2),
        detector.deposit([], np.zeros((0, 4))),
    ):
        np.testing.assert_array_equal(image, np.zeros((4, 6, 6)))


def test_axes_and_acceptance() -> None:
    detector = Detector(shape=(4, 14, 14), half_angle=0.14)
    image = detector.deposit([PHOTON], [momentum(0.07, -0.035, 10.0)]).sum(axis=0)
    assert np.unravel_index(image.argmax(), image.shape) == (5, 10)
    swapped = detector.deposit([PHOTON], [momentum(-0.035, 0.07, 10.0)]).sum(axis=0)
    np.testing.assert_allclose(swapped, image.T, rtol=1e-4, atol=1e-6)
    assert detector.deposit([PHOTON], [momentum(0.14, 0.0, 10.0)]).sum() == pytest.approx(5.0, rel=0.01)
    assert detector.deposit([PHOTON], [momentum(0.5, 0.0, 10.0)]).sum() < 1e-6
    assert detector.deposit([PHOTON], [[0.0, 0.0, -10.0, 10.0]]).sum() < 1e-6


@pytest.mark.parametrize("pdg_id", [ELECTRON, PHOTON, PION, MUON])
def test_smooth_in_angle_and_energy(pdg_id: int) -> None:
    """A step of half the size changes the image half as much, everywhere: no kinks at cell edges."""
    detector = Detector(shape=(8, 14, 14))

    def image(x_angle: float, energy: float) -> np.ndarray:
        return detector.deposit([pdg_id], [momentum(x_angle, 0.013, energy)]).astype(np.float64)

    for x_angle in np.linspace(-0.1, 0.1, 21):
        for dx, de in ((1e-3, 0.0), (0.0, 0.2)):
            change = image(x_angle + dx, 12.0 + de) - image(x_angle - dx, 12.0 - de)
            half = image(x_angle + dx / 2, 12.0 + de / 2) - image(x_angle - dx / 2, 12.0 - de / 2)
            np.testing.assert_allclose(2.0 * half, change, atol=0.01 * np.abs(change).max() + 1e-6)


def test_scaled_noise_keeps_the_information() -> None:
    """Fisher information about the angle, Σ (∂voxel/∂angle)² / σ², at two granularities of the same showers."""

    def information(shape: tuple[int, int, int], width: float, noise: float) -> float:
        detector = Detector(shape=shape, shower_width=width)
        image = [detector.deposit([PION], [momentum(a, 0.0, 20.0)]).astype(np.float64) for a in (0.029, 0.031)]
        return float((((image[1] - image[0]) / 0.002) ** 2).sum() / noise**2)

    coarse, fine = (12, 20, 20), (24, 40, 40)
    noise = scaled_noise(0.4, coarse, fine)
    assert noise == pytest.approx(0.4 / math.sqrt(8.0))
    reference = information(coarse, 2.0, 0.4)
    assert information(fine, 4.0, noise) == pytest.approx(reference, rel=0.05)
    # Negative control: unscaled noise loses information.
    assert information(fine, 4.0, 0.4) < 0.2 * reference


@pytest.mark.parametrize(
    "arguments",
    [{"shape": (8, 14)}, {"shape": (0, 4, 4)}, {"noise": 0.0}, {"half_angle": -1.0}, {"shower_width": math.nan}],
)
def test_refuses_what_is_no_detector(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Detector(**arguments)  # type: ignore[arg-type]
