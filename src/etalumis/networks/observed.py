"""The observations of a batch of traces, with fresh noise where the likelihood is known.

A dataset may keep the parameters of an observation's likelihood instead of its value. The value is then drawn
whenever the trace is read, seeded by (seed, epoch, trace index), so that every epoch trains on other noise and
the answer depends neither on the minibatch nor on the worker. Exact for the training objective as long as
nothing in the simulator depends on the observed value.

Normal noise is drawn here, or left to be drawn where the network runs (``on_device``, :mod:`.noise`). NumPy on a core
is faster than torch on that core, 10 against 16 ns a number; for a GPU many processes would have to draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etalumis.distributions import DISTRIBUTIONS, OBSERVE, Normal, Stream, derived_seed
from etalumis.execution import ObserveColumn, TraceBatch, meetings
from etalumis.networks.noise import Noisy
from etalumis.storage.sites import Seen

_WORD = (1 << 64) - 1
_Meeting = tuple[ObserveColumn, NDArray[np.int64]]  # a column, and how often each of its traces met the name before
_NOISE = 0x6E6F697365  # "noise": what sets these keys apart from any other use of the seed


def observed_values(
    batch: TraceBatch,
    shapes: Mapping[str, Sequence[int]],
    order: NDArray[np.int64],
    seed: int,
    epoch: int,
    fresh_noise: bool,
    on_device: bool = False,
    exact: bool = False,
) -> dict[str, Tensor | Noisy]:
    """Observations by name: float32 (N, *shape), traces in ``order``; NaN where a trace lacks one.

    A name met several times in a trace has its values one after the other along the first axis of ``shape``. With
    ``on_device``, those of normal likelihoods that would be drawn here are left to be drawn. ``exact`` gives float64.

    Raises:
        ValueError: where none of the names occurs though others do, or one occurs more often than the shape allows,
            with another shape, as NaN, or in different statements of one trace.
    """
    dtype = np.dtype(np.float64 if exact else np.float32)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    known = {c.name for c in batch.observes if c.name}
    if known and known.isdisjoint(shapes) and shapes:
        wanted, there = (", ".join(map(repr, names)) for names in (shapes, sorted(known)))
        raise ValueError(f"no trace observes {wanted}, which the network reads; the traces observe {there}")
    out: dict[str, Tensor | Noisy] = {}
    for number, (name, shape) in enumerate(shapes.items()):
        met = list(meetings(batch, name))
        key = (seed, epoch, number)
        target = _Target(name, tuple(shape), len(batch), rank, dtype)
        target.check(met)
        if on_device and met and all(_is_normal_noise(c, fresh_noise) for c, _ in met):
            out[name] = _left_to_draw(met, target, batch.index[order], key)
            continue
        values = target.empty()
        for column, meeting in met:
            drawn = _values(column, batch.index[column.rows], meeting, key, fresh_noise, dtype)
            target.put(values, column, meeting, drawn)
        out[name] = torch.from_numpy(values)
    return out


def given_values(observe: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The observations that inference is conditioned on, float32 (1, *shape) by name; NaN where a name is met less
    often than it can be.

    Raises:
        ValueError: one is missing or has another shape.
    """
    out: dict[str, Tensor] = {}
    for name, whole in shapes.items():
        shape = tuple(whole)
        if name not in observe:
            raise ValueError(f"the network reads the observation {name!r}: give observe[{name!r}], of shape {shape}")
        given = np.asarray(observe[name], dtype=np.float32)
        array = np.full(shape, np.nan, dtype=np.float32)
        if given.shape == shape or (given.size == 1 and array.size == 1):
            array = given.reshape(shape)
        elif given.ndim == len(shape) and given.shape[1:] == shape[1:] and len(given) < shape[0]:
            array[: len(given)] = given  # a name met fewer times than it can be
        elif shape and given.shape == shape[1:]:
            array[0] = given  # a name met once
        elif given.ndim == len(shape) > 0 and given.shape[1:] == shape[1:]:
            raise ValueError(
                f"observe[{name!r}] has shape {given.shape}; the network was trained on {shape}. Does an execution "
                f"observe the name {len(given)} times? No trace of the training data did so more than {shape[0]} "
                "times: train on traces that do"
            )
        else:
            raise ValueError(f"observe[{name!r}] has shape {given.shape}; the network was trained on {shape}")
        out[name] = torch.from_numpy(np.array(array))[None]
    return out


