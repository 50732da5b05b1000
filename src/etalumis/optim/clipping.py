"""Gradient clipping that sees bank rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from etalumis.optim.parts import Parts
from etalumis.optim.rows import RowOptimizer


@torch.no_grad()
def clip_grad_norm(target: RowOptimizer | nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most ``max_norm``; those of bank rows count.

    Args:
        target: an optimiser of this package, or a network.
        max_norm: the largest norm allowed; infinity only measures.

    Returns:
        the norm before clipping, a scalar.

    Raises:
        FloatingPointError: where the norm is not finite.
    """
    gradients = (target.parts if isinstance(target, RowOptimizer) else Parts(target)).gradients()
    if not gradients:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if not bool(norm.isfinite()):
        raise FloatingPointError(f"the gradient's norm is {norm.item()}: lower the learning rate, or look at the data")
    if bool(norm > max_norm):
        torch._foreach_mul_(gradients, float(max_norm / norm))
    return norm
