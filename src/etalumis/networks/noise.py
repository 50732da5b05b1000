"""Observation noise drawn where the network runs, from numbers that depend on the trace alone.

A counter-based generator, Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), written
in integer operations of torch: the same integers on every device, whatever else is in the minibatch. Normals by
Box and Muller's transform, equal to within rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_FACTORS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
# Counters worked on at a time: the dozen arrays in flight should stay in a core's caches, or a GPU's.
_BLOCK = {"cpu": 1 << 15, "cuda": 1 << 20}

Words = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Noisy:
    """Observations that are still to be drawn: mean + stddev · noise.

    Attributes:
        mean: float32 (N, *shape); NaN where a trace lacks the observation.
        stddev: float32, () or (N, *shape).
        trace: what each trace's noise depends on beside the key, int64 (N,).
        key: of the generator, 64 bits.
    """

    mean: Tensor
    stddev: Tensor
    trace: Tensor
    key: int

    on_cpu = ()

    def draw(self) -> Tensor:
        """The values, float32 (N, *shape), on the device of the mean."""
        noise = standard_normals(self.trace, math.prod(self.mean.shape[1:]), self.key).view(self.mean.shape)
        return noise.mul_(self.stddev).add_(self.mean)


def realised(observations: Mapping[str, Tensor | Noisy]) -> dict[str, Tensor]:
    """Observations by name, those that are still to be drawn newly drawn."""
    return {name: x.draw() if isinstance(x, Noisy) else x for name, x in observations.items()}


def standard_normals(trace: Tensor, count: int, key: int) -> Tensor:
    """``count`` standard normals for each trace.

    Args:
        trace: int64 (N,).
        count: numbers per trace; the first of them don't depend on how many there are.
        key: 64 bits.

    Returns:
        float32 (N, count) on the device of ``trace``.
    """
    blocks = -(-count // 4)
    out = torch.empty((len(trace), blocks, 4), dtype=torch.float32, device=trace.device)
    block = torch.arange(blocks, device=trace.device).unsqueeze(0)
    step = max(1, _BLOCK.get(trace.device.type, 1 << 20) // max(blocks, 1))
    for some, normals in zip(torch.split(trace, step), torch.split(out, step), strict=True):
        some = some.unsqueeze(1)
        words = philox((block, torch.zeros_like(some), some & _MASK, (some >> 32) & _MASK), key)
        _box_muller(words, normals)
    return out.flatten(1)[:, :count].contiguous()


def philox(counter: Words, key: int) -> Words:
    """Philox4x32-10: four words of 32 bits, in int64, for each counter of four such words; they may broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    for _ in range(_ROUNDS):
        # The product of two words may wrap around in int64; its 64 bits are right all the same.
        p0, p1 = c0 * _FACTORS[0], c2 * _FACTORS[1]
        c0, c1, c2, c3 = _high(p1) ^ c1 ^ k0, p1 & _MASK, _high(p0) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _high(product: Tensor) -> Tensor:
    return (product >> 32) & _MASK


def _box_muller(words: Words, out: Tensor) -> None:
    """Four normals for each four words, into (…, 4)."""
    for pair in (0, 2):
        # Uniform on (0, 1]: the logarithm is finite.
        radius = _unit(words[pair]).log_().mul_(-2.0).sqrt_()
        angle = _unit(words[pair + 1]).mul_(2.0 * math.pi)
        torch.mul(radius, torch.cos(angle), out=out[..., pair])
        torch.mul(radius, torch.sin(angle), out=out[..., pair + 1])


def _unit(word: Tensor) -> Tensor:
    return word.to(torch.float32).add_(0.5).mul_(2.0**-32)
