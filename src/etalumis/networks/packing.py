"""From traces in columns to what the network computes on: a packed, time-major training view.

N traces are sorted by length, longest first. Step t of all traces that have one stands in one block, the blocks
one after the other (``batch_sizes`` long), so a recurrent core runs over contiguous rows. What belongs to an
address is computed once per distinct address of the minibatch, and the proposals are evaluated on draws grouped
by address over all traces and steps. Everything here is vectorised NumPy; there is no object per draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etalumis.distributions import BY_CODE
from etalumis.execution import TraceBatch
from etalumis.execution.ragged import gather
from etalumis.networks.columns import UnreachableError, category_columns, coordinate_columns
from etalumis.networks.errors import ProposalError
from etalumis.networks.grouped import Groups
from etalumis.networks.layout import CATEGORICAL, UNKNOWN, Known, Layout, category_counts
from etalumis.networks.noise import Noisy
from etalumis.networks.observed import observed_values


@dataclass(frozen=True)
class AddressColumns:
    """The U distinct addresses of a minibatch.

    Attributes:
        rows: row of each, int64 (U,), UNKNOWN (−1) where the network has none; always on the CPU.
        family: family code, int64 (U,).
        instance: which instance of a loop (capped), int64 (U,).
        frames: distinct stack frames in use, int64 (F,); always on the CPU.
        frame: for each frame of each address, which of ``frames`` it is, int64; ``frame_owner``: whose it is.
        frame_share: one over the address's number of frames, float64 (U, 1).
    """

    rows: Tensor
    family: Tensor
    instance: Tensor
    frames: Tensor
    frame: Tensor
    frame_owner: Tensor
    frame_share: Tensor

    on_cpu = ("rows", "frames")

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> AddressColumns:
        """The columns on a device, but for those that stay on the CPU."""
        columns: AddressColumns = _map(self, lambda x: x.to(device), everything=False)
        return columns


@dataclass(frozen=True)
class DrawGroup:
    """The n draws that one head answers: those of a bank row together, rows with as many draws side by side.

    Attributes:
        head: the head's name; ``kind`` of proposal.
        groups: the bank rows in use and which draws use them.
        row_ids: the same rows as int64 (R,), always on the CPU.
        address: which of the minibatch's distinct addresses each of these rows is, int64 (R,).
        member: which of the R rows each draw has, int64 (n,).
        position: packed position of each draw, int64 (n,).
        columns: per draw, what its proposal needs; see :mod:`etalumis.networks.columns`.
    """

    head: str
    kind: str
    groups: Groups
    row_ids: Tensor
    address: Tensor
    member: Tensor
    position: Tensor
    columns: dict[str, Tensor]

    on_cpu = ("row_ids",)

    def __len__(self) -> int:
        return len(self.member)

    def to(self, device: torch.device | str) -> DrawGroup:
        """The group on a device, but for what stays on the CPU."""
        group: DrawGroup = _map(self, lambda x: x.to(device), everything=False)
        return group


@dataclass(frozen=True)
class TrainingBatch:
    """N traces with D controlled scalar draws, packed.

    Attributes:
        order: position in the given TraceBatch of each packed trace, int64 (N,), on the CPU.
        batch_sizes: traces that have a step t, for each t; sums to D.
        observations: float32 (N, *shape) by name, in packed order; NaN where a trace lacks it. Some may still be to
            be drawn (:func:`etalumis.networks.noise.realised`). (1, *shape) where all traces share them.
        addresses: the minibatch's distinct addresses.
        address: which of them each draw has, int64 (D,), packed order.
        previous_address: the same of the trace's draw before, U where there is none, int64 (D,).
        previous_draw: place of that draw among the draws of ``groups`` one after the other, their number where
            there is none (or it is unknown), int64 (D,).
        groups: the draws of known addresses by head.
        unknown_draws: draws of addresses the network has no row for; the prior is their proposal.
        unknown_log_prob: sum of their log prior densities, weighted as their traces.
        weight: of each packed trace in the loss, float64 (N,), one on average; None where all count alike.
    """

    order: Tensor
    batch_sizes: tuple[int, ...]
    observations: dict[str, Tensor | Noisy]
    addresses: AddressColumns
    address: Tensor
    previous_address: Tensor
    previous_draw: Tensor
    groups: tuple[DrawGroup, ...]
    unknown_draws: int
    unknown_log_prob: float
    weight: Tensor | None = None

    on_cpu = ("order",)

    @property
    def num_traces(self) -> int:
        return len(self.order)

    @property
    def num_draws(self) -> int:
        return len(self.address)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TrainingBatch:
        """The batch on a device; index arrays that decide which rows to touch stay on the CPU."""
        batch: TrainingBatch = _map(self, lambda x: x.to(device, non_blocking=non_blocking), everything=False)
        return batch

    def double(self) -> TrainingBatch:
        """The batch for a network in float64."""
        batch: TrainingBatch = _map(self, lambda x: x.double() if x.is_floating_point() else x, everything=True)
        return batch

    def pin_memory(self) -> TrainingBatch:
        """The batch in page-locked memory, for transfers that overlap with work."""
        batch: TrainingBatch = _map(self, lambda x: x.pin_memory(), everything=True)
        return batch


def pack(
    batch: TraceBatch,
    layout: Layout,
    *,
    seed: int = 0,
    epoch: int = 0,
    fresh_noise: bool = True,
    noise_on_device: bool = False,
    weighted: bool = False,
    shared: Mapping[str, Tensor] | None = None,
) -> TrainingBatch:
    """The training view of traces.

    Args:
        batch: traces from the prior, or see ``weighted``.
        layout: the network's.
        seed, epoch: with a trace's index they decide the noise of observations drawn here. Keep the epoch fixed
            for validation.
        fresh_noise: draw observations again where their likelihood's parameters are known, instead of taking the
            stored values; values that were given, not drawn, stay.
        noise_on_device: leave normal noise to be drawn where the network runs: other numbers of the same law.
        weighted: the traces were drawn from proposals; weigh them, so that the loss is that of traces from the prior.
        shared: observations that all traces are conditioned on, instead of each trace's own; see
            :func:`etalumis.networks.observed.given_values`.

    Raises:
        ProposalError: naming the address, where a proposal can't represent a value.
        ValueError: where an observation that the network reads is missing or of another shape.
    """
    draws = batch.controlled_scalars()
    owner = batch.trace_of_draw[draws]
    lengths = np.bincount(owner, minlength=len(batch))
    place = np.arange(len(draws)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    if layout.max_controlled is not None and len(draws):
        kept = place < layout.max_controlled
        draws, owner, place = draws[kept], owner[kept], place[kept]
        lengths = np.minimum(lengths, layout.max_controlled)

    # Time-major order: step t of the trace of rank r stands at starts[t] + r.
    order = np.argsort(-lengths, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    sizes = len(batch) - np.searchsorted(np.sort(lengths), np.arange(lengths.max(initial=0)), side="right")
    starts = np.cumsum(sizes) - sizes
    packed = np.empty(len(draws), dtype=np.int64)
    position = starts[place] + rank[owner]
    packed[position] = np.arange(len(draws))
    draws, place = draws[packed], place[packed]

    categories = category_counts(batch.distributions)[batch.distribution[draws]]
    known, address = layout.translate(batch.addresses, batch.address[draws], categories)
    groups, slots, unknown = _group(batch, draws, known, address)

    weight = _weights(batch)[order] if weighted else None
    unknown_log_prob = batch.log_prob[draws[unknown]]
    if weight is not None:
        unknown_log_prob = unknown_log_prob * weight[rank[batch.trace_of_draw[draws[unknown]]]]

    # The draw before: the same rank in the block before; the first block has none.
    first = place == 0
    before = np.where(first, 0, np.arange(len(draws)) - starts[place] + starts[place - 1]) if len(draws) else place
    return TrainingBatch(
        order=torch.from_numpy(order),
        batch_sizes=tuple(sizes.tolist()),
        observations=(
            observed_values(batch, layout.observations, order, seed, epoch, fresh_noise, noise_on_device)
            if shared is None
            else dict(shared)
        ),
        addresses=address_columns(known),
        address=torch.from_numpy(address),
        previous_address=torch.from_numpy(np.where(first, len(known), address[before])),
        previous_draw=torch.from_numpy(np.where(first, len(draws) - len(unknown), slots[before])),
        groups=groups,
        unknown_draws=len(unknown),
        unknown_log_prob=float(unknown_log_prob.sum()),
        weight=None if weight is None else torch.from_numpy(weight),
    )


def _weights(batch: TraceBatch) -> NDArray[np.float64]:
    """p(x) over what the draws came from, (N,), one on average. The simulator's own data do not count."""
    log_weight = batch.log_prior - batch.log_proposal
    weight = np.exp(log_weight - log_weight.max(initial=-np.inf))
    return np.asarray(weight * (len(weight) / weight.sum()), dtype=np.float64)


