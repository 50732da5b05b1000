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
from etalumis.distributions import DISTRIBUTIONS, Beta, Distribution, Normal, TruncatedNormal, Uniform
from etalumis.networks.columns import Frame, UnreachableError, category_columns, coordinate_columns
from etalumis.networks.errors import NetworkConfigError
from etalumis.networks.intervals import interval, log_density, quantile
from etalumis.networks.proposals import Proposal, proposal
from etalumis.networks.settings import merged_config
from network_models import mixture

mpmath.mp.dps = 50
INF = math.inf
SIZES = {"components": 4, "bins": 40, "segments": 7}


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
    answer = proposal(kind, {"components": 5})
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
    answer = proposal(kind, {"components": 2})
    z = torch.tensor([0.1, 0.2, 0.29], dtype=torch.float64)
    columns = {"z": z, "low": torch.full_like(z, low), "high": torch.full_like(z, high)}
    columns |= {"half": torch.full_like(z, 0.01), "log_jacobian": torch.zeros_like(z)}
    near = [0.3, -0.2, 5.0, 5.5, -3.0, -4.0]
    other_side = [0.3, 0.2, -5.0, -4.0, -5.0, -3.0]
    both_sides = [0.0, 9.0, 40.0, -30.0, -2.0, -1.0]
    x = torch.tensor([near, other_side, both_sides], dtype=torch.float64, requires_grad=True)
    assert answer.log_q(x, columns).isfinite().all()
    assert torch.autograd.gradcheck(lambda output: answer.log_q(output, columns), (x,), eps=1e-6, atol=1e-3, rtol=1e-4)


class Exact:
    """log q of a mixture in fifty digits, at one value."""

    def __init__(self, components: int, z: float, low: float, high: float, cell: float | None) -> None:
        self.components, self.cell = components, cell
        self.z, self.low, self.high = (mpmath.mpf(x) for x in (z, low, high))
        left, right = max(self.low, mpmath.mpf(-2)), min(self.high, mpmath.mpf(2))
        self.centre, self.half = (left + right) / 2, (right - left) / 2

    def __call__(self, *output: Any) -> Any:
        k, total, weights = self.components, mpmath.mpf(0), mpmath.mpf(0)
        for j in range(k):
            start = mpmath.mpf(2 * j + 1) / k - 1
            mean = self.centre + self.half * (output[k + j] + start)
            bump = mpmath.log(1 + mpmath.exp(output[2 * k + j] + mpmath.log(mpmath.expm1(0.4))))
            width = self.half * (bump + mpmath.mpf(1e-4))
            whole = self.mass(self.low, self.high, mean, width)
            if self.cell is None:
                part = mpmath.npdf((self.z - mean) / width) / width
            else:
                start, end = max(self.z - self.cell, self.low), min(self.z + self.cell, self.high)
                part = self.mass(start, end, mean, width)
            total += mpmath.exp(output[j]) * part / whole
            weights += mpmath.exp(output[j])
        return mpmath.log(total / weights)

    @staticmethod
    def mass(a: Any, b: Any, mean: Any, width: Any) -> Any:
        a, b = (a - mean) / width, (b - mean) / width
        a, b = (-b, -a) if a < 0 < b or b < 0 else (a, b)
        return (mpmath.erfc(a / mpmath.sqrt(2)) - mpmath.erfc(b / mpmath.sqrt(2))) / 2


