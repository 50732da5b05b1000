"""The distributions that the tests of the families run over, each beside SciPy's of the same law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats as st

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
    Uniform,
    UniformInteger,
    Weibull,
)

INF = math.inf


@dataclass
class MixtureLaw:
    """What the tests use of a frozen SciPy distribution, for a mixture of them."""

    weights: Sequence[float]
    laws: Sequence[Any]

    def cdf(self, x: Any) -> Any:
        return sum(w * law.cdf(x) for w, law in zip(self.weights, self.laws, strict=True)) / sum(self.weights)

    def logpdf(self, x: Any) -> Any:
        with np.errstate(divide="ignore"):
            parts = [np.log(w) + law.logpdf(x) for w, law in zip(self.weights, self.laws, strict=True)]
        return np.logaddexp.reduce(parts, axis=0) - math.log(sum(self.weights))

    def ppf(self, q: Any) -> Any:
        grid = np.unique(np.concatenate([law.ppf(np.linspace(1e-9, 1 - 1e-9, 4001)) for law in self.laws]))
        return np.interp(q, self.cdf(grid), grid)


def categorical(weights: Sequence[float]) -> Any:
    total = sum(weights)
    return st.rv_discrete(values=(range(len(weights)), [w / total for w in weights]))


def truncated(mean: float, stddev: float, low: float, high: float) -> tuple[Distribution, Any]:
    law = st.truncnorm((low - mean) / stddev, (high - mean) / stddev, mean, stddev)
    return TruncatedNormal(mean, stddev, low, high), law


CONTINUOUS: list[tuple[Distribution, Any]] = [
    (Normal(1.0, 2.0), st.norm(1.0, 2.0)),
    (Normal(-1e3, 1e-3), st.norm(-1e3, 1e-3)),
    (Uniform(0.0, 1.0), st.uniform(0.0, 1.0)),
    (Uniform(-3.0, 1e6), st.uniform(-3.0, 1e6 + 3.0)),
    (Beta(2.0, 5.0), st.beta(2.0, 5.0)),
    (Beta(1.0, 1.0), st.beta(1.0, 1.0)),
    (Beta(1.0, 3.0), st.beta(1.0, 3.0)),
    (Beta(0.2, 0.4), st.beta(0.2, 0.4)),
    (Beta(0.05, 8.0), st.beta(0.05, 8.0)),
    (Beta(1000.0, 2000.0), st.beta(1000.0, 2000.0)),
    (Exponential(3.0), st.expon(scale=1.0 / 3.0)),
    (Exponential(1e-5), st.expon(scale=1e5)),
    (Gamma(1.0, 1.0), st.gamma(1.0)),
    (Gamma(2.5, 1e-3), st.gamma(2.5, scale=1e3)),
    (Gamma(0.05, 2.0), st.gamma(0.05, scale=0.5)),
    (Gamma(0.9, 2.0), st.gamma(0.9, scale=0.5)),
    (Gamma(1e4, 10.0), st.gamma(1e4, scale=0.1)),
    (LogNormal(0.0, 1.0), st.lognorm(1.0)),
    (LogNormal(5.0, 0.01), st.lognorm(0.01, scale=math.exp(5.0))),
    (LogNormal(-3.0, 3.0), st.lognorm(3.0, scale=math.exp(-3.0))),
    (Weibull(1.0, 1.0), st.weibull_min(1.0)),
    (Weibull(2.0, 0.3), st.weibull_min(0.3, scale=2.0)),
    (Weibull(3.0, 10.0), st.weibull_min(10.0, scale=3.0)),
    truncated(0.0, 1.0, -1.0, 2.0),
    truncated(0.0, 1.0, -INF, INF),
    truncated(0.0, 1.0, 2.0, INF),
    truncated(1.0, 0.5, -INF, -0.5),
    truncated(0.0, 1.0, 5.5, 6.0),
    truncated(0.0, 1.0, -40.1, -40.0),
    truncated(0.0, 1.0, 40.0, INF),
    truncated(0.0, 1000.0, 0.0, 1.0),
    truncated(2.0, 3.0, 2.1, 2.102),
    truncated(-7.0, 0.1, -10.0, 100.0),
    (
        Mixture([0.3, 0.7], [Normal(0.0, 1.0), Normal(4.0, 0.5)]),
        MixtureLaw([0.3, 0.7], [st.norm(0.0, 1.0), st.norm(4.0, 0.5)]),
    ),
    (
        Mixture([2.0, 0.0, 6.0], [Gamma(2.0, 1.0), Normal(0.0, 1.0), Uniform(3.0, 5.0)]),
        MixtureLaw([2.0, 6.0], [st.gamma(2.0), st.uniform(3.0, 2.0)]),
    ),
    (
        Mixture([0.5, 0.5], [Mixture([1.0, 1.0], [Uniform(0.0, 1.0), Exponential(1.0)]), Beta(2.0, 2.0)]),
        MixtureLaw([0.25, 0.25, 0.5], [st.uniform(0.0, 1.0), st.expon(), st.beta(2.0, 2.0)]),
    ),
]

DISCRETE: list[tuple[Distribution, Any]] = [
    (Categorical([0.1, 0.2, 0.7]), categorical([0.1, 0.2, 0.7])),
    (Categorical([3.0, 0.0, 1.0, 0.0]), categorical([3.0, 0.0, 1.0, 0.0])),
    (Categorical([5.0]), categorical([1.0])),
    (Categorical([1e-300, 1e-300]), categorical([1.0, 1.0])),
    (Categorical([1.0 + k for k in range(40)]), categorical([1.0 + k for k in range(40)])),
    (Poisson(0.0), st.poisson(0.0)),
    (Poisson(1e-3), st.poisson(1e-3)),
    (Poisson(3.5), st.poisson(3.5)),
    (Poisson(9.999), st.poisson(9.999)),
    (Poisson(10.0), st.poisson(10.0)),
    (Poisson(1234.5), st.poisson(1234.5)),
    (Poisson(1e6), st.poisson(1e6)),
    (Bernoulli(0.3), st.bernoulli(0.3)),
    (Bernoulli(0.0), st.bernoulli(0.0)),
    (Bernoulli(1.0), st.bernoulli(1.0)),
    (Binomial(10.0, 0.3), st.binom(10, 0.3)),
    (Binomial(0.0, 0.3), st.binom(0, 0.3)),
    (Binomial(7.0, 0.0), st.binom(7, 0.0)),
    (Binomial(7.0, 1.0), st.binom(7, 1.0)),
    (Binomial(19.0, 0.5), st.binom(19, 0.5)),
    (Binomial(20.0, 0.5), st.binom(20, 0.5)),
    (Binomial(1000.0, 0.996), st.binom(1000, 0.996)),
    (Binomial(1000.0, 0.75), st.binom(1000, 0.75)),
    (Binomial(1e6, 0.2), st.binom(1_000_000, 0.2)),
    (UniformInteger(-2.0, 4.0), st.randint(-2, 5)),
    (UniformInteger(3.0, 3.0), st.randint(3, 4)),
]

CASES = CONTINUOUS + DISCRETE


ARRAYS: list[Distribution] = [
    Normal(np.array([0.0, 10.0, -10.0]), 0.1),
    Uniform(np.array([[0.0], [5.0]]), np.array([6.0, 7.0, 8.0])),
    Categorical([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]),
    Poisson([0.1, 100.0]),
    Bernoulli(np.array([0.0, 0.4, 1.0])),
    Beta(np.array([0.5, 2.0, 30.0]), 2.0),
    Exponential([[1.0, 100.0]]),
    Gamma(np.array([0.2, 3.0]), np.array([1.0, 2.0])),
    LogNormal(np.zeros(4), 0.5),
    Binomial([3, 1000], 0.4),
    Weibull([1.0, 2.0], [0.5, 3.0]),
    TruncatedNormal(np.array([0.0, 0.0, 9.0]), 1.0, np.array([-1.0, 40.0, -INF]), np.array([1.0, INF, 0.0])),
    UniformInteger([0, 5], [3, 5]),
]


def named(cases: Sequence[tuple[Distribution, Any]]) -> dict[str, Any]:
    """Arguments of ``pytest.mark.parametrize`` for these cases."""
    return {"argnames": ("d", "law"), "argvalues": cases, "ids": [repr(d)[:60] for d, _ in cases]}


def draws(d: Distribution, count: int, seed: int = 0) -> np.ndarray:
    """The values of ``count`` statements of one trace."""
    stream = Stream(seed)
    stream.start(0)
    values = []
    for ordinal in range(count):
        stream.seek(ordinal)
        values.append(d.draw(stream))
    return np.array(values)


def some_values(law: Any) -> np.ndarray:
    """Values over the whole support, far tails included."""
    q = np.array([1e-9, 1e-6, 1e-3, 0.02, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.98, 0.999, 1 - 1e-6, 1 - 1e-9])
    values = law.ppf(q)
    return values[np.isfinite(values)]


def elements(d: Distribution) -> list[Distribution]:
    """The scalar distributions of an array-valued one, row-major."""
    packed = np.array(d.pack())
    if isinstance(d, Categorical):
        return [Categorical(row.tolist()) for row in packed.reshape(math.prod(d.shape), -1)]
    return [type(d).unpack(column) for column in packed.reshape(len(d.parameter_names), -1).T.tolist()]
