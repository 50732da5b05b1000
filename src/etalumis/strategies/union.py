"""What any rank has a gradient of, of some parts of a network: agreed on, packed, summed and taken apart again.

Ranks first agree on a map of what is present anywhere, by the maximum of flags, and then sum one buffer with only that:
the dense tensors that have a gradient, and those rows of banks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from etalumis.networks.banks import Bank, RowGrad
from etalumis.optim.parts import Parts
from etalumis.strategies.collective import Collective

Compression = Literal["none", "bf16"]
_ALIGNMENT = 64  # numbers; vector instructions want a few
_SPARE = 1.25  # growing unions should not take fresh memory at every step


class Joined(NamedTuple):
    """What it took to join the gradients of some parts.

    Attributes:
        bytes: that this rank put into the agreement and the sum; an algorithm may send them more than once.
        rows: of banks, in the union.
        tensors: dense ones, in the union.
        agreed: when the ranks had agreed on the union, by ``time.perf_counter``.
        ended: when all was done.
    """

    bytes: int
    rows: int
    tensors: int
    agreed: float
    ended: float


class _Piece(NamedTuple):
    """A dense parameter of the union, or rows (ids) of a bank, and the numbers of the buffer that are its gradient."""

    name: str
    ids: np.ndarray | None
    start: int
    numbers: int


_Kind = tuple[torch.dtype, torch.device]


class Union:
    """Joins the gradients of some parts of a network, step after step, in memory of its own.

    Args:
        collective: the ranks.
        parts: the network's dense parameters and banks.
        compression: see :class:`.RowExchange`.
        chosen: whether a part, by its name, is one of those.
    """

    def __init__(
        self, collective: Collective, parts: Parts, compression: Compression, chosen: Callable[[str], bool]
    ) -> None:
        self.collective, self.compression = collective, compression
        self._parts, self._chosen = parts, chosen
        self._memory: dict[_Kind, Tensor] = {}
        self._halves: dict[str, Tensor] = {}

    @property
    def _dense(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, part) for name, part in sorted(self._parts.dense.items()) if self._chosen(name)]

    @property
    def _banks(self) -> list[tuple[str, Bank]]:
        return [(name, part) for name, part in sorted(self._parts.banks.items()) if self._chosen(name)]

    @torch.no_grad()
    def join(self, weight: float) -> Joined:
        """Replace this rank's gradients by the sum of all ranks', each times its weight; collective."""
        present = self.collective.all_reduce(self._present(), "max")
        union, sizes = self._layout(present.numpy())
        agreed = time.perf_counter()
        sent = present.numel()
        for kind, buffer in self._buffers(sizes).items():
            for piece in union[kind]:
                self._pack(piece, weight, buffer)
            sent += self._sum(buffer)
            for piece in union[kind]:
                self._unpack(piece, buffer)
        pieces = [piece for some in union.values() for piece in some]
        rows = [len(piece.ids) for piece in pieces if piece.ids is not None]
        return Joined(sent, sum(rows), len(pieces) - len(rows), agreed, time.perf_counter())

    # --- agreeing ---------------------------------------------------------------------------------------------

    def _present(self) -> Tensor:
        """A flag for each dense parameter, then for each row of each bank: whether it has a gradient here."""
        dense = [parameter.grad is not None for _, parameter in self._dense]
        flags = np.zeros(len(dense) + sum(len(bank) for _, bank in self._banks), np.uint8)
        flags[: len(dense)] = dense
        start = len(dense)
        for _, bank in self._banks:
            if bank.gradient is not None:
                flags[start + bank.gradient.ids.numpy()] = 1
            start += len(bank)
        return torch.from_numpy(flags)

    def _layout(self, present: np.ndarray) -> tuple[dict[_Kind, list[_Piece]], dict[_Kind, int]]:
        """Where in which buffer each part of the union stands, and how many numbers the buffers have."""
        union: dict[_Kind, list[_Piece]] = {}
        sizes: dict[_Kind, int] = {}

        def place(name: str, ids: np.ndarray | None, numbers: int, like: Tensor) -> None:
            kind = (torch.float64 if like.dtype == torch.float64 else torch.float32, like.device)
            start = sizes.get(kind, 0)
            union.setdefault(kind, []).append(_Piece(name, ids, start, numbers))
            sizes[kind] = start + -(-numbers // _ALIGNMENT) * _ALIGNMENT

        dense = self._dense
        for flag, (name, parameter) in zip(present, dense, strict=False):
            if flag:
                place(name, None, parameter.numel(), parameter)
        start = len(dense)
        for name, bank in self._banks:
            ids = np.flatnonzero(present[start : start + len(bank)])
            if len(ids):
                place(name, ids, len(ids) * math.prod(bank.shape), bank.anchor[0])
            start += len(bank)
        return union, sizes

    # --- packing ----------------------------------------------------------------------------------------------

    def _buffers(self, sizes: dict[_Kind, int]) -> dict[_Kind, Tensor]:
        """Memory for so many numbers, kept from step to step, but where gradients still stand in it."""
        held = {gradient.untyped_storage().data_ptr() for gradient in self._parts.gradients()}
        for kind, size in sizes.items():
            memory = self._memory.get(kind)
            if memory is None or len(memory) < size or memory.untyped_storage().data_ptr() in held:
                self._memory[kind] = torch.empty(int(_SPARE * size), dtype=kind[0], device=kind[1])
        return {kind: self._memory[kind][:size] for kind, size in sizes.items()}

    def _pack(self, piece: _Piece, weight: float, buffer: Tensor) -> None:
        """This rank's part of the sum."""
        if piece.ids is None:
            parameter = self._parts.dense[piece.name]
            out = _like(parameter, buffer, piece)
            if parameter.grad is None:
                out.zero_()
            else:
                _scale(parameter.grad, weight, out)
            return
        bank = self._parts.banks[piece.name]
        out = _rows(bank, buffer, piece)
        gradient = bank.gradient
        if gradient is None:
            out.zero_()
            return
        ids = gradient.ids.numpy()
        if np.array_equal(ids, piece.ids):
            _scale(gradient.rows, weight, out)
        else:
            place = torch.from_numpy(np.searchsorted(piece.ids, ids)).to(out.device)
            out.zero_().index_add_(0, place, gradient.rows.to(out.dtype), alpha=weight)

    def _unpack(self, piece: _Piece, buffer: Tensor) -> None:
        """The sum as this rank's gradient, where it stands."""
        if piece.ids is None:
            parameter = self._parts.dense[piece.name]
            parameter.grad = _like(parameter, buffer, piece).to(parameter.dtype)
        else:
            bank = self._parts.banks[piece.name]
            bank.gradient = RowGrad(torch.from_numpy(piece.ids), _rows(bank, buffer, piece).to(bank.dtype))

    # --- summing ----------------------------------------------------------------------------------------------

    def _sum(self, buffer: Tensor) -> int:
        """Sum over the ranks, in place; returns the bytes that this rank put in."""
        if self.compression == "bf16" and buffer.dtype == torch.float32:
            return self._sum_bf16(buffer)
        self.collective.all_reduce(buffer)
        return buffer.numel() * buffer.element_size()

    def _sum_bf16(self, buffer: Tensor) -> int:
        """Each rank sums a slice of all ranks' rounded numbers, and hands its rounded sum to all."""
        ranks = self.collective.world_size
        share = -(-len(buffer) // ranks)
        sent = self._half("sent", ranks * share, buffer.device)
        sent[: len(buffer)].copy_(buffer)
        sent[len(buffer) :].zero_()
        received = self._half("received", ranks * share, buffer.device).view(ranks, share)
        self.collective.all_to_all(sent.view(ranks, share), received)
        total = buffer[:share]  # its numbers are on their way already
        total.copy_(received[0])
        for part in received[1:]:
            total.add_(part)
        mine = received[0].copy_(total)
        self.collective.all_gather(mine, sent.view(ranks, share))
        buffer.copy_(sent[: len(buffer)])
        return sent.numel() * sent.element_size()

    def _half(self, name: str, size: int, device: torch.device) -> Tensor:
        memory = self._halves.get(name)
        if memory is None or len(memory) < size or memory.device != device:
            memory = self._halves[name] = torch.empty(int(_SPARE * size), dtype=torch.bfloat16, device=device)
        return memory[:size]


def _like(parameter: Tensor, buffer: Tensor, piece: _Piece) -> Tensor:
    """A dense parameter's place in a buffer, laid out as the parameter: fused optimisers go by memory order."""
    part = buffer[piece.start : piece.start + piece.numbers]
    if parameter.is_contiguous():
        return part.view(parameter.shape)
    return part.as_strided(parameter.shape, parameter.stride())


def _rows(bank: Bank, buffer: Tensor, piece: _Piece) -> Tensor:
    return buffer[piece.start : piece.start + piece.numbers].view(-1, *bank.shape)


def _scale(gradient: Tensor, weight: float, out: Tensor) -> None:
    if gradient.dtype == out.dtype:
        torch.mul(gradient, weight, out=out)
    else:
        out.copy_(gradient).mul_(weight)
