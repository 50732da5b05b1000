"""Posteriors address by address, so that draws without a name are judged too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etalumis.inference import weighted
from etalumis.inference.address_values import AddressValues, address_values
from etalumis.inference.mixing import RELEVANT_CATEGORY, mixing
from etalumis.inference.weighted_traces import WeightedTraces

Array = NDArray[np.float64]
_VALUES = 2e7  # at addresses, that a diagnosis looks at


def by_address(posterior: WeightedTraces, prior: WeightedTraces | None = None, most: int = 200) -> list[dict[str, Any]]:
    """What is known at each address.

    Args:
        posterior: whose.
        prior: a posterior without observations, to compare with.
        most: rows; what is met least often is left out.

    Returns:
        rows as :func:`rows_of` makes them, of the address met most often first.
    """
    found = address_values(posterior.traces)
    return rows_of(posterior, {key: found[key] for key in most_met(posterior, found)[:most]}, prior)


def met_in(posterior: WeightedTraces, there: AddressValues) -> float:
    """The probability that an address is met."""
    return min(float(posterior.trace_weights[there.traces].sum()), 1.0)


def most_met(posterior: WeightedTraces, found: Mapping[str, AddressValues]) -> list[str]:
    """The addresses, the one met most often first."""
    return sorted(found, key=lambda key: -met_in(posterior, found[key]))


def most_judged(posterior: WeightedTraces) -> int:
    """How many addresses are judged: of millions of states fewer, but each from all of them."""
    return int(np.clip(_VALUES / len(posterior), 20, 200))


def rows_of(
    posterior: WeightedTraces, found: Mapping[str, AddressValues], prior: WeightedTraces | None = None
) -> list[dict[str, Any]]:
    """A row for each of these addresses, and for each element of arrays there.

    Returns:
        rows: address, name, element of an array, probability of being met, mean and std where it is; of the prior
        ``prior_probability``, ``prior_mean`` and ``prior_std``; of Markov chains rhat, ess, ess_tail, category and
        still_chains (see :func:`chain_columns`; the worst, and ``of`` says of which), the number of ``moves`` begun
        there, the share ``accepted``, and the share of values ``reused`` in other sites' moves; an array's moves
        are told at its first element. None where it does not apply or nothing is known.
    """
    weights = posterior.trace_weights
    before, chains = _Before(prior), _Chains(posterior)
    rows = []
    for key, there in found.items():
        row: dict[str, Any] = {
            "address": key,
            "name": there.name or None,
            "element": there.element,
            "probability": met_in(posterior, there),
        }
        row |= _moments(there, weights)
        if prior is not None:
            row |= before.of(key)
        if posterior.markov:
            row |= _judged(chain_columns(posterior, there), there.discrete) | chains.moves(there)
        rows.append(row)
    return rows


def chain_columns(posterior: WeightedTraces, there: AddressValues) -> dict[str, Array]:
    """What chains are judged by at an address, shape (C, S) each.

    Returns:
        ``values``, and ``presence`` (1 where a state has a value, else 0) where that varies. States without a value
        get the median of the others: a constant, which neither mixes nor disagrees. Nothing of an address that
        fewer than 5 % of the states have: in some chains it is missing by chance.
    """
    met_in = np.zeros(len(posterior.traces), dtype=np.bool_)
    met_in[there.traces] = True
    present = met_in[posterior.rows]
    share = present.mean()
    if share < RELEVANT_CATEGORY:
        return {}
    values = np.full(len(posterior.traces), np.quantile(there.values, 0.5, method="nearest"))
    values[there.traces] = there.values
    columns = {"values": posterior.by_chain(values[posterior.rows])}
    if share <= 1.0 - RELEVANT_CATEGORY:
        columns["presence"] = posterior.by_chain(present.astype(np.float64))
    return columns


def _moments(there: AddressValues, weights: Array) -> dict[str, float | None]:
    among = weights[there.traces]
    if not among.sum() > 0.0:
        return {"mean": None, "std": None}
    among = among / among.sum()
    return {"mean": weighted.mean(there.values, among), "std": weighted.std(there.values, among)}


class _Before:
    """The prior's numbers."""

    def __init__(self, prior: WeightedTraces | None) -> None:
        self._found = {} if prior is None else address_values(prior.traces)
        self._weights = np.zeros(0) if prior is None else prior.trace_weights

    def of(self, address: str) -> dict[str, float | None]:
        there = self._found.get(address)
        if there is None:
            return {"prior_probability": 0.0, "prior_mean": None, "prior_std": None}
        moments = _moments(there, self._weights)
        share = min(float(self._weights[there.traces].sum()), 1.0)
        return {"prior_probability": share, "prior_mean": moments["mean"], "prior_std": moments["std"]}


class _Chains:
    """The moves of Markov chains."""

    def __init__(self, posterior: WeightedTraces) -> None:
        self._addresses = posterior.traces.addresses
        self._moves, self._reuse = (
            {address: (first, second) for address, first, second in posterior.info.get(key, ())}
            for key in ("moves", "reuse")
        )

    def moves(self, there: AddressValues) -> dict[str, Any]:
        if there.element:
            return {"moves": 0, "accepted": None, "reused": None}
        identifier = self._addresses.find(there.address)
        assert identifier is not None
        proposed, accepted = self._moves.get(identifier, (0, 0))
        met, fresh = self._reuse.get(identifier, (0, 0))
        return {
            "moves": proposed,
            "accepted": accepted / proposed if proposed else None,
            "reused": 1.0 - fresh / met if met else None,
        }


def _judged(columns: Mapping[str, Array], discrete: bool) -> dict[str, Any]:
    """Of the columns the one that mixes worst, and the smallest effective sample sizes."""
    if not columns:
        return {"rhat": None, "ess": None, "ess_tail": None, "category": None, "still_chains": [], "of": None}
    found = {key: mixing(chains, discrete and key == "values") for key, chains in columns.items()}
    worst = max(found, key=lambda key: np.nan_to_num(found[key].rhat, nan=0.0, posinf=np.inf))
    # Where a value is missing in some states, chains without any say so by their presence.
    still = np.ptp(columns["values"], axis=1) == 0.0 if len(columns) == 1 else np.zeros(0)
    return {
        "rhat": found[worst].rhat,
        "ess": float(np.fmin.reduce([judged.ess_bulk for judged in found.values()])),
        "ess_tail": float(np.fmin.reduce([judged.ess_tail for judged in found.values()])),
        "category": found[worst].value,
        "still_chains": np.flatnonzero(still).tolist(),
        "of": worst,
    }
