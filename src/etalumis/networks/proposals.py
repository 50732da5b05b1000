"""Proposals: from a head's output to log q(x) and to draws from q. One class per kind, stateless but for sizes.

A head's output means something relative to the prior, in the coordinates of :mod:`etalumis.networks.columns`, so
that an output near zero is a broad proposal wherever the prior stands. Densities are computed in double precision
whatever the network's precision, and never clipped.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from etalumis.networks.intervals import interval, log_density, quantile

Columns = Mapping[str, Tensor]

_SPAN = 2.0  # components start inside |z| < 2: about where priors have their mass
_START_WIDTH = 0.4  # of that half range
_LEAST_WIDTH = 1e-4  # of that half range


class Proposal(ABC):
    """One kind of proposal.

    Attributes:
        outputs: how many numbers a head gives for a draw.
    """

    outputs: int

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


class Mixture(Proposal):
    """A mixture of normals confined to the support, in z."""

    def __init__(self, components: int) -> None:
        self.components = components
        self.outputs = 3 * components

    def log_q(self, output: Tensor, columns: Columns) -> Tensor:
        log_q: Tensor = _MixtureLogDensity.apply(  # type: ignore[no-untyped-call]
            output, self.components, columns["z"], columns["low"], columns["high"], None
        )
        return log_q + columns["log_jacobian"]

    def draw(self, output: Tensor, columns: Columns, uniforms: Tensor) -> Tensor:
        low, high = columns["low"], columns["high"]
        logits, mean, width, _, _ = _components(output.double(), self.components, low, high)
        chosen = _choose(logits, uniforms[:, :1])
        mean, width = mean.gather(1, chosen)[:, 0], width.gather(1, chosen)[:, 0]
        z = quantile(uniforms[:, 1], (low - mean) / width, (high - mean) / width)
        return torch.minimum(torch.maximum(mean + width * z, low), high)


class Count(Mixture):
    """The same mixture's mass in the unit cell around a count."""

    def log_q(self, output: Tensor, columns: Columns) -> Tensor:
        log_q: Tensor = _MixtureLogDensity.apply(  # type: ignore[no-untyped-call]
            output, self.components, columns["z"], columns["low"], columns["high"], columns["half"]
        )
        return log_q


class Categories(Proposal):
    """Probabilities of categories, as logits added to the prior's."""

    def __init__(self, categories: int) -> None:
        self.outputs = categories

    def log_q(self, output: Tensor, columns: Columns) -> Tensor:
        logits = output[:, : self.outputs].double() + columns["log_prior"]
        return torch.log_softmax(logits, 1).gather(1, columns["category"][:, None])[:, 0]

    def draw(self, output: Tensor, columns: Columns, uniforms: Tensor) -> Tensor:
        return _choose(output[:, : self.outputs].double() + columns["log_prior"], uniforms[:, :1])[:, 0]


def proposal(kind: str, categories: int, components: int) -> Proposal:
    """The proposal of a kind, as distribution families name it (``Distribution.proposal``)."""
    answer: Proposal = _KINDS[kind](categories if kind == "categorical" else components)
    return answer


_KINDS: dict[str, Any] = {"mixture": Mixture, "count": Count, "categorical": Categories}


def _choose(logits: Tensor, u: Tensor) -> Tensor:
    """Category by inversion, (n, 1); one of probability zero is never chosen."""
    cumulative = torch.softmax(logits, 1).cumsum(1)
    below = (cumulative <= u * cumulative[:, -1:]).sum(1, keepdim=True)
    # Rounding may put u · total at the total: then the last category that can be drawn.
    places = torch.arange(logits.shape[1], device=logits.device)
    last = torch.where(logits > -math.inf, places, -1).amax(1, keepdim=True)
    return torch.minimum(below, last)


def _components(
    output: Tensor, components: int, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logits, means and widths (n, K) of the normals; the half range (n, 1); d width / d output (n, K).

    Means start evenly spread over the part of the support within |z| < 2, widths as 0.4 of its half range.
    """
    k = components
    left, right = low.clamp_min(-_SPAN), high.clamp_max(_SPAN)  # z = 0 is in the support
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
