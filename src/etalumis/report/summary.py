"""The numbers of a report: can each posterior be trusted, and do two of them agree?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from etalumis.inference.figures.samples import Sample
from etalumis.inference.mixing import mixing


@dataclass(frozen=True)
class Quality:
    """Whether a posterior can be trusted, and what it cost. None: not applicable or not known.

    Attributes:
        traces: traces kept.
        executions: runs of the simulator.
        ess: effective sample size of the weights, or the smallest bulk ESS over the variables of Markov chains.
        pareto_k: tail index of the weights; estimates can be trusted below 0.7.
        rhat: the largest rank-normalised split R̂ over variables, categories included.
        worst: the variable with the largest R̂.
    """

    label: str
    engine: str
    traces: int
    executions: int | None
    wall_time_s: float | None
    ess: float
    pareto_k: float | None = None
    rhat: float | None = None
    worst: str | None = None

    @property
    def ess_per_second(self) -> float | None:
        return self.ess / self.wall_time_s if self.wall_time_s else None


@dataclass(frozen=True)
class Moments:
    """One variable under one posterior. ``shrinkage`` is its standard deviation over the prior's."""

    label: str
    mean: float
    std: float
    shrinkage: float | None


@dataclass(frozen=True)
class Agreement:
    """How far two posteriors of one variable are apart.

    Attributes:
        mean_shift: |Δ mean| in standard deviations (root mean square of the two).
        std_ratio: standard deviation of ``second`` over that of ``first``.
        probability_shift: largest |Δ P| over the values, for discrete variables.
    """

    variable: str
    first: str
    second: str
    mean_shift: float | None
    std_ratio: float | None
    probability_shift: float | None


@dataclass(frozen=True)
class Summary:
    """All numbers of a report. ``discrete`` names the variables compared by probabilities."""

    quality: tuple[Quality, ...]
    moments: dict[str, tuple[Moments, ...]]
    agreement: tuple[Agreement, ...]
    discrete: frozenset[str]


def summarise(samples: Sequence[Sample], variables: Sequence[str], prior: Sample | None = None) -> Summary:
    """Quality of each posterior, moments of each variable, agreement of each posterior with the first."""
    first = samples[0]
    discrete = frozenset(name for name in variables if first.is_discrete(name))
    moments = {
        name: tuple(_moments(sample, name, prior) for sample in samples) for name in variables if name not in discrete
    }
    agreement = tuple(compare(name, first, second, name in discrete) for second in samples[1:] for name in variables)
    return Summary(tuple(quality(s, variables) for s in samples), moments, agreement, discrete)


def quality(sample: Sample, variables: Iterable[str]) -> Quality:
    """How far a posterior can be trusted, over these variables."""
    ess, tail, rhat, worst = sample.ess, None, None, None
    if sample.chain is None:
        tail = _finite(sample.pareto_k)
    else:
        mixing = {name: _mixing(sample, name) for name in variables}
        worst = max(mixing, key=lambda name: mixing[name][0])
        rhat, ess = _finite(mixing[worst][0]), min(size for _, size in mixing.values())
    time, executions = sample.info.get("seconds"), sample.info.get("executions")
    return Quality(
        label=sample.label,
        engine=str(sample.info.get("engine", sample.label)),
        traces=len(sample) + sample.num_dropped,
        executions=None if executions is None else int(executions),
        wall_time_s=None if time is None else float(time),
        ess=ess,
        pareto_k=tail,
        rhat=rhat,
        worst=worst,
    )


def compare(name: str, first: Sample, second: Sample, discrete: bool) -> Agreement:
    """How far two posteriors of a variable are apart."""
    if discrete:
        one, other = first.probabilities(name), second.probabilities(name)
        shift = max(abs(one.get(value, 0.0) - other.get(value, 0.0)) for value in one.keys() | other.keys())
        return Agreement(name, first.label, second.label, None, None, shift)
    ours, theirs = first.std(name), second.std(name)
    difference = abs(first.mean(name) - second.mean(name))
    typical = math.sqrt(0.5 * (ours**2 + theirs**2))
    return Agreement(
        name,
        first.label,
        second.label,
        difference / typical if typical else (0.0 if difference == 0.0 else math.inf),
        theirs / ours if ours else (1.0 if theirs == 0.0 else math.inf),
        None,
    )


def _moments(sample: Sample, name: str, prior: Sample | None) -> Moments:
    before = prior.std(name) if prior is not None and name in prior.values else 0.0
    std = sample.std(name)
    return Moments(sample.label, sample.mean(name), std, std / before if before else None)


def _mixing(sample: Sample, name: str) -> tuple[float, float]:
    """Largest R̂ and smallest bulk ESS of a variable; one that never changed agrees with itself."""
    chains = sample.chains(name)
    if np.ptp(chains) == 0.0:
        return 1.0, float(chains.size)
    found = mixing(chains, sample.is_discrete(name))
    return (math.inf if math.isnan(found.rhat) else found.rhat), found.ess_bulk


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
