"""Heads: from the core's output to the numbers that parameterise a proposal, with weights per address.

Weight traffic, not arithmetic, bounds a minibatch of many addresses, so what is kept per address matters:
``per_address`` keeps both layers (the paper), ``shared`` only the second, with a hidden layer for all addresses
that is conditioned on the address embedding, ``film`` a modulation of two layers that all addresses share. For the
paper's sizes (512 → 271 → 30) that is 589, 33 and 7 kB an address.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import Tensor, nn

from etalumis.networks.banks import Bank, uniform, zeros
from etalumis.networks.grouped import batched_linear, grouped_linear
from etalumis.networks.packing import DrawGroup

_ALIGNMENT = 8  # matrix kernels want rows that are a multiple of this
_QUIET = 0.1  # second layers start small: proposals start near the prior
_RANK = 4  # of what an address adds to a shared second layer


class Head(nn.Module, ABC):
    """The head of one shape of proposal, for all its addresses.

    Args:
        inputs: size of the core's output.
        outputs: numbers a proposal needs; the head may give more (padding).
        address_size: size of address embeddings.
        hidden: size of the hidden layer; None takes the mean of inputs and outputs, as the paper.
        seed: decides the first values of rows.
    """

    def __init__(self, inputs: int, outputs: int, address_size: int, hidden: int | None, seed: int) -> None:
        super().__init__()
        self.inputs, self.address_size, self.seed = inputs, address_size, seed
        self.outputs = _aligned(outputs)
        self.hidden = _aligned((inputs + outputs) // 2 if hidden is None else hidden)

    @abstractmethod
    def forward(self, states: Tensor, group: DrawGroup, addresses: Tensor) -> Tensor:
        """Outputs of a group's draws.

        Args:
            states: the core's output at those draws, (n, inputs).
            group: the draws.
            addresses: embeddings of the group's distinct addresses, (R, address_size).

        Returns:
            (n, outputs).
        """

    def grow(self, count: int) -> None:
        """Append rows to every bank."""
        for module in self.children():
            if isinstance(module, Bank):
                module.grow(count)


class PerAddressHead(Head):
    """Two layers per address: relu(x W₁ + b₁) W₂ + b₂."""

    def __init__(self, inputs: int, outputs: int, address_size: int, hidden: int | None, seed: int) -> None:
        super().__init__(inputs, outputs, address_size, hidden, seed)
        self.weight1 = Bank((inputs, self.hidden), uniform(1.0 / math.sqrt(inputs)), 4 * seed)
        self.bias1 = Bank((self.hidden,), uniform(1.0 / math.sqrt(inputs)), 4 * seed + 1)
        self.weight2 = Bank((self.hidden, self.outputs), uniform(_QUIET / math.sqrt(self.hidden)), 4 * seed + 2)
        self.bias2 = Bank((self.outputs,), zeros, 4 * seed + 3)

    def forward(self, states: Tensor, group: DrawGroup, addresses: Tensor) -> Tensor:
        hidden = torch.relu_(grouped_linear(states, self.weight1, self.bias1, group.groups))
        return grouped_linear(hidden, self.weight2, self.bias2, group.groups)


class SharedHead(Head):
    """One hidden layer for all addresses, conditioned on the address embedding e: relu(x W + e V + b) W₂ + b₂."""

    def __init__(self, inputs: int, outputs: int, address_size: int, hidden: int | None, seed: int) -> None:
        super().__init__(inputs, outputs, address_size, hidden, seed)
        self.layer = nn.Linear(inputs, self.hidden)
        self.condition = nn.Linear(address_size, self.hidden, bias=False)
        self.weight2 = Bank((self.hidden, self.outputs), uniform(_QUIET / math.sqrt(self.hidden)), 4 * seed + 2)
        self.bias2 = Bank((self.outputs,), zeros, 4 * seed + 3)

    def forward(self, states: Tensor, group: DrawGroup, addresses: Tensor) -> Tensor:
        shift = self.condition(addresses).index_select(0, group.member)
        hidden = torch.relu(self.layer(states) + shift)
        return grouped_linear(hidden, self.weight2, self.bias2, group.groups)


class FilmHead(Head):
    """Two layers for all addresses, modulated by each: h = relu((x W₁ + b₁) ∘ (1 + s) + t); h (W₂ + U V) + b₂.

    Feature-wise scales s and shifts t (Perez et al. 2018) and an update of W₂ of rank 4 are an address's own.
    s, t and V start at 0, so all addresses start as one shared head; what distinguishes them from the beginning is
    the core's output, which knows the address.
    """

    def __init__(self, inputs: int, outputs: int, address_size: int, hidden: int | None, seed: int) -> None:
        super().__init__(inputs, outputs, address_size, hidden, seed)
        self.layer1 = nn.Linear(inputs, self.hidden)
        self.layer2 = nn.Linear(self.hidden, self.outputs)
        with torch.no_grad():
            self.layer2.weight.mul_(_QUIET)
            self.layer2.bias.zero_()
        # s, t, U and V of an address in one row: few numbers, looked up and updated together.
        self.parts = (self.hidden, self.hidden, self.hidden * _RANK, _RANK * self.outputs)
        self.modulation = Bank((sum(self.parts),), partial(_film_row, self.parts), 4 * seed)

    def forward(self, states: Tensor, group: DrawGroup, addresses: Tensor) -> Tensor:
        rows = self.modulation(group.row_ids)
        scale, shift, down, up = rows.split(self.parts, 1)
        member = group.member
        x = self.layer1(states)
        hidden = torch.relu(x + x * scale.index_select(0, member) + shift.index_select(0, member))
        low = batched_linear(hidden, down.view(len(rows), self.hidden, _RANK), group.groups)
        shared: Tensor = self.layer2(hidden)
        return shared + batched_linear(low, up.view(len(rows), _RANK, self.outputs), group.groups)


def _film_row(parts: tuple[int, int, int, int], row: Tensor, generator: torch.Generator) -> None:
    """Initialiser of s, t, U and V: only U is not zero."""
    scale, shift, down, _ = parts
    row.zero_()[scale + shift : scale + shift + down].normal_(0.0, 1.0 / math.sqrt(scale), generator=generator)


HEADS: dict[str, type[Head]] = {"per_address": PerAddressHead, "shared": SharedHead, "film": FilmHead}


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
