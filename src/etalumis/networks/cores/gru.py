"""The GRU core, written out over packed steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from etalumis.networks.cores.base import Core, State, check_counts, d_sigmoid, d_tanh, with_room


class GRU(Core):
    """Gated recurrent units (Cho et al. 2014, as in cuDNN and ``torch.nn.GRU``), one or more layers.

    With r and z the reset and update gates, h' = (1 − z) ∘ tanh(x_n + r ∘ (h W_n + b_n)) + z ∘ h. Tokens are
    projected to [r, z, n] of the first layer. Three quarters of an LSTM's weights for the same ``hidden``.

    Args:
        hidden: H.
        layers: how many.
    """

    def __init__(self, hidden: int = 512, layers: int = 1) -> None:
        super().__init__()
        check_counts("gru", hidden=hidden, layers=layers)
        self.width, self.size, self.layers = 3 * hidden, hidden, layers
        bound = 1.0 / math.sqrt(hidden)
        self.recurrent = nn.ParameterList(
            nn.Parameter(torch.empty(hidden, 3 * hidden).uniform_(-bound, bound)) for _ in range(layers)
        )
        self.reset_bias = nn.ParameterList(nn.Parameter(torch.zeros(hidden)) for _ in range(layers))  # b_n
        self.between = nn.ModuleList(nn.Linear(hidden, 3 * hidden) for _ in range(layers - 1))
        self.bias = nn.Parameter(torch.zeros(3 * hidden))

    def forward(self, tokens: Tensor, static: Tensor, batch_sizes: Sequence[int]) -> Tensor:
        first: Tensor | None = static + self.bias
        for layer, (weight, bias) in enumerate(zip(self.recurrent, self.reset_bias, strict=True)):
            if layer:
                tokens, first = self.below(layer, tokens), None
            tokens = _GRULayer.apply(tokens, first, weight, bias, tuple(batch_sizes))  # type: ignore[no-untyped-call]
        return tokens

    def below(self, layer: int, output: Tensor) -> Tensor:
        """Input of a layer, (n, 3H), from the output of the layer below."""
        gates: Tensor = self.between[layer - 1](output)
        return gates

    def state(self) -> State:
        return _GRUState(self)


class _GRUState(State):
    def __init__(self, core: GRU) -> None:
        self._core = core
        self._static = core.bias.new_zeros((0, core.width))
        self._h = core.bias.new_zeros((0, core.layers, core.size))

    @torch.no_grad()
    def begin(self, slots: Tensor, static: Tensor) -> None:
        self._static, self._h = with_room(slots, self._static, self._h)
        self._static[slots] = static + self._core.bias
        self._h[slots] = 0.0

    @torch.no_grad()
    def step(self, slots: Tensor, tokens: Tensor) -> Tensor:
        core, h = self._core, self._h[slots]
        gates = tokens + self._static[slots]
        for layer, (weight, bias) in enumerate(zip(core.recurrent, core.reset_bias, strict=True)):
            if layer:
                gates = core.below(layer, h[:, layer - 1])
            _cell(gates, h[:, layer] @ weight, bias, h[:, layer], h[:, layer])
        self._h[slots] = h
        return h[:, -1]


def _cell(gates: Tensor, recurrent: Tensor | None, bias: Tensor, h: Tensor | None, new_h: Tensor) -> Tensor:
    """One step from the input's share (n, 3H), the state's share h W (n, 3H) and the old h (n, H) into ``new_h``.

    ``gates`` become activations r, z, n in place. ``recurrent`` and ``h`` are None at the first step, where h = 0.

    Returns:
        h W_n + b_n, (n, H).
    """
    size = new_h.shape[1]
    r, z, n = gates.chunk(3, 1)
    if recurrent is None or h is None:
        inner = bias.expand(len(gates), size)
        gates[:, : 2 * size].sigmoid_()
        n.addcmul_(r, inner).tanh_()
        torch.addcmul(n, z, n, value=-1.0, out=new_h)
        return inner
    inner = recurrent[:, 2 * size :].add_(bias)
    gates[:, : 2 * size].add_(recurrent[:, : 2 * size]).sigmoid_()
    n.addcmul_(r, inner).tanh_()
    torch.lerp(n, h, z, out=new_h)
    return inner


class _GRULayer(torch.autograd.Function):
    """A whole layer over packed steps, for the reasons of the LSTM's: each step is one matrix product each way, the
    weight's gradient one product over all steps. Always in the precision of the recurrent weight."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        static: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        batch_sizes: tuple[int, ...],
    ) -> Tensor:
        size = weight.shape[0]
        with torch.autocast(weight.device.type, enabled=False):
            gates = tokens.to(weight.dtype, copy=True)
            hidden = gates.new_empty((len(gates), size))
            inner = torch.empty_like(hidden)  # h W_n + b_n
            last = start = 0
            for count in batch_sizes:
                here = slice(start, start + count)
                step = gates[here]
                if static is not None:
                    step += static[:count]
                h = hidden[last : last + count] if start else None
                inner[here] = _cell(step, None if h is None else h @ weight, bias, h, hidden[here])
                last, start = start, start + count
        ctx.save_for_backward(gates, hidden, inner, weight)
        ctx.batch_sizes, ctx.tokens_dtype = batch_sizes, tokens.dtype
        ctx.static = None if static is None else (static.shape, static.dtype)
        return hidden

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gates, hidden, inner, weight = ctx.saved_tensors
        sizes, size = ctx.batch_sizes, weight.shape[0]
        with torch.autocast(weight.device.type, enabled=False):
            dh = upstream.to(weight.dtype, copy=True)
            d_gates = torch.empty_like(gates)
            d_recurrent = torch.empty_like(gates)  # the same but for the last third: d(h W)
            d_static = None if ctx.static is None else gates.new_zeros(ctx.static[0])
            before = torch.zeros_like(hidden)  # h of the step before, beside each step
            transposed = weight.t()
            ends = list(accumulate(sizes))
            for step in range(len(sizes) - 1, -1, -1):
                end, count = ends[step], sizes[step]
                here, last = slice(end - count, end), ends[step - 1] - sizes[step - 1] if step else 0
                r, z, n = gates[here].chunk(3, 1)
                d_r, d_z, d_n = d_gates[here].chunk(3, 1)
                if step:
                    before[here] = hidden[last : last + count]
                d_sigmoid(dh[here] * (before[here] - n), z, grad_input=d_z)
                d_tanh(torch.addcmul(dh[here], dh[here], z, value=-1.0), n, grad_input=d_n)
                d_sigmoid(d_n * inner[here], r, grad_input=d_r)
                d_recurrent[here, : 2 * size] = d_gates[here, : 2 * size]
                torch.mul(d_n, r, out=d_recurrent[here, 2 * size :])
                if step:
                    dh[last : last + count].addmm_(d_recurrent[here], transposed).addcmul_(dh[here], z)
                if d_static is not None:
                    d_static[:count] += d_gates[here]
            d_weight = before.t() @ d_recurrent if ctx.needs_input_grad[2] else None
            d_bias = d_recurrent[:, 2 * size :].sum(0) if ctx.needs_input_grad[3] else None
        return (
            d_gates.to(ctx.tokens_dtype),
            None if d_static is None else d_static.to(ctx.static[1]),
            d_weight,
            d_bias,
            None,
        )
