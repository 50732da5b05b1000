"""The exact answers against independent calculations, and the models against their answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from etalumis.execution import Model, run
from etalumis.execution.trace import Trace
from etalumis.simulators import classics
from etalumis.simulators.conjugate import LinearGaussian, UnknownMixture


def prior_traces(function: Callable[[], Any], number: int, seed: int) -> list[Trace]:
    return list(run(Model(function), indices=range(number), seed=seed))


def evidence_z_score(
    function: Callable[[], Any], observe: Mapping[str, Any], log_evidence: float, number: int, seed: int
) -> float:
    """Importance sampling from the prior: deviation of the mean weight from the exact evidence, in errors."""
    traces = run(Model(function), None, observe, range(number), seed)
    ratios = np.exp([trace.log_likelihood - log_evidence for trace in traces])
    return float((ratios.mean() - 1.0) / (ratios.std() / math.sqrt(number)))


def test_gaussian_posterior_and_evidence_by_quadrature() -> None:
    mu = np.linspace(-20.0, 30.0, 200_001)
    joint = np.exp(-0.5 * ((mu - 1.0) ** 2 / 5.0 + (8.0 - mu) ** 2 / 2.0 + (9.0 - mu) ** 2 / 2.0)) / math.sqrt(
        (2.0 * math.pi) ** 3 * 5.0 * 2.0 * 2.0
    )
    evidence = joint.sum() * (mu[1] - mu[0])
    mean = (joint * mu).sum() / joint.sum()
    stddev = math.sqrt((joint * (mu - mean) ** 2).sum() / joint.sum())
    assert classics.gaussian_posterior(8.0, 9.0) == pytest.approx((mean, stddev), rel=1e-9)
    assert classics.gaussian_posterior(8.0, 9.0) == pytest.approx((7.25, 0.9129), abs=1e-4)
    assert classics.gaussian_log_evidence(8.0, 9.0) == pytest.approx(math.log(evidence), rel=1e-9)


@pytest.mark.parametrize("model", [classics.gaussian, classics.marsaglia])
def test_gaussian_models_have_this_evidence(model: Callable[[], float]) -> None:
    observe = {"obs0": 1.0, "obs1": 2.5}
    log_evidence = classics.gaussian_log_evidence(1.0, 2.5)
    assert abs(evidence_z_score(model, observe, log_evidence, 4000, seed=1)) < 5.0
    # Negative control: an evidence 10 % off is seen.
    assert abs(evidence_z_score(model, observe, log_evidence + 0.1, 4000, seed=1)) > 5.0


def test_gaussian_returns_and_tags() -> None:
    trace = prior_traces(classics.gaussian, 1, seed=0)[0]
    assert trace.result == trace["mu"]
    assert trace["mu_squared"] == trace["mu"] ** 2
    assert [observed.name for observed in trace.observes] == ["obs0", "obs1"]


def test_marsaglia_draws_the_prior_by_rejection() -> None:
    traces = prior_traces(classics.marsaglia, 8000, seed=2)
    mu = np.array([trace["mu"] for trace in traces])
    z = (mu - classics.PRIOR_MEAN) / classics.PRIOR_STDDEV
    for power, moment, spread in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs(np.mean(z**power) - moment) < 5.0 * math.sqrt(spread / len(z))
    passes = np.array([len(trace) / 2 for trace in traces])
    assert abs(passes.mean() - 4.0 / math.pi) < 5.0 * passes.std() / math.sqrt(len(traces))
    assert [trace.result for trace in traces] == mu.tolist()


def test_branching_posterior_is_the_published_one() -> None:
    expected = [0.03037, 0.12279, 0.04404, 0.0, 0.0, 0.33805, 0.22537, 0.12878, 0.06439, 0.02862]
    expected += [0.01145, 0.00416, 0.00139]
    posterior = classics.branching_posterior(6)
    np.testing.assert_allclose(posterior[:13], expected, atol=6e-6)
    assert posterior.sum() == pytest.approx(1.0, abs=1e-12)
    assert classics.branching_log_evidence(6) == pytest.approx(math.log(0.07426), abs=1e-4)


def test_branching_evidences_sum_to_one() -> None:
    # Rates reach 1 + fibonacci(12) = 145 and more: counts to 300 hold all the probability.
    total = sum(math.exp(classics.branching_log_evidence(count)) for count in range(300))
    assert total == pytest.approx(1.0, abs=1e-9)


def test_branching_model_has_this_posterior() -> None:
    traces = prior_traces(classics.branching, 20_000, seed=3)
    matching = [t.result for t in traces if t.observes[0].value == 6]
    share = len(matching) / len(traces)
    evidence = math.exp(classics.branching_log_evidence(6))
    assert abs(share - evidence) < 5.0 * math.sqrt(evidence / len(traces))
    posterior = classics.branching_posterior(6)
    for r in range(13):
        error = math.sqrt(max(posterior[r], 1e-3) / len(matching))
        assert abs(matching.count(r) / len(matching) - posterior[r]) < 5.0 * error
    assert {len(t) for t in traces if t.result > 4} == {1}
    assert {len(t) for t in traces if t.result <= 4} == {2}


def test_fibonacci() -> None:
    assert [classics.fibonacci(n) for n in range(8)] == [1, 1, 1, 2, 3, 5, 8, 13]


def test_hidden_markov_by_enumeration() -> None:
    model = classics.HiddenMarkov(steps=5, stddev=0.7)
    y = np.array([0.9, -1.2, 0.1, 0.4, 2.0])
    marginals = np.zeros((5, 3))
    for path in itertools.product(range(3), repeat=5):
        probability = model.initial[path[0]]
        for before, after in itertools.pairwise(path):
            probability *= model.transition[before, after]
        residuals = (y - model.means[list(path)]) / 0.7
        probability *= np.prod(np.exp(-0.5 * residuals**2) / (0.7 * math.sqrt(2.0 * math.pi)))
        marginals[range(5), path] += probability
    evidence = marginals[0].sum()
    np.testing.assert_allclose(model.posterior(y.tolist()), marginals / evidence, rtol=1e-10)
    assert model.log_evidence(y.tolist()) == pytest.approx(math.log(evidence), rel=1e-12)


def test_hidden_markov_model_has_this_evidence() -> None:
    model = classics.HiddenMarkov(steps=4)
    y = [0.9, -1.2, 0.1, 0.4]
    observe = {f"obs{i}": value for i, value in enumerate(y)}
    assert abs(evidence_z_score(model, observe, model.log_evidence(y), 4000, seed=4)) < 5.0


def test_hidden_markov_states_and_shapes() -> None:
    trace = prior_traces(classics.HiddenMarkov(), 1, seed=5)[0]
    assert trace.names == [f"state{i}" for i in range(16)]
    assert trace.result == trace["state15"]
    with pytest.raises(ValueError, match="16 observations"):
        classics.HiddenMarkov().posterior([0.0])
    with pytest.raises(ValueError, match="2×2 transition"):
        classics.HiddenMarkov(initial=(0.5, 0.5))


def test_captcha_image_and_posterior() -> None:
    model = classics.MiniCaptcha(noise=0.3)
    word = [model.alphabet.index(letter) for letter in "HI"]
    image = model.render(word)
    assert image.shape == (5, 11)
    assert image[:, :3].tolist() == [[1, 0, 1], [1, 0, 1], [1, 1, 1], [1, 0, 1], [1, 0, 1]]
    assert not image[:, 8:].any()
    posterior = model.posterior(image)
    assert len(posterior) == 8 + 8**2 + 8**3
    assert sum(posterior.values()) == pytest.approx(1.0)
    assert max(posterior, key=posterior.__getitem__) == "HI"


def test_captcha_model_has_this_evidence_and_posterior() -> None:
    model = classics.MiniCaptcha(alphabet="EFL", max_letters=2, noise=1.5)
    image = model.render([0, 1]) + 1.5 * np.random.default_rng(0).normal(size=model.shape)
    assert abs(evidence_z_score(model, {"image": image}, model.log_evidence(image), 6000, seed=6)) < 5.0
    traces = list(run(Model(model), None, {"image": image}, range(6000), seed=7))
    weights = np.exp(np.array([t.log_likelihood for t in traces]) - model.log_evidence(image))
    for word, probability in model.posterior(image).items():
        terms = weights * np.array([t.result == word for t in traces])
        assert abs(terms.mean() - probability) < 5.0 * max(terms.std(), 1e-3) / math.sqrt(len(traces))


def test_captcha_refuses_unknown_letters() -> None:
    with pytest.raises(ValueError, match="letters of EFHILOTU"):
        classics.MiniCaptcha(alphabet="XE")
    with pytest.raises(ValueError, match="shape"):
        classics.MiniCaptcha().posterior(np.zeros((5, 3)))


def test_one_component_and_a_chain_of_one_are_plain_normal_models() -> None:
    y = [0.4, -1.0, 2.0]
    covariance = 4.0 * np.ones((3, 3)) + 0.25 * np.eye(3)
    exact = -0.5 * (np.array(y) @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * math.pi * covariance)[1])
    single = UnknownMixture(points=3, max_components=1, spread=2.0, noise=0.5)
    assert single.log_evidence(y) == pytest.approx(exact, rel=1e-12)
    assert single.mean(y) == pytest.approx(sum(y) / (3 + 0.25 / 4.0), rel=1e-12)
    chain = LinearGaussian(dimensions=1, noise=2.0)
    mean, covariance = chain.posterior([3.0])
    assert (mean[0], covariance[0, 0]) == pytest.approx((3.0 / 5.0, 4.0 / 5.0))
    assert chain.log_evidence([3.0]) == pytest.approx(-0.5 * (9.0 / 5.0 + math.log(2 * math.pi * 5.0)))


def test_conjugate_models_refuse_other_numbers_of_observations() -> None:
    with pytest.raises(ValueError, match="10 observations"):
        LinearGaussian().posterior([1.0])
    with pytest.raises(ValueError, match="4 points"):
        UnknownMixture().log_evidence([1.0])
