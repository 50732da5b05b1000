"""Importance sampling without a simulator: stored traces weighed by their stored likelihoods.

A dataset keeps the parameters of every likelihood (the noise-free detector image, say), so the density of any
observation under each trace is one vectorised formula. Chunks are read one at a time.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from etalumis.execution import DensityError, ObservationError, Observations, ObserveColumn, TraceBatch, meetings
from etalumis.inference.errors import InferenceError
from etalumis.inference.posterior import Posterior
from etalumis.inference.workers import Report
from etalumis.storage import Dataset

Array = NDArray[np.float64]
_NEGLIGIBLE = 40.0  # log weights this far below the largest change no double-precision sum
_ELEMENTS = 1 << 21  # numbers that are scored at once


def weigh(
    dataset: Dataset,
    model: str,
    observations: Observations,
    num_traces: int | None,
    keep_observes: bool,
    report: Report,
) -> Posterior:
    """Weights of stored traces.

    Executions that failed when the dataset was made are counted in ``info["failed"]``.

    Traces whose weight is zero or negligible (e⁻⁴⁰ of the largest) are counted but not held, so that the
    result stays small whatever the dataset.

    Args:
        dataset: traces drawn from the prior.
        model: name of the model they must come from.
        observations: what to condition on.
        num_traces: take the traces of index below this; None takes all.
        keep_observes: hold the likelihoods' parameters too.
        report: told of each chunk.

    Raises:
        InferenceError: the dataset is another model's.
        ObservationError: an observation that stored traces can't be conditioned on, or that none has.
        DensityError: a log density is not a number.
    """
    if dataset.name != model:
        raise InferenceError(
            f"{dataset.directory} holds traces of the model {dataset.name!r}, not of {model!r}; give its own dataset"
        )
    kept: list[tuple[TraceBatch, Array]] = []
    seen = 0
    largest = -np.inf
    names: set[str] = set()
    for batch in dataset.batches():
        size = len(batch)
        if num_traces is not None:
            # By index and not by position: a sorted dataset's first traces are all of one type.
            batch = batch.select(batch.index < num_traces)
        names.update(filter(None, batch.names), (column.name for column in batch.observes if column.name))
        log_weights = log_likelihood(batch, observations) + batch.log_prior - batch.log_proposal
        seen += len(batch)
        largest = max(largest, float(log_weights.max(initial=-np.inf)))
        heavy = log_weights > largest - _NEGLIGIBLE
        held = batch if keep_observes else replace(batch, observes=())
        kept.append((held.select(heavy), log_weights[heavy]))
        report(size, "")
    if not seen:
        raise ValueError(f"num_traces={num_traces} leaves none of the {len(dataset)} traces of {dataset.directory}")
    observations.check_used(names)
    traces = TraceBatch.concatenate([batch for batch, _ in kept])
    weights = np.concatenate([log_weights for _, log_weights in kept])
    heavy = weights > largest - _NEGLIGIBLE
    made = dataset.manifest.origin.num_traces
    failed = 0 if made is None else min(made, made if num_traces is None else num_traces) - seen
    info = {"executions": 0, "failed": failed, "dataset": str(dataset.directory), "stored_traces": seen}
    return Posterior(traces.select(heavy), weights[heavy], info=info, num_dropped=seen - int(heavy.sum()))


def log_likelihood(batch: TraceBatch, observations: Observations) -> Array:
    """Log p(y | x) of stored traces, shape (N,): factors and data of the simulator's own count as stored."""
    total = batch.log_likelihood.copy()
    drawn = {batch.names[i] for i in np.unique(batch.name)}
    for name in observations.values:
        if name in drawn:
            raise ObservationError(
                f"{name!r} names a draw of the stored traces: they can't be conditioned on its value any more. Run the "
                "simulator (ImportanceSampling without dataset), or make it an observe in the model"
            )
        for column, places in meetings(batch, name):
            if column.observed:
                raise ObservationError(
                    f"the simulator supplied the value of observe {name!r} itself and the stored likelihoods include "
                    "it; leave it out, or run the simulator with override=True"
                )
            for place in np.unique(places).tolist():
                value = observations.value(name, place, column.shape)
                met = places == place
                total[column.rows[met]] += _score(batch, column, value)[met]
    return total


def _score(batch: TraceBatch, column: ObserveColumn, value: object) -> Array:
    """Log density of one value under each row's likelihood, shape (M,), in pieces that fit the cache's size."""
    count = len(column)
    step = max(_ELEMENTS // max(int(np.prod(column.shape)), 1), 1)
    out = np.empty(count)
    for first in range(0, count, step):
        piece = slice(first, first + step)
        parameters = tuple(p if len(p) == 1 else p[piece] for p in column.parameters)
        out[piece] = replace(column, rows=column.rows[piece], parameters=parameters, values=None).log_likelihood(value)
    wrong = np.flatnonzero(np.isnan(out))
    if len(wrong):
        row = int(wrong[0])
        shown = ", ".join(str(p[min(row, len(p) - 1)]) for p in column.parameters)
        raise DensityError(
            f"log density is not a number at address {batch.addresses[column.address]} of stored trace "
            f"{batch.index[column.rows[row]]}: {column.family}({shown}) at value {value!r}"
        )
    return out
