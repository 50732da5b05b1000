"""Executions that raise, have no density, die or hang stop a run, which names them, or are left out and counted."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import etalumis as et
from etalumis.conf.simulation import summary
from etalumis.distributions import Normal, Uniform
from etalumis.execution import run
from etalumis.storage import Dataset, SimulationError, simulate, sort
from etalumis.storage.failures import FailedTrace, FailurePolicy, summarise
from etalumis.storage.validate import validate

pytestmark = pytest.mark.timeout(60)
SKIP = FailurePolicy("skip")
COUNT, CHUNK = 120, 40
HAZARD = {"raise": 0.03, "nan": 0.03, "die": 0.005, "hang": 0.005, "nothing": 0.0}  # three executions, or one


class Hazardous:
    """Fails in the executions whose first draw is small."""

    def __init__(self, how: str, hazard: float = HAZARD) -> None:
        self.how, self.hazard = how, hazard

    def __call__(self) -> float:
        x = et.sample(Uniform(0.0, 1.0), name="x")
        if x < self.hazard:
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "hang":
                time.sleep(60.0)
            if self.how == "raise":
                raise ZeroDivisionError("the beam was dumped")
            et.observe(Normal(x, 1.0), float("nan") if self.how == "nan" else 0.5, name="z")
        et.observe(Normal(x, 1.0), name="y")
        return float(x)


def hazardous(how: str, hazard: float) -> et.Model:
    return et.Model(Hazardous(how, hazard), "hazardous")


def first_values(seed: int = 0) -> list[float]:
    """The first draw of every trace."""
    return [t.values[0] for t in run(hazardous("nothing", 0.0), indices=range(COUNT), seed=seed)]


def small(how: str) -> list[int]:
    """The traces that fail."""
    return [index for index, value in enumerate(first_values()) if value < HAZARD[how]]


def make(path: Path, how: str, policy: FailurePolicy, workers: int = 1, hazard: float | None = None) -> Dataset:
    factory = partial(hazardous, how, HAZARD[how] if hazard is None else hazard)
    simulate(factory, path, COUNT, model="hazardous", workers=workers, chunk_size=CHUNK, failures=policy)
    return Dataset(path)


@pytest.mark.parametrize(
    ("how", "message", "workers"),
    [
        ("raise", "ZeroDivisionError: the beam was dumped", 0),
        ("raise", "ZeroDivisionError: the beam was dumped", 1),
        ("nan", "DensityError: log density is not a number", 0),
        ("die", "the worker process died (exit code -9)", 2),
        ("hang", "the worker process hung for 0.5 s", 2),
    ],
)
def test_failures_are_left_out_and_recorded(tmp_path: Path, how: str, message: str, workers: int) -> None:
    policy = FailurePolicy("skip", timeout=0.5 if how == "hang" else None)
    dataset = make(tmp_path / "d", how, policy, workers)
    said = dataset.manifest.failures
    failing = small(how)
    assert failing
    assert said["count"] == len(failing)
    assert said["indices"] == failing
    assert all(entry["message"].startswith(message) for entry in said["messages"])
    assert said["messages"][0]["first"] == failing[0]
    assert f"{len(failing)} of {COUNT} executions failed and were left out" in summary(dataset)
    assert f"× {message}" in summary(dataset)
    left = et.TraceBatch.concatenate(list(dataset.batches()))
    assert left.index.tolist() == [i for i in range(COUNT) if i not in failing]
    np.testing.assert_array_equal(left.value, np.delete(first_values(), failing))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", r"the execution of trace {index} \(seed 0\) of 'hazardous' failed.*the beam was dumped"),
        ("nan", r"the execution of trace {index} \(seed 0\).*log density is not a number"),
        ("die", r"died \(exit code -9\) while it ran trace {index} \(seed 0\)"),
        ("hang", r"hung for 0.5 s while it ran trace {index} \(seed 0\)"),
    ],
)
def test_failures_stop_the_run_and_say_how_to_see_them(tmp_path: Path, how: str, message: str) -> None:
    policy = FailurePolicy(timeout=0.5 if how == "hang" else None)
    first = small(how)[0]
    with pytest.raises(SimulationError, match=f"(?s){message.format(index=first)}") as raised:
        make(tmp_path / "d", how, policy)
    assert f"seed=0 index={first}" in str(raised.value)
    assert "failures=skip" in str(raised.value)


def test_a_run_that_stopped_goes_on_with_skipping(tmp_path: Path) -> None:
    with pytest.raises(SimulationError):
        make(tmp_path / "d", "raise", FailurePolicy(), 0)
    assert make(tmp_path / "d", "raise", SKIP, 0).manifest.failures["indices"] == small("raise")
    assert {p.name: p.read_bytes() for p in (tmp_path / "d").iterdir()} == {
        p.name: p.read_bytes() for p in make(tmp_path / "e", "raise", SKIP, 1).directory.iterdir()
    }


def test_where_everything_fails_the_run_stops(tmp_path: Path) -> None:
    pattern = "(?s)the execution of 11 of traces 0 to 39, more than failures=skip lets pass.*the beam was dumped"
    with pytest.raises(SimulationError, match=pattern):
        make(tmp_path / "d", "raise", FailurePolicy("skip", 0.0), 0, hazard=0.9)


def test_what_a_manifest_says_of_failures() -> None:
    assert summarise([]) == {}
    said = summarise([FailedTrace(7, "b"), FailedTrace(3, "a"), FailedTrace(1, "b"), FailedTrace(2, "c")])
    assert said["count"] == 4
    assert said["indices"] == [1, 2, 3, 7]
    assert said["messages"][:2] == [{"message": "b", "count": 2, "first": 1}, {"message": "c", "count": 1, "first": 2}]


def test_policies_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='"stop" or "skip"'):
        FailurePolicy("ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="between 0 and 1"):
        FailurePolicy("skip", 2.0)
    with pytest.raises(ValueError, match="positive seconds"):
        FailurePolicy(timeout=0.0)
    with pytest.raises(ValueError, match="timeout needs worker processes"):
        make(tmp_path / "d", "nothing", FailurePolicy(timeout=1.0), 0)


class Sleeping:
    """Makes its own batches, and none ever comes."""

    name = "sleeping"

    def __init__(self) -> None:
        self.addresses = et.execution.AddressBook()

    def batches(self, *settings: object, **more: object) -> Iterator[et.TraceBatch]:
        time.sleep(50.0)
        yield from ()


def test_a_timeout_is_refused_where_it_could_not_be_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"timeout=1 can't be kept by 'sleeping'.*simulator\.timeout"):
        simulate(Sleeping, tmp_path / "d", 4, model="sleeping", failures=FailurePolicy(timeout=1.0))


# --- simulators in other processes --------------------------------------------------------------------------------


def remote(name: str, **settings: object) -> et.RemoteModel:
    program = Path(__file__).with_name("ppx_simulators.py")
    return et.RemoteModel(command=[sys.executable, str(program), name, "{address}"], name=name, **settings)


@pytest.mark.parametrize("scripted", [True, False])
def test_executions_that_kill_a_simulator_are_left_out(tmp_path: Path, scripted: bool) -> None:
    """One that dies is launched again; which execution of a scripted batch it was is found by asking for fewer."""
    factory = partial(remote, "crashing", retries=1, scripted=scripted)
    simulate(factory, tmp_path / "d", COUNT, model="m", workers=1, chunk_size=CHUNK, seed=2, failures=SKIP)
    dataset = Dataset(tmp_path / "d")
    values = first_values(seed=2)
    large = [index for index, value in enumerate(values) if value > 0.97]
    assert dataset.manifest.failures["indices"] == large
    assert large
    assert "was killed by SIGKILL" in dataset.manifest.failures["messages"][0]["message"]
    kept = np.concatenate([batch.value for batch in dataset.batches()])
    np.testing.assert_array_equal(kept, [value for value in values if value <= 0.97])


def test_a_simulator_that_does_not_start_stops_the_run(tmp_path: Path) -> None:
    factory = partial(remote, "no_such_simulator", retries=0)
    with pytest.raises(SimulationError, match="before it answered the handshake"):
        simulate(factory, tmp_path / "d", 4, model="m", workers=1, chunk_size=4, failures=SKIP)


def test_what_a_simulators_own_policy_drops_is_recorded(tmp_path: Path) -> None:
    factory = partial(remote, "raising", policy="drop")
    simulate(factory, tmp_path / "d", COUNT, model="m", workers=1, chunk_size=CHUNK, seed=2)
    said = Dataset(tmp_path / "d").manifest.failures
    assert said["count"] == COUNT - len(Dataset(tmp_path / "d"))
    assert said["messages"][0]["message"].startswith("left out by the simulator's policy")


class Above:
    """Fails in the executions whose first draw is above a limit."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self) -> None:
        x = et.sample(Uniform(0.0, 1.0), name="x")
        if x > self.limit:
            raise RuntimeError("above")
        et.observe(Normal(x, 1.0), name="y")


