"""A histogram over a bounded interval."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from etalumis.distributions import Distribution, Uniform
from etalumis.networks.proposals.base import Columns, Proposal, choose


class Histogram(Proposal):
    """A density that is constant in each of B equal bins of the interval, for uniform priors.

    For the flats that a simulator turns into something by steps, such as a channel by cumulative sums of branching
    ratios: a step function has no good mixture of few normals. The output is the bins' log probabilities relative to
    the prior's, so zero is the prior; how sharp it can be is the bins' width.

    Args:
        bins: B.
    """

    def __init__(self, bins: int) -> None:
        self.outputs = bins

    @classmethod
    def fits(cls, family: type[Distribution]) -> bool:
        return family is Uniform

    def log_q(self, output: Tensor, columns: Columns) -> Tensor:
        bins, low, width = self.outputs, columns["low"], columns["high"] - columns["low"]
        # A value on the upper end belongs to the last bin.
        place = ((columns["z"] - low) / width * bins).long().clamp(0, bins - 1)
        log_p = torch.log_softmax(output[:, :bins].double(), 1).gather(1, place[:, None])[:, 0]
        return log_p + math.log(bins) - torch.log(width) + columns["log_jacobian"]

    def draw(self, output: Tensor, columns: Columns, uniforms: Tensor) -> Tensor:
        bins, low, high = self.outputs, columns["low"], columns["high"]
        place = choose(output[:, :bins].double(), uniforms[:, :1])[:, 0]
        return torch.lerp(low, high, (place + uniforms[:, 1]) / bins)
