"""Can a posterior be trusted? All checks in one call, with figures and advice in plain words.

Checks find faults; they never prove that there is none. What each can and can't see is in ``docs/trust.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etalumis.inference import diagnostics
from etalumis.inference.by_address import by_address
from etalumis.inference.diagnosis_text import describe, save
from etalumis.inference.mixing import mixing

if TYPE_CHECKING:
    from etalumis.inference.posterior import Posterior

# Limits: of R̂ after Vehtari et al. (2021) and Gelman et al. (2013), of bulk and tail ESS after the former.
RHAT_GOOD, RHAT_BAD = 1.01, 1.05
ESS_GOOD, ESS_BAD = 400.0, 100.0
LARGEST_WEIGHT = 0.2  # of one trace
ACCEPTED_LEAST = 0.02  # share of the moves at one address
_ENOUGH_MOVES = 200  # to judge acceptance by
DENSITY = "(log density)"
_MOST_NAMED = 5  # in one sentence
_JUDGED = 2e7  # values at addresses


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
    # Of millions of states fewer addresses: each is judged from all of them.
    addresses = by_address(posterior, most=int(np.clip(_JUDGED / len(posterior), 20, 200)))
    if posterior.markov:
        table = [_chain_row(posterior, name) for name in posterior.numbers]
        table.append(_density_row(posterior))
        problems = list(_chain_problems(table, addresses))
        notes = list(_chain_notes(posterior, table, addresses))
        numbers = _chain_numbers(posterior, table)
    else:
        table = posterior.summary()
        numbers = _weight_numbers(posterior)
        problems, notes = list(_weight_problems(posterior, numbers)), list(_weight_notes(posterior, numbers))
    # What the engine said when it ran; weights that can't be trusted it said too.
    told = [str(text) for text in posterior.info.get("warnings", ()) if "can't be trusted" not in str(text)]
    return Diagnosis(posterior, numbers, table, addresses, tuple(problems), (*told, *notes))


# --- chains -------------------------------------------------------------------------------------------------------


def _chain_row(posterior: Posterior, name: str) -> dict[str, Any]:
    values = posterior.values(name)
    row = posterior.summary([name])[0]
    chains = posterior.by_chain(values.astype(np.float64))
    return row | _judged(chains, values.dtype.kind in "biu")


def _density_row(posterior: Posterior) -> dict[str, Any]:
    traces = posterior.traces
    density = (traces.log_likelihood + traces.log_prior)[posterior.rows]
    chains = posterior.by_chain(density)
    low, high = np.quantile(density, (0.05, 0.95))
    row = {"name": DENSITY, "mean": float(density.mean()), "std": float(density.std()), "q05": low, "q95": high}
    return row | {"mcse": diagnostics.mcse_mean(chains)} | _judged(chains, False)


def _judged(chains: Any, discrete: bool) -> dict[str, Any]:
    found = mixing(chains, discrete)
    still = np.ptp(chains, axis=1) == 0.0
    return {
        "ess": found.ess_bulk,
        "ess_tail": found.ess_tail,
        "rhat": found.rhat,
        "autocorrelation_time": diagnostics.autocorrelation_time(chains),
        "category": found.value,
        "discrete": discrete,
        "still_chains": np.flatnonzero(still).tolist(),
    }


def _chain_numbers(posterior: Posterior, table: list[dict[str, Any]]) -> dict[str, Any]:
    info = posterior.info
    rhats = [row["rhat"] for row in table if not math.isnan(row["rhat"])]
    lengths = np.bincount(posterior.chains, minlength=posterior.num_chains)
    return {
        "samples": len(posterior),
        "chains": posterior.num_chains,
        "shortest_chain": int(lengths.min()),
        "ess": posterior.ess,
        "largest_rhat": max(rhats, default=None),
        "acceptance": info.get("acceptance"),
        "executions": info.get("executions"),
        "seconds": info.get("seconds"),
    }


def _chain_problems(table: list[dict[str, Any]], addresses: list[dict[str, Any]]) -> Iterator[str]:
    if all(math.isnan(row["rhat"]) for row in table):
        yield (
            "nothing can be judged: the chains never moved, or have fewer than four states. Run them longer, begin "
            "elsewhere (another seed, more starts), or redraw from the prior more often (LMH, prior_fraction)"
        )
    apart = [row for row in table if row["rhat"] == math.inf]
    if apart:
        yield (
            f"{_named(apart)}: every chain stands still at a value of its own. Single-site moves can't cross: use "
            "dependants_share or suffix_share, temper the burn-in, or let a network propose (IC as a kernel)"
        )
    bad = [row for row in table if RHAT_BAD < row["rhat"] < math.inf]
    if bad:
        worst = max(bad, key=lambda row: row["rhat"])
        yield (
            f"chains disagree (R̂ up to {worst['rhat']:.3f}, limit {RHAT_BAD}) on {_named(bad)}. Run them longer, with "
            "more burn-in; where a category is among them, moves between its values are too rare"
        )
    few = [row for row in table if row["ess"] < ESS_BAD and row["rhat"] <= RHAT_BAD]
    if few:
        least = min(few, key=lambda row: row["ess"])
        yield (
            f"few independent draws (bulk ESS down to {least['ess']:.0f}, limit {ESS_BAD:.0f}) of {_named(few)}. "
            "Keep more states"
        )
    lost = [row for row in addresses if not row["name"] and row["rhat"] is not None and row["rhat"] > RHAT_BAD]
    if lost:
        yield (
            f"{len(lost)} unnamed draws disagree between chains, the worst at {_shortened(lost[0]['address'])} "
            f"(R̂ {max(row['rhat'] for row in lost):.3f} over its {lost[0]['of']}): see .addresses"
        )


def _chain_notes(posterior: Posterior, table: list[dict[str, Any]], addresses: list[dict[str, Any]]) -> Iterator[str]:
    if posterior.num_chains == 1:
        yield "one chain: R̂ compares its halves only, and can't see what it never found; run four or more"
    fair = [row for row in table if RHAT_GOOD < row["rhat"] <= RHAT_BAD]
    if fair:
        yield f"R̂ is above {RHAT_GOOD} for {_named(fair)}: good enough for a look, run longer for a publication"
    few = [row for row in table if ESS_BAD <= row["ess"] < ESS_GOOD or row["ess_tail"] < ESS_BAD <= row["ess"]]
    if few:
        yield (
            f"bulk ESS below {ESS_GOOD:.0f} or tail ESS below {ESS_BAD:.0f} for {_named(few)}: means are good to "
            "about a tenth of a standard deviation, ends of intervals are worse"
        )
    told = " ".join(map(str, posterior.info.get("warnings", ())))
    still = [
        row
        for row in table
        # A number that is the same everywhere, as a tag may be, is no matter of mixing.
        if row["still_chains"] and row["rhat"] != math.inf and (row["discrete"] or not math.isnan(row["rhat"]))
        if row["name"] != DENSITY and repr(row["name"]) not in told
    ]
    if still:
        where = ", ".join(map(str, still[0]["still_chains"]))
        yield (
            f"{_named(still)} never moved in some chains ({still[0]['name']}: {where}). Either one value alone fits "
            "the observation, or moves can't switch it, which R̂ can't tell: compare with importance sampling or IC"
        )
    moved = [row for row in addresses if row["moves"] >= _ENOUGH_MOVES and row["accepted"] < ACCEPTED_LEAST]
    if moved:
        yield (
            f"fewer than {ACCEPTED_LEAST:.0%} of the moves are accepted at {len(moved)} addresses, as at "
            f"{moved[0]['name'] or _shortened(moved[0]['address'])} ({moved[0]['accepted']:.1%})"
        )


# --- weights ------------------------------------------------------------------------------------------------------


def _weight_numbers(posterior: Posterior) -> dict[str, Any]:
    info, count = posterior.info, len(posterior) + posterior.num_dropped
    smoothed = diagnostics.ess_weights(posterior.smoothed().log_weights)
    return {
        "samples": count,
        "ess": posterior.ess,
        "ess_share": posterior.ess / count,
        "ess_smoothed": smoothed,
        "log_evidence": posterior.log_evidence,
        "log_evidence_error": posterior.log_evidence_error,
        "pareto_k": posterior.pareto_k,
        "pareto_k_limit": diagnostics.pareto_k_threshold(count),
        "largest_weight": float(posterior.trace_weights.max()),
        "zero_weights": int((posterior.log_weights == -math.inf).sum()) + posterior.num_dropped,
        "unknown_draws": info.get("unknown_draws"),
        "executions": info.get("executions"),
        "seconds": info.get("seconds"),
    }


def _weight_problems(posterior: Posterior, numbers: dict[str, Any]) -> Iterator[str]:
    advice = diagnostics.weight_advice(posterior.log_weights, numbers["samples"])
    if advice:
        yield advice
    if numbers["ess"] < ESS_BAD:
        needed = numbers["samples"] * ESS_BAD / numbers["ess"]
        yield (
            f"the effective sample size is {numbers['ess']:.3g} (limit {ESS_BAD:.0f}) of {numbers['samples']} traces. "
            f"About {needed:,.0f} traces are needed, if the weights behave; or a better proposal"
        )


def _weight_notes(posterior: Posterior, numbers: dict[str, Any]) -> Iterator[str]:
    if numbers["largest_weight"] > LARGEST_WEIGHT:
        yield f"one trace carries {numbers['largest_weight']:.0%} of the weight; .smoothed() spreads it"
    if math.isnan(numbers["pareto_k"]):
        yield f"{numbers['samples']} traces are too few to judge the tail of the weights (k̂)"
    share = numbers["zero_weights"] / numbers["samples"]
    if share > 0.5:
        yield f"{share:.0%} of the traces have weight zero: they can't have produced the observation"


# --- words --------------------------------------------------------------------------------------------------------


def _named(rows: list[dict[str, Any]]) -> str:
    shown = [
        row["name"] if row.get("category") is None else f"{row['name']} (= {row['category']})"
        for row in rows[:_MOST_NAMED]
    ]
    more = f" and {len(rows) - _MOST_NAMED} more" if len(rows) > _MOST_NAMED else ""
    return ", ".join(shown) + more


def _shortened(address: str) -> str:
    return address if len(address) <= 80 else f"…{address[-79:]}"
