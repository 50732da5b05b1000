"""Joining the gradients of all ranks to one step (SC'19, section 4.4.4).

A network has a layer for each of thousands of addresses, and the minibatch of a rank meets a few of them. So ranks
first agree on a map of what is present anywhere, by the maximum of flags, and then sum one buffer with only that: the
dense tensors that have a gradient, and those rows of banks. With mean gradients g_r over n_r traces, every rank ends
with Σ g_r n_r / Σ n_r, as if the joined minibatch had been one process's.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from etalumis.networks.banks import Bank, RowGrad
from etalumis.optim.parts import Parts
from etalumis.strategies.collective import Collective, CollectiveError

Compression = Literal["none", "bf16"]
_ALIGNMENT = 64  # numbers; vector instructions want a few
_SPARE = 1.25  # growing unions should not take fresh memory at every step


class Exchanged(NamedTuple):
    """What an exchange was.

    Attributes:
        traces: behind the joined gradient, of all ranks.
        bytes: that this rank put into the agreement and the sum; an algorithm may send them more than once.
        rows: of banks, in the union.
        tensors: dense ones, in the union.
        waiting: seconds until all ranks had come: the imbalance between them.
        agreeing: seconds for the union of what is present.
        transfer: seconds for packing, summing and unpacking.
    """

    traces: int
    bytes: int
    rows: int
    tensors: int
    waiting: float
    agreeing: float
    transfer: float


class _Piece(NamedTuple):
    """A dense parameter of the union, or rows (ids) of a bank, and the numbers of the buffer that are its gradient."""

    name: str
    ids: np.ndarray | None
    start: int
    numbers: int


_Kind = tuple[torch.dtype, torch.device]


class RowExchange:
    """The exchange of a network's gradients between the ranks of a job.

    Args:
        collective: the ranks.
        parts: the network's dense parameters and banks; what it gains by growing joins by itself.
        compression: ``bf16`` sends rounded numbers, half of the bytes, and sums them in float32; the sum is rounded,
            too, and has the same bits on all ranks. float64 gradients are never rounded.
    """

    def __init__(self, collective: Collective, parts: Parts, compression: Compression = "none") -> None:
        if compression not in ("none", "bf16"):
            raise ValueError(f"compression={compression!r} must be none or bf16")
        self.collective, self.compression = collective, compression
        self.parts = Parts(parts.network)  # not the optimiser's, who looks out for news there
        self._memory: dict[_Kind, Tensor] = {}
        self._halves: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, traces: int) -> Exchanged:
        """Replace this rank's mean gradients by the mean over the traces of all ranks; collective.

        Dense gradients and the rows of banks become views of memory that the next exchange uses again, unless they
        still are gradients then. Rows are rising and the same on all ranks. What has no gradient here counts as 0, and
        nothing else is special: a NaN of one rank is every rank's.

        Args:
            traces: behind the gradients of this rank; with 0 they are dropped.

        Raises:
            CollectiveError: the networks of ranks differ, or ranks don't come.
        """
        if traces < 0:
            raise ValueError(f"traces={traces} must be at least 0")
        self.parts.refresh()
        for device in {parameter.device for parameter in self.parts.dense.values() if parameter.is_cuda}:
            torch.cuda.synchronize(device)  # a backward pass at work is not waiting for others
        start = time.perf_counter()
        if not traces:
            self._drop()
        total = self._meet(traces)
        met = time.perf_counter()
        present = self.collective.all_reduce(self._present(), "max")
        union, sizes = self._layout(present.numpy())
        agreed = time.perf_counter()
        sent = present.numel()
        for kind, buffer in self._buffers(sizes).items():
            for piece in union[kind]:
                self._pack(piece, traces / max(total, 1), buffer)
            sent += self._sum(buffer)
            for piece in union[kind]:
                self._unpack(piece, buffer)
        pieces = [piece for some in union.values() for piece in some]
        rows = [len(piece.ids) for piece in pieces if piece.ids is not None]
        end = time.perf_counter()
        return Exchanged(total, sent, sum(rows), len(pieces) - len(rows), met - start, agreed - met, end - agreed)

    def _drop(self) -> None:
        """Gradients of no traces: nobody else would have them."""
        for parameter in self.parts.dense.values():
            parameter.grad = None
        for bank in self.parts.banks.values():
            bank.clear_gradient()

    # --- agreeing ---------------------------------------------------------------------------------------------

    def _meet(self, traces: int) -> int:
        """All ranks' traces together, after a look at whether their networks are alike."""
        words = json.dumps(self._network(), sort_keys=True).encode()
        digest = int.from_bytes(hashlib.blake2b(words, digest_size=7).digest(), "big")
        everyone = self.collective.all_gather(torch.tensor([digest, traces]))
        if bool((everyone[:, 0] != digest).any()):
            raise CollectiveError(_difference([json.loads(one) for one in self.collective.all_gather_bytes(words)]))
        return int(everyone[:, 1].sum())

    def _network(self) -> dict[str, str]:
        """What must be alike on all ranks."""
        dense = {name: f"{tuple(p.shape)} {p.dtype} {p.stride()}" for name, p in self.parts.dense.items()}
        banks = {name: f"{len(bank)} rows {bank.shape} {bank.dtype}" for name, bank in self.parts.banks.items()}
        return dense | banks

    def _present(self) -> Tensor:
        """A flag for each dense parameter, then for each row of each bank: whether it has a gradient here."""
        dense = [p.grad is not None for _, p in sorted(self.parts.dense.items())]
        banks = [bank for _, bank in sorted(self.parts.banks.items())]
        flags = np.zeros(len(dense) + sum(len(bank) for bank in banks), np.uint8)
        flags[: len(dense)] = dense
        start = len(dense)
        for bank in banks:
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

        for flag, (name, parameter) in zip(present, sorted(self.parts.dense.items()), strict=False):
            if flag:
                place(name, None, parameter.numel(), parameter)
        start = len(self.parts.dense)
        for name, bank in sorted(self.parts.banks.items()):
            ids = np.flatnonzero(present[start : start + len(bank)])
            if len(ids):
                place(name, ids, len(ids) * math.prod(bank.shape), bank.anchor[0])
            start += len(bank)
        return union, sizes

    # --- packing ----------------------------------------------------------------------------------------------

    def _buffers(self, sizes: dict[_Kind, int]) -> dict[_Kind, Tensor]:
        """Memory for so many numbers, kept from step to step, but where gradients still stand in it."""
        held = {gradient.untyped_storage().data_ptr() for gradient in self.parts.gradients()}
        for kind, size in sizes.items():
            memory = self._memory.get(kind)
            if memory is None or len(memory) < size or memory.untyped_storage().data_ptr() in held:
                self._memory[kind] = torch.empty(int(_SPARE * size), dtype=kind[0], device=kind[1])
        return {kind: self._memory[kind][:size] for kind, size in sizes.items()}

    def _pack(self, piece: _Piece, weight: float, buffer: Tensor) -> None:
        """This rank's part of the sum."""
        if piece.ids is None:
            parameter = self.parts.dense[piece.name]
            out = _like(parameter, buffer, piece)
            if parameter.grad is None:
                out.zero_()
            else:
                _scale(parameter.grad, weight, out)
            return
        bank = self.parts.banks[piece.name]
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
            parameter = self.parts.dense[piece.name]
            parameter.grad = _like(parameter, buffer, piece).to(parameter.dtype)
        else:
            bank = self.parts.banks[piece.name]
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


def _difference(networks: list[dict[str, str]]) -> str:
    """Which ranks differ from rank 0, and in what first."""
    first = networks[0]
    ranks = [rank for rank, network in enumerate(networks) if network != first]
    other = networks[ranks[0]]
    name = next(name for name in sorted(first.keys() | other.keys()) if first.get(name) != other.get(name))
    return (
        f"the networks of ranks differ: {name} is {first.get(name, 'missing')} on rank 0, "
        f"{other.get(name, 'missing')} on rank {ranks[0]}; different from rank 0 are ranks {ranks}. Build "
        "them from the same settings, and grow them by the same addresses, in one order, on all ranks before the step"
    )
