"""Every family against SciPy: densities, draws, kernels, packing, coordinates; golden draws for other languages."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats as st
from scipy.integrate import quad

from distribution_cases import ARRAYS, CASES, CONTINUOUS, DISCRETE, draws, elements, named, some_values
from etalumis.distributions import (
    BY_CODE,
    DISTRIBUTIONS,
    FAMILIES,
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
ALL = [d for d, _ in CASES]
each = pytest.mark.parametrize("d", ALL, ids=[repr(d)[:60] for d in ALL])


def log_law(d: Distribution, law: Any, x: Any) -> Any:
    return law.logpmf(x) if d.discrete else law.logpdf(x)


# --- densities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(**named(CASES))
def test_log_density_is_scipys(d: Distribution, law: Any) -> None:
    values = some_values(law)
    expected = log_law(d, law, values)
    single = [d.log_prob(d.cast(v)) for v in values.tolist()]
    # the mass at a count of a million is a difference of terms of 1e7
    tolerance = 1e-8 if d.discrete and values.max() > 1e5 else 1e-10
    np.testing.assert_allclose(single, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(d.log_density(values, *d.parameters()), single, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(**named(CONTINUOUS))
def test_density_integrates_to_one(d: Distribution, law: Any) -> None:
    edges = law.ppf([1e-7, 1e-4, 0.01, 0.2, 0.5, 0.8, 0.99, 1 - 1e-4, 1 - 1e-7])
    if isinstance(d, Beta):
        edges = edges[edges < 1.0 - 1e-9]  # closer to 1 numbers are too coarse
    # in log x where the density may be singular at zero
    t = np.log(edges) if edges[0] > 0.0 else edges

    def density(t: float) -> float:
        return math.exp(d.log_prob(math.exp(t)) + t) if edges[0] > 0.0 else math.exp(d.log_prob(t))

    pieces = [quad(density, a, b, epsabs=1e-12, epsrel=1e-10, limit=200)[0] for a, b in pairwise(t)]
    assert sum(pieces) == pytest.approx(law.cdf(edges[-1]) - law.cdf(edges[0]), abs=1e-8)


@pytest.mark.parametrize(**named(DISCRETE))
def test_mass_sums_to_one(d: Distribution, law: Any) -> None:
    low, high = int(law.ppf(1e-13)), int(law.ppf(1 - 1e-13))
    values = np.arange(max(low - 1, -3), high + 2)
    assert np.exp(d.log_density(values, *d.parameters())).sum() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    "d",
    [
        TruncatedNormal(0.0, 1.0, 1e5, INF),
        TruncatedNormal(0.0, 1.0, -1e5 - 1e-6, -1e5),
        TruncatedNormal(0.0, 1.0, 3.0, 3.0 + 1e-9),
        TruncatedNormal(0.0, 1.0, -1e-12, 1e-12),
        TruncatedNormal(0.0, 1.0, 7.999, 8.2),
        TruncatedNormal(0.0, 1.0, 0.3, 0.9),
        TruncatedNormal(50.0, 1e-3, -INF, 12.0),
        TruncatedNormal(0.0, 1e6, -1.0, 1.0),
    ],
    ids=repr,
)
def test_truncated_normal_integrates_to_one_anywhere(d: TruncatedNormal) -> None:
    """Over intervals where the textbook normaliser Φ(b) − Φ(a) is zero or noise."""
    loc, scale, low, high = (float(c[0]) for c in d.coordinates(*[np.array([p]) for p in d.parameters()]))
    nodes, weights = np.polynomial.legendre.leggauss(40)
    edges = np.linspace(max(low, -40.0), min(high, 40.0), 41)
    half = 0.5 * np.diff(edges)[:, None]
    z = edges[:-1, None] + half * (nodes + 1.0)
    density = np.exp(d.log_density(loc + scale * z, *d.parameters())) * scale
    # positions are rounded, which matters where the scale is small
    rounding = 8.0 * math.ulp(loc) / scale
    assert (density * weights * half).sum() == pytest.approx(1.0, abs=1e-9 + rounding)
    sample = draws(d, 200)
    assert ((sample >= d.low) & (sample <= d.high)).all()
    assert len(np.unique(sample)) > 150


def test_density_check_detects_a_wrong_normaliser() -> None:
    """Negative control: one part in a million is seen."""
    d, law = Gamma(2.5, 1e-3), st.gamma(2.5 * (1 + 1e-6), scale=1e3)
    values = some_values(law)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose([d.log_prob(v) for v in values], law.logpdf(values), rtol=1e-10, atol=1e-10)


@each
def test_outside_the_support(d: Distribution) -> None:
    assert math.isnan(d.log_prob(math.nan))
    outside = [-INF, INF]
    if isinstance(d, Beta | Exponential | Gamma | LogNormal | Weibull | Poisson | Binomial | Categorical | Bernoulli):
        outside.append(-1e-3)
    if d.discrete:
        outside += [0.5, 2.5, -5.0]
    if isinstance(d, Uniform | TruncatedNormal):
        outside += [math.nextafter(d.low, -INF), math.nextafter(d.high, INF)]
    for value in outside:
        assert d.log_prob(value) == -INF, value
        assert d.log_density(value, *d.parameters()) == -INF, value
    assert np.isnan(d.log_density(math.nan, *d.parameters()))


@pytest.mark.parametrize(
    ("d", "value", "expected"),
    [
        (Beta(2.0, 1.0), 0.0, -INF),
        (Beta(2.0, 1.0), 1.0, math.log(2.0)),
        (Beta(1.0, 3.0), 0.0, math.log(3.0)),
        (Beta(0.5, 3.0), 0.0, INF),
        (Beta(0.5, 3.0), 1.0, -INF),
        (Beta(3.0, 0.5), 1.0, INF),
        (Gamma(2.0, 3.0), 0.0, -INF),
        (Gamma(1.0, 3.0), 0.0, math.log(3.0)),
        (Gamma(0.5, 3.0), 0.0, INF),
        (Weibull(2.0, 1.5), 0.0, -INF),
        (Weibull(2.0, 1.0), 0.0, -math.log(2.0)),
        (Weibull(2.0, 0.5), 0.0, INF),
        (Weibull(1.0, 300.0), 1e10, -INF),
        (LogNormal(0.0, 1.0), 0.0, -INF),
        (Exponential(2.0), 0.0, math.log(2.0)),
        (Uniform(1.0, 3.0), 3.0, -math.log(2.0)),
        (Poisson(0.0), 0, 0.0),
        (Poisson(0.0), 1, -INF),
        (Poisson(2.0), 3.0, math.log(4.0 / 3.0) - 2.0),
        (Bernoulli(0.0), 0, 0.0),
        (Bernoulli(0.0), 1, -INF),
        (Bernoulli(1.0), 1, 0.0),
        (Bernoulli(0.25), True, math.log(0.25)),
        (Binomial(5.0, 0.0), 0, 0.0),
        (Binomial(5.0, 1.0), 5, 0.0),
        (Binomial(5.0, 1.0), 4, -INF),
        (Binomial(0.0, 0.5), 0, 0.0),
        (Categorical([1.0, 0.0]), 1, -INF),
        (Categorical([1.0, 3.0]), 1.0, math.log(0.75)),
        (Categorical([1.0, 3.0]), 2, -INF),
        (Mixture([1.0, 1.0], [Beta(0.5, 2.0), Normal(0.0, 1.0)]), 0.0, INF),
    ],
    ids=lambda x: repr(x)[:40],
)
def test_edges_of_the_support(d: Distribution, value: float, expected: float) -> None:
    assert d.log_prob(value) == pytest.approx(expected, rel=1e-14)
    assert float(d.log_density(value, *d.parameters())) == pytest.approx(expected, rel=1e-14)


# --- draws --------------------------------------------------------------------------------------------------


def ks_pvalue(sample: np.ndarray, law: Any) -> float:
    return float(st.kstest(sample, law.cdf).pvalue)


def chi2_pvalue(sample: np.ndarray, law: Any) -> float:
    """Bins of about equal probability; a single possible value must be the only one drawn."""
    edges = np.unique(law.ppf(np.linspace(0.02, 0.98, 49)))
    expected = np.diff(np.concatenate([[0.0], law.cdf(edges), [1.0]])) * len(sample)
    counts = np.bincount(np.searchsorted(edges, sample), minlength=len(edges) + 1)
    assert (counts[expected < 1e-9] == 0).all()
    rare = expected < 10.0
    pooled = [(counts[rare].sum(), expected[rare].sum())] if rare.any() else []
    pairs = [(c, e) for c, e in [*zip(counts[~rare], expected[~rare], strict=True), *pooled] if e > 1e-9]
    if len(pairs) == 1:
        return 1.0
    observed, predicted = np.array(pairs).T
    return float(st.chi2.sf(((observed - predicted) ** 2 / predicted).sum(), len(pairs) - 1))


@pytest.mark.parametrize(**named(CASES))
def test_draws_follow_the_law(d: Distribution, law: Any) -> None:
    sample = draws(d, 20_000)
    assert type(d.draw(Stream(0))) is (int if d.discrete else float)
    pvalue = chi2_pvalue(sample, law) if d.discrete else ks_pvalue(sample, law)
    assert pvalue > 1e-4


def test_checks_of_draws_detect_a_wrong_law() -> None:
    """Negative controls: laws a few per cent off are refused."""
    assert ks_pvalue(draws(Gamma(2.5, 1.0), 20_000), st.gamma(2.6)) < 1e-4
    assert ks_pvalue(draws(TruncatedNormal(0.0, 1.0, 2.0, INF), 20_000), st.truncnorm(2.05, INF)) < 1e-4
    assert chi2_pvalue(draws(Poisson(10.0), 20_000), st.poisson(10.3)) < 1e-4
    assert chi2_pvalue(draws(Binomial(1000.0, 0.75), 20_000), st.binom(1000, 0.753)) < 1e-4


def test_draws_at_the_limits_of_double_precision() -> None:
    """Tiny concentrations give positive numbers with finite densities, not 0, 1 or NaN."""
    for d in (Gamma(1e-4, 1.0), Weibull(1.0, 1e-3), LogNormal(0.0, 1e4), Gamma(1e-3, 1e-300)):
        sample = draws(d, 300)
        assert ((sample > 0.0) & (sample < INF)).all()
        assert np.isfinite([d.log_prob(x) for x in sample[sample < 1e300]]).all()
    halves = draws(Beta(1e-6, 1e-6), 1000)
    assert ((halves > 0.0) & (halves < 1.0)).all()
    assert abs((halves > 0.5).mean() - 0.5) < 0.1
    assert set(draws(Categorical([0.0, 5e-324, 0.0]), 200).tolist()) == {1}


@pytest.mark.parametrize("d", ARRAYS, ids=lambda d: d.family)
def test_arrays_are_their_elements(d: Distribution) -> None:
    scalars = elements(d)
    stream = Stream(3)
    values = [d.draw(stream) for _ in (stream.seek(k) for k in range(2000))]
    sample = np.array(values).reshape(2000, -1)
    assert values[0].shape == d.shape
    assert values[0].dtype == (np.int64 if d.discrete else np.float64)
    for scalar, column in zip(scalars, sample.T, strict=True):
        alone = draws(scalar, 2000, seed=4)
        if d.discrete:
            counts = [np.bincount(c - min(column.min(), alone.min()), minlength=1) for c in (column, alone)]
            size = max(map(len, counts))
            table = np.array([np.pad(c, (0, size - len(c))) for c in counts])
            table = np.stack([part.sum(axis=1) for part in np.array_split(table, min(8, size), axis=1)], axis=1)
            table = table[:, table.sum(axis=0) > 0]
            assert table.shape[1] == 1 or st.chi2_contingency(table).pvalue > 1e-5
        else:
            assert st.ks_2samp(column, alone).pvalue > 1e-5
    total = sum(s.log_prob(v) for s, v in zip(scalars, sample[0].tolist(), strict=True))
    assert d.log_prob(values[0]) == pytest.approx(total, rel=1e-12)
    stacked = d.log_density(np.stack(values[:5]), *d.parameters())
    assert stacked.shape == (5, *d.shape)
    assert d.log_prob(np.full(d.shape, math.nan)) != d.log_prob(values[0])


def test_an_element_does_not_depend_on_the_others() -> None:
    """Each element has its own numbers, however many the others consumed."""
    stream = Stream(0)
    stream.seek(7)
    one = Gamma(np.array([0.1, 5.0, 2.0]), 1.0).draw(stream)
    two = Gamma(np.array([7.0, 5.0, 0.3]), 1.0).draw(stream)
    assert one[1] == two[1]
    assert one[0] != two[0]


# --- parameters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", ALL + ARRAYS, ids=lambda d: repr(d)[:60])
def test_pack_and_unpack(d: Distribution) -> None:
    packed = d.pack()
    assert all(type(p) is float for p in packed)
    again = BY_CODE[d.code].unpack(packed, d.shape)
    assert again == d
    assert hash(again) == hash(d)
    assert again.shape == d.shape
    assert again.pack() == packed
    assert repr(d).startswith(d.family)


def test_families_are_found_by_name_and_code() -> None:
    codes = (
        "Normal Uniform Categorical Poisson Bernoulli Beta Exponential Gamma LogNormal Binomial Weibull "
        "TruncatedNormal Mixture UniformInteger"
    )
    assert [BY_CODE[k].family for k in range(1, 15)] == codes.split()
    assert {DISTRIBUTIONS[family.family] for family in FAMILIES} == set(FAMILIES)
    assert Normal(0.0, 1.0) != LogNormal(0.0, 1.0)
    assert Normal(0.0, 1.0) != Normal(0.0, 2.0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Normal(0.0, 0.0),
        lambda: Normal(0.0, -1.0),
        lambda: Normal(math.nan, 1.0),
        lambda: Normal(0.0, math.nan),
        lambda: Normal(INF, 1.0),
        lambda: Normal(0.0, [1.0, -1.0]),
        lambda: Normal([], 1.0),
        lambda: Uniform(1.0, 1.0),
        lambda: Uniform(0.0, INF),
        lambda: Uniform(math.nan, 1.0),
        lambda: Uniform(-1.7e308, 1.7e308),
        lambda: Categorical([]),
        lambda: Categorical([0.0, 0.0]),
        lambda: Categorical([1.0, -0.1]),
        lambda: Categorical([1.0, math.nan]),
        lambda: Categorical([math.nan, 1.0]),
        lambda: Categorical([1.0, INF]),
        lambda: Categorical([[1.0], [0.0]]),
        lambda: Categorical(0.5),
        lambda: Poisson(-1.0),
        lambda: Poisson(math.nan),
        lambda: Poisson(INF),
        lambda: Bernoulli(1.1),
        lambda: Bernoulli(math.nan),
        lambda: Beta(0.0, 1.0),
        lambda: Beta(1.0, math.nan),
        lambda: Exponential(0.0),
        lambda: Exponential([1.0, math.nan]),
        lambda: Gamma(0.0, 1.0),
        lambda: Gamma(1.0, -2.0),
        lambda: LogNormal(0.0, 0.0),
        lambda: LogNormal(math.nan, 1.0),
        lambda: Binomial(2.5, 0.5),
        lambda: Binomial(-1, 0.5),
        lambda: Binomial(math.nan, 0.5),
        lambda: Binomial(3, 1.5),
        lambda: Weibull(0.0, 1.0),
        lambda: Weibull(1.0, INF),
        lambda: TruncatedNormal(0.0, 1.0, 1.0, 1.0),
        lambda: TruncatedNormal(0.0, 1.0, math.nan, 1.0),
        lambda: TruncatedNormal(0.0, 0.0, 0.0, 1.0),
        lambda: UniformInteger(0.5, 2.0),
        lambda: UniformInteger(3.0, 2.0),
        lambda: Mixture([1.0], [Normal(0.0, 1.0), Normal(0.0, 1.0)]),
        lambda: Mixture([1.0, 1.0], [Normal(0.0, 1.0), Poisson(1.0)]),
        lambda: Mixture([1.0], [Normal([0.0, 1.0], 1.0)]),
        lambda: Mixture([0.0], [Normal(0.0, 1.0)]),
    ],
)
def test_bad_parameters_are_refused(build: Any) -> None:
    with pytest.raises(ValueError, match=r"needs|empty"):
        build()


def test_parameters_of_any_number_type() -> None:
    for d in (Normal(0, 1), Normal(np.float32(0.0), np.int64(1)), Normal(np.array(0.0), True)):
        assert d == Normal(0.0, 1.0)
        assert all(type(p) is float for p in d.pack())
    assert Categorical(np.array([1, 3])) == Categorical([1.0, 3.0]) == Categorical((1, 3))
    assert Binomial(5, 0.5) == Binomial(5.0, 0.5)


# --- for other languages ------------------------------------------------------------------------------------

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_draws.json").read_text())
EXACT = {"Uniform", "Bernoulli", "Categorical", "UniformInteger", "Poisson", "Binomial"}


@pytest.mark.parametrize("case", GOLDEN["draws"], ids=lambda c: f"{c['family']}{c['packed']}"[:60])
def test_golden_draws(case: dict[str, Any]) -> None:
    """The numbers that every front end must give: exactly where no logarithm enters, else to rounding."""
    d = DISTRIBUTIONS[case["family"]].unpack(case["packed"], tuple(case["shape"]))
    stream = Stream(GOLDEN["seed"])
    for index, ordinal, kind, value, log_prob in case["statements"]:
        stream.start(index)
        stream.seek(ordinal, kind)
        got = d.draw(stream)
        if d.family in EXACT:
            assert np.ravel(got).tolist() == value
        else:
            np.testing.assert_allclose(np.ravel(got), value, rtol=1e-12, atol=0)
        assert d.log_prob(got) == pytest.approx(log_prob, rel=1e-11, abs=1e-11)


def test_golden_draws_cover_every_family() -> None:
    assert {case["family"] for case in GOLDEN["draws"]} == set(DISTRIBUTIONS)


def test_needs_numpy_only() -> None:
    """Families work, arrays and all, where SciPy can't be imported."""
    program = (
        "import sys; sys.modules['scipy'] = None\n"
        "import numpy as np\n"
        "from etalumis.distributions import FAMILIES, Gamma, TruncatedNormal\n"
        "TruncatedNormal.log_density(np.ones(3), 0.0, 1.0, 0.0, 2.0)\n"
        "Gamma.coordinates(np.ones(3), np.ones(3)); Gamma.log_density(np.ones(3), 2.0, 1.0)\n"
        "assert not {'torch', 'scipy.special', 'statistics'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
