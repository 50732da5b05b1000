"""Sherpa as a probabilistic program, where SHERPA_PREFIX says that it is installed; see examples/sherpa."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import etalumis as et
from cpp_programs import BUILD, FRONT_END, ROOT, front_end_digest, require_zmq_headers, tool
from etalumis.distributions import Distribution, Stream
from etalumis.execution import Controller, Reject, Replay, Trace, run
from etalumis.execution.controllers import Answer

PREFIX = os.environ.get("SHERPA_PREFIX", "")
EXAMPLE = ROOT / "examples" / "sherpa"
SEED = 5
BEAMS = 91.2  # GeV

pytestmark = [
    pytest.mark.skipif(not PREFIX, reason="set SHERPA_PREFIX to an installation of Sherpa 2.2 to test with it"),
    pytest.mark.timeout(600),
]

Simulate = Callable[..., et.RemoteModel]


@pytest.fixture(scope="module")
def program() -> Path:
    """The example, built by its own CMakeLists against the installation."""
    require_zmq_headers()
    folder = BUILD / f"sherpa-{front_end_digest().hex()[:12]}"
    configure = ["-S", EXAMPLE, "-B", folder, f"-DSHERPA_PREFIX={PREFIX}", f"-Detalumis_DIR={FRONT_END / 'cmake'}"]
    for arguments in (configure, ["--build", folder]):
        command = [tool("cmake"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "tau_pairs"


@pytest.fixture(scope="module")
def simulate(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Simulate:
    """Launches the simulator in a folder of its own, where Sherpa leaves its files."""

    def launch(scripted: bool = True) -> et.RemoteModel:
        return et.RemoteModel(
            command=[str(program), "{address}", f"RUNDATA={EXAMPLE / 'Run.dat'}"],
            directory=tmp_path_factory.mktemp("sherpa"),
            startup=300.0,
            timeout=120.0,
            policy="raise",
            scripted=scripted,
        )

    return launch


@pytest.fixture(scope="module")
def sherpa(simulate: Simulate) -> Iterator[et.RemoteModel]:
    with simulate() as model:
        yield model


@pytest.fixture(scope="module")
def events(sherpa: et.RemoteModel) -> list[Trace]:
    return list(run(sherpa, indices=range(200), seed=SEED, draw_observations=False))


def seen(model: et.RemoteModel, trace: Trace) -> tuple[object, ...]:
    """Everything that an execution shows of its event, to the last bit; addresses by what they spell."""
    places = [(a.base, a.family, a.instance) for a in (model.addresses[address] for address in trace.addresses)]
    tags = [(tag.name, np.asarray(tag.value).tobytes()) for tag in trace.tags]
    (measured,) = trace.observes
    return places, np.asarray(trace.values).tobytes(), tags, measured.distribution, trace.result


def test_events_are_tau_pairs_whose_energy_and_momentum_add_up(events: list[Trace]) -> None:
    for trace in events:
        particles = np.asarray(trace["particles"])
        assert particles.shape == (trace.result, 5)
        np.testing.assert_allclose(particles[:, 1:].sum(axis=0), [BEAMS, 0.0, 0.0, 0.0], atol=1e-3)
        assert {16, -16} <= set(particles[:, 0]), "a tau neutrino from either side"
        assert not {15, -15, 111} & set(particles[:, 0]), "everything that decays soon has decayed"
        visible = ~np.isin(np.abs(particles[:, 0]), (12, 14, 16))
        energy = particles[visible, 1].sum()
        assert trace["tau_minus_visible"] + trace["tau_plus_visible"] == pytest.approx(energy)
        assert 0.0 < trace["tau_minus_visible"] < 0.5 * BEAMS
        (measured,) = trace.observes
        assert (measured.name, measured.observed) == ("visible_energy", False)
        assert float(np.asarray(measured.distribution.parameters()[0])) == pytest.approx(energy)


def test_every_random_number_is_a_draw_at_its_call_stack(sherpa: et.RemoteModel, events: list[Trace]) -> None:
    counts = [len(trace) for trace in events]
    assert min(counts) >= 10
    assert max(counts) > 1000
    bases = {sherpa.addresses[address].base for trace in events for address in trace.addresses}
    assert 20 < len(bases) < 1000, "a few places, not one for each draw"
    for base in bases:
        assert "TauPairs::event()+0x" in base
        assert base.endswith("]")
        assert "etalumis::SherpaRandom::Get()+0x" in base
    assert any("Decay_Table::Select() const+0x" in base for base in bases), "the choice of a decay channel"
    assert {type(d).__name__ for trace in events for d in trace.distributions} == {"Uniform"}


def test_an_event_is_a_function_of_its_random_numbers(sherpa: et.RemoteModel, events: list[Trace]) -> None:
    """What Metropolis–Hastings rests on: recorded draws, given back in another order, make the same events."""
    for place in np.random.default_rng(SEED).permutation(len(events)):
        trace = events[place]
        recorded = dict(zip(trace.addresses, trace.values, strict=True))
        (again,) = run(sherpa, Replay(recorded), indices=[0], seed=SEED + 1, draw_observations=False)
        assert seen(sherpa, again) == seen(sherpa, trace)


def test_interactive_events_equal_scripted_ones(
    sherpa: et.RemoteModel, events: list[Trace], simulate: Simulate
) -> None:
    """In another process, whose initialisation has drawn as well."""
    short = sorted(events, key=len)[:10]
    with simulate(scripted=False) as interactive:
        again = run(interactive, indices=[trace.index for trace in short], seed=SEED, draw_observations=False)
        for trace, other in zip(short, again, strict=True):
            assert seen(interactive, other) == seen(sherpa, trace)


class Leave(Controller):
    """Gives an execution up at its tenth draw."""

    def __init__(self) -> None:
        self.draws = 0

    def begin(self, index: int) -> None:
        self.draws = 0

    def choose(self, address: int, name: str, distribution: Distribution, control: bool, stream: Stream) -> Answer:
        self.draws += 1
        if self.draws == 10:
            raise Reject
        return distribution.draw(stream), None


def test_an_engine_that_leaves_in_the_middle_of_an_event_finds_sherpa_in_order(
    sherpa: et.RemoteModel, events: list[Trace]
) -> None:
    for trace in events[:20]:
        (left,) = run(sherpa, Leave(), indices=[trace.index], seed=SEED, draw_observations=False)
        assert left.ended == "rejected"
        (again,) = run(sherpa, indices=[trace.index], seed=SEED, draw_observations=False)
        assert seen(sherpa, again) == seen(sherpa, trace)
    assert sherpa.num_failures == 0


def test_random_walk_metropolis_hastings_finds_events_of_the_measured_energy(
    sherpa: et.RemoteModel, events: list[Trace]
) -> None:
    measured = 20.0
    chains = et.posterior(
        sherpa, observe={"visible_energy": measured}, engine=et.RMH(chains=2, burn_in=100), num_traces=600, seed=SEED
    )
    energy = chains.values("tau_minus_visible") + chains.values("tau_plus_visible")
    before = np.array([trace["tau_minus_visible"] + trace["tau_plus_visible"] for trace in events])
    assert abs(energy.mean() - measured) < 8.0 < abs(before.mean() - measured)
    proposed, accepted = map(sum, zip(*chains.acceptance.values(), strict=True))
    assert 0.02 < accepted / proposed < 0.98
    assert sherpa.num_failures == 0
