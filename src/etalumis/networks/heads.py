"""Heads: from the core's output to the numbers that parameterise a proposal, with weights per address.

Weight traffic, not arithmetic, bounds a minibatch of many addresses, so what is kept per address matters:
``per_address`` keeps both layers (the paper), ``shared`` only the second, with a hidden layer for all addresses
that is conditioned on the address embedding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from etalumis.networks.banks import Bank, uniform, zeros
from etalumis.networks.grouped import grouped_linear
from etalumis.networks.packing import DrawGroup

_ALIGNMENT = 8  # matrix kernels want rows that are a multiple of this
_QUIET = 0.1  # second layers start small: proposals start near the prior


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


HEADS: dict[str, type[Head]] = {"per_address": PerAddressHead, "shared": SharedHead}


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