class _Target:
    """Where the values of one name go: an array (N, *shape), traces by rank, several meetings along its first axis."""

    def __init__(
        self, name: str, shape: tuple[int, ...], traces: int, rank: NDArray[np.int64], dtype: np.dtype[Any]
    ) -> None:
        self.name, self.shape, self.traces, self.rank, self.dtype = name, shape, traces, rank, dtype

    def empty(self) -> NDArray[Any]:
        """An array of missing values."""
        return np.full((self.traces, *self.shape), np.nan, dtype=self.dtype)

    def check(self, met: Sequence[_Meeting]) -> None:
        """See that columns fit.

        Raises:
            ValueError: as :func:`observed_values`.
        """
        for column, meeting in met:
            if column.shape not in (self.shape, self.shape[1:]):
                raise ValueError(
                    f"observation {self.name!r} has shape {column.shape}; the network was built for {self.shape}"
                )
            most = self.shape[0] if column.shape != self.shape else 1
            if meeting.max(initial=0) >= most:
                often = "once" if most == 1 else f"{most} times"
                raise ValueError(
                    f"a trace observes {self.name!r} more than {often}: build the network from more traces"
                )

    def put(self, array: NDArray[Any], column: ObserveColumn, meeting: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Store a column's values, (M or 1, *its shape), in their places.

        Raises:
            ValueError: where one is not a number.
        """
        if np.isnan(values).any():
            raise ValueError(f"observation {self.name!r} holds NaN")
        slots = array[:, None] if column.shape == self.shape else array
        slots[self.rank[column.rows], meeting] = values


def _is_normal_noise(column: ObserveColumn, fresh_noise: bool) -> bool:
    """Whether a column's values are to be drawn, from normal distributions."""
    kept = column.values is not None and not (fresh_noise and not column.observed)
    return column.family == Normal.family and not kept


def _left_to_draw(
    met: Sequence[_Meeting], target: _Target, traces: NDArray[np.int64], key: tuple[int, int, int]
) -> Noisy:
    """Means and standard deviations by trace; one standard deviation where all are the same number."""
    scales = [column.parameters[1] for column, _ in met]
    common = all(scale.size == 1 and scale.flat[0] == scales[0].flat[0] for scale in scales)
    mean = target.empty()
    stddev = np.asarray(scales[0].flat[0], dtype=np.float32) if common else target.empty()
    for (column, meeting), scale in zip(met, scales, strict=True):
        target.put(mean, column, meeting, _aligned(column.parameters[0], len(column.shape)))
        if not common:
            target.put(stddev, column, meeting, _aligned(scale, len(column.shape)))
    return Noisy(torch.from_numpy(mean), torch.from_numpy(stddev), torch.from_numpy(traces), _noise_seed(*key))


def _values(
    column: ObserveColumn,
    index: NDArray[np.int64],
    meeting: NDArray[np.int64],
    key: tuple[int, int, int],
    fresh_noise: bool,
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """A column's values, (M, *shape): the stored ones, or newly drawn."""
    if column.values is not None and not _is_normal_noise(column, fresh_noise):
        return column.values
    draw = _normal if column.family == Normal.family else _from_family
    return draw(column, index, meeting, key, dtype)


def _normal(
    column: ObserveColumn,
    index: NDArray[np.int64],
    meeting: NDArray[np.int64],
    key: tuple[int, int, int],
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """mean + stddev · noise, the noise of each trace from a counter-based sequence of its own."""
    bits = np.random.Philox(key=np.zeros(2, dtype=np.uint64))
    state: Any = bits.state
    counter, words = state["state"]["counter"], state["state"]["key"]
    words[0] = _noise_seed(*key)
    state["buffer_pos"] = 4  # nothing buffered
    generator = np.random.Generator(bits)
    noise = np.empty((len(index), *column.shape), dtype=np.float32)
    for row, (trace, count) in enumerate(zip(index.tolist(), meeting.tolist(), strict=True)):
        words[1] = trace & _WORD
        counter[2] = count
        bits.state = state
        generator.standard_normal(dtype=np.float32, out=noise[row, ...])
    mean, stddev = (_aligned(p, len(column.shape)) for p in column.parameters)
    values = noise.astype(dtype, copy=False)
    values *= stddev.astype(dtype)
    values += mean.astype(dtype)
    return values


def _from_family(
    column: ObserveColumn,
    index: NDArray[np.int64],
    meeting: NDArray[np.int64],
    key: tuple[int, int, int],
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """A family without a vectorised route: its own algorithm, trace by trace."""
    stream = Stream(_noise_seed(*key))
    family = DISTRIBUTIONS[column.family]
    values = np.empty((len(index), *column.shape), dtype=dtype)
    for row, (trace, count) in enumerate(zip(index.tolist(), meeting.tolist(), strict=True)):
        stream.start(trace)
        stream.seek(count, OBSERVE)
        parameters = [p[row if len(p) > 1 else 0] for p in column.parameters]
        values[row] = family.from_parameters(*parameters).draw(stream)
    return values


def _noise_seed(seed: int, epoch: int, number: int) -> int:
    """A key for the noise of one observation in one epoch, unlike that of any simulation.

    Simulations key their streams by (seed, trace) too, and often with the same seed: were the noise made of the same
    numbers, a network would read the draws off it.
    """
    return derived_seed(_NOISE, seed, epoch, number)


def _aligned(parameter: NDArray[Any], rank: int) -> NDArray[Any]:
    """(M or 1, *its shape) with axes of size one so that it broadcasts against (M, *shape)."""
    return parameter.reshape(len(parameter), *(1,) * (rank - parameter.ndim + 1), *parameter.shape[1:])


class Met(NamedTuple):
    """How a name is observed: the shape of one value, and how often one trace has it at most."""

    shape: tuple[int, ...]
    most: int

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape of all values of a trace: (most, *shape) where there can be several."""
        return self.shape if self.most <= 1 else (self.most, *self.shape)


def met_observations(seen: Seen) -> dict[str, Met]:
    """The named observations of traces, by what :func:`etalumis.storage.sites.observed` says of them.

    Raises:
        ValueError: a name has several shapes.
    """
    for name, entry in seen.items():
        if len(entry["shapes"]) > 1:
            raise ValueError(
                f"observation {name!r} has several shapes: {', '.join(str(tuple(shape)) for shape in entry['shapes'])}"
            )
    return {name: Met(tuple(entry["shapes"][0]), entry["most"]) for name, entry in seen.items()}
