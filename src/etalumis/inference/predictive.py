"""Posterior predictive checks: does the model, with what was inferred, produce data like those observed?

Replicates are drawn from the likelihoods that the posterior's traces kept (``keep_observes=True`` of an engine), so
the simulator is not run again (Rubin 1984; Gelman, Meng and Stern 1996).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from etalumis.distributions import DISTRIBUTIONS, OBSERVE, Stream, derived_seed
from etalumis.execution import ObserveColumn
from etalumis.inference.errors import InferenceError
from etalumis.inference.posterior import Posterior

Statistic = Callable[[NDArray[np.float64]], float]
_REPLICATES = 0x7265706C  # "repl": sets these numbers apart from any other use of the seed
DEFAULT_STATISTICS: Mapping[str, Statistic] = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}


class Check(NamedTuple):
    """A statistic of the observed value among those of replicates.

    Attributes:
        observed: the statistic of what was observed.
        replicated: of the replicates, (K,).
        p_value: two-sided: twice the share of replicates at least as extreme, with ties split.
    """

    observed: float
    replicated: NDArray[np.float64]
    p_value: float


def replicate(posterior: Posterior, name: str, num_draws: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """Draws of an observation from the posterior predictive distribution.

    Args:
        posterior: made with ``keep_observes=True``.
        name: of the observation; every trace must meet it exactly once.
        num_draws: K.
        seed: of the draws.

    Returns:
        (K, *shape of the observation).

    Raises:
        InferenceError: the likelihoods were not kept, or the name is not met once in every trace.
    """
    columns, place, entry = _meetings(posterior, name)
    rows = posterior.resample(num_draws, seed).rows
    stream = Stream(_key(seed, name))
    out = np.empty((num_draws, *columns[0].shape))
    for number, row in enumerate(rows.tolist()):
        column, here = columns[place[row]], entry[row]
        stream.start(number)
        stream.seek(0, OBSERVE)
        parameters = [p[here if len(p) > 1 else 0] for p in column.parameters]
        out[number] = DISTRIBUTIONS[column.family].from_parameters(*parameters).draw(stream)
    return out


def predictive_check(
    posterior: Posterior,
    name: str,
    statistics: Mapping[str, Statistic] | None = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> dict[str, Check]:
    """Statistics of an observed value against those of replicates.

    Args:
        posterior, name, num_draws, seed: as for :func:`replicate`.
        statistics: functions from an observation, as an array, to a number; by default mean, standard deviation,
            least and greatest element (of a single number only its value).
    """
    columns, place, entry = _meetings(posterior, name)
    first = columns[place[posterior.rows[0]]]
    if first.values is None or not first.observed:
        raise InferenceError(f"{name!r} was not observed in these traces: there is nothing to compare replicates with")
    observed = np.asarray(first.values[entry[posterior.rows[0]]], dtype=np.float64)
    replicates = replicate(posterior, name, num_draws, seed)
    if statistics is None:
        statistics = DEFAULT_STATISTICS if observed.size > 1 else {"value": lambda x: float(x)}
    found = {}
    for label, statistic in statistics.items():
        ours = float(statistic(observed))
        theirs = np.array([float(statistic(one)) for one in replicates])
        below, ties = float((theirs < ours).mean()), float((theirs == ours).mean())
        found[label] = Check(ours, theirs, min(1.0, 2.0 * min(below, 1.0 - below - ties) + ties))
    return found


def _meetings(posterior: Posterior, name: str) -> tuple[list[ObserveColumn], NDArray[np.int64], NDArray[np.int64]]:
    """The columns of a name, and for each trace which of them has it and where."""
    columns = [column for column in posterior.traces.observes if column.name == name]
    if not columns:
        known = sorted({column.name for column in posterior.traces.observes if column.name})
        raise InferenceError(
            f"these traces keep no likelihood named {name!r} (kept: {', '.join(known) or 'none'}); "
            "infer with keep_observes=True"
        )
    count = len(posterior.traces)
    place, entry = np.full(count, -1), np.zeros(count, dtype=np.int64)
    for number, column in enumerate(columns):
        if (place[column.rows] >= 0).any():
            raise InferenceError(f"{name!r} is observed several times in a trace; give the statements distinct names")
        place[column.rows] = number
        entry[column.rows] = np.arange(len(column))
    if (place[posterior.rows] < 0).any():
        raise InferenceError(f"{name!r} is not observed in every trace")
    return columns, place, entry


def _key(seed: int, name: str) -> int:
    """Random numbers of their own for each observation, and none that a simulator has drawn."""
    return derived_seed(_REPLICATES, seed, *name.encode())


def describe(checks: Mapping[str, Check]) -> list[dict[str, Any]]:
    """Rows of a table: statistic, observed, mean and standard deviation of the replicates, p."""
    return [
        {
            "statistic": label,
            "observed": check.observed,
            "mean": float(check.replicated.mean()),
            "std": float(check.replicated.std()),
            "p_value": check.p_value,
        }
        for label, check in checks.items()
    ]
