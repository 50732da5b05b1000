"""Proposals: normal intervals against mpmath, densities that integrate to 1, draws that follow them."""

import math
from functools import partial
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.stats as st
import torch
from torch import Tensor

from distribution_cases import CASES, draws
from etalumis.distributions import Distribution
from etalumis.networks.columns import Frame, UnreachableError, category_columns, coordinate_columns
from etalumis.networks.intervals import interval, log_density, quantile
from etalumis.networks.proposals import Proposal, proposal
from network_models import mixture

mpmath.mp.dps = 50
INF = math.inf


def intervals(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bounds near and far, narrow, wide and infinite, and probabilities."""
    rng = np.random.default_rng(0)
    far = 10.0 ** rng.uniform(-6, 6, count) * rng.choice([-1.0, 1.0], count)
    a = np.concatenate([rng.normal(0, 3, count), rng.normal(0, 100, count), far])
    b = a + 10.0 ** rng.uniform(-4, 4, 3 * count)
    b[::7] = INF
    a[3::11] = np.where(np.isinf(b[3::11]), a[3::11], -INF)
    return a, b, rng.uniform(size=3 * count)


def exact_mass(a: float, b: float) -> mpmath.mpf:
    def upper(x: float) -> mpmath.mpf:
        return mpmath.erfc(mpmath.mpf(x) / mpmath.sqrt(2)) / 2

    if a > 0:
        return upper(a) - upper(b)
    return upper(-b) - upper(-a) if b < 0 else 1 - upper(-a) - upper(b)


def test_intervals_of_the_normal_are_exact_however_far_out() -> None:
    a, b, u = intervals(60)
    low, high = torch.from_numpy(a), torch.from_numpy(b)
    inside = interval(low, high)
    z = quantile(torch.from_numpy(u), low, high)
    density = log_density(z, low, high, inside)
    assert ((z >= low) & (z <= high)).all()
    for k in range(len(a)):
        mass = exact_mass(a[k], b[k])
        assert float(inside.log_mass[k]) == pytest.approx(float(mpmath.log(mass)), rel=1e-10, abs=1e-10)
        for bound, at in ((a[k], inside.at_low[k]), (b[k], inside.at_high[k])):
            exact = 0.0 if math.isinf(bound) else float(mpmath.npdf(mpmath.mpf(bound)) / mass)
            assert float(at) == pytest.approx(exact, rel=1e-8, abs=1e-300)
        point = float(z[k])
        assert float(exact_mass(a[k], point) / mass) == pytest.approx(u[k], abs=1e-5)
        assert float(density[k]) == pytest.approx(float(mpmath.log(mpmath.npdf(mpmath.mpf(point)) / mass)), abs=1e-8)


def outputs(answer: Proposal, count: int, scale: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, answer.outputs + 2, generator=generator, dtype=torch.float64)


BOUNDS = [(0.0, 1.0), (-INF, INF), (0.0, INF), (-INF, 0.3), (-1.5, 6.0)]


@pytest.mark.parametrize("kind", ["mixture", "count"])
@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_mixtures_and_their_gradients_equal_the_textbook_formula(kind: str, low: float, high: float) -> None:
    answer = proposal(kind, 0, 5)
    count = 40
    left, right = max(low, -3.0), min(high, 4.0)
    z = torch.linspace(left, right, count + 2, dtype=torch.float64)[1:-1]
    columns = {"z": z, "low": torch.full_like(z, low), "high": torch.full_like(z, high)}
    columns["log_jacobian" if kind == "mixture" else "half"] = torch.zeros_like(z) + (0.0 if kind == "mixture" else 0.2)
    ours = outputs(answer, count, 1.0).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    log_q, expected = answer.log_q(ours, columns), mixture(theirs, 5, columns)
    torch.testing.assert_close(log_q, expected, rtol=1e-9, atol=1e-9)
    weights = torch.linspace(0.5, 2.0, count, dtype=torch.float64)
    (log_q * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["mixture", "count"])
@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_gradients_are_right_in_the_far_tails_too(kind: str, low: float, high: float) -> None:
    """Means tens of widths away from value and support, against numerical differences."""
    answer = proposal(kind, 0, 2)
    z = torch.tensor([0.1, 0.2, 0.29], dtype=torch.float64)
    columns = {"z": z, "low": torch.full_like(z, low), "high": torch.full_like(z, high)}
    columns |= {"half": torch.full_like(z, 0.01), "log_jacobian": torch.zeros_like(z)}
    near = [0.3, -0.2, 5.0, 5.5, -3.0, -4.0]
    other_side = [0.3, 0.2, -5.0, -4.0, -5.0, -3.0]
    both_sides = [0.0, 9.0, 40.0, -30.0, -2.0, -1.0]
    x = torch.tensor([near, other_side, both_sides], dtype=torch.float64, requires_grad=True)
    assert answer.log_q(x, columns).isfinite().all()
    assert torch.autograd.gradcheck(lambda output: answer.log_q(output, columns), (x,), eps=1e-6, atol=1e-3, rtol=1e-4)


def test_single_precision_outputs_give_finite_densities_for_extreme_outputs() -> None:
    answer = proposal("mixture", 0, 10)
    output = outputs(answer, 500, 50.0).float().requires_grad_()
    z = torch.rand(500, dtype=torch.float64)
    columns = {"z": z, "low": torch.zeros_like(z), "high": torch.ones_like(z), "log_jacobian": torch.zeros_like(z)}
    log_q = answer.log_q(output, columns)
    assert log_q.isfinite().all()
    log_q.sum().backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert output.grad.dtype == torch.float32


def evaluator(d: Distribution, scale: float, seed: int) -> tuple[Proposal, Tensor]:
    family = type(d)
    categories = len(family.log_probabilities(np.array([d.pack()]))[0]) if family.proposal == "categorical" else 0  # type: ignore[attr-defined]
    answer = proposal(family.proposal, categories, 4)
    return answer, outputs(answer, 1, scale, seed)


def columns_of(d: Distribution, values: np.ndarray) -> dict[str, Tensor]:
    make = category_columns if d.proposal == "categorical" else coordinate_columns
    made = make(type(d), np.array([d.pack()]), np.zeros(len(values), dtype=np.int64), values)
    return {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in made.items()}


def draw(d: Distribution, answer: Proposal, output: Tensor, count: int, seed: int = 0) -> np.ndarray:
    packed, place = np.array([d.pack()]), np.zeros(count, dtype=np.int64)
    uniforms = torch.from_numpy(np.random.default_rng(seed).uniform(size=(count, 2)))
    if d.proposal == "categorical":
        log_prior = torch.from_numpy(type(d).log_probabilities(packed)[place])  # type: ignore[attr-defined]
        return answer.draw(output.expand(count, -1), {"log_prior": log_prior}, uniforms).numpy().astype(np.float64)
    frame = Frame.of(type(d), packed, place)
    columns = {"low": torch.from_numpy(frame.low), "high": torch.from_numpy(frame.high)}
    return frame.value(type(d), answer.draw(output.expand(count, -1), columns, uniforms).numpy())


def log_q(d: Distribution, answer: Proposal, output: Tensor, values: np.ndarray) -> np.ndarray:
    return answer.log_q(output.expand(len(values), -1), columns_of(d, values)).numpy()


def may_leave_the_support(d: Distribution) -> bool:
    """Mixtures may have gaps between their components, and counts of rate 0 or probability 0 or 1 one value only."""
    return d.family == "Mixture" or (d.proposal == "count" and d.pack()[-1] in (0.0, 1.0))


FAMILIES: dict[str, Any] = {"argvalues": [d for d, _ in CASES], "ids": [repr(d)[:60] for d, _ in CASES]}


def of_kind(*kinds: str) -> dict[str, Any]:
    cases = [d for d, _ in CASES if d.proposal in kinds]
    return {"argvalues": cases, "ids": [repr(d)[:60] for d in cases]}


def drawn(d: Distribution) -> tuple[Proposal, Tensor, np.ndarray, np.ndarray]:
    """A proposal somewhere off the prior, values that it draws, and their log q."""
    answer, output = evaluator(d, 0.5, 1)
    values = draw(d, answer, output, 4000)
    densities = log_q(d, answer, output, values)
    assert np.isfinite(densities).all()
    if not may_leave_the_support(d):
        priors = np.array([d.log_prob(d.cast(v)) for v in values[:200].tolist()])
        assert np.isfinite(priors).all(), "a draw outside of the prior's support"
    return answer, output, values, densities


@pytest.mark.parametrize("d", **of_kind("categorical"))
def test_categorical_proposals_sum_to_one_and_draw_what_they_say(d: Distribution) -> None:
    answer, output, values, _ = drawn(d)
    log_prior = type(d).log_probabilities(np.array([d.pack()]))[0]  # type: ignore[attr-defined]
    possible = np.flatnonzero(np.isfinite(log_prior)).astype(np.float64)
    mass = np.exp(log_q(d, answer, output, possible))
    counts = np.array([(values == k).sum() for k in possible])
    assert mass.sum() == pytest.approx(1.0, rel=1e-9)
    assert counts.sum() == len(values)
    assert len(possible) == 1 or st.chisquare(counts, mass * len(values)).pvalue > 1e-4


@pytest.mark.parametrize("d", **of_kind("count"))
def test_count_proposals_sum_to_one_and_draw_what_they_say(d: Distribution) -> None:
    answer, output, values, _ = drawn(d)
    support = np.arange(values.min(), values.max() + 1.0)
    if len(support) > 20_000:
        support = np.unique(values)
        assert np.exp(log_q(d, answer, output, support)).sum() < 1.0 + 1e-9
        return
    cumulative = np.cumsum(np.exp(log_q(d, answer, output, support)))
    beyond = 40.0 / len(values)  # what 4,000 draws may leave out on both sides
    assert 1.0 - beyond < cumulative[-1] < 1.0 + 1e-9
    empirical = np.array([(values <= k).mean() for k in support])
    assert np.abs(empirical - cumulative).max() < 1.95 / math.sqrt(len(values)) + beyond


@pytest.mark.parametrize("d", **of_kind("mixture"))
def test_continuous_proposals_integrate_to_one_and_draw_what_they_say(d: Distribution) -> None:
    answer, output, values, densities = drawn(d)
    # In z, where nothing is steep.
    frame = Frame.of(type(d), np.array([d.pack()]), np.zeros(1, dtype=np.int64))
    low, high = max(float(frame.low[0]), -60.0), min(float(frame.high[0]), 60.0)
    z = np.linspace(low, high, 200_001)[1:-1]
    columns = {name: torch.full((len(z),), float(getattr(frame, name)[0])).double() for name in ("low", "high")}
    columns |= {"z": torch.from_numpy(z), "log_jacobian": torch.zeros(len(z)).double()}
    q = np.exp(answer.log_q(output.expand(len(z), -1), columns).numpy())
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (q[1:] + q[:-1]) * np.diff(z))])
    edges = (q[0] + q[-1]) * (z[1] - z[0])
    assert cumulative[-1] + edges == pytest.approx(1.0, abs=1e-4)

    t = np.log(values) if d.log_space else values
    places = (t - frame.loc[0]) / frame.scale[0]
    assert st.kstest(places, partial(np.interp, xp=z, fp=cumulative)).pvalue > 1e-4
    jacobian = -math.log(frame.scale[0]) - (t if d.log_space else 0.0)  # log q is with respect to x
    assert np.allclose(densities - jacobian, np.log(np.interp(places, z, q)), rtol=0, atol=5e-2)


@pytest.mark.parametrize("d", **FAMILIES)
def test_proposals_reach_whatever_the_prior_draws(d: Distribution) -> None:
    values = draws(d, 500, seed=3).astype(np.float64)
    for scale in (0.0, 3.0):
        answer, output = evaluator(d, scale, 2)
        densities = log_q(d, answer, output, values)
        assert np.isfinite(densities).all()


def test_what_cannot_be_reached_is_an_error() -> None:
    from etalumis.distributions import Categorical, Exponential, Poisson, Uniform

    for d, value in (
        (Uniform(0.0, 1.0), 1.1),
        (Uniform(0.0, 1.0), math.nan),
        (Exponential(1.0), 0.0),
        (Exponential(1.0), -1.0),
        (Poisson(3.0), -1.0),
        (Categorical([0.5, 0.0, 0.5]), 1.0),
        (Categorical([0.5, 0.5]), 2.0),
    ):
        with pytest.raises(UnreachableError, match=d.family):
            columns_of(d, np.array([value]))