def _group(
    batch: TraceBatch, draws: NDArray[np.int64], known: Sequence[Known], address: NDArray[np.int64]
) -> tuple[tuple[DrawGroup, ...], NDArray[np.int64], NDArray[np.int64]]:
    """Groups by head; each draw's place among the grouped draws; the positions of draws without a row."""
    heads = sorted({k.head for k in known if k.row != UNKNOWN})
    number = {head: place for place, head in enumerate(heads)}
    head = np.array([number.get(k.head, -1) if k.row != UNKNOWN else -1 for k in known], dtype=np.int64)
    head_row = np.array([k.head_row for k in known], dtype=np.int64)
    unknown = np.flatnonzero(head[address] < 0) if len(known) else np.zeros(0, dtype=np.int64)
    # Distinct addresses sorted by head, then number of draws (rows with as many stand together: one batched product),
    # then row; a draw's key is its address's place in that order.
    by_head = np.lexsort((head_row, np.bincount(address, minlength=len(known)), head))
    key = np.empty_like(by_head)
    key[by_head] = np.arange(len(by_head))
    order = np.argsort(key[address], kind="stable")[len(unknown) :]
    slots = np.full(len(draws), len(order), dtype=np.int64)
    slots[order] = np.arange(len(order))

    groups = []
    head_of_draw = head[address[order]]
    for name, place in number.items():
        start, end = np.searchsorted(head_of_draw, [place, place + 1])
        members = order[start:end]
        groups.append(group_draws(name, members, address[members], known, _columns(batch, draws[members])))
    return tuple(groups), slots, unknown


