"""Adam over dense parameters and bank rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from etalumis.optim.rows import STEP, RowOptimizer, Table, Touched


class RowAdam(RowOptimizer):
    """Adam (Kingma and Ba 2015) with per-row moments and step counts, optionally with LARC.

    Args:
        network: whose parameters are optimised.
        lr: learning rate.
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, relative to lr.
        larc: ``"none"``, ``"update"`` or ``"gradient"``; see :class:`RowOptimizer`.
        trust: largest step of a layer relative to its norm, with LARC.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        larc: str = "none",
        trust: float = 0.02,
    ) -> None:
        if not (0.0 <= betas[0] < 1.0 and 0.0 <= betas[1] < 1.0) or not eps > 0.0:
            raise ValueError(f"betas must be in [0, 1) and eps > 0; got {tuple(betas)} and {eps}")
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "larc": larc,
            "trust": trust,
        }
        super().__init__(network, defaults, ("exp_avg", "exp_avg_sq"))

    def _update(self, touched: Touched, group: dict[str, Any]) -> None:
        if group["larc"] == "none":
            self._fused(touched.parameters, touched, float(group["lr"]), group["weight_decay"], group)
            return
        # A step of rate −1 from zero leaves Adam's update.
        updates = [torch.zeros_like(p) for p in touched.parameters]
        self._fused(updates, touched, -1.0, 0.0, group)
        self._apply(touched, updates, group)

    def _direction(self, table: Table, group: dict[str, Any]) -> Tensor:
        beta1, beta2 = group["betas"]
        mean, square, steps = table.state["exp_avg"], table.state["exp_avg_sq"], table.state[STEP].double()
        mean.lerp_(table.gradients, 1.0 - beta1)
        square.mul_(beta2).addcmul_(table.gradients, table.gradients, value=1.0 - beta2)
        # bias corrections in double precision, row by row
        first, root = (1.0 - beta1**steps), (1.0 - beta2**steps).sqrt()
        scale = square.sqrt().div_(root.to(square.dtype)).add_(group["eps"])
        return (mean / scale).div_(first.to(mean.dtype))

    @staticmethod
    def _fused(targets: list[Tensor], touched: Touched, lr: float, weight_decay: float, group: dict[str, Any]) -> None:
        state = touched.state
        torch._fused_adamw_(
            targets,
            touched.gradients,
            state["exp_avg"],
            state["exp_avg_sq"],
            [],
            state[STEP],
            lr=lr,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=weight_decay,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
