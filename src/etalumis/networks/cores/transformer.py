"""The transformer core: causal self-attention over the draws of a trace.

All linear layers run on the packed rows, so a minibatch of ragged traces wastes nothing there. Attention itself needs
rectangles: traces are sorted by length, and :func:`bands` cuts them where the length falls below half of the longest of
a rectangle. A single long trace therefore costs its own square and no one else's, whatever the mix, in training and
in lock-step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etalumis.networks.cores.base import Core, State, check_counts
from etalumis.networks.errors import NetworkConfigError

OBSERVATION = ("added", "prefix")
_BASE = 10_000.0  # of the rotations' wave lengths, as Su et al.
_LEAST_CAPACITY = 16  # draws that a new cache holds


class Transformer(Core):
    """Pre-norm transformer blocks (Vaswani et al. 2017; Xiong et al. 2020) with a causal mask over the trace.

    Positions enter as rotations of queries and keys (Su et al. 2021, "RoFormer"), so a trace may have any length.
    There is no dropout: draws are never seen twice with the same noise.

    The observation is one vector per trace. *Added* it is part of every token, as in a recurrent core; as a *prefix* it
    is a token before the first draw that every draw can attend to, which takes longer to learn. (Attention across to a
    single vector has one weight, 1: cross-attention would be an addition too.)

    Args:
        hidden: width of tokens and of the output.
        layers: blocks.
        heads: of the attention; ``hidden / heads`` has to be even.
        feedforward: width of a block's hidden layer, in units of ``hidden``.
        observation: ``added`` or ``prefix``.
    """

    def __init__(
        self,
        hidden: int = 512,
        layers: int = 2,
        heads: int = 4,
        feedforward: int = 4,
        observation: str = "added",
    ) -> None:
        super().__init__()
        check_counts("transformer", hidden=hidden, layers=layers, heads=heads, feedforward=feedforward)
        if hidden % (2 * heads):
            raise NetworkConfigError(
                f"core 'transformer': hidden={hidden} must be a multiple of twice heads={heads}, so that each head has "
                "an even number of features"
            )
        if observation not in OBSERVATION:
            raise NetworkConfigError(
                f"core 'transformer': observation={observation!r} must be {' or '.join(OBSERVATION)}"
            )
        self.width = self.size = hidden
        self.heads, self.prefix = heads, observation == "prefix"
        self.start = nn.Parameter(torch.zeros(hidden))  # belongs to the observation
        self.blocks = nn.ModuleList(_Block(hidden, heads, feedforward, layers) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, tokens: Tensor, static: Tensor, batch_sizes: Sequence[int]) -> Tensor:
        if not len(tokens):
            return tokens
        sizes = torch.tensor(batch_sizes)
        static = static[: batch_sizes[0]] + self.start
        first = len(static) if self.prefix else 0
        if self.prefix:
            sizes = torch.cat([sizes[:1], sizes])
            x = torch.cat([static.to(tokens.dtype), tokens])
        else:
            rank = torch.arange(len(tokens)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
            x = tokens + static.index_select(0, rank.to(tokens.device))
        rectangles = Rectangles(sizes, x.device)
        place = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(x.device)
        turn = self.rotation(place)
        for module in self.blocks:
            block = cast("_Block", module)
            x = block.finish(x, rectangles.attend(block.project(x, turn)))
        output: Tensor = self.norm(x[first:])
        return output

    def rotation(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angles at places in a trace, (n, 1, hidden / heads / 2) each."""
        pairs = self.size // self.heads // 2
        speed = torch.exp(torch.arange(pairs, device=place.device, dtype=torch.float64) * (-math.log(_BASE) / pairs))
        angle = (place[:, None].double() * speed)[:, None]
        return angle.cos().to(self.start.dtype), angle.sin().to(self.start.dtype)

    def state(self) -> State:
        return _TransformerState(self)


