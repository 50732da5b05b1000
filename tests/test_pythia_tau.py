"""Pythia as a probabilistic program: every random number a draw, every event a function of its draws."""

import pickle
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from etalumis.distributions import Distribution, Stream
from etalumis.execution import (
    AddressBook,
    Controller,
    Model,
    Observations,
    Prior,
    Reject,
    Replay,
    Request,
    Trace,
    run,
    run_lockstep,
)
from etalumis.execution.controllers import Answer

pythia8 = pytest.importorskip("pythia8mc", reason="needs the extra pythia")

from etalumis.simulators.detector import Detector  # noqa: E402
from etalumis.simulators.pythia_generator import TauGenerator  # noqa: E402
from etalumis.simulators.pythia_tau import PythiaTau  # noqa: E402

PICK = "Pythia8::ParticleDataEntry::pickChannel()"
LIFETIME = "; Pythia8::Rndm::exp()"
WITHIN = "; within channel]"


class Scripted(Controller):
    """Gives what a function says for (name, base address), and the prior's value where it says None."""

    def __init__(self, model: Model, choose: Callable[[str, str], float | None]) -> None:
        self.addresses = model.addresses
        self.decide = choose

    def choose(self, address: int, name: str, distribution: Distribution, control: bool, stream: Stream) -> Answer:
        value = self.decide(name, self.addresses[address].base)
        return (distribution.draw(stream), None) if value is None else (value, 0.0)


def traces(model: Model, count: int, seed: int = 0, controller: Controller | None = None) -> list[Trace]:
    return list(run(model, controller, indices=range(count), seed=seed, draw_observations=False))


def execute(model: Model, controller: Controller, index: int = 0) -> Trace:
    return model.execute(controller, Observations(), Stream(0), index, draw_observations=False)


def event(trace: Trace) -> tuple[Any, ...]:
    """Everything that an execution shows of its event, to the last bit."""
    voxels = trace.observes[0].distribution.parameters()[0]
    return np.asarray(voxels).tobytes(), tuple((tag.name, tag.value) for tag in trace.tags), trace.result


def bases(model: Model, trace: Trace) -> list[str]:
    return [model.addresses[address].base for address in trace.addresses]


def generator(simulator: PythiaTau) -> TauGenerator:
    """The Pythia instance that a single-threaded simulator has used."""
    (only,) = simulator._idle
    return only


def taken_channel(simulator: PythiaTau) -> int:
    """The channel of the τ in Pythia's event record of the last event."""
    record = generator(simulator)._event
    tau = record[1]
    products = range(tau.daughter1(), tau.daughter2() + 1)
    name = generator(simulator)._pythia.particleData.name
    found = Counter(name(record[place].id()) for place in products)
    (channel,) = [c for c, names in enumerate(simulator.channels) if Counter(names) == found]
    return channel


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(PythiaTau())


@pytest.mark.parametrize(("mode", "count"), [(0, 3000), (2, 200)])
def test_the_channel_drawn_is_the_channel_taken(mode: int, count: int) -> None:
    model = Model(PythiaTau(mode=mode))
    seen = set()
    for trace in run(model, indices=range(count), seed=5, draw_observations=False):
        assert trace.result == trace["decay_channel"] == taken_channel(model.function)
        seen.add(trace.result)
    assert len(seen) > 10


@pytest.mark.parametrize("edge", [0.0, 1e-300, 2.0**-53, 0.5, 1.0 - 2.0**-53, 1.0])
def test_every_channel_is_taken_up_to_the_edges_of_its_bin(model: Model, edge: float) -> None:
    for channel in range(len(model.function.channels)):

        def choose(name: str, base: str, channel: int = channel) -> float | None:
            return channel if name == "decay_channel" else edge if base.endswith(WITHIN) else None

        execute(model, Scripted(model, choose), channel)
        assert taken_channel(model.function) == channel


class Edges(Controller):
    """Puts every controlled number of Pythia on an edge of the unit interval."""

    def choose(self, address: int, name: str, distribution: Distribution, control: bool, stream: Stream) -> Answer:
        number = distribution.draw(stream)
        if control and not name and distribution.family == "Uniform":
            return float(number > 0.5), 0.0
        return number, None


@pytest.mark.parametrize("mode", [0, 2])
def test_numbers_on_the_edges_of_the_unit_interval_give_events(mode: int) -> None:
    model = Model(PythiaTau(mode=mode))
    for trace in traces(model, 200, controller=Edges()):
        voxels = trace.observes[0].distribution.parameters()[0]
        assert np.isfinite([*(tag.value for tag in trace.tags), np.sum(voxels)]).all()


