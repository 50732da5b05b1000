"""Engines over real simulator processes: the same traces as in-process, and nothing lost where processes fail."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

import etalumis as et
from etalumis.distributions import Stream
from etalumis.execution import FAILED, Observations, Prior, Proposer, Replay, TraceBatch, run, run_lockstep
from etalumis.ppx import messages as m
from etalumis.ppx.codec import Decoder, Encoder
from etalumis.ppx.columns import Interpreter
from etalumis.ppx.conversion import to_batch, to_trace
from etalumis.ppx.errors import ProtocolError, SimulatorError
from etalumis.ppx.runner import Runner
from etalumis.ppx.scripted import Columns, Request
from etalumis.simulators.classics import branching_posterior, gaussian_posterior
from ppx_simulators import MODELS

SIMULATORS = Path(__file__).parent / "ppx_simulators.py"
BOTH = pytest.mark.parametrize("scripted", [True, False], ids=["scripted", "interactive"])
GAUSSIAN = {"obs0": 8.0, "obs1": 9.0}
OBSERVED: dict[str, dict[str, Any]] = {
    "gaussian": GAUSSIAN,
    "marsaglia": GAUSSIAN,
    "branching": {"obs0": 6},
    "hidden_markov": {f"obs{k}": 0.5 * k for k in range(6)},
    "zoo": {"y": np.array([1.0, 2.0, 0.5]), "z": 0.3},
}


def launched(name: str, **settings: Any) -> et.RemoteModel:
    settings = {"timeout": 10.0, **settings}
    return et.RemoteModel(command=[sys.executable, str(SIMULATORS), name, "{address}"], **settings)


def assert_same_traces(ours: list[et.Trace], theirs: list[et.Trace], books: tuple[Any, Any]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        for key in ("index", "names", "distributions", "log_priors", "log_proposals", "controlled", "conditioned"):
            assert getattr(a, key) == getattr(b, key), key
        for key in ("log_prior", "log_likelihood", "log_proposal", "ended"):
            assert getattr(a, key) == getattr(b, key), key
        assert all(np.array_equal(v, w) for v, w in zip(a.values, b.values, strict=True))
        assert [books[0][i] for i in a.addresses] == [books[1][i] for i in b.addresses]
        assert [t.name for t in a.tags] == [t.name for t in b.tags]
        assert all(np.array_equal(t.value, u.value) for t, u in zip(a.tags, b.tags, strict=True))


# --- the same as in-process ---------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", ["marsaglia", "zoo"])
def test_traces_are_those_of_the_model_in_process(name: str, scripted: bool) -> None:
    local = et.Model(MODELS[name])
    observe = OBSERVED[name] if name == "zoo" else {}
    expected = list(run(local, Prior(), observe, range(40), seed=7))
    with launched(name, scripted=scripted) as remote:
        assert remote.name == name
        assert_same_traces(
            list(run(remote, Prior(), observe, range(40), seed=7)), expected, (remote.addresses, local.addresses)
        )
        batch = TraceBatch.concatenate(list(remote.batches(range(200), 7, observe)))
    want = TraceBatch.from_traces(list(run(local, Prior(), observe, range(200), seed=7)), local.addresses)
    for key in ("index", "offsets", "value", "value_offsets", "controlled", "log_prob", "log_prior", "log_likelihood"):
        np.testing.assert_array_equal(getattr(batch, key), getattr(want, key))
    assert batch.names == want.names
    np.testing.assert_array_equal(batch.name, want.name)
    np.testing.assert_array_equal(batch.trace_types(), want.trace_types())
    assert len(batch.observes) >= len(want.observes)  # a factor travels as an observation
    by_name = {o.name: o for o in want.observes if o.name}
    for column in batch.observes:
        if column.name in by_name:
            np.testing.assert_array_equal(column.rows, by_name[column.name].rows)
            np.testing.assert_array_equal(column.values, by_name[column.name].values)
    for tag in want.tags:
        (ours,) = [t for t in batch.tags if t.name == tag.name]
        np.testing.assert_array_equal(np.asarray(ours.values), np.asarray(tag.values))
    batch.check()


@BOTH
@pytest.mark.parametrize("name", ["gaussian", "marsaglia", "branching", "hidden_markov"])
def test_engines_infer_the_same_as_in_process(name: str, scripted: bool) -> None:
    local = et.Model(MODELS[name])
    with launched(name, scripted=scripted) as remote:
        for engine in (None, et.LMH(chains=1, burn_in=20, starts=20), et.RMH(chains=2, burn_in=20, starts=20)):
            count = 100 if scripted else 40
            ours = et.posterior(remote, OBSERVED[name], engine, num_traces=count, seed=5)
            theirs = et.posterior(local, OBSERVED[name], engine, num_traces=count, seed=5)
            np.testing.assert_array_equal(ours.traces.value, theirs.traces.value)
            np.testing.assert_array_equal(ours.log_weights, theirs.log_weights)
            np.testing.assert_array_equal(ours.rows, theirs.rows)


class PriorProposer:
    """Answers from the prior, as a network that has learned nothing would."""

    def begin(self, slots: Any, observe: Any) -> None:
        pass

    def propose(self, requests: Any, addresses: Any) -> list[tuple[Any, float]]:
        self.most = max(getattr(self, "most", 0), len(requests))
        drawn = [(r.distribution.draw(r.stream), r.distribution) for r in requests]
        return [(value, distribution.log_prob(value)) for value, distribution in drawn]


@BOTH
def test_lock_step_over_several_simulators(scripted: bool) -> None:
    local = et.Model(MODELS["zoo"])
    proposer: Proposer = PriorProposer()
    with launched("zoo", scripted=scripted, workers=3) as remote:
        ours = sorted(run_lockstep(remote, proposer, {"z": 0.5}, range(30), seed=5), key=lambda t: t.index)
        theirs = sorted(run_lockstep(local, PriorProposer(), {"z": 0.5}, range(30), seed=5), key=lambda t: t.index)
        assert_same_traces(ours, theirs, (remote.addresses, local.addresses))
    assert proposer.most == 3  # type: ignore[attr-defined]


def test_replay_follows_the_script_in_one_round_trip() -> None:
    local = et.Model(MODELS["zoo"])
    with launched("zoo") as remote:
        first = next(run(remote, Prior(), {}, [3], seed=1))
        again = Replay(dict(zip(first.addresses, first.values, strict=True)))
        ours = remote.execute(again, Observations(), Stream(9), 0)
    trace = next(run(local, Prior(), {}, [3], seed=1))
    theirs = local.execute(Replay(dict(zip(trace.addresses, trace.values, strict=True))), Observations(), Stream(9), 0)
    assert_same_traces([ours], [theirs], (remote.addresses, local.addresses))


def test_a_dataset_of_a_remote_simulator_is_that_of_the_model(tmp_path: Path) -> None:
    from etalumis.storage import Dataset, simulate

    with launched("marsaglia", workers=2) as remote:
        simulate(lambda: remote, tmp_path / "remote", 300, model="m", workers=0, chunk_size=128)
    simulate(lambda: et.Model(MODELS["marsaglia"]), tmp_path / "local", 300, model="m", workers=0, chunk_size=128)
    ours, theirs = Dataset(tmp_path / "remote"), Dataset(tmp_path / "local")
    for a, b in zip(ours.batches(), theirs.batches(), strict=True):
        np.testing.assert_array_equal(a.value, b.value)
        np.testing.assert_array_equal(a.log_likelihood, b.log_likelihood)
        np.testing.assert_array_equal(a.trace_types(), b.trace_types())


def test_observations_that_do_not_fit_are_errors() -> None:
    with launched("gaussian") as remote:
        with pytest.raises(et.ObservationError, match="obs7"):
            et.posterior(remote, {"obs7": 1.0}, num_traces=10)
        with pytest.raises(et.ObservationError, match="shape"):
            et.posterior(remote, {"obs0": [[1.0, 2.0]]}, num_traces=10)
        for engine in (et.ImportanceSampling(), et.LMH(chains=1, burn_in=1, starts=1)):
            with pytest.raises(et.ObservationError, match=r"'obs0'\] lists 2 values"):
                et.posterior(remote, {"obs0": [1.0, 50.0]}, engine, num_traces=10)
        assert len(et.prior(remote, num_traces=5)) == 5
    with launched("zoo") as remote, pytest.raises(et.ObservationError, match="names are"):
        et.posterior(remote, {"why": 1.0}, num_traces=10)


# --- simulators that fail -----------------------------------------------------------------------------------------


@BOTH
def test_failed_executions_are_dropped_recorded_and_counted(scripted: bool) -> None:
    with launched("crashing", policy="drop", scripted=scripted) as remote:
        post = et.prior(remote, num_traces=40, seed=1)
        assert remote.num_dropped == 1
        assert len(post) == 39
        assert "1 of 40 executions failed and were left out" in post.info["warnings"][0]
        failure = next(f for f in remote.failures if f.trace is not None)
        assert failure.trace_index == 22
        assert failure.trace.ended == FAILED
        assert failure.trace["x"] > 0.97
        assert "SIGKILL" in failure.reason
        assert "ran out of luck" in failure.output
        assert set(post.traces.index.tolist()) == set(range(40)) - {22}


def test_failures_that_repeat_end_the_run_with_the_last_output() -> None:
    with launched("crashing", retries=1) as remote, pytest.raises(SimulatorError, match=r"SIGKILL.*\n.*out of luck"):
        et.prior(remote, num_traces=60, seed=1)
    with launched("raising", policy="raise") as remote:
        with pytest.raises(SimulatorError, match="no convergence"):
            et.prior(remote, num_traces=60, seed=1)
        assert remote.num_failures == 1
        assert len(et.prior(remote, num_traces=20, seed=1)) == 20  # the process went on


def test_a_hanging_simulator_costs_its_trace_only() -> None:
    with launched("hanging", policy="drop", timeout=0.4) as remote:
        post = et.prior(remote, num_traces=30, seed=1)
        assert len(post) == 29
        assert any("said nothing for 0.4 s" in f.reason for f in remote.failures)


@pytest.mark.parametrize(("fault", "says"), [("garbage", "nonsense"), ("reset", "Reset"), ("confused", "SampleResult")])
def test_nonsense_and_resets_are_survived(fault: str, says: str) -> None:
    with launched(fault, timeout=2.0) as remote:
        post = et.posterior(remote, {"y": 1.0}, num_traces=5, seed=1)
        good = et.posterior(et.Model(reference), {"y": 1.0}, num_traces=5, seed=1)
        np.testing.assert_array_equal(post.values("x"), good.values("x"))
        assert remote.num_failures >= 1
        assert all(says in f.reason for f in remote.failures)
        assert all(len(f.trace or ()) == 1 for f in remote.failures)


def reference() -> float:
    x: float = et.sample(et.distributions.Normal(0.0, 1.0), name="x", address="[f()+0x1]")
    et.observe(et.distributions.Normal(x, 1.0), name="y")
    return x


def test_a_simulator_that_does_not_start_says_why() -> None:
    with launched("stillborn", retries=1) as remote, pytest.raises(SimulatorError, match="no licence found"):
        et.prior(remote, num_traces=1)
    with (
        et.RemoteModel(command=["/nowhere/sim", "{address}"]) as remote,
        pytest.raises(SimulatorError, match="started"),
    ):
        et.prior(remote, num_traces=1)
    with et.RemoteModel("ipc:///nowhere/at-all", startup=0.2) as remote, pytest.raises(SimulatorError, match="running"):
        et.prior(remote, num_traces=1)


def test_lock_step_goes_on_where_simulators_die() -> None:
    with launched("crashing", policy="drop", workers=2) as remote:
        traces = list(run_lockstep(remote, PriorProposer(), {}, range(40), seed=1))
        assert sorted(t.index for t in traces) == sorted(set(range(40)) - {22})
    with launched("crashing", retries=1) as remote, pytest.raises(SimulatorError, match="out of luck"):
        list(run_lockstep(remote, PriorProposer(), {}, range(40), seed=1))


def test_a_failure_in_each_of_several_runs_is_the_first_of_each(tmp_path: Path) -> None:
    fall = tmp_path / "fall"
    with launched("falling", retries=1, environment={"FALL": str(fall)}) as remote:
        for run_number in range(3):
            fall.touch()
            assert len(list(run_lockstep(remote, PriorProposer(), {}, range(3), seed=1))) == 3
            assert remote.num_failures == run_number + 1


def test_processes_end_with_the_model() -> None:
    remote = launched("gaussian", workers=2)
    et.prior(remote, num_traces=60)
    pids = [worker.pid for worker in remote.workers]
    remote.close()
    for pid in filter(None, pids):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_of_the_engine_does_not_delay_its_end() -> None:
    remote = launched("gaussian")
    assert remote.name == "gaussian"
    child = os.fork()
    if not child:
        time.sleep(12.0)
        os._exit(0)
    started = time.monotonic()
    remote.close()
    seconds = time.monotonic() - started
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert seconds < 6.0


def test_processes_end_with_an_engine_that_is_killed() -> None:
    engine = f"""
