"""The τ decay: conservation laws, phase space against an independent generator, and the shape of its traces."""

from __future__ import annotations

import copy
import math
from collections import Counter

import numpy as np
import pytest

from etalumis.execution import Model, run
from etalumis.execution.trace import Trace
from etalumis.simulators.detector import Detector
from etalumis.simulators.particles import Channel
from etalumis.simulators.phase_space import MassLadder, Momentum, two_body
from etalumis.simulators.tau import CHANNELS, PARTICLES, Event, Tau

MASS = PARTICLES["tau-"].mass
AT_REST = (0.0, 0.0, 0.0, MASS)
IN_FLIGHT = (2.0, -1.0, 45.0, math.sqrt(4.0 + 1.0 + 45.0**2 + MASS**2))
BY_CODE = {particle.pdg_id: particle for particle in PARTICLES.values()}
LABELS = [channel.label for channel in CHANNELS]
MANY_BODIES = [channel for channel in CHANNELS if len(channel.products) > 2]


@pytest.fixture(scope="module")
def tau() -> Tau:
    return Tau()


def decays(tau: Tau, channel: int, momentum: Momentum, number: int, seed: int) -> tuple[list[Event], list[Trace]]:
    """Events of one channel, through the execution loop."""
    events: list[Event] = []
    model = Model(lambda: events.append(tau.decay(channel, momentum)), name="decays")
    return events, list(run(model, indices=range(number), seed=seed))


def mass_of(momentum: np.ndarray) -> np.ndarray:
    square = momentum[..., 3] ** 2 - (momentum[..., :3] ** 2).sum(axis=-1)
    return np.sqrt(np.maximum(square, 0.0))


def direct_products(event: Event, channel: Channel) -> np.ndarray:
    """Four-momenta (n, 4) of the τ's own products: the final particles regrouped until each mass is met."""
    remaining = list(event.momenta)
    products = []
    for name in channel.products:
        total = np.array(remaining.pop(0))
        while abs(mass_of(total) - PARTICLES[name].mass) > 1e-5:
            total = total + np.array(remaining.pop(0))
        products.append(total)
    assert not remaining
    return np.array(products)


# --- the table ----------------------------------------------------------------------------------------------


def test_channels_are_decays_of_the_tau() -> None:
    assert len(CHANNELS) >= 15
    assert len(set(LABELS)) == len(CHANNELS)
    assert math.fsum(channel.ratio for channel in CHANNELS) == pytest.approx(1.0, abs=1e-12)
    charge = {"e-": -1, "mu-": -1, "pi-": -1, "pi+": 1, "K-": -1, "K+": 1}
    for channel in CHANNELS:
        assert channel.products.count("nu_tau") == 1, channel.label
        assert sum(charge.get(name, 0) for name in channel.products) == -1, channel.label
        assert sum(PARTICLES[name].mass for name in channel.products) < MASS, channel.label


def test_modes_of_products_conserve_charge_and_energy() -> None:
    for name, particle in PARTICLES.items():
        if not particle.modes:
            continue
        assert math.fsum(mode.ratio for mode in particle.modes) == pytest.approx(1.0), name
        for mode in particle.modes:
            assert mode.products.count("pi+") == mode.products.count("pi-")
            assert sum(PARTICLES[product].mass for product in mode.products) <= particle.mass


# --- kinematics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", range(len(CHANNELS)), ids=LABELS)
def test_four_momentum_and_mass_shells(tau: Tau, channel: int) -> None:
    events, _ = decays(tau, channel, IN_FLIGHT, 150, seed=channel)
    for event in events:
        momenta = np.array(event.momenta)
        np.testing.assert_allclose(momenta.sum(axis=0), IN_FLIGHT, rtol=0.0, atol=1e-10)
        expected = [BY_CODE[pdg_id].mass ** 2 for pdg_id in event.pdg_ids]
        squares = momenta[:, 3] ** 2 - (momenta[:, :3] ** 2).sum(axis=1)
        np.testing.assert_allclose(squares, expected, rtol=0.0, atol=1e-9)
        direct_products(event, CHANNELS[channel])


