"""What a proposal is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from etalumis.distributions import Distribution

Columns = Mapping[str, Tensor]

SPAN = 2.0  # |z| < 2 is about where priors have their mass


class Proposal(ABC):
    """One kind of proposal.

    Attributes:
        outputs: how many numbers a head gives for a draw.
    """

    outputs: int

    @classmethod
    @abstractmethod
    def fits(cls, family: type[Distribution]) -> bool:
        """Whether it can answer draws of a family."""

    @abstractmethod
    def log_q(self, output: Tensor, columns: Columns) -> Tensor:
        """Log density of values under the proposal, with respect to x: float64 (n,), differentiable.

        Args:
            output: (n, ≥ outputs) of the head; further numbers are padding.
            columns: of the values, tensors (n, …).
        """

    @abstractmethod
    def draw(self, output: Tensor, columns: Columns, uniforms: Tensor) -> Tensor:
        """Draws, (n,) float64: z, or categories.

        Args:
            output: (n, ≥ outputs).
            columns: of the draws' distributions; what belongs to a value is not needed.
            uniforms: (n, 2) in (0, 1).
        """


def choose(logits: Tensor, u: Tensor) -> Tensor:
    """Category by inversion, (n, 1); one of probability zero is never chosen."""
    cumulative = torch.softmax(logits, 1).cumsum(1)
    below = (cumulative <= u * cumulative[:, -1:]).sum(1, keepdim=True)
    # Rounding may put u · total at the total: then the last category that can be drawn.
    places = torch.arange(logits.shape[1], device=logits.device)
    last = torch.where(logits > -math.inf, places, -1).amax(1, keepdim=True)
    return torch.minimum(below, last)