import os, signal, sys
import etalumis as et
remote = et.RemoteModel(command=[sys.executable, {str(SIMULATORS)!r}, "gaussian", "{{address}}"])
remote.name
print(remote.workers[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", engine], capture_output=True, text=True, timeout=60, check=False)
    pid = int(done.stdout)
    for _ in range(100):
        if not is_running(pid):
            return
        time.sleep(0.1)
    pytest.fail("the simulator outlived its engine")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"  # killed, not reaped yet


def kill_now_and_then(remote: et.RemoteModel, stop: threading.Event, interval: float) -> int:
    kills = 0
    while not stop.wait(interval):
        pid = remote.workers[kills % len(remote.workers)].pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                kills += 1
    return kills


def killed_at_random(num_traces: int, interval: float, **settings: Any) -> tuple[et.Posterior, et.Posterior, int]:
    """A run whose simulators are killed all the time, and the same undisturbed."""
    stop = threading.Event()
    with launched("slow", workers=2, retries=50, **settings) as remote:
        killer = threading.Thread(target=kill_now_and_then, args=(remote, stop, interval))
        killer.start()
        try:
            post = et.posterior(remote, {"y": 1.0}, num_traces=num_traces, seed=2)
        finally:
            stop.set()
            killer.join()
        failures = sum(worker.restarts for worker in remote.workers)
    local = et.posterior(et.Model(MODELS["slow"]), {"y": 1.0}, num_traces=num_traces, seed=2)
    return post, local, failures


def test_kill_9_at_random_loses_no_trace() -> None:
    post, local, failures = killed_at_random(1500, 0.6)
    assert failures >= 1
    np.testing.assert_array_equal(post.traces.index, local.traces.index)
    np.testing.assert_array_equal(post.values("x"), local.values("x"))
    np.testing.assert_array_equal(post.log_weights, local.log_weights)


@pytest.mark.slow
@BOTH
def test_kill_9_at_random_for_ten_thousand_traces(scripted: bool) -> None:
    post, local, failures = killed_at_random(10_000, 1.5, scripted=scripted)
    assert failures >= 3
    np.testing.assert_array_equal(post.traces.index, np.arange(10_000))
    np.testing.assert_array_equal(post.values("x"), local.values("x"))
    assert abs(post.mean("x") - 0.5) < 5.0 * 0.7071 / post.ess**0.5


@pytest.mark.slow
@BOTH
def test_posteriors_over_processes_are_right(scripted: bool) -> None:
    with launched("gaussian", scripted=scripted) as remote:
        mean, stddev = gaussian_posterior(8.0, 9.0)
        post = et.posterior(remote, GAUSSIAN, et.RMH(chains=2, burn_in=500), num_traces=4000, seed=1)
        assert abs(post.mean("mu") - mean) < 5.0 * stddev / post.ess**0.5
        assert abs(post.mean("mu") - mean - 1.0) > 5.0 * stddev / post.ess**0.5
    with launched("branching", scripted=scripted) as remote:
        post = et.posterior(remote, {"obs0": 6}, num_traces=5000, seed=1)
        exact = branching_posterior(6)
        for r in range(8):
            error = (exact[r] * (1 - exact[r]) / post.ess) ** 0.5
            assert abs(post.expectation(lambda t, r=r: t == r) - exact[r]) < 5.0 * error


# --- a lying simulator --------------------------------------------------------------------------------------------


class Peer(threading.Thread):
    """A simulator side of raw frames: ``answer(message)`` gives a frame, or None to fall silent."""

    def __init__(self, answer: Any) -> None:
        super().__init__(daemon=True)
        self._folder = tempfile.TemporaryDirectory()
        self.address = f"ipc://{self._folder.name}/peer"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.bind(self.address)
        self._answer = answer
        self.heard: list[m.Message] = []

    def run(self) -> None:
        decoder = Decoder()
        while True:
            frame = self._socket.recv()
            if frame == b"stop":
                self._socket.send(b"")
                break
            self.heard.append(decoder.decode(frame))
            reply = self._answer(self.heard[-1])
            self._socket.send(reply)

    def __enter__(self) -> Peer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        socket = self._context.socket(zmq.REQ)
        socket.connect(self.address)
        socket.send(b"stop")
        socket.recv()
        self.join()
        socket.close()
        self._socket.close()
        self._context.term()
        self._folder.cleanup()


def lying(change: Any) -> Any:
    """A scripted simulator whose columns are changed before they are sent."""
    runner = Runner(et.Model(MODELS["gaussian"]), lambda *_: None)
    encoder = Encoder()

    def answer(message: m.Message) -> bytes:
        if isinstance(message, m.Handshake):
            return encoder.encode(m.HandshakeResult("liar", "liar", (m.SCRIPT,)))
        if isinstance(message, m.Run) and message.request is not None:
            return encoder.encode(m.RunResult(None, change(runner.run(message.request))))
        return encoder.encode(m.Reset())

    return answer


CHANGES = {
    "a density": lambda c: c._replace(log_prob=[x + 0.1 for x in c.log_prob]),
    "an observation's density": lambda c: c._replace(observes=c.observes._replace(log_prob=[0.0] * 2 * len(c.lengths))),
    "too few draws": lambda c: c._replace(address=c.address[:-1]),
    "an unknown address": lambda c: c._replace(address=[9] * len(c.address)),
    "an unknown name": lambda c: c._replace(name=[99] * len(c.name)),
    "an unknown family": lambda c: c._replace(codes=[77] * len(c.codes)),
    "an instance of 0": lambda c: c._replace(instance=[0] * len(c.instance)),
    "a distribution out of the table": lambda c: c._replace(distribution=[10**6] * len(c.distribution)),
    "too many parameters": lambda c: c._replace(
        parameter_sizes=[3] * len(c.codes), parameters=[1.0] * 3 * len(c.codes)
    ),
    "parameters of no distribution": lambda c: c._replace(parameters=[-1.0] * len(c.parameters)),
    "another number of executions": lambda c: c._replace(ended=[*c.ended, 0]),
    "huge lengths": lambda c: c._replace(lengths=[2**32 - 1] * len(c.lengths)),
    "no columns worth the name": lambda c: Columns(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_lying_simulator_is_found_out(change: Any) -> None:
    with (
        Peer(lying(change)) as peer,
        et.RemoteModel(peer.address, timeout=2.0, startup=2.0, policy="raise") as remote,
        pytest.raises(SimulatorError, match="nonsense"),
    ):
        et.posterior(remote, GAUSSIAN, num_traces=3)


def survive_mutations(count: int, seed: int) -> int:
    """Reads answers of scripted runs with some bytes changed; returns how many were still believed."""
    generator = random.Random(seed)
    frames = []
    for executions in (1, 4):
        runner = Runner(et.Model(MODELS["zoo"]), lambda *_: None)
        columns = runner.run(Request(seed=1, executions=executions))
        frames.append((executions, Encoder().encode(m.RunResult(None, columns))))
    believed = 0
    for _ in range(count):
        executions, frame = generator.choice(frames)
        mutant = bytearray(frame)
        for _ in range(generator.randint(1, 3)):
            place = generator.randrange(len(mutant)) & ~3
            word = generator.choice([0, 1, 255, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, generator.getrandbits(32)])
            if generator.random() < 0.5:
                mutant[place] ^= 1 << generator.randrange(8)
            else:
                mutant[place : place + 4] = word.to_bytes(4, "little")
        with contextlib.suppress(ProtocolError, et.DensityError):
            said = Decoder().decode(bytes(mutant))
            if not isinstance(said, m.RunResult) or said.columns is None:
                continue
            table = Interpreter(et.AddressBook()).read(said.columns, 0, executions)
            if executions == 1:
                to_trace(table)
            else:
                to_batch(table).traces.check()
            believed += 1
    return believed


def test_mutated_columns_never_crash() -> None:
    assert 0 < survive_mutations(800, seed=1) < 800


@pytest.mark.slow
def test_many_mutated_columns_never_crash() -> None:
    survive_mutations(30_000, seed=2)


def test_an_honest_simulator_is_believed() -> None:
    with Peer(lying(lambda c: c)) as peer, et.RemoteModel(peer.address, timeout=2.0) as remote:
        ours = et.posterior(remote, GAUSSIAN, num_traces=50, seed=3)
    theirs = et.posterior(et.Model(MODELS["gaussian"]), GAUSSIAN, num_traces=50, seed=3)
    np.testing.assert_array_equal(ours.log_weights, theirs.log_weights)


def test_nan_densities_are_errors_with_address_and_parameters() -> None:
    change = lambda c: c._replace(log_prob=[float("nan")] * len(c.log_prob))  # noqa: E731
    with (
        Peer(lying(change)) as peer,
        et.RemoteModel(peer.address, timeout=2.0) as remote,
        pytest.raises(et.DensityError, match=r"gaussian.*Normal"),
    ):
        et.prior(remote, num_traces=3)


# --- recorded dialogues -------------------------------------------------------------------------------------------

DIALOGUES = json.loads((Path(__file__).parent / "data" / "ppx_dialogues.json").read_text())["dialogues"]


class Recording:
    """Plays a real simulator's side of a recorded dialogue, byte for byte, again and again."""

    def __init__(self, name: str) -> None:
        frames = [bytes.fromhex(x["hex"]) for x in DIALOGUES[name] if x["from"] == "simulator"]
        self._handshake, *run = frames
        kinds = [type(Decoder().decode(frame)).__name__ for frame in run]
        self._run = run[: kinds.index("RunResult") + 1]
        self._next = 0

    def __call__(self, message: m.Message) -> bytes:
        if isinstance(message, m.Handshake):
            return self._handshake
        if isinstance(message, m.Run):
            assert message.request is None  # it announced no capability
            self._next = 0
        self._next += 1
        return self._run[self._next - 1]


@pytest.mark.parametrize("name", DIALOGUES)
def test_recorded_simulators_are_driven(name: str) -> None:
    with Peer(Recording(name)) as peer, et.RemoteModel(peer.address, timeout=2.0) as remote:
        traces = list(run(remote, Prior(), {}, range(2), seed=1))
        heard = [type(message).__name__ for message in peer.heard]
    bodies = [x["body"] for x in DIALOGUES[name]]
    told = [x["body"] for x in DIALOGUES[name][: bodies.index("RunResult")] if x["from"] == "engine"]
    assert heard == [*told, *told[1:]]  # the handshake once, then two runs
    said = [x for x in DIALOGUES[name] if x["from"] == "simulator"]
    for trace in traces:
        sampled = [x for x in said if x["body"] == "Sample"]
        assert [remote.addresses[a].base for a in trace.addresses] == [x["address"] for x in sampled]
        assert [d.family for d in trace.distributions] == [x["distribution"]["family"] for x in sampled]
        assert trace.names == [x["name"] for x in sampled]
        assert len(trace.observes) == sum(x["body"] == "Observe" for x in said)


def test_executions_that_an_old_simulator_must_finish_are_drained() -> None:
    with launched("good") as remote:
        trace = remote.execute(RejectAll(), Observations({"y": 0.0}), Stream(1), 0)
        assert trace.ended == "rejected"
        assert len(et.prior(remote, num_traces=3)) == 3
        assert remote.num_failures == 0


class RejectAll(Prior):
    def script(self) -> None:  # type: ignore[override]
        return None

    def choose(self, *_: Any) -> Any:
        from etalumis.execution import Reject

        raise Reject


@BOTH
def test_executions_given_up_leave_the_simulator_ready(scripted: bool) -> None:
    with launched("zoo", scripted=scripted) as remote:
        for _ in range(3):
            assert remote.execute(RejectAll(), Observations(), Stream(1), 0).ended == "rejected"
            assert remote.execute(Prior(), Observations(), Stream(1), 0).ended == "finished"
        assert remote.num_failures == 0
        assert remote.workers[0].restarts == 0


# --- settings -----------------------------------------------------------------------------------------------------


def test_settings_are_checked() -> None:
    for settings in (
        {},
        {"address": "ipc:///a", "command": ["sim", "{address}"]},
        {"command": ["sim"]},
        {"command": ""},
        {"address": "ipc:///a", "workers": 2},
        {"address": "ipc:///a", "policy": "ignore"},
        {"address": "ipc:///a", "timeout": 0.0},
    ):
        with pytest.raises(ValueError):
            et.RemoteModel(**settings)  # type: ignore[arg-type]


def test_models_that_launch_can_be_sent_to_worker_processes() -> None:
    with launched("gaussian") as remote:
        again = pickle.loads(pickle.dumps(remote))  # noqa: S301
        with again:
            assert again.name == "gaussian"
    with et.RemoteModel("ipc:///a") as remote, pytest.raises(TypeError, match="command"):
        pickle.dumps(remote)


def test_a_run_that_is_left_early_leaves_the_model_usable() -> None:
    with launched("zoo", workers=2) as remote:
        batches = remote.batches(range(5000), 1)
        next(batches)
        batches.close()
        assert len(et.prior(remote, num_traces=20)) == 20