def group_draws(
    head: str,
    position: NDArray[np.int64],
    address: NDArray[np.int64],
    known: Sequence[Known | None],
    columns: Mapping[str, NDArray[Any]],
) -> DrawGroup:
    """A group of draws in which those of a bank row already stand together.

    Args:
        head: the head's name.
        position: packed position of each draw, (n,).
        address: which of the distinct addresses ``known`` each draw has, (n,).
        columns: by name, (n, …).
    """
    starts = np.flatnonzero(np.concatenate([[True], address[1:] != address[:-1]]))
    distinct = address[starts]
    rows = [k.head_row for k in (known[a] for a in distinct.tolist()) if k is not None]
    assert len(set(rows)) == len(rows), "draws of a row stand together"
    sizes = np.diff(starts, append=len(address))
    return DrawGroup(
        head=head,
        kind=head.split("_")[0],
        groups=Groups(tuple(rows), tuple(sizes.tolist())),
        row_ids=torch.tensor(rows),
        address=torch.from_numpy(distinct),
        member=torch.from_numpy(np.repeat(np.arange(len(rows)), sizes)),
        position=torch.from_numpy(position),
        columns={name: torch.from_numpy(column) for name, column in columns.items()},
    )


def _columns(batch: TraceBatch, draws: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """What the proposals of draws of one head need: the columns are made family by family."""
    table = batch.distributions
    rows, member = np.unique(batch.distribution[draws], return_inverse=True)
    lengths = np.diff(table.offsets)[rows]
    value = batch.value[batch.value_offsets[draws]]
    columns: dict[str, NDArray[Any]] = {}
    for code in np.unique(table.code[rows]).tolist():
        for length in np.unique(lengths[table.code[rows] == code]).tolist():
            alike = (table.code[rows] == code) & (lengths == length)
            packed = gather(table.parameters, table.offsets, rows[alike])[0].reshape(-1, length)
            here = np.flatnonzero(alike[member])
            place = (np.cumsum(alike) - 1)[member[here]]
            family = BY_CODE[code]
            make = category_columns if family.proposal == CATEGORICAL else coordinate_columns
            try:
                made = make(family, packed, place, value[here])
            except UnreachableError as error:
                address = batch.addresses[int(batch.address[draws[here[error.draw]]])]
                raise ProposalError(f"{error} at address {address}") from None
            for name, column in made.items():
                whole = columns.setdefault(name, np.empty((len(draws), *column.shape[1:]), dtype=column.dtype))
                whole[here] = column
    return columns


def address_columns(known: Sequence[Known]) -> AddressColumns:
    """The features of distinct addresses."""
    counts = np.array([len(k.frames) for k in known], dtype=np.int64)
    flat = np.array([frame for k in known for frame in k.frames], dtype=np.int64)
    frames, frame = np.unique(flat, return_inverse=True)
    share = (1.0 / np.maximum(counts, 1))[:, None]
    return AddressColumns(
        rows=torch.tensor([k.row for k in known], dtype=torch.int64),
        family=torch.tensor([k.family for k in known], dtype=torch.int64),
        instance=torch.tensor([k.instance for k in known], dtype=torch.int64),
        frames=torch.from_numpy(frames),
        frame=torch.from_numpy(frame),
        frame_owner=torch.from_numpy(np.repeat(np.arange(len(known)), counts)),
        frame_share=torch.from_numpy(share),
    )


def _map(value: Any, function: Callable[[Tensor], Tensor], everything: bool) -> Any:
    """The same structure with ``function`` applied to its tensors, but for those that belong on the CPU."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map(item, function, everything) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_map(item, function, everything) for item in value)
    if isinstance(value, (TrainingBatch, DrawGroup, AddressColumns, Noisy)):
        names = [f.name for f in fields(value) if everything or f.name not in value.on_cpu]
        return replace(value, **{name: _map(getattr(value, name), function, everything) for name in names})
    return value