@pytest.mark.parametrize("chunk_size", [1, 2, 5])
@pytest.mark.parametrize("workers", [0, 1])
def test_chunks_of_which_all_fail_are_left_out(chunk_size: int, workers: int, tmp_path: Path) -> None:
    """Storage chunks of a few traces each, and the last may hold a single one."""
    model = partial(et.Model, Above(0.5), "above")
    drawn = [trace.values[0] for trace in run(et.Model(Above(1.0), "above"), indices=range(31), seed=0)]
    good = [index for index, x in enumerate(drawn) if x <= 0.5]
    settings = {"model": "above", "chunk_size": chunk_size, "failures": FailurePolicy("skip", 1.0)}
    manifest = simulate(model, tmp_path / "d", 31, workers=workers, **settings)
    dataset = Dataset(tmp_path / "d")
    assert [index for batch in dataset.batches() for index in batch.index.tolist()] == good
    assert manifest.failures["indices"] == sorted(set(range(31)) - set(good))
    assert list(validate(tmp_path / "d", workers=0)) == []
    assert simulate(model, tmp_path / "d", 31, workers=0, **settings) == manifest
    sort(tmp_path / "d", tmp_path / "s", workers=0, memory_mb=160)
    assert list(validate(tmp_path / "s", workers=0)) == []


def test_a_dataset_of_which_all_fail_is_refused(tmp_path: Path) -> None:
    model = partial(et.Model, Above(-1.0), "above")
    with pytest.raises(SimulationError, match=r"every one of the 3 executions failed.*above"):
        simulate(model, tmp_path / "d", 3, model="above", workers=0, failures=FailurePolicy("skip", 1.0))