def test_two_body_at_rest() -> None:
    first, second = two_body((0.0, 0.0, 0.0, 2.0), 2.0, 0.6, 0.0, 0.25, 1.0)
    assert first[3] == pytest.approx((4.0 + 0.36) / 4.0)
    assert second[3] == pytest.approx((4.0 - 0.36) / 4.0)
    assert first[2] == pytest.approx(0.25 * second[3])
    assert math.atan2(first[1], first[0]) == pytest.approx(1.0)


def rambo(masses: list[float], number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Momenta (N, n, 4) and weights of n-body phase space: Kleiss, Stirling and Ellis, CPC 40 (1986) 359."""
    n = len(masses)
    u = rng.random((number, n, 4))
    energy = -np.log(u[..., 2] * u[..., 3])
    cosine, phi = 2.0 * u[..., 0] - 1.0, 2.0 * math.pi * u[..., 1]
    sine = np.sqrt(1.0 - cosine**2)
    q = energy[..., None] * np.stack([sine * np.cos(phi), sine * np.sin(phi), cosine], axis=-1)
    total, total_energy = q.sum(axis=1), energy.sum(axis=1)
    mass = np.sqrt(total_energy**2 - (total**2).sum(axis=1))
    boost, gamma = -total / mass[:, None], total_energy / mass
    along = np.einsum("ni,nki->nk", boost, q)
    x = (MASS / mass)[:, None]
    massless = x[..., None] * (q + boost[:, None] * (energy + along / (1.0 + gamma)[:, None])[..., None])
    length = np.linalg.norm(massless, axis=-1)
    # Scale all momenta so that the energies of massive particles add up: Newton's method.
    square = np.array(masses) ** 2
    scale = np.full(number, math.sqrt(1.0 - (sum(masses) / MASS) ** 2))
    for _ in range(30):
        energies = np.sqrt(square + (scale[:, None] * length) ** 2)
        scale -= (energies.sum(axis=1) - MASS) / (scale[:, None] * length**2 / energies).sum(axis=1)
    energies = np.sqrt(square + (scale[:, None] * length) ** 2)
    k = scale[:, None] * length
    np.testing.assert_allclose(energies.sum(axis=1), MASS, rtol=1e-9)
    log_weight = (2 * n - 3) * np.log(k.sum(axis=1) / MASS) + np.log(k / energies).sum(axis=1)
    weight = np.exp(log_weight) / (k**2 / energies).sum(axis=1) * MASS
    return np.concatenate([scale[:, None, None] * massless, energies[..., None]], axis=-1), weight


def summaries(momenta: np.ndarray) -> np.ndarray:
    """Columns (N, …): inner masses of the ladder and of the last and first hadron, energies, second moments."""
    inner = [mass_of(momenta[:, :k].sum(axis=1)) for k in range(2, momenta.shape[1])]
    crossed = [mass_of(momenta[:, 0] + momenta[:, -2]), mass_of(momenta[:, 1] + momenta[:, -1])]
    energies = [momenta[:, k, 3] for k in range(momenta.shape[1])]
    px, py, pz = (momenta[:, 0, i] for i in range(3))
    squares = [m**2 for m in inner]
    return np.stack([*inner, *squares, *crossed, *energies, px, pz, px * pz, pz**2 - px**2, py**2 - px**2], axis=1)


def largest_deviation(momenta: np.ndarray, reference: np.ndarray, weight: np.ndarray) -> float:
    """The largest difference of the means of the summaries, in standard errors."""
    ours, theirs = summaries(momenta), summaries(reference)
    share = weight / weight.sum()
    mean = share @ theirs
    reference_error = np.sqrt(share**2 @ (theirs - mean) ** 2)
    error = np.hypot(ours.std(axis=0) / math.sqrt(len(ours)), reference_error)
    return float(np.abs((ours.mean(axis=0) - mean) / error).max())


@pytest.mark.parametrize("channel", MANY_BODIES, ids=[channel.label for channel in MANY_BODIES])
def test_phase_space_and_resonances_against_rambo(tau: Tau, channel: Channel) -> None:
    """About 20 means in each of 22 channels: |z| < 5 fails by chance once in 4,000 runs."""
    events, _ = decays(tau, CHANNELS.index(channel), AT_REST, 1500, seed=11)
    momenta = np.array([direct_products(event, channel) for event in events])
    rng = np.random.default_rng(12)
    reference, weight = rambo([PARTICLES[name].mass for name in channel.products], 60_000, rng)
    flat = weight.copy()
    for rung, (resonance, width) in channel.resonances:
        square = mass_of(reference[:, :rung].sum(axis=1)) ** 2
        weight = weight / ((square - resonance**2) ** 2 + (resonance * width) ** 2)
    assert largest_deviation(momenta, reference, weight) < 5.0
    if channel.resonances:  # negative control: the check sees whether the resonance is there
        assert largest_deviation(momenta, reference, flat) > 5.0


def test_dalitz_plot_is_flat() -> None:
    """Three bodies: density constant in (m²_12, m²_23) inside the boundary, 0 outside; ω → π⁺ π⁻ π⁰."""
    parent = PARTICLES["omega"].mass
    masses = [PARTICLES[name].mass for name in ("pi+", "pi-", "pi0")]
    ladder = MassLadder(parent, masses)
    rng = np.random.default_rng(5)
    points, positions = [], []
    while len(points) < 8000:
        (inner,), acceptance = ladder.masses([rng.random()])
        if rng.random() > acceptance:
            continue
        directions = rng.uniform((-1.0, -math.pi), (1.0, math.pi), size=(2, 2)).tolist()
        pair, third = two_body((0.0, 0.0, 0.0, parent), parent, inner, masses[2], *directions[0])
        _, second = two_body(pair, inner, masses[0], masses[1], *directions[1])
        s12 = inner**2
        s23 = float(mass_of(np.array(second) + np.array(third))) ** 2
        low, high = dalitz_limits(s12, parent, masses)
        assert low - 1e-9 < s23 < high + 1e-9
        points.append(s12)
        positions.append((s23 - low) / (high - low))
    # Uniform across the plot at given m²_12, and the width of the plot as the density of m²_12.
    assert_uniform(np.array(positions))
    grid = np.linspace((masses[0] + masses[1]) ** 2, (parent - masses[2]) ** 2, 20_001)
    limits = np.array([dalitz_limits(s, parent, masses) for s in grid[:-1] + 0.5 * np.diff(grid)])
    widths = limits[:, 1] - limits[:, 0]
    assert_uniform(np.interp(points, grid, np.concatenate([[0.0], np.cumsum(widths) / widths.sum()])))


def dalitz_limits(s12: float, parent: float, masses: list[float]) -> tuple[float, float]:
    """Range of m²_23 at given m²_12 (Particle Data Group, Kinematics, section on three-body decays)."""
    energy_2 = (s12 - masses[0] ** 2 + masses[1] ** 2) / (2.0 * math.sqrt(s12))
    energy_3 = (parent**2 - s12 - masses[2] ** 2) / (2.0 * math.sqrt(s12))
    p2 = math.sqrt(max(0.0, energy_2**2 - masses[1] ** 2))
    p3 = math.sqrt(max(0.0, energy_3**2 - masses[2] ** 2))
    return (energy_2 + energy_3) ** 2 - (p2 + p3) ** 2, (energy_2 + energy_3) ** 2 - (p2 - p3) ** 2


def assert_uniform(values: np.ndarray) -> None:
    """χ² over 20 bins: 60 is exceeded once in 200,000 by chance."""
    counts, _ = np.histogram(values, bins=20, range=(0.0, 1.0))
    expected = len(values) / 20
    assert counts.sum() == len(values)
    assert ((counts - expected) ** 2 / expected).sum() < 60.0


# --- rejection loops ----------------------------------------------------------------------------------------


def all_ladders(tau: Tau) -> dict[str, MassLadder]:
    ladders = {}
    for channel, decay in zip(CHANNELS, tau.decays, strict=True):
        if decay.ladder is not None:
            ladders[channel.label] = decay.ladder
    for name in ("eta", "omega"):
        for mode in PARTICLES[name].modes:
            if len(mode.products) > 2:
                masses = [PARTICLES[product].mass for product in mode.products]
                ladders[f"{name} to {' '.join(mode.products)}"] = MassLadder(PARTICLES[name].mass, masses)
    return ladders


def acceptances(ladder: MassLadder, number: int) -> np.ndarray:
    uniforms = np.random.default_rng(8).random((number, len(ladder.rungs))).tolist()
    return np.array([ladder.masses(row)[1] for row in uniforms])


def test_loops_accept_more_than_half_and_never_exceed_their_bound(tau: Tau) -> None:
    for label, ladder in all_ladders(tau).items():
        accepted = acceptances(ladder, 5000)
        assert accepted.mean() > 0.6, label
        assert accepted.min() >= 0.0, label
        assert accepted.max() <= 1.0, label


@pytest.mark.slow
def test_bounds_hold_far_out(tau: Tau) -> None:
    for label, ladder in all_ladders(tau).items():
        assert acceptances(ladder, 100_000).max() <= 1.0, label


def test_masses_at_the_ends_of_the_unit_interval(tau: Tau) -> None:
    """A network's proposal may sit on the very end of its support."""
    for label, ladder in all_ladders(tau).items():
        for corner in np.ndindex(*[3] * len(ladder.rungs)):
            masses, acceptance = ladder.masses([0.5 * i for i in corner])
            assert 0.0 <= acceptance <= 1.0, label
            assert all(math.isfinite(m) for m in masses), label


# --- traces -------------------------------------------------------------------------------------------------


def traces_of(simulator: Tau, number: int, seed: int) -> tuple[Model, list[Trace]]:
    model = Model(simulator)
    return model, list(run(model, indices=range(number), seed=seed, draw_observations=False))


@pytest.fixture(scope="module")
def prior(tau: Tau) -> tuple[Model, list[Trace]]:
    return traces_of(tau, 3000, seed=21)


def test_names_tags_and_result(prior: tuple[Model, list[Trace]]) -> None:
    for trace in prior[1]:
        assert trace.names[:4] == ["px", "py", "pz", "decay_channel"]
        assert -3.0 < trace["px"] < 3.0
        assert -3.0 < trace["py"] < 3.0
        assert 40.0 < trace["pz"] < 60.0
        assert isinstance(trace.result, float)
        assert trace.result == trace["decay_channel"]
        assert [(o.name, o.distribution.shape) for o in trace.observes] == [("detector", (8, 14, 14))]
        assert trace["energy_1"] >= trace["energy_2"] >= 0.0
        assert trace["energy_1"] <= trace["visible_energy"] < 62.0
        assert 0.0 <= trace["missing_et"] < 6.0


def test_channels_follow_their_ratios(prior: tuple[Model, list[Trace]]) -> None:
    counts = Counter(trace["decay_channel"] for trace in prior[1])
    for index, channel in enumerate(CHANNELS):
        expected = channel.ratio * len(prior[1])
        assert abs(counts[index] - expected) < 5.0 * math.sqrt(expected) + 3.0, channel.label


def test_tags_of_known_channels(tau: Tau) -> None:
    events, _ = decays(tau, LABELS.index("pi"), IN_FLIGHT, 20, seed=1)
    for event in events:
        (pion,) = event.energies
        assert event.visible_energy == pytest.approx(pion)
        assert event.pdg_ids == [-211, 16]
        neutrino = event.momenta[1]
        assert event.missing_et == pytest.approx(math.hypot(neutrino[0], neutrino[1]))
        assert pion + neutrino[3] == pytest.approx(IN_FLIGHT[3])
    events, _ = decays(tau, LABELS.index("pi pi0"), IN_FLIGHT, 20, seed=1)
    for event in events:
        assert event.pdg_ids == [-211, 22, 22, 16]
        assert event.energies == pytest.approx([event.momenta[0][3], event.momenta[1][3] + event.momenta[2][3]])
    # A kaon ranks as itself, whatever it decays to.
    events, _ = decays(tau, LABELS.index("pi K0"), IN_FLIGHT, 50, seed=1)
    assert {len(event.energies) for event in events} == {2}
    assert {len(event.pdg_ids) for event in events} == {3, 4, 6}
    for event in events:
        assert sum(event.energies) == pytest.approx(event.visible_energy)


def test_image_holds_the_visible_energy(prior: tuple[Model, list[Trace]]) -> None:
    """Up to what leaks out at the back and the sides, and what muons carry away."""
    ratios = []
    for trace in prior[1]:
        seen = trace.observes[0].distribution.mean.sum()
        assert seen < 1.001 * trace["visible_energy"]
        if trace["visible_energy"] > 20.0 and CHANNELS[int(trace.result)].label != "mu":
            ratios.append(seen / trace["visible_energy"])
    assert np.median(ratios) > 0.85
    assert min(ratios) > 0.5


def test_same_seed_same_event(prior: tuple[Model, list[Trace]]) -> None:
    _, again = traces_of(Tau(), 50, seed=21)
    for first, second in zip(prior[1], again, strict=False):
        assert first.values == second.values
        np.testing.assert_array_equal(first.observes[0].distribution.mean, second.observes[0].distribution.mean)


def test_controlled_draws(prior: tuple[Model, list[Trace]]) -> None:
    """Controlled up to the 4th pass, except what turns only neutrinos."""
    model, traces = prior
    neutrino_pairs = {f"tau; {lepton}; {angle}2" for lepton in ("e", "mu") for angle in ("cos", "phi")}
    late = 0
    for trace in traces:
        for address, controlled in zip(trace.addresses, trace.controlled, strict=True):
            where = model.addresses[address]
            beyond = where.instance > 4
            late += beyond
            assert controlled == (where.base not in neutrino_pairs and not beyond), str(where)
    assert late > 0


def test_momentum_and_channel_preset() -> None:
    _, traces = traces_of(Tau(control="momentum_and_channel"), 200, seed=3)
    assert all(trace.controlled == [True] * 4 + [False] * (len(trace) - 4) for trace in traces)
    with pytest.raises(ValueError, match="momentum_and_channel"):
        Tau(control="everything")  # type: ignore[arg-type]


def test_lengths_and_types_vary(prior: tuple[Model, list[Trace]]) -> None:
    types = {tuple(trace.addresses) for trace in prior[1]}
    lengths = [len(trace) for trace in prior[1]]
    assert len(types) > 50
    assert min(lengths) == 6
    assert max(lengths) > 20
    assert 10.0 < np.mean(lengths) < 15.0


def test_plain_arguments_and_copies() -> None:
    simulator = Tau(Detector(shape=(4, 6, 6), noise=0.5), px=[-1, 1], py=[0, 1], pz=[10, 20])
    copied = copy.deepcopy(simulator)
    for one in (simulator, copied):
        _, (trace,) = traces_of(one, 1, seed=0)
        assert 10.0 < trace["pz"] < 20.0
        assert trace.observes[0].distribution.shape == (4, 6, 6)
