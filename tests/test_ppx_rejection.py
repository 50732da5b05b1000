"""Rejection loops of simulators in other processes: marked in C++, C or Python, found by patterns, stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import etalumis as et
from cpp_programs import compiled
from etalumis.execution import Job, Observations, Stop, run_jobs
from etalumis.execution.trace import ACCEPTED, PASS
from etalumis.inference import InferenceError
from etalumis.ppx import messages as m
from etalumis.ppx import scripted as s
from etalumis.ppx.codec import Decoder, Encoder
from etalumis.ppx.columns import Interpreter
from etalumis.ppx.conversion import to_trace
from etalumis.ppx.errors import ProtocolError
from etalumis.ppx.runner import Runner
from etalumis.ppx.scripted import Request
from inference_checks import LOOP, ByHand, Proposals
from test_inference_rejection import BETA, low, marked, nested, ordered
from test_ppx_front_ends import c_interface

LOOPS = Path(__file__).parent / "cpp" / "marked_loops.cpp"
NESTED: Proposals = {"u": low, "v": low}
CASES: dict[str, tuple[Callable[[], None], Proposals]] = {"marked": (marked, BETA), "nested": (nested, NESTED)}


def launched(model: str, **how: Any) -> et.RemoteModel:
    return et.RemoteModel(command=[str(compiled(LOOPS)), "{address}", model], timeout=20.0, **how)


@pytest.fixture(params=[(name, scripted) for name in CASES for scripted in (True, False)], ids=str)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[str, et.RemoteModel]]:
    name, scripted = request.param
    with launched(name, scripted=scripted) as remote:
        yield name, remote


def test_weights_equal_those_of_the_python_model(pair: tuple[str, et.RemoteModel]) -> None:
    """Which test_inference_rejection.py holds against the truth."""
    name, remote = pair
    function, proposals = CASES[name]
    engine = et.IC(ByHand(proposals), rejection="amortised", extra_runs=3)
    ours = et.posterior(remote, LOOP, engine, num_traces=40, seed=3)
    theirs = et.posterior(et.Model(function), LOOP, engine, num_traces=40, seed=3)
    np.testing.assert_array_equal(ours.values("m"), theirs.values("m"))
    np.testing.assert_allclose(ours.log_weights, theirs.log_weights, rtol=1e-12)
    for count in ("loops", "rejected_passes", "extra_executions", "never_accepted"):
        assert ours.info[count] == theirs.info[count]
    assert ours.traces.tags == ()
    assert remote.num_failures == 0


def test_workers_and_several_simulators_change_nothing() -> None:
    engine = et.IC(ByHand(BETA), rejection="amortised", extra_runs=2)
    expected = et.posterior(et.Model(marked), LOOP, engine, num_traces=40, seed=4).log_weights
    with launched("marked", workers=2) as remote:
        np.testing.assert_allclose(et.posterior(remote, LOOP, engine, 40, seed=4).log_weights, expected, rtol=1e-12)
        shared = et.IC(ByHand(BETA), rejection="amortised", extra_runs=2, workers=2)
        np.testing.assert_allclose(et.posterior(remote, LOOP, shared, 40, seed=4).log_weights, expected, rtol=1e-12)


@pytest.mark.parametrize("scripted", [True, False])
def test_extra_executions_end_behind_the_loop(scripted: bool) -> None:
    with launched("long_tail", scripted=scripted) as remote:
        observations = Observations(LOOP)
        jobs = [
            Job(0, observations, asks=False, stop=Stop((ACCEPTED + "x", 1))),
            Job(1, observations, stop=Stop((PASS + "x", 2))),
        ]
        loop, single = sorted(run_jobs(remote, ByHand(BETA), jobs, seed=1), key=lambda trace: trace.index)
        assert len(loop.marks) == len(loop) - 1
        assert {mark.base for mark in loop.marks} == {PASS + "x"}
        assert len(single) == 2
        assert [mark.position for mark in single.marks] == ([1, 2] if len(single.marks) == 2 else [1])
        (whole,) = run_jobs(remote, ByHand(BETA), [Job(2, observations)], seed=1)
        assert len(whole) > 2000
        assert whole.marks[-2].log_likelihood == 0.0
        assert remote.num_failures == 0


def test_a_c_model() -> None:
    engine = et.IC(ByHand(BETA), rejection="amortised", extra_runs=2)
    with et.RemoteModel(command=[str(c_interface()), "marked", "{address}"], timeout=20.0) as remote:
        ours = et.posterior(remote, LOOP, engine, num_traces=40, seed=7)
        assert remote.num_failures == 0
    theirs = et.posterior(et.Model(marked), LOOP, engine, num_traces=40, seed=7)
    np.testing.assert_allclose(ours.log_weights, theirs.log_weights, rtol=1e-12)


@pytest.mark.parametrize("position", [-1.0, 4.0, np.nan, np.inf])
def test_markers_that_make_no_sense_are_protocol_errors(position: float) -> None:
    columns = Runner(et.Model(marked), lambda *_: 0.0).run(Request(seed=1))
    assert columns.tags is not None
    tags = s.Values(*columns.tags)

    def read(values: Any) -> et.Trace:
        changed = columns._replace(tags=tags._replace(values=values))
        answer = Decoder().decode(Encoder().encode(m.RunResult(None, changed)))
        assert isinstance(answer, m.RunResult)
        return to_trace(Interpreter(et.AddressBook()).read(answer.columns, 0, 1))

    assert [mark.position for mark in read(tags.values).marks] == [1, 2, 3, 3]
    with pytest.raises(ProtocolError):
        read(np.array([*tags.values[:2], position, *tags.values[3:]]))


def test_bulk_runs_leave_markers_out() -> None:
    with launched("nested") as remote:
        traces = et.prior(remote, num_traces=100, seed=5).traces
    assert traces.tags == ()
    assert traces.num_traces == 100


def test_a_pattern_finds_the_loop() -> None:
    """Where the source can't be marked: the same weights again."""
    engine = et.IC(ByHand(BETA), rejection="amortised", extra_runs=3, loops={"x": "^loop$"})
    program = Path(__file__).parent / "cpp" / "unmarked_loop.cpp"
    ours = {}
    for scripted in (True, False):
        with et.RemoteModel(command=[str(compiled(program)), "{address}"], scripted=scripted, timeout=20.0) as remote:
            ours[scripted] = et.posterior(remote, LOOP, engine, num_traces=40, seed=3)
    marks = et.posterior(
        et.Model(marked), LOOP, et.IC(ByHand(BETA), rejection="amortised", extra_runs=3), num_traces=40, seed=3
    )
    for post in ours.values():
        np.testing.assert_allclose(post.log_weights, marks.log_weights, rtol=1e-12)
        assert post.info["rejected_passes"] == marks.info["rejected_passes"]


