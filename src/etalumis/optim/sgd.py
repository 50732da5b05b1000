"""Stochastic gradient descent over dense parameters and bank rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from etalumis.optim.rows import RowOptimizer, Table, Touched


class RowSGD(RowOptimizer):
    """SGD with momentum kept per row, optionally with LARC.

    Args:
        network: whose parameters are optimised.
        lr: learning rate.
        momentum: share of the last update that goes on.
        weight_decay: decoupled, relative to lr.
        larc: ``"none"``, ``"update"`` or ``"gradient"``; see :class:`RowOptimizer`.
        trust: largest step of a layer relative to its norm, with LARC.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        larc: str = "none",
        trust: float = 0.02,
    ) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1); got {momentum}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "larc": larc, "trust": trust}
        super().__init__(network, defaults, ("momentum_buffer",))

    def _update(self, touched: Touched, group: dict[str, Any]) -> None:
        buffers = touched.state["momentum_buffer"]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, touched.gradients)
        if group["larc"] != "none":
            self._apply(touched, [buffer.clone() for buffer in buffers], group)
            return
        if group["weight_decay"]:
            torch._foreach_mul_(touched.parameters, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(touched.parameters, buffers, alpha=-float(group["lr"]))

    def _direction(self, table: Table, group: dict[str, Any]) -> Tensor:
        buffer = table.state["momentum_buffer"]
        buffer.mul_(group["momentum"]).add_(table.gradients)
        return buffer.clone()
