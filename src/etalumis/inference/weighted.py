"""Statistics of weighted samples. Shapes: values (S, *shape); weights (S,), which sum to 1.

Samples of zero weight don't count, whatever their values are: what an execution that can't have produced the
observation tagged may be infinite or not a number.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etalumis.inference import diagnostics
from etalumis.inference.errors import InferenceError

Array = NDArray[np.float64]


def normalised(log_weights: Array) -> Array:
    """Weights from their logs.

    Raises:
        InferenceError: every weight is zero.
    """
    weights = diagnostics.normalise(log_weights)
    if not weights.any():
        raise InferenceError(diagnostics.weight_advice(log_weights) or "there are no traces")
    return weights


def mean(values: Array, weights: Array) -> Any:
    """The weighted mean: a number, or an array of ``shape``."""
    values, weights = _positive(values, weights)
    return plain(np.tensordot(weights, values, axes=1))


def std(values: Array, weights: Array) -> Any:
    """Standard deviation of the distribution that the weights define."""
    values, weights = _positive(values, weights)
    centred = values - np.tensordot(weights, values, axes=1)
    return plain(np.sqrt(np.tensordot(weights, centred**2, axes=1)))


def mcse_mean(values: Array, weights: Array, rows: NDArray[np.int64]) -> float:
    """Monte-Carlo standard error of the mean of numbers, shape (S,).

    Args:
        values, weights: as above.
        rows: the trace of each sample: samples that are one trace (after resampling) are one piece of evidence.
    """
    rows = rows[weights > 0.0]
    values, weights = _positive(values, weights)
    centred = values - weights @ values
    return float(np.sqrt(np.square(np.bincount(rows, weights * centred)).sum()))


def quantile(values: Array, weights: Array, q: ArrayLike) -> Any:
    """The smallest values of positive weight whose cumulative weight reaches ``q``; its shape, then ``shape``."""
    levels = np.asarray(q, dtype=np.float64)
    if not ((levels >= 0.0) & (levels <= 1.0)).all():
        raise ValueError(f"quantiles are asked for between 0 and 1; got {q!r}")
    flat = values.reshape(len(values), -1)
    columns = [_quantile(flat[:, k], weights, levels) for k in range(flat.shape[1])]
    return plain(np.stack(columns, axis=-1).reshape(levels.shape + values.shape[1:]))


def probabilities(values: NDArray[Any], weights: Array) -> dict[Any, float]:
    """The probability of each value of shape (), in rising order of values."""
    distinct, inverse = np.unique(values, return_inverse=True)
    return dict(zip(distinct.tolist(), np.bincount(inverse, weights).tolist(), strict=True))


def systematic(weights: Array, count: int, seed: int) -> NDArray[np.int64]:
    """Positions of ``count`` equally weighted samples, rising, by systematic resampling."""
    offset = np.random.default_rng(seed).random()
    reach = np.cumsum(weights)
    picked = np.searchsorted(reach / reach[-1], (np.arange(count) + offset) / count, side="right")
    return np.minimum(picked, len(weights) - 1)


def plain(array: Any) -> Any:
    """A Python number where the array has no dimensions."""
    return array.item() if np.ndim(array) == 0 else array


def _positive(values: Array, weights: Array) -> tuple[Array, Array]:
    """The samples of positive weight: zero times infinity is not zero."""
    there = weights > 0.0
    return (values, weights) if there.all() else (values[there], weights[there])


def _quantile(values: Array, weights: Array, levels: Array) -> Array:
    order = np.argsort(values, kind="stable")
    order = order[weights[order] > 0.0]
    reach = np.cumsum(weights[order])
    places = np.searchsorted(reach, levels * reach[-1] * (1.0 - 4.0 * math.ulp(1.0)), side="left")
    picked: Array = values[order[np.minimum(places, len(order) - 1)]]
    return picked
