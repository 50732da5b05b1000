"""What engines and networks take from the families: kernels, inflation, proposal coordinates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from distribution_cases import ARRAYS, CASES, CONTINUOUS, draws, elements, named, some_values
from etalumis.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Distribution,
    Exponential,
    Gamma,
    LogNormal,
    Mixture,
    Normal,
    Poisson,
    Stream,
    TruncatedNormal,
    UniformInteger,
    Weibull,
)
from etalumis.distributions.base import Continuous

INF = math.inf
each = pytest.mark.parametrize("d", [d for d, _ in CASES], ids=[repr(d)[:60] for d, _ in CASES])

SPIKED = Beta(0.05, 8.0)  # half of it lies below 1e-6 of its standard deviation
DEGENERATE = (Poisson(0.0), Binomial(7.0, 0.0), Binomial(7.0, 1.0))


@each
def test_random_walk_stays_on_the_support(d: Distribution) -> None:
    stream = Stream(11)
    for ordinal, value in enumerate(draws(d, 60, seed=5).tolist()):
        for step in (0.05, 1.0):
            stream.seek(ordinal)
            forward = d.random_walk(value, step)
            proposed = forward.draw(stream)
            assert type(proposed) is type(value)
            assert math.isfinite(forward.log_prob(proposed))
            assert math.isfinite(d.random_walk(proposed, step).log_prob(value))
            assert d.log_prob(proposed) > -INF or d in DEGENERATE


@pytest.mark.parametrize(**named([case for case in CONTINUOUS if case[0] != SPIKED]))
def test_random_walk_is_relative_to_the_spread(d: Distribution, law: Any) -> None:
    """A small step moves by a small part of the prior's range of quantiles, and does move."""
    median = float(law.ppf(0.5))
    kernel = d.random_walk(median, 0.1)
    moves = law.cdf(draws(kernel, 500)) - 0.5
    assert 0.003 < np.abs(moves).mean() < 0.15


@pytest.mark.parametrize("d", ARRAYS, ids=lambda d: d.family)
def test_random_walk_of_arrays(d: Distribution) -> None:
    stream = Stream(0)
    value = d.draw(stream)
    kernel = d.random_walk(value, 0.3)
    assert kernel.shape == d.shape
    stream.seek(1)
    proposed = kernel.draw(stream)
    total = sum(
        s.random_walk(v, 0.3).log_prob(p)
        for s, v, p in zip(elements(d), np.ravel(value).tolist(), np.ravel(proposed).tolist(), strict=True)
    )
    assert math.isfinite(total)
    assert kernel.log_prob(proposed) == pytest.approx(total, rel=1e-9)


def test_random_walk_of_labels_and_counts() -> None:
    assert Categorical([0.5, 0.0, 0.2, 0.3]).random_walk(2, 0.1) == Categorical([1.0, 0.0, 0.0, 1.0])
    assert Categorical([0.0, 2.0]).random_walk(1, 0.1) == Categorical([0.0, 2.0])
    assert Bernoulli(0.9).random_walk(1, 0.1) == Bernoulli(0.0)
    assert Bernoulli(1.0).random_walk(1, 0.1) == Bernoulli(1.0)
    assert Poisson(100.0).random_walk(7, 0.5) == UniformInteger(2.0, 12.0)
    assert Poisson(100.0).random_walk(2, 0.5) == UniformInteger(0.0, 7.0)
    assert Poisson(0.1).random_walk(0, 0.01) == UniformInteger(0.0, 1.0)
    assert Binomial(10.0, 0.5).random_walk(9, 2.0) == UniformInteger(6.0, 10.0)


@each
def test_kernels_take_values_from_outside(d: Distribution) -> None:
    """Under parameters that have moved on, a value may lie outside: the kernel exists, the prior says −inf."""
    for value in (-3, 10**6):
        assert isinstance(d.random_walk(value, 0.1), Distribution)


@each
def test_inflated_is_wider_on_the_same_support(d: Distribution) -> None:
    wide = d.inflated(2.0)
    values = draws(d, 2000)
    assert np.isfinite([wide.log_prob(v) for v in values[:200].tolist()]).all()
    wider = draws(wide, 2000)
    assert np.isfinite([d.log_prob(v) for v in wider[:200].tolist()]).all()
    if wide != d and not d.discrete:
        t, w = (np.log(values), np.log(wider)) if d.log_space else (values, wider)
        # flattening brings in a density that is concentrated at the ends of its interval
        concentrated = isinstance(d, Gamma | Beta) and min(d.parameters()) < 1.0
        assert concentrated or w.std() > 0.97 * t.std()


