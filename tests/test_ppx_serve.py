"""Python models served over PPX: what a foreign engine, speaking raw frames, gets to hear."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

import etalumis as et
from etalumis import cli
from etalumis.distributions import Normal, TruncatedNormal
from etalumis.ppx import messages as m
from etalumis.ppx import scripted as s
from etalumis.ppx.codec import Decoder, Encoder
from etalumis.ppx.errors import ProtocolError
from etalumis.ppx.serve import Server
from etalumis.simulators.classics import gaussian, marsaglia
from ppx_simulators import zoo

DIALOGUES = json.loads((Path(__file__).parent / "data" / "ppx_dialogues.json").read_text())["dialogues"]


class Engine:
    """A foreign engine: sends messages, hears messages."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.RCVTIMEO, 5000)
        self._socket.connect(address)
        self._encoder, self._decoder = Encoder(), Decoder()

    def say(self, message: m.Message | bytes) -> m.Message:
        frame = message if isinstance(message, bytes) else self._encoder.encode(message)
        self._socket.send(frame)
        return self._decoder.decode(self._socket.recv())

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()


@contextmanager
def served(function: Any) -> Iterator[Engine]:
    """A served model, which leaves when nobody talks to it any more."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"ipc://{folder}/sim"
        with Server(et.Model(function), address) as server:
            thread = threading.Thread(target=server.run, args=(0.3,))
            thread.start()
            engine = Engine(address)
            try:
                yield engine
            finally:
                engine.close()
                thread.join()


def play(engine: Engine, draws: list[float]) -> list[m.Message]:
    """One interactive run; returns what the simulator said."""
    values = iter(draws)
    said = [engine.say(m.Run())]
    while not isinstance(said[-1], (m.RunResult, m.Reset, m.Error)):
        answers = {m.Sample: lambda: m.SampleResult(next(values)), m.Observe: m.ObserveResult, m.Tag: m.TagResult}
        said.append(engine.say(answers[type(said[-1])]()))
    return said


def test_a_plain_dialogue() -> None:
    with served(gaussian) as engine:
        hello = engine.say(m.Handshake("another engine"))
        assert hello == m.HandshakeResult("etalumis", "gaussian", (m.SCRIPT, m.ERROR, m.FAMILIES), m.VERSION)
        for draw in (1.5, -2.0):
            sample, first, second, tag, result = play(engine, [draw])
            assert sample == m.Sample(sample.address, "mu", Normal(1.0, 5.0**0.5), True)
            assert "gaussian" in sample.address
            assert first == m.Observe(first.address, "obs0", Normal(draw, 2.0**0.5), None)
            assert second.name == "obs1"
            assert (tag.name, tag.value) == ("mu_squared", draw**2)
            assert result == m.RunResult(draw)


@pytest.mark.parametrize("name", ["gum", "marsaglia", "branching"])
def test_recorded_engine_frames_are_understood(name: str) -> None:
    """The bytes of another engine, as far as they fit this model."""
    frames = [bytes.fromhex(x["hex"]) for x in DIALOGUES[name] if x["from"] == "engine"]
    with served(gaussian) as engine:
        said = [type(engine.say(frame)) for frame in frames]
    assert said[:3] == [m.HandshakeResult, m.Sample, m.Observe]
    assert said[-1] in (m.Reset, m.Tag, m.RunResult)


def test_unexpected_messages_are_answered_by_reset() -> None:
    with served(gaussian) as engine:
        assert engine.say(m.SampleResult(1.0)) == m.Reset()
        engine.say(m.Handshake("engine"))
        assert engine.say(m.ObserveResult()) == m.Reset()
        assert isinstance(engine.say(m.Run()), m.Sample)
        assert engine.say(m.Run()) == m.Reset()  # in the middle of a run
        assert isinstance(engine.say(m.Run()), m.Sample)
        assert engine.say(b"\x01\x02nonsense") == m.Reset()
        assert isinstance(play(engine, [0.5])[-1], m.RunResult)


def failing() -> float:
    x: float = et.sample(Normal(0.0, 1.0))
    return 1.0 / max(0.0, x)


def test_models_that_raise_say_so_where_it_is_understood() -> None:
    with served(failing) as engine:
        engine.say(m.Handshake("old"))
        assert play(engine, [-1.0])[-1] == m.Reset()
        engine.say(m.Handshake("new", (m.ERROR,)))
        error = play(engine, [-1.0])[-1]
        assert isinstance(error, m.Error)
        assert "ZeroDivisionError" in error.text
        assert play(engine, [2.0])[-1] == m.RunResult(0.5)


def truncated() -> float:
    x: float = et.sample(TruncatedNormal(0.0, 1.0, -1.0, 1.0), name="x")
    return x


def test_families_outside_of_ppx_1_need_their_capability() -> None:
    with served(truncated) as engine:
        engine.say(m.Handshake("old", (m.ERROR,)))
        assert "eleven families" in play(engine, [0.0])[-1].text  # type: ignore[union-attr]
        engine.say(m.Handshake("new", (m.FAMILIES,)))
        assert play(engine, [0.5])[-1] == m.RunResult(0.5)


def test_scripted_executions_come_in_columns() -> None:
    with served(marsaglia) as engine:
        engine.say(m.Handshake("engine", (m.SCRIPT,)))
        result = engine.say(m.Run(s.Request(seed=3, first_index=10, executions=20)))
        again = engine.say(m.Run(s.Request(seed=3, first_index=10, executions=20)))
    assert isinstance(result, m.RunResult)
    assert isinstance(again, m.RunResult)
    columns, second = s.Columns(*result.columns or ()), s.Columns(*again.columns or ())
    assert columns.new_addresses is not None
    assert second.new_addresses is None  # a connection hears each only once
    np.testing.assert_array_equal(columns.values, second.values)
    local = list(et.execution.run(et.Model(marsaglia), indices=range(10, 30), seed=3))
    np.testing.assert_array_equal(columns.values, [v for trace in local for v in trace.values])
    np.testing.assert_array_equal(columns.lengths, [len(trace) for trace in local])
    np.testing.assert_array_equal(columns.ended, np.zeros(20))


def test_control_comes_back_where_it_is_asked_for() -> None:
    with served(zoo) as engine:
        engine.say(m.Handshake("engine", (m.SCRIPT, m.FAMILIES)))
        said = engine.say(m.Run(s.Request(seed=1, first_index=2, control=s.CONTROL_ALL)))
        asked = []
        while isinstance(said, m.Sample):
            asked.append((said.name, said.instance, said.ordinal))
            said = engine.say(m.SampleResult(2.0 if said.name == "n" else 0.0))
    assert [name for name, _, _ in asked] == ["n", "walk", "", "shift"]  # not the array, nor the uncontrolled walk
    assert asked[1][1:] == (1, 2)
    assert isinstance(said, m.RunResult)
    columns = s.Columns(*said.columns or ())
    assert columns.values is not None
    assert [columns.values[k] for k in (0, 3, 5, 6)] == [2.0, 0.0, 0.0, 0.0]


def test_budgets_and_stops_end_executions() -> None:
    with served(zoo) as engine:
        engine.say(m.Handshake("engine", (m.SCRIPT, m.FAMILIES)))

        def ended(**fields: Any) -> s.Columns:
            said = engine.say(m.Run(s.Request(seed=1, executions=5, **fields)))
            assert isinstance(said, m.RunResult)
            return s.Columns(*said.columns or ())

        plain = ended()
        assert plain.new_addresses is not None
        short = ended(max_draws=3)
        assert set(short.ended.tolist()) == {s.EXHAUSTED}
        assert max(short.lengths) == 3
        weights = next(a for a in plain.new_addresses if a.endswith("zoo+3"))
        stopped = ended(stop_at=weights, stop_instance=1)
        assert set(stopped.ended.tolist()) == {s.STOPPED}
        assert set(stopped.lengths.tolist()) == {1}


def test_a_failing_execution_ends_the_columns() -> None:
    with served(failing) as engine:
        engine.say(m.Handshake("engine", (m.SCRIPT,)))
        said = engine.say(m.Run(s.Request(seed=1, executions=50)))
    assert isinstance(said, m.RunResult)
    columns = s.Columns(*said.columns or ())
    assert columns.ended[-1] == s.FAILED
    assert set(columns.ended[:-1].tolist()) <= {s.FINISHED}
    assert "ZeroDivisionError" in (columns.error or "")


def test_requests_for_more_than_a_million_executions_are_refused() -> None:
    def tossed() -> None:
        raise RuntimeError("was executed")

    with served(tossed) as engine:
        engine.say(m.Handshake("engine", (m.SCRIPT, m.ERROR)))
        said = engine.say(m.Run(s.Request(executions=(1 << 20) + 1)))
        assert isinstance(said, m.Error)
        assert "a request is for more than a million executions" in said.text
        assert isinstance(engine.say(m.Run(s.Request(executions=1 << 20))), m.RunResult)


def test_an_address_that_cannot_be_bound_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ProtocolError, match="addresses are like"):
        et.serve(gaussian, "nowhere")
    assert cli.main(["serve", "simulator=gaussian", "address=nowhere"]) == 1
    said = capsys.readouterr()
    assert "addresses are like" in said.err
    assert "listens" not in said.out


def test_the_command_line_serves_and_infers(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/sim"
    cli = [sys.executable, "-m", "etalumis.cli"]
    words = [*cli, "serve", "simulator=gaussian", f"address={address}", "idle=5"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=tmp_path, text=True) as server:
        try:
            infer = ["infer", "simulator=ppx", f"simulator.address={address}", "observe.obs0=8.0", "observe.obs1=9.0"]
            words = [*cli, *infer, "engine=rmh", "engine.burn_in=10", "num_traces=40", "output=post"]
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
        finally:
            server.terminate()
            assert server.stdout is not None
            assert address in server.stdout.read()
    post = et.Posterior.load(tmp_path / "post")
    local = et.posterior(et.Model(gaussian), {"obs0": 8.0, "obs1": 9.0}, et.RMH(burn_in=10), num_traces=40, seed=0)
    np.testing.assert_array_equal(post.values("mu"), local.values("mu"))