@pytest.mark.parametrize("cell", [None, 0.01])
@pytest.mark.parametrize("components", [1, 5, 50])
@pytest.mark.parametrize(
    ("z", "low", "high", "shift", "spread"),
    [
        (40.0, -INF, INF, 0.0, 0.0),  # a value 40 standard deviations out
        (40.0, 0.0, INF, 0.0, -4.0),  # thousands of widths out
        (0.3, 0.0, 1.0, 1e6, 0.0),  # a support millions of widths away from the means
        (0.3, 0.0, 1.0, -100.0, -30.0),  # the narrowest widths
        (1e6, -1.0, 1e7, 0.0, 0.0),
        (-3e5, -1e6, 1e6, 3.0, -2.0),
    ],
)
def test_mixtures_in_the_far_tails_equal_fifty_digits(
    cell: float | None, components: int, z: float, low: float, high: float, shift: float, spread: float
) -> None:
    answer = proposal("mixture" if cell is None else "count", {"components": components})
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(1, 3 * components, generator=generator, dtype=torch.float64)
    output[:, components : 2 * components] += shift
    output[:, 2 * components :] += spread
    output.requires_grad_()
    at = torch.tensor([z], dtype=torch.float64)
    columns = {"z": at, "low": torch.full_like(at, low), "high": torch.full_like(at, high)}
    columns |= {"half": torch.full_like(at, cell or 0.0), "log_jacobian": torch.zeros_like(at)}
    log_q = answer.log_q(output, columns)
    log_q.sum().backward()
    assert output.grad is not None
    exact = Exact(components, z, max(low, -1e9), min(high, 1e9), cell)
    numbers = [mpmath.mpf(x) for x in output[0].tolist()]
    assert log_q.item() == pytest.approx(float(exact(*numbers)), rel=1e-9, abs=1e-7)
    largest = output.grad.abs().max().item()
    for place in {0, components // 2, components, 2 * components - 1, 2 * components, 3 * components - 1}:
        step = mpmath.mpf(10) ** -18
        up, down = ([x + sign * step * (n == place) for n, x in enumerate(numbers)] for sign in (1, -1))
        slope = float((exact(*up) - exact(*down)) / (2 * step))
        assert output.grad[0, place].item() == pytest.approx(slope, rel=1e-4, abs=1e-6 * max(1.0, largest))


@pytest.mark.parametrize("kind", ["mixture", "histogram", "spline"])
def test_single_precision_outputs_give_finite_densities_for_extreme_outputs(kind: str) -> None:
    answer = proposal(kind, {"components": 10, "bins": 40, "segments": 16})
    output = outputs(answer, 500, 50.0).float().requires_grad_()
    z = torch.rand(500, dtype=torch.float64)
    columns = {"z": z, "low": torch.zeros_like(z), "high": torch.ones_like(z), "log_jacobian": torch.zeros_like(z)}
    log_q = answer.log_q(output, columns)
    assert log_q.isfinite().all()
    log_q.sum().backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert output.grad.dtype == torch.float32


def evaluator(d: Distribution, scale: float, seed: int, kind: str | None = None) -> tuple[Proposal, Tensor]:
    """A proposal for draws of a distribution, of its family's kind or another, and a head's output."""
    family = type(d)
    categories = len(family.log_probabilities(np.array([d.pack()]))[0]) if family.proposal == "categorical" else 0  # type: ignore[attr-defined]
    answer = proposal(kind or family.proposal, {**SIZES, "categories": categories})
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


def drawn(d: Distribution, kind: str | None = None) -> tuple[Proposal, Tensor, np.ndarray, np.ndarray]:
    """A proposal somewhere off the prior, values that it draws, and their log q."""
    answer, output = evaluator(d, 0.5, 1, kind)
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


def continuous() -> dict[str, Any]:
    """Continuous distributions with the kinds of proposal that answer them."""
    continuous = [d for d, _ in CASES if d.proposal == "mixture"]
    cases = [(d, kind) for d in continuous for kind in ("mixture", "spline")]
    cases += [(d, "histogram") for d in continuous if d.family == "Uniform"]
    return {"argvalues": cases, "ids": [f"{kind}-{d!r}"[:60] for d, kind in cases]}


@pytest.mark.parametrize(("d", "kind"), **continuous())
def test_continuous_proposals_integrate_to_one_and_draw_what_they_say(d: Distribution, kind: str) -> None:
    answer, output, values, densities = drawn(d, kind)
    # In z, where nothing is steep.
    frame = Frame.of(type(d), np.array([d.pack()]), np.zeros(1, dtype=np.int64))
    low, high = max(float(frame.low[0]), -60.0), min(float(frame.high[0]), 60.0)
    z = np.linspace(low, high, 50_001)[1:-1]
    columns = {name: torch.from_numpy(getattr(frame, name)).expand(len(z)) for name in ("low", "high")}
    columns |= {"z": torch.from_numpy(z), "log_jacobian": torch.zeros(len(z)).double()}
    q = np.exp(answer.log_q(output.expand(len(z), -1), columns).numpy())
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (q[1:] + q[:-1]) * np.diff(z))])
    edges = (q[0] + q[-1]) * (z[1] - z[0])
    assert cumulative[-1] + edges == pytest.approx(1.0, abs=1e-4)

    t = np.log(values) if d.log_space else values
    places = (t - frame.loc[0]) / frame.scale[0]
    assert st.kstest(places, partial(np.interp, xp=z, fp=cumulative)).pvalue > 1e-4
    jacobian = -math.log(frame.scale[0]) - (t if d.log_space else 0.0)  # log q is with respect to x
    at = {name: column[:1].expand(len(values)) for name, column in columns.items()} | {"z": torch.from_numpy(places)}
    assert np.allclose(densities - jacobian, answer.log_q(output.expand(len(values), -1), at), rtol=0, atol=1e-5)


