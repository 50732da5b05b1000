"""Diagnostics against ArviZ, against known answers, and on the cases that break naive formulas."""

import math

import numpy as np
import pytest

from etalumis.inference import diagnostics
from etalumis.inference.pareto import smooth


def autoregressive(chains: int, draws: int, correlation: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(chains, draws))
    out = np.zeros((chains, draws))
    for t in range(1, draws):
        out[:, t] = correlation * out[:, t - 1] + noise[:, t]
    return out


CHAINS = {
    "mixing": autoregressive(4, 500, 0.5, 0),
    "slow": autoregressive(4, 501, 0.95, 1),
    "antithetic": autoregressive(4, 500, -0.5, 2),
    "discrete": np.round(autoregressive(4, 500, 0.7, 3)),
    "shifted": autoregressive(4, 200, 0.3, 4) + np.array([[0.0], [0.0], [0.0], [3.0]]),
    "short": autoregressive(3, 17, 0.3, 5),
}


@pytest.mark.parametrize("case", CHAINS)
def test_chain_diagnostics_equal_arviz(case: str) -> None:
    arviz = pytest.importorskip("arviz")
    chains = CHAINS[case]
    assert diagnostics.split_rhat(chains) == pytest.approx(float(arviz.rhat(chains)), rel=1e-9)
    assert diagnostics.ess_bulk(chains) == pytest.approx(float(arviz.ess(chains)), rel=1e-9)
    assert diagnostics.ess_tail(chains) == pytest.approx(
        float(arviz.ess(chains, method="tail", prob=(0.05, 0.95))), rel=1e-9
    )
    assert diagnostics.ess_mean(chains) == pytest.approx(float(arviz.ess(chains, method="mean")), rel=1e-9)
    assert diagnostics.mcse_mean(chains) == pytest.approx(float(arviz.mcse(chains)), rel=1e-9)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 4.0])
def test_pareto_k_equals_arviz(scale: float) -> None:
    pytest.importorskip("arviz")
    from arviz_versions import psislw

    log_weights = scale * np.random.default_rng(0).normal(size=2000)
    theirs = psislw(log_weights)
    assert diagnostics.pareto_k(log_weights) == pytest.approx(theirs.k, abs=theirs.tolerance)


def test_rhat_tells_chains_apart() -> None:
    assert diagnostics.split_rhat(CHAINS["mixing"]) < 1.01
    assert diagnostics.split_rhat(CHAINS["shifted"]) > 1.3


def test_rhat_sees_chains_of_equal_mean_and_different_spread() -> None:
    chains = autoregressive(4, 1000, 0.0, 6)
    chains[0] *= 5.0
    assert diagnostics.split_rhat(chains) > 1.1


def test_standing_chains() -> None:
    assert math.isnan(diagnostics.split_rhat(np.ones((4, 100))))
    assert math.isnan(diagnostics.ess_bulk(np.ones((4, 100))))
    assert diagnostics.split_rhat(np.arange(4.0)[:, None] * np.ones(100)) == math.inf
    assert math.isnan(diagnostics.split_rhat(np.ones((2, 3))))


def test_chains_need_two_dimensions() -> None:
    with pytest.raises(ValueError, match=r"\(chains, draws\)"):
        diagnostics.split_rhat(np.zeros(10))


def test_tail_index_of_known_tails() -> None:
    uniform = np.random.default_rng(1).uniform(size=200_000)
    for k in (0.3, 0.6, 1.2):  # w = u^(−k) is Pareto of tail index k
        assert diagnostics.pareto_k(-k * np.log(uniform)) == pytest.approx(k, abs=0.12)


def test_bounded_and_flat_weights_are_trusted() -> None:
    rng = np.random.default_rng(2)
    for log_weights in (
        np.zeros(1000),
        np.log(rng.uniform(size=1000)),
        np.log(rng.integers(1, 4, size=1000)),  # a discrete model: most weights are tied
        np.where(rng.uniform(size=1000) < 0.5, -np.inf, 0.0),
    ):
        assert diagnostics.pareto_k(log_weights) < 0.5
        assert diagnostics.weight_advice(log_weights) is None


def test_advice_on_bad_weights() -> None:
    rng = np.random.default_rng(3)
    heavy = diagnostics.weight_advice(5.0 * rng.normal(size=1000))
    assert heavy is not None
    assert "Pareto k̂" in heavy
    assert "RMH" in heavy
    few = np.full(1000, -np.inf)
    few[:3] = 0.0
    assert diagnostics.pareto_k(few) == math.inf
    assert diagnostics.weight_advice(few) is not None
    none = diagnostics.weight_advice(np.full(1000, -np.inf))
    assert none is not None
    assert "all 1000 traces have weight zero" in none


@pytest.mark.parametrize("scale", [100.0, 1000.0, 3000.0, 1e6])
def test_weights_too_far_apart_for_numbers_are_heavy_not_flat(scale: float) -> None:
    """Log likelihoods of images differ by thousands: beside the largest weight the others vanish."""
    log_weights = scale * np.random.default_rng(0).normal(size=1000)
    assert diagnostics.pareto_k(log_weights) > 10.0
    assert "Pareto k̂" in (diagnostics.weight_advice(log_weights) or "")
    smoothed = smooth(log_weights)
    assert np.isfinite(smoothed).all()
    assert smoothed.max() <= log_weights.max()


def test_left_out_zero_weights_count() -> None:
    log_weights = np.random.default_rng(4).normal(size=500)
    padded = np.concatenate([log_weights, np.full(700, -np.inf)])
    assert diagnostics.pareto_k(log_weights, 1200) == pytest.approx(diagnostics.pareto_k(padded))
    assert diagnostics.log_evidence(log_weights, 1200) == pytest.approx(diagnostics.log_evidence(padded))
    assert diagnostics.ess_weights(log_weights) == pytest.approx(diagnostics.ess_weights(padded))


def test_evidence_and_its_error() -> None:
    rng = np.random.default_rng(5)
    estimates = [diagnostics.log_evidence(rng.normal(size=1000)) for _ in range(200)]
    values, errors = np.array(estimates).T
    assert values.mean() == pytest.approx(0.5, abs=0.02)  # log E[exp z]
    assert errors.mean() == pytest.approx(values.std(), rel=0.25)
    assert diagnostics.log_evidence(np.full(10, -np.inf)) == (-math.inf, math.inf)


def test_extreme_log_weights_do_not_overflow() -> None:
    log_weights = np.random.default_rng(6).normal(size=1000) - 1e5
    assert diagnostics.log_evidence(log_weights)[0] == pytest.approx(-1e5 + 0.5, abs=0.2)
    assert diagnostics.ess_weights(log_weights + 2e5) == pytest.approx(diagnostics.ess_weights(log_weights))


def test_threshold() -> None:
    assert diagnostics.pareto_k_threshold(100) == pytest.approx(0.5)
    assert diagnostics.pareto_k_threshold(10**6) == 0.7


def test_pareto_k_of_weights_equal_up_to_rounding_and_of_tied_ones() -> None:
    noise = np.random.default_rng(0)
    assert diagnostics.pareto_k(-3.0 + 1e-13 * noise.standard_normal(400)) == -math.inf
    for distinct in range(2, 30):
        tied = np.log(noise.integers(1, distinct + 1, 500).astype(float))
        assert diagnostics.pareto_k(tied) < 0.7
