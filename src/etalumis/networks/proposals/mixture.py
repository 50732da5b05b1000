"""Mixtures of normals confined to the support, and their mass in the cells around counts."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from etalumis.distributions import Distribution
from etalumis.networks.intervals import interval, log_density, quantile
from etalumis.networks.proposals.base import SPAN, Columns, Proposal, choose

_START_WIDTH = 0.4  # of that half range
_LEAST_WIDTH = 1e-4  # of that half range


class Mixture(Proposal):
    """A mixture of normals confined to the support, in z."""

    def __init__(self, components: int) -> None:
        self.components = components
        self.outputs = 3 * components

    @classmethod
    def fits(cls, family: type[Distribution]) -> bool:
        return family.proposal == "mixture"

    def log_q(self, output: Tensor, columns: Columns) -> Tensor:
        log_q: Tensor = _MixtureLogDensity.apply(  # type: ignore[no-untyped-call]
            output, self.components, columns["z"], columns["low"], columns["high"], None
        )
        return log_q + columns["log_jacobian"]

    def draw(self, output: Tensor, columns: Columns, uniforms: Tensor) -> Tensor:
        low, high = columns["low"], columns["high"]
        logits, mean, width, _, _ = _components(output.double(), self.components, low, high)
        chosen = choose(logits, uniforms[:, :1])
        mean, width = mean.gather(1, chosen)[:, 0], width.gather(1, chosen)[:, 0]
        z = quantile(uniforms[:, 1], (low - mean) / width, (high - mean) / width)
        return torch.minimum(torch.maximum(mean + width * z, low), high)


class Count(Mixture):
    """The same mixture's mass in the unit cell around a count."""

    @classmethod
    def fits(cls, family: type[Distribution]) -> bool:
        return family.proposal == "count"

    def log_q(self, output: Tensor, columns: Columns) -> Tensor:
        log_q: Tensor = _MixtureLogDensity.apply(  # type: ignore[no-untyped-call]
            output, self.components, columns["z"], columns["low"], columns["high"], columns["half"]
        )
        return log_q


def _components(
    output: Tensor, components: int, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logits, means and widths (n, K) of the normals; the half range (n, 1); d width / d output (n, K).

    Means start evenly spread over the part of the support within |z| < 2, widths as 0.4 of its half range.
    """
    k = components
    left, right = low.clamp_min(-SPAN), high.clamp_max(SPAN)  # z = 0 is in the support
    centre, half = (0.5 * (left + right))[:, None], (0.5 * (right - left))[:, None]
    places = torch.arange(k, dtype=output.dtype, device=output.device)
    grid = (2.0 * places + 1.0) / k - 1.0
    logits, shift, spread = output[:, :k], output[:, k : 2 * k], output[:, 2 * k : 3 * k]
    spread = spread + math.log(math.expm1(_START_WIDTH))
    mean = torch.addcmul(centre, half, shift + grid)
    width = half * (F.softplus(spread) + _LEAST_WIDTH)
    return logits, mean, width, half, half * torch.sigmoid(spread)


class _MixtureLogDensity(torch.autograd.Function):
    """log Σ_k π_k N(z; μ_k, σ_k) / M_k, or of the mass of the cell [z − half, z + half], with its derivatives.

    Written out because the derivatives share everything with the value, and because automatic ones would pass
    through differences of huge numbers in the tails.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, components: int, z: Tensor, low: Tensor, high: Tensor, cell: Tensor | None
    ) -> Tensor:
        k = components
        logits, mean, width, half, slope = _components(output.double(), k, low, high)
        a, b = (low[:, None] - mean) / width, (high[:, None] - mean) / width
        whole = interval(a, b)
        # d log M / d mean and d log width, each times -width: infinite bounds add nothing
        mass_mean = whole.at_low - whole.at_high
        mass_width = _product(whole.at_low, a) - _product(whole.at_high, b)
        if cell is None:
            u = (z[:, None] - mean) / width
            log_p = log_density(u, a, b, whole) - torch.log(width)
            d_mean, d_width = u - mass_mean, u * u - 1.0 - mass_width
        else:
            # The cell's edges stay within the support.
            start, end = torch.maximum(z - cell, low)[:, None], torch.minimum(z + cell, high)[:, None]
            c, d = (start - mean) / width, (end - mean) / width
            part = interval(c, d)
            log_p = part.log_g - whole.log_g - 0.5 * (part.near - whole.near) * (part.near + whole.near)
            d_mean = part.at_low - part.at_high - mass_mean
            d_width = _product(part.at_low, c) - _product(part.at_high, d) - mass_width
        log_weights = torch.log_softmax(logits, 1)
        joint = log_weights + log_p
        log_q = torch.logsumexp(joint, 1)
        if ctx.needs_input_grad[0]:
            share = torch.exp(joint - log_q[:, None])
            gradient = output.new_zeros(output.shape)
            gradient[:, :k] = share - log_weights.exp_()
            share = share.div_(width)
            gradient[:, k : 2 * k] = d_mean.mul_(share).mul_(half)
            gradient[:, 2 * k : 3 * k] = d_width.mul_(share).mul_(slope)
            ctx.save_for_backward(gradient)
        return log_q

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None].to(gradient.dtype), None, None, None, None, None


def _product(density: Tensor, bound: Tensor) -> Tensor:
    """density · bound, 0 at infinite bounds, where the density vanishes faster."""
    return torch.where(bound.isinf(), 0.0, density * bound)