@pytest.mark.parametrize("d", **FAMILIES)
def test_proposals_reach_whatever_the_prior_draws(d: Distribution) -> None:
    values = draws(d, 500, seed=3).astype(np.float64)
    for scale in (0.0, 3.0):
        for kind in (None, *(["spline"] if d.proposal == "mixture" else [])):
            answer, output = evaluator(d, scale, 2, kind)
            densities = log_q(d, answer, output, values)
            assert np.isfinite(densities).all()


PRIORS = [
    ("histogram", Uniform(-3.0, 5.0)),
    ("spline", Uniform(-3.0, 5.0)),
    ("spline", Normal(2.0, 3.0)),
    ("spline", Beta(1.0, 1.0)),
    ("spline", TruncatedNormal(0.0, 1.0, -5.0, 4.0)),
]


@pytest.mark.parametrize(("kind", "d"), PRIORS, ids=lambda x: str(x))
def test_an_output_of_zero_is_the_prior(kind: str, d: Distribution) -> None:
    answer, output = evaluator(d, 0.0, 0, kind)
    values = draws(d, 300, seed=1)
    assert np.allclose(log_q(d, answer, output, values), d.log_density(values, *d.pack()), rtol=0, atol=1e-12)
    proposed = draw(d, answer, output, 4000)
    assert st.kstest(proposed, draws(d, 20_000, seed=2)).pvalue > 1e-4


