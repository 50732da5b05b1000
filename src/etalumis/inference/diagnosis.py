"""Can a posterior be trusted? All checks in one call, with figures and advice in plain words.

Checks find faults; they never prove that there is none. What each can and can't see is in ``docs/trust.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etalumis.inference import diagnostics
from etalumis.inference.address_values import address_values
from etalumis.inference.by_address import met_in, most_judged, most_met, rows_of
from etalumis.inference.diagnosis_chains import (
    chain_notes,
    chain_numbers,
    chain_problems,
    chain_table,
    rows_elsewhere,
    unjudged,
)
from etalumis.inference.diagnosis_text import describe, save
from etalumis.inference.diagnosis_weights import weight_notes, weight_numbers, weight_problems
from etalumis.inference.mixing import RELEVANT_CATEGORY

if TYPE_CHECKING:
    from etalumis.inference.posterior import Posterior


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What was found.

    Attributes:
        posterior: whose.
        numbers: of the whole: samples, ess, … None where not applicable or infinite.
        table: a row per named number and, of chains, one for the log density of the whole trace.
        addresses: a row per address, see :func:`.by_address.by_address`.
        problems: why results should not be used as they are.
        notes: what to know.
    """

    posterior: Posterior = field(repr=False)
    numbers: dict[str, Any]
    table: list[dict[str, Any]]
    addresses: list[dict[str, Any]]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """No check found a fault."""
        return not self.problems

    @cached_property
    def figures(self) -> dict[str, Any]:
        """Matplotlib figures by name.

        Of chains ``chains`` (trace, autocorrelation, Gelman–Rubin against iteration) and ``moves`` (acceptance and
        reuse per address); of weights ``weights``; of both ``marginals``.

        Raises:
            InferenceError: Matplotlib is not installed.
        """
        from etalumis.inference.figures.diagnosis import draw

        return draw(self)

    def save(self, folder: str | Path) -> None:
        """Write ``NAME.png`` for every figure, ``diagnosis.json`` and ``diagnosis.md``."""
        save(self, Path(folder))

    def __repr__(self) -> str:
        return describe(self)


def diagnose(posterior: Posterior) -> Diagnosis:
    """Check chains or weights, whichever the posterior has."""
    dead = not len(posterior) or posterior.log_weights.max() == -math.inf
    if dead:
        advice = diagnostics.weight_advice(posterior.log_weights, len(posterior) + posterior.num_dropped)
        return Diagnosis(posterior, {"samples": len(posterior), "ess": 0.0}, [], [], (str(advice),), ())
    found = address_values(posterior.traces)
    elsewhere = set(posterior.names) - set(posterior.numbers)
    ranked = most_met(posterior, found)
    # Where not all are judged, those with a name are, which the table may not have.
    chosen = set(sorted(ranked, key=lambda key: found[key].name not in elsewhere)[: most_judged(posterior)])
    addresses = rows_of(posterior, {key: found[key] for key in ranked if key in chosen})
    if posterior.markov:
        table = chain_table(posterior)
        named = [*table, *rows_elsewhere(posterior, found, addresses)]
        problems = [*chain_problems(named, addresses)]
        left_out = sum(met_in(posterior, found[key]) >= RELEVANT_CATEGORY for key in ranked if key not in chosen)
        notes = [*chain_notes(posterior, named, addresses), *unjudged(addresses, found, left_out)]
        numbers = chain_numbers(posterior, named)
    else:
        table = posterior.summary()
        numbers = weight_numbers(posterior)
        problems, notes = [*weight_problems(posterior, numbers)], [*weight_notes(posterior, numbers)]
    # What the engine said when it ran; weights that can't be trusted it said too.
    told = [str(text) for text in posterior.info.get("warnings", ()) if "can't be trusted" not in str(text)]
    return Diagnosis(posterior, numbers, table, addresses, tuple(problems), (*told, *notes))
