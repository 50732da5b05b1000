"""One linear layer per address, over draws grouped by address.

Large layers (:func:`grouped_linear`) stay in their bank and are read in a loop of matrix products on slices:
gathering a weight per draw for a batched product would copy the layer once for every draw; indexing the bank in
the loop would make a gradient as large as the bank for every address. Small layers (:func:`batched_linear`) are
gathered once per address; addresses with as many draws are one batched product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etalumis.networks.autocast import without_autocast
from etalumis.networks.banks import Bank

_MANY_DRAWS = 16  # of an address, from which on a product in bf16 pays on a CPU


class Run(NamedTuple):
    """``number`` groups of ``size`` draws each, side by side: the first group and the first draw."""

    group: int
    draw: int
    number: int
    size: int


@dataclass(frozen=True)
class Groups:
    """Draws grouped by address row: the first ``sizes[0]`` of them use row ``rows[0]`` of a bank, and so on."""

    rows: tuple[int, ...]
    sizes: tuple[int, ...]

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Neighbouring groups of one size: few, where groups are sorted by size."""
        runs, group, draw = [], 0, 0
        for size, alike in groupby(self.sizes):
            number = len(list(alike))
            runs.append(Run(group, draw, number, size))
            group, draw = group + number, draw + number * size
        return tuple(runs)


def grouped_linear(x: Tensor, weight: Bank, bias: Bank, groups: Groups) -> Tensor:
    """y = x @ W[row] + b[row] for draws sorted by row.

    Args:
        x: (n, inputs).
        weight: rows (inputs, outputs).
        bias: rows (outputs,).
        groups: which draws use which row.

    Returns:
        (n, outputs), in the dtype of ``weight``. Under autocast on a CPU the products are in its dtype, unless an
        address has so few draws that casting the weights would cost more.
    """
    device, dtype = x.device.type, weight.dtype
    if device == "cuda":
        return gathered_linear(x, weight, bias, groups)
    if torch.is_autocast_enabled(device) and len(x) >= _MANY_DRAWS * len(groups.rows):
        dtype = torch.get_autocast_dtype(device)
    function = _GROUPED_LINEAR[device]
    y: Tensor = function.apply(x, weight, bias, groups, dtype, *weight.anchor, *bias.anchor)
    return y


def gathered_linear(x: Tensor, weight: Bank, bias: Bank, groups: Groups) -> Tensor:
    """The same as :func:`grouped_linear`, in few operations on copies of the rows.

    On a GPU copies cost little and thousands of small operations much; on a CPU it is the other way round.
    """
    ids = torch.tensor(groups.rows)
    member = torch.repeat_interleave(torch.tensor(groups.sizes)).to(x.device)
    shift: Tensor = bias(ids).index_select(0, member)
    return batched_linear(x, weight(ids), groups) + shift


# A page of each is an argument only so that a graph is made; its gradient is None.
class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Bank, bias: Bank, groups: Groups, dtype: torch.dtype, *pages: Tensor
    ) -> Tensor:
        ctx.x_dtype = x.dtype
        x = x.to(dtype)
        ctx.save_for_backward(x)
        ctx.weight, ctx.bias, ctx.groups, ctx.pages = weight, bias, groups, len(pages)
        sizes = list(groups.sizes)
        y = x.new_empty((len(x), weight.shape[1]))
        parts = zip(torch.split(x, sizes), torch.split(y, sizes), strict=True)
        rows = zip(weight.views(groups.rows, dtype), bias.views(groups.rows, dtype), strict=True)
        for (x_k, y_k), (w, b) in zip(parts, rows, strict=True):
            torch.addmm(b, x_k, w, out=y_k)
        return y.to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        weight, bias, groups = ctx.weight, ctx.bias, ctx.groups
        sizes, ids = list(groups.sizes), torch.tensor(groups.rows)
        if bias.wants_gradient:
            member = torch.repeat_interleave(torch.tensor(sizes)).to(dy.device)
            bias.accumulate(ids, bias.gradient_buffer(len(ids)).zero_().index_add_(0, member, dy.to(bias.dtype)))
        dy = dy.to(x.dtype).contiguous()
        pieces = torch.split(dy, sizes)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            parts = zip(pieces, weight.views(groups.rows, x.dtype), torch.split(dx, sizes), strict=True)
            for dy_k, w, dx_k in parts:
                torch.mm(dy_k, w.t(), out=dx_k)
            dx = dx.to(ctx.x_dtype)
        if weight.wants_gradient:
            dw = weight.gradient_buffer(len(ids))
            for x_k, dy_k, dw_k in zip(torch.split(x.t(), sizes, 1), pieces, dw.unbind(0), strict=True):
                if x.dtype == dw.dtype:
                    torch.mm(x_k, dy_k, out=dw_k)
                else:
                    dw_k.copy_(torch.mm(x_k, dy_k))
            weight.accumulate(ids, dw)
        return (dx, *(None,) * (4 + ctx.pages))


_GROUPED_LINEAR = without_autocast(_GroupedLinear)


def batched_linear(x: Tensor, weights: Tensor, groups: Groups) -> Tensor:
    """y = x @ w[group] for draws grouped by row.

    Args:
        x: (n, inputs).
        weights: of each group, in the order of ``groups``, (R, inputs, outputs).
        groups: which draws use which.

    Returns:
        (n, outputs), in the dtype of ``weights``.
    """
    y: Tensor = _BATCHED_LINEAR[x.device.type].apply(x, weights, groups)
    return y


class _BatchedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, groups: Groups) -> Tensor:
        ctx.x_dtype = x.dtype
        x = x.to(weights.dtype)
        ctx.save_for_backward(x, weights)
        ctx.groups = groups
        y = x.new_empty((len(x), weights.shape[2]))
        for run in groups.runs:
            torch.bmm(_rows(x, run), _weights(weights, run), out=_rows(y, run))
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weights = ctx.saved_tensors
        dy = dy.to(x.dtype).contiguous()
        dx, dw = torch.empty_like(x), torch.empty_like(weights, memory_format=torch.contiguous_format)
        for run in ctx.groups.runs:
            dy_run = _rows(dy, run)
            torch.bmm(dy_run, _weights(weights, run).transpose(1, 2), out=_rows(dx, run))
            torch.bmm(_rows(x, run).transpose(1, 2), dy_run, out=_weights(dw, run))
        return dx.to(ctx.x_dtype), dw, None


_BATCHED_LINEAR = without_autocast(_BatchedLinear)


def _rows(x: Tensor, run: Run) -> Tensor:
    """The draws of a run, (number, size, …)."""
    return x[run.draw : run.draw + run.number * run.size].view(run.number, run.size, x.shape[1])


def _weights(w: Tensor, run: Run) -> Tensor:
    return w[run.group : run.group + run.number]
