"""The LSTM core, written out over packed steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn

from etalumis.networks.cores.base import Core, State
from etalumis.networks.errors import NetworkConfigError

# The derivatives of activations from their values: one fused pass each.
d_sigmoid = torch.ops.aten.sigmoid_backward
d_tanh = torch.ops.aten.tanh_backward


class LSTM(Core):
    """Long short-term memory (Hochreiter and Schmidhuber 1997), one or more layers.

    Tokens are projected to the four gates of the first layer (input, forget, cell, output).

    Args:
        hidden: H.
        layers: how many.
    """

    def __init__(self, hidden: int = 512, layers: int = 1) -> None:
        super().__init__()
        if hidden < 1 or layers < 1:
            raise NetworkConfigError(f"an LSTM needs hidden ≥ 1 and layers ≥ 1; got {hidden} and {layers}")
        self.width, self.size, self.layers = 4 * hidden, hidden, layers
        bound = 1.0 / math.sqrt(hidden)
        self.recurrent = nn.ParameterList(
            nn.Parameter(torch.empty(hidden, 4 * hidden).uniform_(-bound, bound)) for _ in range(layers)
        )
        self.between = nn.ModuleList(nn.Linear(hidden, 4 * hidden) for _ in range(layers - 1))
        # A forget gate that starts open lets gradients reach far back (Gers et al. 2000).
        self.bias = nn.Parameter(torch.zeros(4 * hidden).index_fill_(0, torch.arange(hidden, 2 * hidden), 1.0))
        with torch.no_grad():
            for linear in self.between:
                cast("nn.Linear", linear).bias.zero_()[hidden : 2 * hidden] = 1.0

    def forward(self, tokens: Tensor, static: Tensor, batch_sizes: Sequence[int]) -> Tensor:
        static = static + self.bias
        for layer, weight in enumerate(self.recurrent):
            if layer:
                tokens, static = self.linear(layer, tokens), None  # type: ignore[assignment]
            tokens = _LSTMLayer.apply(tokens, static, weight, tuple(batch_sizes))  # type: ignore[no-untyped-call]
        return tokens

    def linear(self, layer: int, below: Tensor) -> Tensor:
        """Gates of a layer, (n, 4H), from the output of the layer below."""
        gates: Tensor = self.between[layer - 1](below)
        return gates

    def state(self) -> State:
        return _LSTMState(self)


class _LSTMState(State):
    def __init__(self, core: LSTM) -> None:
        self._core = core
        like = core.bias
        self._static = like.new_zeros((0, core.width))
        self._h = like.new_zeros((0, core.layers, core.size))
        self._c = like.new_zeros((0, core.layers, core.size))

    @torch.no_grad()
    def begin(self, slots: Tensor, static: Tensor) -> None:
        missing = int(slots.max()) + 1 - len(self._h) if len(slots) else 0
        if missing > 0:
            self._static, self._h, self._c = (
                torch.cat([x, x.new_zeros((missing, *x.shape[1:]))]) for x in (self._static, self._h, self._c)
            )
        self._static[slots] = static + self._core.bias
        self._h[slots] = 0.0
        self._c[slots] = 0.0

    @torch.no_grad()
    def step(self, slots: Tensor, tokens: Tensor) -> Tensor:
        h, c = self._h[slots], self._c[slots]
        gates = tokens + self._static[slots]
        for layer, weight in enumerate(self._core.recurrent):
            if layer:
                gates = self._core.linear(layer, h[:, layer - 1])
            gates = gates.addmm(h[:, layer], weight)
            _cell(gates, c[:, layer], c[:, layer], h[:, layer])
        self._h[slots], self._c[slots] = h, c
        return h[:, -1]


def _cell(gates: Tensor, c: Tensor, new_c: Tensor, new_h: Tensor) -> Tensor:
    """One step from pre-activations (n, 4H) and the old cell (n, H) into ``new_c`` and ``new_h``; returns ``new_c``.

    ``gates`` become activations in place.
    """
    size = c.shape[1]
    gates[:, : 2 * size].sigmoid_()
    gates[:, 2 * size : 3 * size].tanh_()
    gates[:, 3 * size :].sigmoid_()
    i, f, g, o = gates.chunk(4, 1)
    torch.mul(f, c, out=new_c).addcmul_(i, g)
    torch.tanh(new_c, out=new_h).mul_(o)
    return new_c


class _LSTMLayer(torch.autograd.Function):
    """A whole layer over packed steps.

    Written out because a packed ``nn.LSTM`` spends its time on shrinking batches, and automatic differentiation of
    single steps on bookkeeping: here every step is one matrix product each way, and the weight's gradient one
    product over all steps. Always in the precision of the recurrent weight.
    """

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, static: Tensor | None, weight: Tensor, batch_sizes: tuple[int, ...]
    ) -> Tensor:
        size = weight.shape[0]
        with torch.autocast(weight.device.type, enabled=False):
            gates = tokens.to(weight.dtype, copy=True)
            hidden = gates.new_empty((len(gates), size))
            cells = torch.empty_like(hidden)
            c = gates.new_zeros((batch_sizes[0] if batch_sizes else 0, size))
            last = start = 0
            for count in batch_sizes:
                here = slice(start, start + count)
                step = gates[here]
                if static is not None:
                    step += static[:count]
                if start:
                    step.addmm_(hidden[last : last + count], weight)
                c = _cell(step, c[:count], cells[here], hidden[here])
                last, start = start, start + count
        ctx.save_for_backward(gates, hidden, cells, weight)
        ctx.batch_sizes, ctx.tokens_dtype = batch_sizes, tokens.dtype
        ctx.static = None if static is None else (static.shape, static.dtype)
        return hidden

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gates, hidden, cells, weight = ctx.saved_tensors
        sizes = ctx.batch_sizes
        with torch.autocast(weight.device.type, enabled=False):
            dh = upstream.to(weight.dtype, copy=True)
            d_gates = torch.empty_like(gates)
            d_static = None if ctx.static is None else gates.new_zeros(ctx.static[0])
            before = torch.zeros_like(hidden)  # h of the step before, beside each step
            transposed = weight.t()
            tanh_c = cells.tanh()
            ends = list(accumulate(sizes))
            d_cell = gates.new_empty((0, weight.shape[0]))
            for step in range(len(sizes) - 1, -1, -1):
                end, count = ends[step], sizes[step]
                here, last = slice(end - count, end), ends[step - 1] - sizes[step - 1] if step else 0
                i, f, g, o = gates[here].chunk(4, 1)
                d_i, d_f, d_g, d_o = d_gates[here].chunk(4, 1)
                d_sigmoid(dh[here] * tanh_c[here], o, grad_input=d_o)
                later = d_cell
                d_cell = d_tanh(dh[here].mul_(o), tanh_c[here])
                d_cell[: len(later)] += later
                d_sigmoid(d_cell * g, i, grad_input=d_i)
                d_tanh(d_cell * i, g, grad_input=d_g)
                if step:
                    d_sigmoid(d_cell * cells[last : last + count], f, grad_input=d_f)
                    before[here] = hidden[last : last + count]
                    dh[last : last + count].addmm_(d_gates[here], transposed)
                    d_cell.mul_(f)
                else:
                    d_f.zero_()
                if d_static is not None:
                    d_static[:count] += d_gates[here]
            d_weight = before.t() @ d_gates if ctx.needs_input_grad[2] else None
        return (
            d_gates.to(ctx.tokens_dtype),
            None if d_static is None else d_static.to(ctx.static[1]),
            d_weight,
            None,
        )
