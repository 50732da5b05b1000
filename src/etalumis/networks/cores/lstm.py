"""The LSTM core, written out over packed steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from etalumis.networks.autocast import autocast_dtype
from etalumis.networks.cores.base import Core, State, check_counts, d_sigmoid, d_tanh, with_room


class LSTM(Core):
    """Long short-term memory (Hochreiter and Schmidhuber 1997), one or more layers.

    Tokens are projected to the four gates of the first layer (input, forget, cell, output).

    Args:
        hidden: H.
        layers: how many.
    """

    def __init__(self, hidden: int = 512, layers: int = 1) -> None:
        super().__init__()
        check_counts("lstm", hidden=hidden, layers=layers)
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
        compute = autocast_dtype(self.bias)
        for layer, weight in enumerate(self.recurrent):
            if layer:
                tokens, static = self.linear(layer, tokens), None  # type: ignore[assignment]
            tokens = _LSTMLayer.apply(tokens, static, weight, tuple(batch_sizes), compute)  # type: ignore[no-untyped-call]
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
        self._static, self._h, self._c = with_room(slots, self._static, self._h, self._c)
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
    """One step from pre-activations (n, 4H) and the old cell (n, H) into ``new_c`` and ``new_h``.

    ``gates`` become activations in place. Returns tanh of the new cell.
    """
    size = c.shape[1]
    i, f, g, o = gates.chunk(4, 1)
    if gates.is_cpu:
        # tanh x = 2 σ(2x) − 1: here torch's sigmoid takes a sixth of its tanh, and all gates are one pass.
        g.mul_(2.0)
        gates.sigmoid_()
        g.mul_(2.0).sub_(1.0)
    else:
        gates[:, : 2 * size].sigmoid_()
        g.tanh_()
        o.sigmoid_()
    torch.mul(f, c, out=new_c).addcmul_(i, g)
    tanh_c = torch.sigmoid(2.0 * new_c).mul_(2.0).sub_(1.0) if gates.is_cpu else torch.tanh(new_c)
    torch.mul(o, tanh_c, out=new_h)
    return tanh_c


class _LSTMLayer(torch.autograd.Function):
    """A whole layer over packed steps.

    Written out because a packed ``nn.LSTM`` spends its time on shrinking batches, and automatic differentiation of
    single steps on bookkeeping: here every step is one matrix product each way, and the weight's gradient one
    product over all steps. Products are in the precision ``compute``, everything else in that of the weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        static: Tensor | None,
        weight: Tensor,
        batch_sizes: tuple[int, ...],
        compute: torch.dtype,
    ) -> Tensor:
        draws, size, dtype = len(tokens), weight.shape[0], weight.dtype
        ctx.static = None if static is None else (static.shape, static.dtype)
        with torch.autocast(weight.device.type, enabled=False):
            factor = weight.to(compute)
            added = None if static is None else static.to(dtype)
            gates = weight.new_empty((draws, 4 * size))
            hidden, cells, tanh_cells = weight.new_empty((3, draws, size)).unbind(0)
            blocks = (torch.split(x, list(batch_sizes)) for x in (tokens, gates, hidden, cells, tanh_cells))
            h = c = weight.new_zeros((batch_sizes[0] if batch_sizes else 0, size))
            for step, (count, token, gate, new_h, new_c, tanh_c) in enumerate(zip(batch_sizes, *blocks, strict=True)):
                if added is None:
                    gate.copy_(token)
                else:
                    torch.add(token, added[:count], out=gate)
                if step:
                    _add_product(gate, h[:count], factor)
                tanh_c.copy_(_cell(gate, c[:count], new_c, new_h))
                h, c = new_h, new_c
        ctx.save_for_backward(gates, hidden, cells, tanh_cells, factor)
        ctx.batch_sizes, ctx.tokens_dtype = batch_sizes, tokens.dtype
        return hidden

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gates, hidden, cells, tanh_cells, factor = ctx.saved_tensors
        sizes, dtype = list(ctx.batch_sizes), gates.dtype
        with torch.autocast(gates.device.type, enabled=False):
            dh = upstream.to(dtype, copy=True)
            d_gates = torch.empty_like(gates)
            d_static = None if ctx.static is None else gates.new_zeros(ctx.static[0])
            transposed = factor.t()
            before, after = torch.split(cells, sizes), torch.split(dh, sizes)
            blocks = [torch.split(x, sizes) for x in (dh, gates, d_gates, tanh_cells)]
            d_cell = gates.new_empty((0, factor.shape[0]))
            for step in range(len(sizes) - 1, -1, -1):
                dh_t, gate, d_gate, tanh_c = (block[step] for block in blocks)
                i, f, g, o = gate.chunk(4, 1)
                d_i, d_f, d_g, d_o = d_gate.chunk(4, 1)
                d_sigmoid(dh_t * tanh_c, o, grad_input=d_o)
                later = d_cell
                d_cell = d_tanh(dh_t.mul_(o), tanh_c)
                d_cell[: len(later)] += later
                d_sigmoid(d_cell * g, i, grad_input=d_i)
                d_tanh(d_cell * i, g, grad_input=d_g)
                if step:
                    count = sizes[step]
                    d_sigmoid(d_cell * before[step - 1][:count], f, grad_input=d_f)
                    _add_product(after[step - 1][:count], d_gate, transposed)
                    d_cell.mul_(f)
                else:
                    d_f.zero_()
                if d_static is not None:
                    d_static[: sizes[step]] += d_gate
            d_weight = _weight_gradient(hidden, d_gates, sizes, factor) if ctx.needs_input_grad[2] else None
        return (
            d_gates.to(ctx.tokens_dtype),
            None if d_static is None else d_static.to(ctx.static[1]),
            d_weight,
            None,
            None,
        )


def _add_product(y: Tensor, x: Tensor, w: Tensor) -> None:
    """y += x @ w in the precision of w."""
    if w.dtype == y.dtype:
        y.addmm_(x, w)
    else:
        y += torch.mm(x.to(w.dtype), w)


def _weight_gradient(hidden: Tensor, d_gates: Tensor, sizes: list[int], like: Tensor) -> Tensor:
    """Σ over steps of (h of the step before)ᵀ (gradient of the step's gates): one product; the first step has none."""
    before = [h[:count] for h, count in zip(torch.split(hidden, sizes), sizes[1:], strict=False)]
    if not before:
        return torch.zeros_like(like, dtype=hidden.dtype)
    even = sizes[0] == sizes[-1]
    h = hidden[: len(hidden) - sizes[-1]] if even else torch.cat(before)
    return torch.mm(h.to(like.dtype).t(), d_gates[sizes[0] :].to(like.dtype)).to(hidden.dtype)
