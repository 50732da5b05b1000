"""Posteriors address by address, so that draws without a name are judged too."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import BY_CODE
from etalumis.execution import Address, TraceBatch
from etalumis.inference import weighted
from etalumis.inference.mixing import RELEVANT_CATEGORY, Mixing, mixing
from etalumis.inference.weighted_traces import WeightedTraces

Array = NDArray[np.float64]


class AddressValues(NamedTuple):
    """The values of the scalar draws at one address.

    Attributes:
        address: where.
        name: of the draw; empty where it has none.
        discrete: categories or counts.
        traces: positions of the traces that met it, rising, (M,).
        values: there, (M,).
    """

    address: Address
    name: str
    discrete: bool
    traces: NDArray[np.int64]
    values: Array


def address_values(traces: TraceBatch) -> dict[Address, AddressValues]:
    """The scalar draws that the traces were not conditioned on, by address."""
    scalar = np.diff(traces.value_offsets) == 1
    draws = np.flatnonzero(scalar & ~traces.conditioned)
    draws = draws[np.argsort(traces.address[draws], kind="stable")]
    owner, values = traces.trace_of_draw[draws], traces.value[traces.value_offsets[:-1][draws]]
    identifiers, starts = np.unique(traces.address[draws], return_index=True)
    found = {}
    for identifier, start, stop in zip(identifiers.tolist(), starts, [*starts[1:], len(draws)], strict=True):
        first = draws[start]
        family = BY_CODE[int(traces.distributions.code[traces.distribution[first]])]
        address = traces.addresses.entries[identifier]
        name = traces.names[traces.name[first]]
        found[address] = AddressValues(address, name, family.discrete, owner[start:stop], values[start:stop])
    return found


def by_address(posterior: WeightedTraces, prior: WeightedTraces | None = None, most: int = 200) -> list[dict[str, Any]]:
    """What is known at each address.

    Args:
        posterior: whose.
        prior: a posterior without observations, to compare with.
        most: rows; addresses met least often are left out.

    Returns:
        rows, of the address met most often first: address, name, probability of being met, mean and std where it is;
        of the prior ``prior_probability``, ``prior_mean`` and ``prior_std``; of Markov chains rhat and ess (of the
        values, where every state has one, else of whether there is one, and ``of`` says which), the number of
        ``moves`` begun there, the share ``accepted``, and the share of values ``reused`` in other sites' moves.
        None where it does not apply or nothing is known.
    """
    weights = posterior.trace_weights
    found = address_values(posterior.traces)
    share = {address: float(weights[there.traces].sum()) for address, there in found.items()}
    chosen = sorted(found, key=lambda address: -share[address])[:most]
    before, chains = _Before(prior), _Chains(posterior)
    rows = []
    for address in chosen:
        there = found[address]
        row: dict[str, Any] = {
            "address": str(address),
            "name": there.name or None,
            "probability": min(share[address], 1.0),
        }
        row |= _moments(there, weights)
        if prior is not None:
            row |= before.of(address)
        if posterior.markov:
            row |= chains.of(there, share[address])
        rows.append(row)
    return rows


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

    def of(self, address: Address) -> dict[str, float | None]:
        there = self._found.get(address)
        if there is None:
            return {"prior_probability": 0.0, "prior_mean": None, "prior_std": None}
        moments = _moments(there, self._weights)
        share = float(self._weights[there.traces].sum())
        return {"prior_probability": min(share, 1.0), "prior_mean": moments["mean"], "prior_std": moments["std"]}


class _Chains:
    """What Markov chains tell beside the values."""

    def __init__(self, posterior: WeightedTraces) -> None:
        self._posterior = posterior
        self._moves, self._reuse = (
            {address: (first, second) for address, first, second in posterior.info.get(key, ())}
            for key in ("moves", "reuse")
        )

    def of(self, there: AddressValues, probability: float) -> dict[str, Any]:
        posterior, count = self._posterior, len(self._posterior.traces)
        met_in = np.zeros(count, dtype=np.bool_)
        met_in[there.traces] = True
        always = bool(met_in[posterior.rows].all())
        judged: Mixing | None = None
        if always:
            values = np.zeros(count)
            values[there.traces] = there.values
            judged = mixing(posterior.by_chain(values[posterior.rows]), there.discrete)
        elif RELEVANT_CATEGORY <= probability <= 1.0 - RELEVANT_CATEGORY:
            judged = mixing(posterior.by_chain(met_in[posterior.rows].astype(np.float64)), discrete=True)
        identifier = posterior.traces.addresses.find(there.address)
        assert identifier is not None
        proposed, accepted = self._moves.get(identifier, (0, 0))
        met, fresh = self._reuse.get(identifier, (0, 0))
        return {
            "rhat": None if judged is None else judged.rhat,
            "ess": None if judged is None else judged.ess_bulk,
            "of": "values" if always else "presence",
            "moves": proposed,
            "accepted": accepted / proposed if proposed else None,
            "reused": 1.0 - fresh / met if met else None,
        }
