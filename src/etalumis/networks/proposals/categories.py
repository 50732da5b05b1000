"""Probabilities of categories."""

from __future__ import annotations

import torch
from torch import Tensor

from etalumis.distributions import Distribution
from etalumis.networks.proposals.base import Columns, Proposal, choose


class Categories(Proposal):
    """Probabilities of categories, as logits added to the prior's."""

    def __init__(self, categories: int) -> None:
        self.outputs = categories

    @classmethod
    def fits(cls, family: type[Distribution]) -> bool:
        return family.proposal == "categorical"

    def log_q(self, output: Tensor, columns: Columns) -> Tensor:
        logits = output[:, : self.outputs].double() + columns["log_prior"]
        return torch.log_softmax(logits, 1).gather(1, columns["category"][:, None])[:, 0]

    def draw(self, output: Tensor, columns: Columns, uniforms: Tensor) -> Tensor:
        return choose(output[:, : self.outputs].double() + columns["log_prior"], uniforms[:, :1])[:, 0]
