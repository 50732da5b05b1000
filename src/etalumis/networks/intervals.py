"""The normal distribution on an interval, safe in the tails: mass, density, their derivatives, quantiles.

Everything is in units of the normal's standard deviation, vectorised, in double precision. With a ≤ b (either may
be infinite) let n be the distance of [a, b] from zero (0 where zero lies inside). The mass of the interval is

    M = φ(n) · G,   G = ∫ₐᵇ exp((n² − z²)/2) dz,

and G neither under- nor overflows however far away the interval is: beyond zero it is a difference of scaled
complementary error functions, G = √(π/2) [erfcx(n/√2) − exp(−w(n + w/2)) erfcx((n + w)/√2)] with w = b − a.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_SQRT_HALF = math.sqrt(0.5)
_SQRT_HALF_PI = math.sqrt(0.5 * math.pi)
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_FAR = 8.0  # from here on quantiles are found in the tail's own scale
_NEWTON_STEPS = 6


class Interval(NamedTuple):
    """Mass of [a, b] and what its derivatives need.

    Attributes:
        near: n.
        log_g: log G; the log mass is −n²/2 − log √(2π) + log G.
        at_low, at_high: φ(a)/M and φ(b)/M: d log M/da = −at_low, d log M/db = at_high.
    """

    near: Tensor
    log_g: Tensor
    at_low: Tensor
    at_high: Tensor

    @property
    def log_mass(self) -> Tensor:
        return self.log_g - 0.5 * self.near * self.near - _LOG_SQRT_2PI


def interval(a: Tensor, b: Tensor) -> Interval:
    """The mass of [a, b] under the standard normal; float64, a < b elementwise."""
    mirrored = b < 0.0
    low = torch.where(mirrored, -b, a)
    high = torch.where(mirrored, -a, b)
    tail = low > 0.0
    near = low.clamp_min(0.0)
    # Zero inside: two error functions of opposite sign don't cancel. The scale of both ends is φ(0).
    g = torch.erf(high * _SQRT_HALF).sub_(torch.erf(low * _SQRT_HALF)).mul_(_SQRT_HALF_PI)
    end_low, end_high = torch.exp(-0.5 * low * low), torch.exp(-0.5 * high * high)
    if bool(tail.any()):
        n, h = low[tail], high[tail]
        decay = torch.exp(-(h - n) * (0.5 * (h + n)))
        # erfcx(∞) = 0, but decay · erfcx must not see an infinite argument's NaN
        g[tail] = _SQRT_HALF_PI * (torch.special.erfcx(n * _SQRT_HALF) - decay * torch.special.erfcx(h * _SQRT_HALF))
        end_low[tail], end_high[tail] = 1.0, decay
    at_low, at_high = end_low / g, end_high / g
    return Interval(near, torch.log(g), torch.where(mirrored, at_high, at_low), torch.where(mirrored, at_low, at_high))


def log_density(z: Tensor, a: Tensor, b: Tensor, inside: Interval) -> Tensor:
    """Log density at z of the standard normal confined to [a, b]; a ≤ z ≤ b."""
    n = inside.near
    # (n² − z²)/2 as a product: no cancellation of two large squares
    distance = torch.where(n > 0.0, torch.where(a > 0.0, z - a, b - z), z.abs())
    return -distance * (n + 0.5 * distance) - inside.log_g


def quantile(u: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The z in [a, b] below which the confined standard normal has probability u; 0 < u < 1."""
    mirrored = b < 0.0
    low = torch.where(mirrored, -b, a)
    high = torch.where(mirrored, -a, b)
    u = torch.where(mirrored, 1.0 - u, u)
    # Upper tail probabilities where the interval is positive, and wherever they are the smaller ones.
    mass = _upper(low) - _upper(high)
    below, above = _upper(-low) + u * mass, _upper(high) + (1.0 - u) * mass
    z = torch.where(below < above, torch.special.ndtri(below), -torch.special.ndtri(above))
    far = low > _FAR
    if bool(far.any()):
        z[far] = _far_quantile(u[far], low[far], high[far])
    z = torch.minimum(torch.maximum(z, low), high)
    return torch.where(mirrored, -z, z)


def _upper(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(x * _SQRT_HALF)


def _far_quantile(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Newton's method for the distance d beyond ``low``, from the exponential that the tail resembles."""
    width = high - low
    whole = _tail_integral(low, width)
    d = -torch.log1p(u * torch.expm1(-low * width)) / low
    for _ in range(_NEWTON_STEPS):
        excess = _tail_integral(low, d) - u * whole
        d = torch.minimum((d - excess * torch.exp(d * (low + 0.5 * d))).clamp_min(0.0), width)
    return low + d


def _tail_integral(n: Tensor, d: Tensor) -> Tensor:
    """∫₀ᵈ exp(−n t − t²/2) dt."""
    far = _SQRT_HALF_PI * torch.special.erfcx((n + d) * _SQRT_HALF)
    integral: Tensor = _SQRT_HALF_PI * torch.special.erfcx(n * _SQRT_HALF) - torch.exp(-d * (n + 0.5 * d)) * far
    return integral