class _Block(nn.Module):
    """Attention and feed-forward of one layer; the attending itself is its caller's."""

    def __init__(self, hidden: int, heads: int, feedforward: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(hidden)
        self.queries_keys_values = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.norm_feedforward = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, feedforward * hidden)
        self.down = nn.Linear(feedforward * hidden, hidden)
        with torch.no_grad():
            for linear in (self.out, self.down):  # the sum over blocks starts as large as one (Radford et al. 2019)
                linear.weight.div_(math.sqrt(2.0 * layers))
                linear.bias.zero_()

    def project(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Rotated queries and keys, and values, (n, 3, heads, features), of rows (n, hidden)."""
        made = self.queries_keys_values(self.norm_attention(x)).view(len(x), 3 * self.heads, -1)
        cosine, sine = (part.to(made.dtype) for part in turn)
        turned, values = made[:, : 2 * self.heads], made[:, 2 * self.heads :]
        a, b = turned.chunk(2, 2)
        rotated = torch.cat([a * cosine - b * sine, a * sine + b * cosine], 2)
        return torch.cat([rotated, values], 1).view(len(x), 3, self.heads, -1)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output (n, hidden) from its input and what attention gave, (n, hidden)."""
        x = x + self.out(attended)
        added: Tensor = x + self.down(F.gelu(self.up(self.norm_feedforward(x))))
        return added


def bands(lengths: Tensor) -> list[tuple[int, int, int]]:
    """Sorted lengths, longest first, in ranges (first, end, longest) of lengths above half of the range's longest."""
    found, first = [], 0
    while first < len(lengths):
        longest = int(lengths[first])
        end = int(torch.searchsorted(-lengths, -(longest // 2)))
        found.append((first, end, longest))
        first = end
    return found


class Rectangles:
    """Packed traces, sorted by length, as rectangles (traces, steps) of which more than half is filled.

    Padding stands behind the end of a trace, where a causal mask hides it from every draw.

    Args:
        sizes: traces that have a step t, for each t, int64 (T,), on the CPU.
        device: of the rows.

    Attributes:
        shapes: (traces, steps) of each rectangle.
    """

    def __init__(self, sizes: Tensor, device: torch.device) -> None:
        starts = sizes.cumsum(0) - sizes
        lengths = torch.searchsorted(-sizes, -torch.arange(int(sizes[0])))  # of the trace of each rank
        self.shapes: list[tuple[int, int]] = []
        source, place, offset = [], torch.empty(int(sizes.sum()), dtype=torch.int64), 0
        for first, end, steps in bands(lengths):
            rank, step = torch.arange(first, end)[:, None], torch.arange(steps)
            inside = step < lengths[first:end, None]
            rows = torch.where(inside, starts[step] + rank, 0)
            source.append(rows.flatten())
            place[rows[inside]] = offset + torch.nonzero(inside.flatten())[:, 0]
            self.shapes.append((end - first, steps))
            offset += rows.numel()
        self._source = torch.cat(source).to(device)
        self._place = place.to(device)

    def attend(self, rows: Tensor) -> Tensor:
        """Causal attention within each trace, (n, hidden), from packed queries, keys and values (n, 3, heads, F)."""
        _, _, heads, features = rows.shape
        padded: Tensor = _Pad.apply(rows, self._source, self._place)  # type: ignore[no-untyped-call]
        done, start = [], 0
        for traces, steps in self.shapes:
            part = padded.narrow(0, start, traces * steps).view(traces, steps, 3, heads, features)
            start += traces * steps
            q, k, v = part.permute(2, 0, 3, 1, 4).unbind()
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            done.append(attended.transpose(1, 2).reshape(traces * steps, heads * features))
        joined = torch.cat(done) if len(done) > 1 else done[0]
        packed: Tensor = _Unpad.apply(joined, self._place)  # type: ignore[no-untyped-call]
        return packed


class _Pad(torch.autograd.Function):
    """Rows at ``source``; backward looks up instead of adding, as padding has no gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return rows.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return upstream.index_select(0, ctx.saved_tensors[0]), None, None


class _Unpad(torch.autograd.Function):
    """Rows at ``place``, which names no row twice; the others have the gradient 0."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.rows = len(rows)
        return rows.index_select(0, place)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        whole = upstream.new_zeros((ctx.rows, *upstream.shape[1:]))
        return whole.index_copy_(0, ctx.saved_tensors[0], upstream), None


class _TransformerState(State):
    """Keys and values of all draws so far, by slot; room for longer traces and more slots is made by doubling."""

    def __init__(self, core: Transformer) -> None:
        self._core = core
        like = core.start
        self._static = like.new_zeros((0, core.width))
        self._lengths = torch.zeros(0, dtype=torch.int64)  # on the CPU: they decide shapes
        # (layers, slots, draws, keys and values, heads, features)
        shape = (len(core.blocks), 0, _LEAST_CAPACITY, 2, core.heads, core.size // core.heads)
        self._cache = like.new_zeros(shape)

    @torch.no_grad()
    def begin(self, slots: Tensor, static: Tensor) -> None:
        if not len(slots):
            return
        missing = int(slots.max()) + 1 - len(self._lengths)
        if missing > 0:
            missing = max(missing, len(self._lengths))
            self._static = torch.cat([self._static, self._static.new_zeros((missing, self._core.width))])
            self._lengths = torch.cat([self._lengths, self._lengths.new_zeros(missing)])
            self._widen(1, missing)
        self._lengths[slots.cpu()] = 0
        self._static[slots] = static + self._core.start
        if self._core.prefix:
            self._advance(slots, self._static[slots])

    @torch.no_grad()
    def step(self, slots: Tensor, tokens: Tensor) -> Tensor:
        return self._advance(slots, tokens if self._core.prefix else tokens + self._static[slots])

    def _advance(self, slots: Tensor, x: Tensor) -> Tensor:
        if not len(slots):
            return x
        lengths, order = (self._lengths[slots.cpu()] + 1).sort(descending=True)
        ranges = bands(lengths)
        order, place = order.to(x.device), (lengths - 1).to(x.device)
        slots, x = slots[order], x[order]
        more = int(lengths[0]) - self._cache.shape[2]
        if more > 0:
            self._widen(2, max(more, self._cache.shape[2]))
        turn = self._core.rotation(place)
        for cache, module in zip(self._cache, self._core.blocks, strict=True):
            block = cast("_Block", module)
            made = block.project(x, turn)
            cache[slots, place] = made[:, 1:].to(cache.dtype)
            attended = [
                self._attend(made[a:b, 0], cache[:, :longest], slots[a:b], place[a:b]) for a, b, longest in ranges
            ]
            x = block.finish(x, torch.cat(attended))
        self._lengths[slots.cpu()] = lengths
        output: Tensor = self._core.norm(x)
        return torch.empty_like(output).index_copy_(0, order, output)

    @staticmethod
    def _attend(q: Tensor, cache: Tensor, slots: Tensor, place: Tensor) -> Tensor:
        """What queries (n, heads, F) of slots get from the draws up to their place, (n, hidden)."""
        keys, values = cache.index_select(0, slots).permute(2, 0, 3, 1, 4)
        seen = (torch.arange(keys.shape[2], device=place.device) <= place[:, None])[:, None, None]
        return F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=seen).flatten(1)

    def _widen(self, axis: int, more: int) -> None:
        shape = list(self._cache.shape)
        shape[axis] = more
        self._cache = torch.cat([self._cache, self._cache.new_zeros(shape)], axis)