def test_bins_share_the_unit_interval_by_branching_ratio(model: Model) -> None:
    execute(model, Prior())
    bins = np.array(generator(model.function)._bins)
    assert bins[0, 0] == 0.0
    assert bins[-1, 1] == 1.0
    assert np.array_equal(bins[1:, 0], bins[:-1, 1])
    probabilities = np.exp([generator(model.function)._ratios.log_prob(c) for c in range(len(bins))])
    assert np.allclose(bins[:, 1] - bins[:, 0], probabilities, rtol=1e-9)
    assert model.function.channels[4] == ["nu_tau", "pi0", "pi-"]
    assert probabilities[4] == pytest.approx(0.2537447)


def test_events_follow_the_law_of_pythia_with_its_own_random_numbers() -> None:
    """Kolmogorov–Smirnov, two samples of 3,000; a false alarm once in 10^5 runs for each of two statistics."""
    count = 3000
    simulator = PythiaTau(px=(0.999, 1.001), py=(1.999, 2.001), pz=(49.999, 50.001))
    ours = traces(Model(simulator), count)
    own = pythia8.Pythia("", False)
    for line in (
        "Print:quiet = on",
        "ProcessLevel:all = off",
        "TauDecays:mode = 0",
        "Random:setSeed = on",
        "Random:seed = 7",
    ):
        own.readString(line)
    own.init()
    mass = own.particleData.m0(15)
    theirs: dict[str, list[float]] = {"missing_et": [], "visible_energy": []}
    for _ in range(count):
        own.event.reset()
        own.event.append(15, 1, 0, 0, 1.0, 2.0, 50.0, (mass**2 + 2505.0) ** 0.5, mass)
        assert own.next()
        final = [own.event[i] for i in range(1, own.event.size()) if own.event[i].isFinal()]
        dark = [p for p in final if abs(p.id()) in (12, 14, 16)]
        theirs["missing_et"].append(np.hypot(sum(p.px() for p in dark), sum(p.py() for p in dark)))
        theirs["visible_energy"].append(sum(p.e() for p in final) - sum(p.e() for p in dark))
    bound = np.sqrt(np.log(2 / 1e-5) / count)
    for name in ("missing_et", "visible_energy"):
        assert distance([trace[name] for trace in ours], theirs[name]) < bound
    # Negative control: a shift by a third of the spread is seen.
    shifted = np.array(theirs["visible_energy"]) + np.std(theirs["visible_energy"]) / 3.0
    assert distance(theirs["visible_energy"], shifted.tolist()) > bound


def distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Largest difference of two empirical distribution functions."""
    both = np.sort(np.concatenate([first, second]))
    ranks = [np.searchsorted(np.sort(sample), both, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(ranks[0] - ranks[1]).max())


@pytest.mark.parametrize(("mode", "count"), [(0, 500), (2, 40)])
def test_an_event_is_a_function_of_its_draws_alone(mode: int, count: int) -> None:
    model = Model(PythiaTau(mode=mode))
    recorded = traces(model, count, seed=3)
    for position in np.random.default_rng(0).permutation(count):
        trace = recorded[position]
        replayed = execute(model, Replay(dict(zip(trace.addresses, trace.values, strict=True))), count + int(position))
        assert replayed.addresses == trace.addresses
        assert event(replayed) == event(trace)


def test_addresses_are_call_stacks_of_pythia_alone(model: Model) -> None:
    found = {base for trace in traces(model, 300) for base in bases(model, trace)}
    native = {base for base in found if base.startswith("[")}
    assert found - native == {"tau/px", "tau/py", "tau/pz"}
    assert len(native) > 20
    for base in native:
        frames = base[1:-1].split("; ")
        assert frames[0].startswith("Pythia8::Pythia::next(int)+0x")
        assert all(frame.startswith("Pythia8::") for frame in frames if frame != "within channel")


def test_addresses_are_the_same_in_every_process_and_thread(model: Model) -> None:
    program = (
        "import sys; from etalumis.execution import Model, run\n"
        "from etalumis.simulators.pythia_tau import PythiaTau\n"
        "model = Model(PythiaTau())\n"
        "def nested(depth):\n"
        "    return nested(depth - 1) if depth else list(run(model, indices=range(100), seed=1))\n"
        "max(map(len, map(nested, [20])))\n"
        "sys.stdout.write('\\n'.join(sorted({a.base for a in model.addresses if a.kind == 'sample'})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    here = Model(PythiaTau())
    worker = threading.Thread(target=traces, args=(here, 100, 1))
    worker.start()
    worker.join()
    assert done.stdout.splitlines() == sorted({a.base for a in here.addresses if a.kind == "sample"})


def test_threads_share_one_simulator() -> None:
    model = Model(PythiaTau())
    expected = [event(trace) for trace in traces(model, 240)]
    got: dict[int, Any] = {}

    def work(first: int) -> None:
        stream = Stream(0)
        for index in range(first, 240, 4):
            got[index] = event(model.execute(Prior(), Observations(), stream, index))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert [got[index] for index in range(240)] == expected
    assert len(model.function._idle) == 4


class FromPrior:
    """A proposer that leaves every draw to the prior, and counts how many it was asked for at once."""

    def __init__(self) -> None:
        self.most = 0

    def begin(self, slots: Sequence[int], observe: Mapping[str, Any]) -> None:
        pass

    def propose(self, requests: Sequence[Request], addresses: AddressBook) -> Sequence[Answer]:
        self.most = max(self.most, len(requests))
        return [(request.distribution.draw(request.stream), None) for request in requests]


def test_executions_run_in_lock_step(model: Model) -> None:
    expected = {trace.index: event(trace) for trace in traces(model, 60)}
    proposer = FromPrior()
    got = {t.index: event(t) for t in run_lockstep(model, proposer, None, range(60), batch_size=5)}
    assert got == expected
    assert proposer.most == 5


class Stop(Controller):
    """Raises an exception at one draw."""

    def __init__(self, draw: int, error: BaseException) -> None:
        self.left = draw
        self.error = error

    def choose(self, address: int, name: str, distribution: Distribution, control: bool, stream: Stream) -> Answer:
        if not self.left:
            raise self.error
        self.left -= 1
        return distribution.draw(stream), None


@pytest.mark.parametrize("mode", [0, 2])
def test_an_execution_may_end_at_any_draw_and_the_next_is_whole(mode: int) -> None:
    model = Model(PythiaTau(mode=mode))
    recorded = traces(model, 10)
    for trace in recorded:
        for draw in range(0, len(trace), max(1, len(trace) // 30)):
            cut = execute(model, Stop(draw, Reject()), trace.index)
            assert (cut.ended, len(cut)) == ("rejected", draw)
            assert cut.values == trace.values[:draw]
            following = recorded[(trace.index + 1) % 10]
            assert event(execute(model, Prior(), following.index)) == event(following)


@pytest.mark.parametrize("error", [KeyError("from a controller"), KeyboardInterrupt()])
def test_errors_of_a_controller_pass_through_pythia_unchanged(model: Model, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        execute(model, Stop(8, error))
    assert caught.value is error
    assert len(execute(model, Prior())) > 8


def test_pickles_its_arguments_and_not_its_pythia(model: Model) -> None:
    simulator = PythiaTau(
        Detector((4, 6, 6), noise=1.5), px=(-1.0, 2.0), control=PICK, mode=2, settings=["15:onIfAny = 211"]
    )
    expected = traces(Model(simulator), 3)
    copied = pickle.loads(pickle.dumps(simulator))  # noqa: S301 (as worker processes get it)
    assert not copied._idle
    again = traces(Model(copied), 3)
    assert [event(t) for t in again] == [event(t) for t in expected]
    assert [t.controlled for t in again] == [t.controlled for t in expected]


def test_visible_control_leaves_lifetimes_and_late_instances_to_the_prior(model: Model) -> None:
    loops = 0
    for trace in traces(model, 500):
        met: Counter[str] = Counter()
        for base, name, controlled in zip(bases(model, trace), trace.names, trace.controlled, strict=True):
            if name:
                assert controlled
                continue
            met[base] += 1
            idle = LIFETIME in base or base.endswith(WITHIN)
            assert controlled == (not idle and met[base] <= 4)
            loops += met[base] > 4 and not idle
    assert loops > 100


def test_presets_and_patterns_of_control() -> None:
    def controlled(control: str, mode: int = 0) -> tuple[set[str], int, int]:
        model = Model(PythiaTau(control=control, mode=mode))
        found: set[str] = set()
        chosen = total = 0
        for trace in traces(model, 20):
            found |= {b for b, c in zip(bases(model, trace), trace.controlled, strict=True) if c}
            chosen += sum(trace.controlled)
            total += len(trace)
        return found, chosen, total

    _, chosen, total = controlled("all", mode=2)
    assert chosen == total
    for mode in (0, 2):
        found, chosen, _ = controlled("momentum_and_channel", mode)
        assert chosen == 20 * 4
        assert found > {"tau/px", "tau/py", "tau/pz"}
        assert len(found) == 4
    found, _, _ = controlled(r"pz$|phaseSpace2\(")
    assert "tau/pz" in found
    assert all(base == "tau/pz" or "Pythia8::Rndm::phaseSpace2(" in base for base in found)
    with pytest.raises(ValueError, match="neither of all, visible, momentum_and_channel nor a regular expression"):
        PythiaTau(control="visible)")


def test_only_the_last_of_ten_picks_is_the_channel_with_matrix_elements() -> None:
    model = Model(PythiaTau(mode=2))
    for trace in traces(model, 20):
        picks = [
            (b, n, c)
            for b, n, c in zip(bases(model, trace), trace.names, trace.controlled, strict=True)
            if "createChildren" in b and PICK in b
        ]
        assert [name for _, name, _ in picks] == [""] * 9 + ["decay_channel", ""]
        assert [controlled for _, _, controlled in picks] == [False] * 9 + [True, False]


def test_a_channel_without_room_for_its_masses_is_picked_anew() -> None:
    """Pythia tries ten masses, then another channel: the result is the one that it took."""
    model = Model(PythiaTau(settings=["323:mMax = 1.7"]))
    heavy = model.function.channels.index(["nu_tau", "eta", "K*-"])

    def choose(name: str, base: str) -> float | None:
        return heavy if name == "decay_channel" else 0.999 if "mSel" in base else None

    trace = execute(model, Scripted(model, choose))
    assert trace.names.count("decay_channel") == 1
    assert trace["decay_channel"] == heavy
    assert trace.result == taken_channel(model.function) != heavy


def test_tags_say_what_the_event_holds(model: Model) -> None:
    mass = 1.77682
    for trace in traces(model, 300):
        tau = np.array([trace["px"], trace["py"], trace["pz"]])
        assert 0.0 < trace["visible_energy"] < np.sqrt(mass**2 + tau @ tau)
        assert trace["energy_1"] >= trace["energy_2"] >= 0.0
        assert trace["energy_1"] + trace["energy_2"] <= trace["visible_energy"] * (1 + 1e-9)
    single = execute(model, Scripted(model, lambda name, base: 0 if name == "decay_channel" else None))
    assert model.function.channels[0] == ["nu_tau", "pi-"]
    assert single["energy_1"] == pytest.approx(single["visible_energy"])
    assert single["energy_2"] == 0.0


def test_visible_and_missing_momenta_add_up_to_the_tau() -> None:
    simulator = PythiaTau()
    states = []

    def watched() -> None:
        simulator()
        states.append(generator(simulator)._final_state())

    for trace, state in zip(traces(Model(watched), 200), states, strict=True):
        left = np.array([trace["px"], trace["py"]]) - state.momenta[:, :2].sum(axis=0)
        assert np.hypot(*left) == pytest.approx(state.missing_et, abs=1e-6)
        assert trace["missing_et"] == state.missing_et


def test_pythia_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    traces(Model(PythiaTau(mode=2)), 5)
    assert capfd.readouterr() == ("", "")


def test_settings_that_pythia_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="Pythia refuses the setting 'TauDecays:colour = 1'"):
        traces(Model(PythiaTau(settings=["TauDecays:colour = 1"])), 1)
    with pytest.raises(ValueError, match="TauDecays:mode is one of"):
        PythiaTau(mode=6)


def test_sizes_of_traces_are_those_of_pythia() -> None:
    """Mean over 1,000 events, tolerance five standard errors: 20 numbers of Pythia, the momentum, the split pick."""
    model = Model(PythiaTau())
    lengths = np.array([len(trace) for trace in traces(model, 1000)])
    assert abs(lengths.mean() - 24.05) < 5.0 * lengths.std() / np.sqrt(len(lengths))


def test_without_pythia_the_error_names_the_extra() -> None:
    program = (
        "import sys; sys.modules['pythia8mc'] = None\n"
        "from etalumis.simulators.pythia_tau import PythiaTau  # imports without Pythia\n"
        "try:\n    PythiaTau()\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'etalumis[pythia]'" in done.stdout
