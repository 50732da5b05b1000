"""What a diagnosis says of Markov chains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from etalumis.inference import diagnostics
from etalumis.inference.address_values import MOST_ELEMENTS, AddressValues
from etalumis.inference.mixing import mixing

if TYPE_CHECKING:
    from etalumis.inference.posterior import Posterior

Row = dict[str, Any]

# Limits: of R̂ after Vehtari et al. (2021) and Gelman et al. (2013), of bulk and tail ESS after the former.
RHAT_GOOD, RHAT_BAD = 1.01, 1.05
ESS_GOOD, ESS_BAD = 400.0, 100.0
ACCEPTED_LEAST = 0.02  # share of the moves at one address
DENSITY = "(log density)"
_ENOUGH_MOVES = 200  # to judge acceptance by
_MOST_NAMED = 5  # in one sentence


def chain_table(posterior: Posterior) -> list[Row]:
    """A row per named number, and one for the log density of the whole trace."""
    return [*(_number_row(posterior, name) for name in posterior.numbers), _density_row(posterior)]


def rows_elsewhere(posterior: Posterior, found: Mapping[str, AddressValues], addresses: Sequence[Row]) -> list[Row]:
    """Of the rows by address those of named draws that the table has not: repeated, in some traces only, arrays."""
    return [
        row | {"name": found[row["address"]].label, "discrete": found[row["address"]].discrete}
        for row in addresses
        if row["name"] and row["name"] not in posterior.numbers and row["rhat"] is not None
    ]


def chain_numbers(posterior: Posterior, named: Sequence[Row]) -> Row:
    """Of the whole; ``named`` has the rows of all named draws and tags."""
    info = posterior.info
    rhats = [row["rhat"] for row in named if not math.isnan(row["rhat"])]
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


def chain_problems(named: Sequence[Row], addresses: Sequence[Row]) -> Iterator[str]:
    """Why results should not be used as they are."""
    if all(math.isnan(row["rhat"]) for row in named):
        yield (
            "nothing can be judged: the chains never moved, or have fewer than four states. Run them longer, begin "
            "elsewhere (another seed, more starts), or redraw from the prior more often (LMH, prior_fraction)"
        )
    apart = [row for row in named if row["rhat"] == math.inf]
    if apart:
        yield (
            f"{_listed(apart)}: every chain stands still at a value of its own. Single-site moves can't cross: use "
            "dependants_share or suffix_share, temper the burn-in, or let a network propose (IC as a kernel)"
        )
    bad = [row for row in named if RHAT_BAD < row["rhat"] < math.inf]
    if bad:
        worst = max(row["rhat"] for row in bad)
        yield (
            f"chains disagree (R̂ up to {worst:.3f}, limit {RHAT_BAD}) on {_listed(bad)}. Run them longer, with "
            "more burn-in; where a category is among them, moves between its values are too rare"
        )
    few = [row for row in named if _least_ess(row) < ESS_BAD and row["rhat"] <= RHAT_BAD]
    if few:
        least = min(few, key=_least_ess)
        kind = "bulk" if least["ess"] <= _least_ess(least) else "tail"
        yield (
            f"few independent draws ({kind} ESS down to {_least_ess(least):.0f}, limit {ESS_BAD:.0f}) of "
            f"{_listed(few)}. Keep more states"
        )
    lost = [row for row in _unnamed(addresses) if row["rhat"] > RHAT_BAD]
    if lost:
        worst_row = max(lost, key=lambda row: row["rhat"])
        yield (
            f"{len(lost)} unnamed draws disagree between chains, the worst at {_shortened(worst_row['address'])} "
            f"(R̂ {worst_row['rhat']:.3f} over its {worst_row['of']}): see .addresses"
        )


def chain_notes(posterior: Posterior, named: Sequence[Row], addresses: Sequence[Row]) -> Iterator[str]:
    """What to know of chains."""
    if posterior.num_chains == 1:
        yield "one chain: R̂ compares its halves only, and can't see what it never found; run four or more"
    fair = [row for row in named if RHAT_GOOD < row["rhat"] <= RHAT_BAD]
    if fair:
        yield f"R̂ is above {RHAT_GOOD} for {_listed(fair)}: good enough for a look, run longer for a publication"
    few = [row for row in named if ESS_BAD <= _least_ess(row) < ESS_GOOD]
    if few:
        yield (
            f"bulk or tail ESS below {ESS_GOOD:.0f} for {_listed(few)}: means are good to about a tenth of a standard "
            "deviation, ends of intervals are worse"
        )
    scarce = [row for row in _unnamed(addresses) if row["ess"] < ESS_BAD and row["rhat"] <= RHAT_BAD]
    if scarce:
        least = min(scarce, key=lambda row: row["ess"])
        yield (
            f"few independent draws of {len(scarce)} without a name, the fewest at {_shortened(least['address'])} "
            f"(bulk ESS {least['ess']:.0f} of its {least['of']}); keep more states if they matter"
        )
    told = " ".join(map(str, posterior.info.get("warnings", ())))
    still = [
        row
        for row in named
        # A number that is the same everywhere, as a tag may be, is no matter of mixing.
        if row["still_chains"] and row["rhat"] != math.inf and (row["discrete"] or not math.isnan(row["rhat"]))
        if row["name"] != DENSITY and repr(row["name"]) not in told
    ]
    if still:
        where = ", ".join(map(str, still[0]["still_chains"]))
        yield (
            f"{_listed(still)} never moved in some chains ({still[0]['name']}: {where}). Either one value alone fits "
            "the observation, or moves can't switch it, which R̂ can't tell: compare with importance sampling or IC"
        )
    moved = [row for row in addresses if row["moves"] >= _ENOUGH_MOVES and row["accepted"] < ACCEPTED_LEAST]
    if moved:
        yield (
            f"fewer than {ACCEPTED_LEAST:.0%} of the moves are accepted at {len(moved)} addresses, as at "
            f"{moved[0]['name'] or _shortened(moved[0]['address'])} ({moved[0]['accepted']:.1%})"
        )


def unjudged(addresses: Sequence[Row], found: Mapping[str, AddressValues], left_out: int) -> Iterator[str]:
    """What the checks did not look at.

    Args:
        addresses: the rows that there are.
        found: the values behind them.
        left_out: addresses without a row, of those that are met often enough to be judged.
    """
    if left_out:
        yield f"{left_out} draws, of those met least often, are not judged: {len(addresses)} are at most"
    large = [there for there in (found[row["address"]] for row in addresses) if there.elements > MOST_ELEMENTS]
    arrays = {there.name or _shortened(str(there.address)): there.elements for there in large}
    if arrays:
        shown = ", ".join(f"{name} (of {size:,})" for name, size in list(arrays.items())[:_MOST_NAMED])
        more = f" and {len(arrays) - _MOST_NAMED} more" if len(arrays) > _MOST_NAMED else ""
        yield f"of arrays at most {MOST_ELEMENTS} elements are judged, spread evenly: {shown}{more}"


def _number_row(posterior: Posterior, name: str) -> Row:
    values = posterior.values(name)
    row = posterior.summary([name])[0]
    chains = posterior.by_chain(values.astype(np.float64))
    return row | _judged(chains, values.dtype.kind in "biu")


def _density_row(posterior: Posterior) -> Row:
    traces = posterior.traces
    density = (traces.log_likelihood + traces.log_prior)[posterior.rows]
    chains = posterior.by_chain(density)
    low, high = np.quantile(density, (0.05, 0.95))
    row = {"name": DENSITY, "mean": float(density.mean()), "std": float(density.std()), "q05": low, "q95": high}
    return row | {"mcse": diagnostics.mcse_mean(chains)} | _judged(chains, False)


def _judged(chains: Any, discrete: bool) -> Row:
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


def _least_ess(row: Row) -> float:
    return float(np.fmin(row["ess"], row["ess_tail"]))


def _unnamed(addresses: Sequence[Row]) -> list[Row]:
    return [row for row in addresses if not row["name"] and row["rhat"] is not None]


def _listed(rows: Sequence[Row]) -> str:
    labels = [row["name"] if row.get("category") is None else f"{row['name']} (= {row['category']})" for row in rows]
    labels = list(dict.fromkeys(labels))  # a name that is met several times has as many rows
    more = f" and {len(labels) - _MOST_NAMED} more" if len(labels) > _MOST_NAMED else ""
    return ", ".join(labels[:_MOST_NAMED]) + more


def _shortened(address: str) -> str:
    return address if len(address) <= 80 else f"…{address[-79:]}"
