"""Calibration checks: a right engine passes, a too narrow, a too wide and a shifted one fail."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import etalumis as et
from etalumis.distributions import Normal, Poisson
from etalumis.execution import Observations, Simulator
from etalumis.inference.calibration import TARP, Calibration, calibrate
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
