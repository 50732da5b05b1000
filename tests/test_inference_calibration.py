"""Calibration checks: a right engine passes, a too narrow, a too wide and a shifted one fail."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Categorical, Normal, Poisson, Uniform
from etalumis.execution import Observations, Simulator
from etalumis.inference.calibration import TARP, Calibration, calibrate
from etalumis.inference.calibration_text import as_json
from etalumis.inference.errors import InferenceError
from etalumis.inference.progress import Progress
from inference_checks import ByHand

EVENTS, TRACES = 150, 400


@dataclass(frozen=True)
class Measured:
    """A number from the prior, measured twice with noise."""

    noise: float = 0.7
    offset: float = 0.0
    prior: float = 1.0

    def __call__(self) -> None:
        mu = et.sample(Normal(0.0, self.prior), name="mu")
        for name in ("y0", "y1"):
            et.observe(Normal(mu + self.offset, self.noise), name=name)

    def posterior(self, y0: float, y1: float) -> Normal:
        """Exactly."""
        precision = 1.0 / self.prior**2 + 2.0 / self.noise**2
        return Normal((y0 + y1 - 2.0 * self.offset) / self.noise**2 / precision, precision**-0.5)


# Wider than the prior too: a posterior that only falls back to the prior is calibrated, if useless.
WIDE = Measured(noise=2.0, prior=5.0)


@dataclass(frozen=True)
class Believing:
    """Importance sampling by somebody who takes the simulator for another one."""

    believed: Measured

    def run(
        self,
        model: Simulator,
        observe: Mapping[str, Any] | Observations | None,
        num_traces: int | None = None,
        seed: int = 0,
        progress: Progress = None,
    ) -> et.Posterior:
        values = observe.values if isinstance(observe, Observations) else dict(observe or {})
        engine = et.ImportanceSampling({"mu": self.believed.posterior(values["y0"], values["y1"])})
        return engine.run(et.Model(self.believed), values, num_traces, seed, progress)


def judged(believed: Measured) -> Calibration:
    return calibrate(et.Model(Measured()), Believing(believed), EVENTS, TRACES, seed=6)


def test_the_right_posterior_passes() -> None:
    right = judged(Measured())
    assert right.names == ("mu", TARP)
    assert right.miscalibrated() == []
    assert min(right.p_values().values()) > 0.02
    # 50 and 90 %, within four binomial standard errors
    assert right.coverage([0.5, 0.9])[0] == pytest.approx([0.5, 0.9], abs=0.165)
    assert (right.draws == np.maximum(1, (right.ess / 20.0).astype(int))).all()
    assert "no sign of miscalibration" in repr(right)


@pytest.mark.parametrize("believed", [Measured(noise=0.35), WIDE, Measured(offset=0.4)])
def test_too_narrow_too_wide_and_shifted_posteriors_fail(believed: Measured) -> None:
    wrong = judged(believed)
    assert "mu" in wrong.miscalibrated()
    assert wrong.p_values()["mu"] < 1e-4
    assert "miscalibrated: " in repr(wrong)


@pytest.mark.slow
def test_coverage_tells_narrow_from_wide() -> None:
    assert judged(Measured(noise=0.35)).coverage([0.5])[0, 0] < 0.4
    assert judged(WIDE).coverage([0.5])[0, 0] > 0.65


def correlated() -> None:
    """Two numbers of which only the sum is measured: their posterior is strongly correlated."""
    a = et.sample(Normal(0.0, 1.0), name="a")
    b = et.sample(Normal(0.0, 1.0), name="b")
    et.observe(Normal(a + b, 0.3), name="y")


class Uncorrelated:
    """Has both marginals right and their dependence wrong: the draws of b are shuffled against those of a."""

    def run(
        self,
        model: Simulator,
        observe: Mapping[str, Any] | Observations | None,
        num_traces: int | None = None,
        seed: int = 0,
        progress: Progress = None,
    ) -> et.Posterior:
        found = et.ImportanceSampling().run(model, observe, num_traces, seed, progress).resample(num_traces, seed)
        traces = found.traces.select(found.rows)
        numbers = traces.value.copy()
        numbers[1::2] = np.random.default_rng(seed).permutation(numbers[1::2])
        return et.Posterior(replace(traces, value=numbers), found.log_weights)


@pytest.mark.slow
def test_only_tarp_sees_a_wrong_dependence() -> None:
    wrong = calibrate(et.Model(correlated), Uncorrelated(), 400, 400, seed=1)
    assert wrong.miscalibrated() == [TARP]
    right = calibrate(et.Model(correlated), et.ImportanceSampling(), 100, 2000, seed=1)
    assert right.miscalibrated() == []


def counted() -> None:
    k = et.sample(Poisson(2.0), name="k")
    et.observe(Normal(float(k), 0.7), name="y")


def test_raw_proposals_are_judged_apart_from_weighted_ones_and_ties_are_broken() -> None:
    """Proposals twice as wide as the prior: wrong alone, right with their weights."""
    engine = et.IC(ByHand({"k": lambda prior: Poisson(4.0)}))
    found = calibrate(et.Model(counted), engine, 100, 500, seed=2)
    assert found.miscalibrated() == []
    assert "k" in found.miscalibrated(raw=True)
    assert found.ranks.min() > 0.0
    assert found.ranks.max() < 1.0


def test_markov_chains_have_no_raw_form() -> None:
    found = calibrate(et.Model(Measured()), et.RMH(chains=2, burn_in=50), 20, 200, seed=3)
    assert found.miscalibrated() == []
    with pytest.raises(InferenceError, match="no proposal draws"):
        found.p_values(raw=True)


def test_events_of_little_effective_size_stay() -> None:
    """From the prior, sharp measurements leave an effective sample size of one or two: such events count."""
    found = calibrate(et.Model(Measured(noise=0.01)), et.ImportanceSampling(), 60, 50, seed=5)
    assert len(found) == 60
    assert found.ess.min() < 2.0
    assert found.draws.min() == 1


def narrow() -> None:
    """A few draws from the prior often have none that can have produced the observation, which says where x is."""
    x = et.sample(Uniform(0.0, 100.0), name="x")
    et.observe(Uniform(x, x + 1.0), name="y")


def test_events_without_information_stay_with_uniform_ranks_and_are_counted() -> None:
    """Weights that are all zero; a Markov chain without a start."""
    for engine in (et.ImportanceSampling(), et.RMH(chains=1, burn_in=20, starts=1)):
        found = calibrate(et.Model(narrow), engine, 40, 100, seed=1, progress=False)
        lost = int((found.draws == 0).sum())
        assert len(found) == 40
        assert 0 < lost < 40
        assert (found.ess[found.draws == 0] == 0.0).all()
        assert ((found.ranks > 0.0) & (found.ranks < 1.0)).all()
        assert f"{lost} of 40 events gave no information" in repr(found)
        assert found.miscalibrated() == []
        numbers = json.loads(as_json(found))
        assert numbers["without_information"] == lost
        assert "no information" in numbers["notes"][0]
    with pytest.raises(InferenceError, match=r"none of 3 events gave any information.*weight zero"):
        calibrate(et.Model(narrow), et.ImportanceSampling(), 3, 1, seed=1, progress=False)


class SometimesStopping(et.IC):
    """An engine of many events together that can't do one of them."""

    def run_events(self, model: Simulator, events: Any, *rest: Any, **more: Any) -> list[et.Posterior]:
        values = [observations.values["y"] for observations in events]
        if max(values) > 4.0:
            raise InferenceError("too far out")
        return super().run_events(model, events, *rest, **more)


