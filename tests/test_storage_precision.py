"""Observes are stored in float32 only where their likelihood does not see the rounding."""

from pathlib import Path

import numpy as np
import pytest

import etalumis as et
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
    TruncatedNormal,
    Uniform,
    Weibull,
)
from etalumis.execution import ObserveColumn, Observed
from etalumis.storage import Dataset, simulate
from etalumis.storage.precision import narrow

FLOAT32 = np.dtype(np.float32)
VOXELS = np.random.default_rng(0).exponential(2.0, (4, 5, 5)) * (np.arange(100).reshape(4, 5, 5) % 3 == 0)


def column(*distributions: Distribution, values: object = None) -> ObserveColumn:
    one_each = [[Observed(0, "y", d, values, values is not None, 0.0)] for d in distributions]
    return ObserveColumn.from_statements(one_each)[0]


def far_off() -> None:
    x = et.sample(Normal(0.0, 3.0), name="x")
    et.observe(Normal(1e8 + x, 1.0), name="y")


def test_a_sharp_likelihood_far_off_survives_storage(tmp_path: Path) -> None:
    """The posterior of x is known: mean 2.7, standard deviation 0.95."""
    simulate(lambda: et.Model(far_off), tmp_path / "d", 4000, model="far_off", workers=0)
    engine = et.ImportanceSampling(dataset=Dataset(tmp_path / "d"))
    post = et.posterior(et.Model(far_off), observe={"y": 1e8 + 3.0}, engine=engine)
    assert abs(post.mean("x") - 2.7) < 5 * post.mcse("x")
    assert post.std("x") == pytest.approx(0.9**0.5, rel=0.1)


@pytest.mark.parametrize(
    "distribution",
    [
        Normal(VOXELS, 0.2),
        Normal(VOXELS * 1e-50, 0.3),  # what underflows is nothing beside the noise
        Normal(40.0, 0.2),
        Uniform(0.1, 0.7),
        Poisson(123.4),
        Binomial(1000, 0.3),
        Bernoulli(0.3),
        Categorical([0.2, 0.3, 0.5]),
        Exponential(0.3),
        Gamma(2.2, 0.3),
        LogNormal(0.3, 0.7),
        Weibull(0.3, 1.1),
        Beta(2.2, 3.3),
        TruncatedNormal(0.3, 0.7, 0.1, np.inf),
    ],
    ids=lambda d: f"{d.family}{d.shape}",
)
def test_wide_likelihoods_are_stored_small(distribution: Distribution) -> None:
    assert {p.dtype for p in narrow(column(distribution, distribution), "float32").parameters} == {FLOAT32}


@pytest.mark.parametrize(
    "distribution",
    [
        Normal(1e8 + 1.0, 1.0),
        Normal(np.where(np.arange(100).reshape(4, 5, 5) == 77, 12_345.678, VOXELS), 0.2),  # one voxel suffices
        Normal(0.0, 1e-50),
        Normal(1e300, 1e299),
        Uniform(1e6 + 0.1, 1e6 + 0.2),
        Poisson(1e12 + 12_345.0),
        Poisson(1e-50),
        Binomial(2**24 + 1, 0.5),
        Binomial(10, 1.0 - 1e-9),
        Bernoulli(1.0 - 1e-9),
        Categorical([1e-50, 1.0]),
        Exponential(1e-50),
        Gamma(1e12 + 1e5, 1e9),
        LogNormal(123.4, 1e-5),
        Beta(1e10 + 1e3, 1e10),
        TruncatedNormal(1e7, 0.5, 0.1, 1e7 + 0.1),
        Mixture([0.5, 0.5], [Normal(1e8 + 1.0, 1.0), Normal(0.0, 1e8)]),
    ],
    ids=lambda d: f"{d.family}{d.shape}",
)
def test_what_float32_would_spoil_stays_as_it_is(distribution: Distribution) -> None:
    before = column(distribution)
    after = narrow(before, "float32")
    for p, q in zip(before.parameters, after.parameters, strict=True):
        np.testing.assert_array_equal(p, q)
        assert q.dtype == np.float64


@pytest.mark.parametrize(
    ("distribution", "value", "small"),
    [
        (Normal(VOXELS, 0.2), VOXELS + 0.1, True),
        (Normal(1e8, 1.0), 1e8 + 3.3, False),
        (Poisson(123.4), 120, True),
        (Poisson(2e7), 2**24 + 1, False),
        (LogNormal(0.3, 0.7), 1.1, True),
        (LogNormal(0.3, 0.7), 1e-50, False),
        (Beta(0.5, 0.5), 0.3, True),
        (Beta(0.5, 0.5), 1.0 - 1e-9, False),
    ],
)
def test_values_too(distribution: Distribution, value: object, small: bool) -> None:
    before = column(distribution, distribution, values=value)
    after = narrow(before, "float32")
    assert after.values is not None
    assert (after.values.dtype == FLOAT32) is small
    np.testing.assert_allclose(after.log_likelihood(after.values), before.log_likelihood(value), atol=0.01)


def test_rows_are_judged_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last row decides wherever the pieces end, with a parameter that all rows share."""
    monkeypatch.setattr("etalumis.storage.precision._ELEMENTS", 150)
    plain = [Normal(VOXELS + k, 0.2) for k in range(6)]
    kept = narrow(column(*plain, Normal(VOXELS + 12_345.678, 0.2)), "float32")
    assert kept.parameters[0].dtype == np.float64
    assert narrow(column(*plain), "float32").parameters[0].dtype == FLOAT32
