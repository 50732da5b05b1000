"""The C++ front end draws the same numbers as Python: counter stream, sampling algorithms, log densities."""

import itertools
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cpp_programs import compiled
from etalumis.distributions import BY_CODE, Distribution, Stream

SOURCE = Path(__file__).parent / "cpp" / "golden.cpp"
SEED, DRAWS = 20260729, 60
PARAMETERS: dict[str, list[tuple[float, ...]]] = {
    "Normal": [(0.0, 1.0), (-3.5, 1e-3), (1.0, math.sqrt(5.0)), (1e6, 250.0)],
    "Uniform": [(0.0, 1.0), (-1.0, 1.0), (-1e-9, 2.5e3), (7.0, 7.5)],
    "Categorical": [(1.0,), (0.1, 0.5, 0.4), (3.0, 0.0, 1.0, 2.0), (0.05,) * 20],
    "Poisson": [(0.0,), (0.3,), (4.0,), (9.99,), (10.0,), (87.5,), (1e5,)],
    "Bernoulli": [(0.0,), (1.0,), (0.5,), (0.03,)],
    "Beta": [(1.0, 1.0), (0.2, 0.3), (2.0, 5.0), (40.0, 3.0), (1e-3, 2.0)],
    "Exponential": [(1.0,), (0.02,), (345.6,)],
    "Gamma": [(1.0, 1.0), (0.05, 2.0), (0.7, 0.1), (3.3, 2.0), (250.0, 10.0)],
    "LogNormal": [(0.0, 1.0), (-3.0, 0.2), (2.0, 4.0)],
    "Binomial": [(0.0, 0.5), (1.0, 0.4), (20.0, 0.3), (20.0, 0.9), (1000.0, 0.4), (100.0, 0.97), (7.0, 1.0)],
    "Weibull": [(1.0, 1.0), (2.5, 0.5), (0.1, 8.0)],
}
# Largest difference allowed between a draw here and there, in units of the last place; the log densities differ
# by the few units of the last place of the largest of their terms.
LAST_PLACES = dict.fromkeys(("Uniform", "Categorical", "Bernoulli", "Normal", "Exponential", "Poisson", "Binomial"), 0)
LAST_PLACES |= {"Gamma": 64, "Beta": 64, "LogNormal": 4, "Weibull": 4}

FAMILIES = {family.family: family for family in BY_CODE.values() if family.family in PARAMETERS}
CASES = [(family, parameters) for family, several in PARAMETERS.items() for parameters in several]


def ask(lines: Sequence[str]) -> list[list[float]]:
    program = compiled(SOURCE, zmq=False)
    done = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, timeout=60, check=True)
    return [[float.fromhex(number) for number in line.split()] for line in done.stdout.splitlines()]


def make(family: str, parameters: Sequence[float]) -> Distribution:
    return FAMILIES[family].unpack(parameters)


def spelled(parameters: Sequence[float]) -> str:
    return " ".join([str(len(parameters)), *(float(p).hex() for p in parameters)])


def statements() -> list[tuple[int, int, int]]:
    """Trace index, ordinal and kind of the statements that are compared."""
    return [(index, (7 * index) % 50, index % 2) for index in range(DRAWS)]


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, tuple[float, ...]], list[list[float]]]:
    """A draw and its log density, for every case and statement."""
    lines = [
        f"draw {FAMILIES[family].code} {SEED} {index} {ordinal} {kind} {spelled(parameters)}"
        for family, parameters in CASES
        for index, ordinal, kind in statements()
    ]
    got = iter(ask(lines))
    return {case: list(itertools.islice(got, DRAWS)) for case in CASES}


def last_places(a: float, b: float) -> float:
    return 0.0 if a == b else abs(a - b) / math.ulp(max(abs(a), abs(b)))


@pytest.mark.parametrize(("family", "parameters"), CASES)
def test_same_draws_and_densities(
    family: str, parameters: tuple[float, ...], answers: dict[tuple[str, tuple[float, ...]], list[list[float]]]
) -> None:
    distribution = make(family, parameters)
    stream = Stream(SEED)
    for (index, ordinal, kind), (value, log_prob) in zip(statements(), answers[family, parameters], strict=True):
        stream.start(index)
        stream.seek(ordinal, kind)
        expected = distribution.draw(stream)
        assert last_places(value, float(expected)) <= LAST_PLACES[family], (index, value, expected)
        assert log_prob == pytest.approx(distribution.log_prob(value), rel=1e-12, abs=1e-9)


def test_arrays_draw_element_by_element_from_their_own_counters() -> None:
    arrays = [
        ("Normal", (np.arange(6.0).reshape(2, 3), np.array([1.0, 2.0, 0.5]))),
        ("Uniform", (np.array([[-1.0], [0.0]]), np.array([1.0, 2.0, 4.0]))),
        ("Categorical", (np.array([[1.0, 2.0, 3.0], [3.0, 0.0, 1.0]]),)),
        ("Poisson", (np.array([3.0, 30.0, 300.0]),)),
        ("Bernoulli", (np.array([0.2, 0.5, 0.9]),)),
        ("Beta", (2.0, np.array([0.3, 3.0]))),
        ("Exponential", (np.array([0.2, 2.0]),)),
        ("Gamma", (np.array([0.3, 3.0]), 2.0)),
        ("LogNormal", (np.array([0.3, 3.0]), 2.0)),
        ("Binomial", (np.array([3.0, 300.0]), 0.3)),
        ("Weibull", (2.0, np.array([0.3, 3.0]))),
    ]
    got = ask([f"array {SEED} {index} {3 * index} {index % 2}" for index in range(20)])
    stream = Stream(SEED)
    for index, block in enumerate(_blocks(got, len(arrays))):
        for (family, parameters), (*values, log_prob) in zip(arrays, block, strict=True):
            distribution = FAMILIES[family](*parameters)
            stream.start(index)
            stream.seek(3 * index, index % 2)
            expected = np.asarray(distribution.draw(stream))
            assert values == pytest.approx(expected.ravel().tolist(), rel=1e-13), family
            assert log_prob == pytest.approx(distribution.log_prob(np.reshape(values, expected.shape)), rel=1e-12)


def _blocks(rows: list[list[float]], size: int) -> list[list[list[float]]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@pytest.mark.parametrize(("family", "parameters"), CASES)
def test_same_densities_at_the_edges(family: str, parameters: tuple[float, ...]) -> None:
    """Outside of the support, at its ends, between the integers, and not a number."""
    values = [-1.0, -0.0, 0.5, 1.0, 2.0, 3.5, 1e3, 1e300, math.inf, -math.inf, math.nan]
    got = ask([f"log_prob {FAMILIES[family].code} {value} {spelled(parameters)}" for value in values])
    distribution = make(family, parameters)
    for value, (log_prob,) in zip(values, got, strict=True):
        expected = distribution.log_prob(value)
        assert log_prob == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True), value


@pytest.mark.parametrize(("family", "parameters"), [("Normal", (0.0, -1.0)), ("Categorical", (0.0, 0.0))])
def test_impossible_parameters_are_refused(family: str, parameters: tuple[float, ...]) -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        ask([f"draw {FAMILIES[family].code} 1 1 1 0 {spelled(parameters)}"])
    assert f"{family} needs" in raised.value.stderr