def test_one_event_stops_neither_the_others_nor_those_inferred_with_it() -> None:
    engine = SometimesStopping(ByHand({"k": lambda prior: prior}))
    found = calibrate(et.Model(counted), engine, 40, 200, seed=2, progress=False)
    assert 0 < (found.draws == 0).sum() < 20
    assert "too far out" in repr(found)
    assert found.miscalibrated() == []


def rare_observation() -> None:
    """One event in ten observes what few traces of another event's posterior come to observe."""
    x = et.sample(Uniform(0.0, 1.0), name="x")
    et.observe(Normal(x, 1.0), name="rare" if x < 0.1 else "y")


def test_an_event_that_no_execution_comes_to_stays() -> None:
    found = calibrate(et.Model(rare_observation), et.ImportanceSampling(), 40, 5, seed=1, progress=False)
    assert 0 < (found.draws == 0).sum() < 10
    assert "'rare'" in repr(found)


def certain() -> None:
    k = et.sample(Categorical([0.5, 0.5]), name="k")
    et.observe(Normal(20.0 * k, 0.1), name="y")


def test_a_chain_that_never_moves_is_worth_one_draw() -> None:
    found = calibrate(et.Model(certain), et.RMH(chains=2, burn_in=20, starts=20), 10, 40, seed=1, progress=False)
    assert found.draws.tolist() == [1] * 10
    assert found.ess.tolist() == [1.0] * 10
    json.loads(as_json(found))


