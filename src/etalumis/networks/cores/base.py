"""What a core is: the training path over packed steps, the stepping path with kept state.

A core reads *tokens*, one per draw, already projected to its ``width``, and a *static* vector per trace: the
observation's share of that projection, computed once per trace instead of once per draw. Both paths give the same
numbers.

Shapes: N traces, D draws, W = width, H = size; packed as :class:`etalumis.networks.packing.TrainingBatch` says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from etalumis.networks.errors import NetworkConfigError

# The derivatives of activations from their values: one fused pass each.
d_sigmoid = torch.ops.aten.sigmoid_backward
d_tanh = torch.ops.aten.tanh_backward


def with_room(slots: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
    """What is kept of each slot, (slots, …), with zeros for slots that are met for the first time."""
    missing = int(slots.max()) + 1 - len(kept[0]) if len(slots) else 0
    return kept if missing <= 0 else tuple(torch.cat([x, x.new_zeros((missing, *x.shape[1:]))]) for x in kept)


class State(ABC):
    """Executions in progress, by slot."""

    @abstractmethod
    def begin(self, slots: Tensor, static: Tensor) -> None:
        """New executions start in these slots, (n,) int64, with static vectors (n or 1, W)."""

    @abstractmethod
    def step(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """Advance the executions in distinct slots (n,) by one token each, (n, W); the core's output (n, H)."""


class Core(nn.Module, ABC):
    """Attributes: ``width`` of tokens and static vectors, ``size`` of the output."""

    width: int
    size: int

    @abstractmethod
    def forward(self, tokens: Tensor, static: Tensor, batch_sizes: Sequence[int]) -> Tensor:
        """The training path: outputs (D, H) for tokens (D, W) and static vectors (N, W) of packed traces."""

    @abstractmethod
    def state(self) -> State:
        """No execution in progress."""


def check_counts(kind: str, **settings: object) -> None:
    """Settings of a core that have to be whole numbers of at least 1.

    Raises:
        NetworkConfigError: naming the core, the setting and what was given.
    """
    for name, value in settings.items():
        if type(value) is not int or value < 1:
            raise NetworkConfigError(f"core {kind!r}: {name}={value!r} must be a whole number of at least 1")