def test_inflated_values() -> None:
    assert Normal(1.0, 2.0).inflated(3.0) == Normal(1.0, 6.0)
    assert Gamma(1.0, 3.0).inflated(3.0) == Gamma(1.0, 1.0)
    assert Gamma(101.0, 1.0).inflated(10.0).moments()[1] == pytest.approx(10.0 * math.sqrt(101.0))
    assert Beta(5.0, 1.0).inflated(2.0) == Beta(2.0, 1.0)
    assert Categorical([1.0, 0.0, 0.0625]).inflated(2.0) == Categorical([1.0, 0.0, 0.25])
    assert Bernoulli(0.9).inflated(2.0).probs == pytest.approx(0.75)


@pytest.mark.parametrize(**named([case for case in CASES if case[0].proposal != "categorical"]))
def test_coordinates_cover_the_support(d: Distribution, law: Any) -> None:
    c = type(d).coordinates(*[np.array([p, p]) for p in d.pack()])
    assert all(part.shape == (2,) for part in c)
    loc, scale, low, high = (float(part[1]) for part in c)
    assert scale > 0.0
    assert low < high
    values = some_values(law).astype(float)
    z = ((np.log(values) if d.log_space else values) - loc) / scale
    rounding = 1e-9
    half = 0.5 / scale if d.proposal == "count" else 0.0
    assert (z - half >= low - rounding).all()
    assert (z + half <= high + rounding).all()
    middle = z[5:10]
    assert np.abs(middle).max() < 3.0
    assert d.proposal == "count" or d == SPIKED or np.ptp(middle) > 0.3
    if isinstance(d, Continuous) and not d.log_space:
        assert d.support()[0] <= loc + scale * low, "a proposal's border is inside the support"
        assert d.support()[1] >= loc + scale * high


def test_coordinates_are_the_moments() -> None:
    """Of log x where proposals work in log space."""
    for d in (Exponential(3.0), Gamma(0.3, 2.0), Gamma(40.0, 2.0), LogNormal(1.0, 0.5), Weibull(2.0, 0.7)):
        t = np.log(draws(d, 20_000))
        loc, scale, low, high = type(d).coordinates(*[np.array([p]) for p in d.pack()])
        assert abs(t.mean() - loc[0]) < 5.0 * t.std() / math.sqrt(20_000)
        assert t.std() == pytest.approx(scale[0], rel=0.05)
        assert (low[0], high[0]) == (-INF, INF)


@pytest.mark.parametrize(**named(CONTINUOUS))
def test_moments_and_support(d: Any, law: Any) -> None:
    mean, stddev = d.moments()
    low, high = d.support()
    assert low == pytest.approx(law.ppf(0.0), abs=1e-6) or not hasattr(law, "stats")
    if isinstance(d, Mixture):
        sample = draws(d, 20_000)
        assert sample.mean() == pytest.approx(mean, abs=5.0 * stddev / math.sqrt(20_000))
        assert sample.std() == pytest.approx(stddev, rel=0.05)
    elif isinstance(d, TruncatedNormal):
        assert law.std() / 4.0 < stddev < 4.0 * law.std()
        assert abs(law.mean() - mean) < 2.0 * stddev
    else:
        assert mean == pytest.approx(law.mean(), rel=1e-9)
        assert stddev == pytest.approx(law.std(), rel=1e-7)
    assert low < high


def test_log_probabilities_of_categories() -> None:
    weights = np.array([[1.0, 1.0, 2.0], [3.0, 0.0, 1.0]])
    rows = Categorical.log_probabilities(weights)
    assert Categorical.categories(*weights[0]) == 3
    for row, w in zip(rows, weights.tolist(), strict=True):
        assert row.tolist() == [Categorical(w).log_prob(k) for k in range(3)]
    rows = Bernoulli.log_probabilities(np.array([[0.2], [1.0]]))
    assert Bernoulli.categories(0.2) == 2
    assert rows.tolist() == [[Bernoulli(p).log_prob(k) for k in (0, 1)] for p in (0.2, 1.0)]


def test_stored_numbers_become_values() -> None:
    assert type(Poisson(1.0).cast(3.0)) is int
    assert Poisson(1.0).log_prob(Poisson(1.0).cast(2.5)) == -INF
    assert math.isnan(Poisson(1.0).cast(math.nan))
    assert type(Normal(0.0, 1.0).cast(3.0)) is float
