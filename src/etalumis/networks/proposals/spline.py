"""A monotone rational-quadratic spline.

Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows", NeurIPS 2019; the interpolation is by Gregory and
Delbourgo (1982). The prior's z becomes u in [0, 1] by the distribution function of a *base*, and a monotone map s of
[0, 1] onto itself makes u uniform under the proposal: q(z) = base(z) s'(u). Where s is the identity, q is the base.

The base is uniform where the support is an interval that is hardly wider than the prior, the standard normal confined
to the support elsewhere. So it is the prior itself for uniform and normal families, and near it for the others. It does
not depend on the network: only s' does, whose derivatives are those of a rational function.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from etalumis.distributions import Distribution
from etalumis.networks.intervals import interval, log_density, quantile
from etalumis.networks.proposals.base import Columns, Proposal

_LEAST = 1e-4  # width and height of a segment, and slope at a knot: q stays positive everywhere
_UNIT_SLOPE = math.log(math.expm1(1.0 - _LEAST))
_WIDE = 3.7  # a flat prior is √12 of its standard deviations wide
_BELOW_ONE = 1.0 - 2.0**-53


class Spline(Proposal):
    """s has K segments; the output is K log widths, K log heights and K + 1 slopes, zero for the identity.

    Its resolution is a share of the prior's mass: it suits shapes on an interval, such as edges and gaps, more than
    peaks far out in a tail.

    Args:
        segments: K.
    """

    def __init__(self, segments: int) -> None:
        self.segments = segments
        self.outputs = 3 * segments + 1

    @classmethod
    def fits(cls, family: type[Distribution]) -> bool:
        return family.proposal == "mixture"

    def log_q(self, output: Tensor, columns: Columns) -> Tensor:
        z, low, high = columns["z"], columns["low"], columns["high"]
        inside = interval(low, high)
        wide = _wide(low, high)
        u = torch.where(wide, torch.exp(interval(low, z).log_mass - inside.log_mass), (z - low) / (high - low))
        log_base = torch.where(wide, log_density(z, low, high, inside), -torch.log(high - low))
        left, width, _, height, slope_left, slope_right = self._segment(output, u, along_u=True)
        share = ((u - left) / width).clamp(0.0, 1.0)
        rest, mean = 1.0 - share, height / width
        between = slope_right * share * share + 2.0 * mean * share * rest + slope_left * rest * rest
        # Written as a sum of positive terms: nothing cancels.
        below = mean * (share * share + rest * rest) + (slope_left + slope_right) * share * rest
        log_slope = 2.0 * torch.log(mean) + torch.log(between) - 2.0 * torch.log(below)
        return log_base + log_slope + columns["log_jacobian"]

    def draw(self, output: Tensor, columns: Columns, uniforms: Tensor) -> Tensor:
        low, high = columns["low"], columns["high"]
        left, width, bottom, height, slope_left, slope_right = self._segment(output, uniforms[:, 0], along_u=False)
        rise, mean = uniforms[:, 0] - bottom, height / width
        bend = rise * (slope_left + slope_right - 2.0 * mean)
        a, b, c = height * (mean - slope_left) + bend, height * slope_left - bend, -mean * rise
        root = torch.sqrt((b * b - 4.0 * a * c).clamp_min(0.0))
        share = (2.0 * c / (-b - root)).clamp(0.0, 1.0)
        u = (left + width * share).clamp(torch.finfo(torch.float64).tiny, _BELOW_ONE)
        wide = _wide(low, high)
        flat = low + (high - low) * u
        z = torch.where(wide, quantile(u, low, high), flat)
        return torch.minimum(torch.maximum(z, low), high)

    def _segment(self, output: Tensor, at: Tensor, along_u: bool) -> tuple[Tensor, ...]:
        """Of the segments in which ``at`` (n,) stands: left end, width, bottom, height, slopes at both ends, (n,) each.

        Args:
            at: numbers in [0, 1]: u, or s(u).
            along_u: which of them.
        """
        k = self.segments
        numbers = output[:, : self.outputs].double()
        widths, heights = (
            _LEAST + (1.0 - k * _LEAST) * torch.softmax(part, 1) for part in (numbers[:, :k], numbers[:, k : 2 * k])
        )
        slopes = _LEAST + F.softplus(numbers[:, 2 * k :] + _UNIT_SLOPE)
        right, top = widths.cumsum(1), heights.cumsum(1)
        ends = right if along_u else top
        place = (ends[:, :-1] <= at[:, None]).sum(1, keepdim=True)
        width, height = widths.gather(1, place), heights.gather(1, place)
        left, bottom = right.gather(1, place) - width, top.gather(1, place) - height
        found = (left, width, bottom, height, slopes.gather(1, place), slopes.gather(1, place + 1))
        return tuple(part[:, 0] for part in found)


def _wide(low: Tensor, high: Tensor) -> Tensor:
    """Whether the base is a confined normal."""
    return high - low > _WIDE