@pytest.mark.parametrize("scripted", [True, False])
def test_a_served_python_model_is_marked_too(scripted: bool, served: Callable[..., et.RemoteModel]) -> None:
    engine = et.IC(ByHand(NESTED), rejection="amortised", extra_runs=2)
    ours = et.posterior(served("nested", scripted), LOOP, engine, num_traces=15, seed=6)
    theirs = et.posterior(et.Model(nested), LOOP, engine, num_traces=15, seed=6)
    np.testing.assert_allclose(ours.log_weights, theirs.log_weights, rtol=1e-12)


def test_a_pattern_sees_draws_that_no_network_answers(served: Callable[..., et.RemoteModel]) -> None:
    """The draw that ends a pass comes from the prior: a simulator that runs by itself would tell of it too late."""
    pattern = {"pair": "^loop/(x|(?P<last>accept))$"}
    engine = et.IC(ByHand(BETA), rejection="amortised", extra_runs=2, loops=pattern)
    ours = et.posterior(served("ordered", True), LOOP, engine, num_traces=15, seed=8)
    theirs = et.posterior(et.Model(ordered), LOOP, engine, num_traces=15, seed=8)
    np.testing.assert_allclose(ours.log_weights, theirs.log_weights, rtol=1e-12)
    assert ours.info["rejected_passes"] == theirs.info["rejected_passes"] > 0


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., et.RemoteModel]]:
    models = []

    def launch(model: str, scripted: bool) -> et.RemoteModel:
        program = tmp_path / "serving.py"
        program.write_text(
            f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            f"import etalumis as et\nfrom test_inference_rejection import {model} as model\n"
            "et.serve(et.Model(model), sys.argv[1])\n"
        )
        models.append(et.RemoteModel(command=[sys.executable, str(program), "{address}"], scripted=scripted))
        return models[-1]

    yield launch
    for model in models:
        model.close()


def test_what_is_observed_inside_is_refused_over_the_wire() -> None:
    with launched("observing") as remote, pytest.raises(InferenceError, match="observed inside of the rejection loop"):
        et.posterior(remote, {"y": 0.5}, et.IC(ByHand({}), rejection="amortised"), num_traces=5, seed=1)
