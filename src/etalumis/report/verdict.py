"""Does the demo's result stand? Every number that decides, its limit, and the answer."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass

from etalumis.report.summary import Agreement, Quality, Summary
from etalumis.report.tables import Grid

_COMPARISONS = {"<": operator.lt, ">=": operator.ge}
_SIGNS = {"<": "<", ">=": "≥"}

LEAST_ESS = 300.0
LARGEST_PARETO_K = 0.7
LARGEST_RHAT = 1.05
LARGEST_MEAN_SHIFT = 0.2  # standard deviations
STD_RATIO = (0.8, 1.25)
LARGEST_PROBABILITY_SHIFT = 0.1
LARGEST_SHRINKAGE = 0.7  # of px: else the event says nothing


@dataclass(frozen=True)
class Check:
    """One number against its limit; ``value`` None (infinite or unknown) fails."""

    what: str
    value: float | None
    comparison: str
    limit: float

    @property
    def passed(self) -> bool:
        return self.value is not None and bool(_COMPARISONS[self.comparison](self.value, self.limit))


def judge(summary: Summary, ic: str = "IC", rmh: str = "RMH") -> list[Check]:
    """All checks of a demo whose posteriors are labelled ``ic`` and ``rmh``."""
    quality = {q.label: q for q in summary.quality}
    agreement = [a for a in summary.agreement if (a.first, a.second) == (ic, rmh)]
    shrinkage = next(m.shrinkage for m in summary.moments["px"] if m.label == ic)
    return [
        *_quality_checks(quality[ic], quality[rmh]),
        *_agreement_checks(agreement),
        Check("sd of px over the prior's", shrinkage, "<", LARGEST_SHRINKAGE),
    ]


def verdict_grid(checks: list[Check]) -> Grid:
    """The checks as a table."""
    rows = tuple(
        (
            check.what,
            "∞" if check.value is None else f"{check.value:.3g}",
            f"{_SIGNS[check.comparison]} {check.limit:g}",
            "yes" if check.passed else "NO",
        )
        for check in checks
    )
    return Grid("Does it stand?", ("check", "value", "limit", "passed"), rows)


def _quality_checks(ic: Quality, rmh: Quality) -> Iterator[Check]:
    yield Check(f"{ic.label}: effective sample size", ic.ess, ">=", LEAST_ESS)
    yield Check(f"{ic.label}: Pareto k̂", ic.pareto_k, "<", LARGEST_PARETO_K)
    yield Check(f"{rmh.label}: bulk effective sample size", rmh.ess, ">=", LEAST_ESS)
    yield Check(f"{rmh.label}: R̂ ({rmh.worst})", rmh.rhat, "<", LARGEST_RHAT)


def _agreement_checks(agreement: list[Agreement]) -> Iterator[Check]:
    """The worst variable of each kind of comparison."""
    continuous = [a for a in agreement if a.mean_shift is not None and a.std_ratio is not None]
    shifted = max(continuous, key=lambda a: a.mean_shift or 0.0)
    yield Check(f"{shifted.variable}: |Δ mean| / sd", _finite(shifted.mean_shift), "<", LARGEST_MEAN_SHIFT)
    narrow = min(continuous, key=lambda a: a.std_ratio or 0.0)
    yield Check(f"{narrow.variable}: ratio of sds, smallest", _finite(narrow.std_ratio), ">=", STD_RATIO[0])
    wide = max(continuous, key=lambda a: a.std_ratio or 0.0)
    yield Check(f"{wide.variable}: ratio of sds, largest", _finite(wide.std_ratio), "<", STD_RATIO[1])
    for a in agreement:
        if a.probability_shift is not None:
            yield Check(f"{a.variable}: max |Δ P|", a.probability_shift, "<", LARGEST_PROBABILITY_SHIFT)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