def rarely() -> None:
    """A number that hardly any trace lacks: every event has it, some posterior samples don't."""
    x = et.sample(Normal(0.0, 1.0), name="x")
    if x < 2.3:
        et.sample(Normal(0.0, 1.0), name="z")
    et.observe(Normal(x, 1.0), name="y")


def test_a_variable_that_some_samples_lack_is_ranked() -> None:
    found = calibrate(et.Model(rarely), et.ImportanceSampling(), 40, 300, seed=0, progress=False)
    assert "z" in found.names
    assert (found.draws > 0).all()
    assert found.miscalibrated() == []


def many_kinds() -> None:
    x = et.sample(Normal(0.0, 1.0), name="x")
    theta = et.sample(Normal(np.zeros(2), 1.0), name="theta")
    for _ in range(2):
        et.sample(Normal(0.0, 1.0), name="again")
    et.tag(math.inf, name="infinite")
    et.observe(Normal(theta + x, 1.0), name="y")


def test_what_is_not_ranked_is_said() -> None:
    found = calibrate(et.Model(many_kinds), et.ImportanceSampling(), 6, 50, progress=False)
    assert found.names == ("x", TARP)
    assert found.notes == (
        "not ranked, since not every event has exactly one finite number of them: theta, again, infinite",
    )
    assert calibrate(et.Model(many_kinds), et.ImportanceSampling(), 6, 50, ["x"], progress=False).notes == ()


def nameless() -> None:
    et.observe(Normal(et.sample(Normal(0.0, 1.0), name="x"), 0.1))


def weighed() -> None:
    x = et.sample(Normal(0.0, 1.0), name="x")
    et.factor(-2.0 * (x - 2.0) ** 2)
    et.observe(Normal(x, 1.0), name="y")


def supplied() -> None:
    x = et.sample(Normal(0.0, 1.0), name="x")
    et.observe(Normal(x, 1.0), 0.5, name="data")
    et.observe(Normal(x, 1.0), name="y")


def truncated() -> None:
    """A factor of zero or one leaves executions out, of the prior as of the posterior."""
    x = et.sample(Normal(0.0, 1.0), name="x")
    et.factor(0.0 if x > 0.0 else -math.inf)
    et.observe(Normal(x, 1.0), name="y")


def test_models_whose_prior_does_not_draw_the_truth_are_refused() -> None:
    with pytest.raises(InferenceError, match=r"observes something without a name.*name=…"):
        calibrate(et.Model(nameless), et.ImportanceSampling(), 5, 10)
    for model in (weighed, supplied):
        with pytest.raises(InferenceError, match=r"likelihood of its own.*factor\(\)"):
            calibrate(et.Model(model), et.ImportanceSampling(), 5, 10)
    found = calibrate(et.Model(truncated), et.ImportanceSampling(), 100, 400, seed=4, progress=False)
    assert found.miscalibrated() == []
    assert f"{100 - len(found)} executions of the prior were rejected" in repr(found)


def unnamed() -> None:
    et.sample(Normal(0.0, 1.0))
    et.observe(Normal(0.0, 1.0), name="y")


def test_errors_name_what_there_is() -> None:
    with pytest.raises(InferenceError, match=r"'sigma'.*'mu'"):
        calibrate(et.Model(Measured()), et.ImportanceSampling(), 5, 10, names=["sigma"])
    with pytest.raises(InferenceError, match="exactly once"):
        calibrate(et.Model(unnamed), et.ImportanceSampling(), 5, 10)


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    found = calibrate(et.Model(Measured()), et.ImportanceSampling(), 12, 50, seed=8)
    found.plot(tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")
    assert len(found.plot(raw=True).axes) == 2