@pytest.mark.parametrize(("low", "high"), BOUNDS)
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_gradients_of_splines_and_draws_that_invert_them(low: float, high: float, scale: float) -> None:
    answer = proposal("spline", {"segments": 6})
    z = torch.tensor([0.05, 0.11, 0.2, 0.29], dtype=torch.float64)
    columns = {"z": z, "low": torch.full_like(z, low), "high": torch.full_like(z, high)}
    columns["log_jacobian"] = torch.zeros_like(z)
    output = outputs(answer, 4, scale).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: answer.log_q(x, columns), (output,), eps=1e-7, atol=1e-5)
    # dz / dv of a draw from the uniform number v is 1 / q(z).
    v = torch.linspace(0.01, 0.99, 200, dtype=torch.float64)
    many = {name: column[:1].expand(200) for name, column in columns.items()}
    same = output[:1].detach().expand(200, -1)
    here, there = (answer.draw(same, many, torch.stack([v + step, v], 1)) for step in (-1e-6, 1e-6))
    middle = answer.draw(same, many, torch.stack([v, v], 1))
    density = torch.exp(answer.log_q(same, many | {"z": middle}))
    wrong = ((there - here) / 2e-6 * density - 1.0).abs()
    assert wrong.median() < 1e-6
    assert (wrong < 1e-3).sum() >= 193  # but for steps across a knot, where the second derivative jumps


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_splines_are_finite_in_the_far_tails(scale: float) -> None:
    answer = proposal("spline", {"segments": 16})
    z = torch.tensor([40.0, -40.0, 1e6, 1e6, -3e5, 0.0, 1.0, 0.0], dtype=torch.float64)
    low = torch.tensor([-INF, -INF, 0.0, -1.0, -1e6, 0.0, 0.0, 0.0], dtype=torch.float64)
    high = torch.tensor([INF, 1.0, INF, 1e7, 1e6, 1.0, 1.0, 9.0], dtype=torch.float64)
    output = outputs(answer, len(z), scale).requires_grad_()
    log_q = answer.log_q(output, {"z": z, "low": low, "high": high, "log_jacobian": torch.zeros_like(z)})
    assert log_q.isfinite().all()
    base = answer.log_q(
        torch.zeros_like(output), {"z": z, "low": low, "high": high, "log_jacobian": torch.zeros_like(z)}
    )
    assert base[0].item() == pytest.approx(st.norm.logpdf(40.0), rel=1e-12)
    assert base[6].item() == pytest.approx(0.0, abs=1e-12)
    assert ((log_q - base).abs() < 2.0 * math.log(1e4) + 2.0 * math.log(1e3)).all()  # within what slopes allow
    log_q.sum().backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    edge = torch.tensor([[2.0**-60, 0.5], [1.0 - 2.0**-53, 0.5]]).double().repeat(4, 1)
    drawn = answer.draw(output.detach(), {"low": low, "high": high}, edge)
    assert drawn.isfinite().all()
    assert ((drawn >= low) & (drawn <= high)).all()


def test_histograms_are_constant_in_their_bins() -> None:
    answer, output = evaluator(Uniform(2.0, 6.0), 1.0, 0, "histogram")
    values = 2.0 + 4.0 * (np.arange(400) + 0.5) / 400
    found = log_q(Uniform(2.0, 6.0), answer, output, values).reshape(40, 10)
    expected = torch.log_softmax(output[0, :40], 0) + math.log(40 / 4.0)
    assert np.allclose(found, expected.numpy()[:, None])
    edges = log_q(Uniform(2.0, 6.0), answer, output, np.array([2.0, 6.0]))
    assert np.allclose(edges, expected.numpy()[[0, -1]])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"proposals": {"Normal": "histogram"}},
            r"Normal can't be answered by 'histogram'; .* \['mixture', 'spline'\]",
        ),
        ({"proposals": {"Uniform": "vine"}}, r"Uniform .*'vine'; what fits is \['histogram', 'mixture', 'spline'\]"),
        ({"proposals": {"Poisson": "spline"}}, r"Poisson .*what fits is \['count'\]"),
        ({"proposals": {"Gumbel": "spline"}}, r"no family 'Gumbel'; the families are \['Bernoulli',"),
        ({"proposals": "histogram"}, r"must name kinds by family, such as \{Uniform: histogram\}"),
        ({"bins": 0}, "bins=0 must be a whole number of at least 1"),
        ({"components": "many"}, "components='many' must be a whole number"),
    ],
)
def test_proposals_that_do_not_fit_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(NetworkConfigError, match=said):
        merged_config(settings)


def test_every_family_has_its_own_kind_among_those_that_fit() -> None:
    for name, family in DISTRIBUTIONS.items():
        merged_config({"proposals": {name: family.proposal}})


def test_what_cannot_be_reached_is_an_error() -> None:
    from etalumis.distributions import Categorical, Exponential, Poisson

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
