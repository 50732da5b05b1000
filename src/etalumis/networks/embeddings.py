"""Embeddings of addresses and of drawn values, and their projection to the core's tokens.

Whatever depends on an address alone is computed for the minibatch's distinct addresses and then looked up, so
its cost does not grow with the number of draws.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etalumis.networks.autocast import autocast_dtype
from etalumis.networks.banks import Bank, normal, zeros
from etalumis.networks.layout import UNKNOWN, Layout
from etalumis.networks.packing import AddressColumns, DrawGroup

_FAMILIES = 64  # family codes are below this
_START = 0.1  # scale of the first embeddings
_VALUE_SLOPE = 2.0


class AddressEmbedding(nn.Module):
    """The mean of an address's stack-frame embeddings + family + instance + a residual row that starts at 0.

    New and late addresses start near their relatives; an unknown one is the sum without the residual. The family
    has, beside its part in the sum, ``type_size`` numbers of its own.

    Args:
        size: of the sum.
        type_size: of the family's own part.
        seed: decides the first values of rows.

    Output: (U, size + type_size) for U addresses.
    """

    def __init__(self, size: int, type_size: int, seed: int) -> None:
        super().__init__()
        self.size = size + type_size
        self.frames = Bank((size,), normal(_START), 2 * seed)
        self.residual = Bank((size,), zeros, 2 * seed + 1)
        self.family = nn.Parameter(_START * torch.randn(_FAMILIES, size))
        self.family_type = nn.Parameter(_START * torch.randn(_FAMILIES, type_size))
        self.instance = nn.Linear(2, size)

    def grow(self, layout: Layout) -> None:
        """Make rows for what the layout knows."""
        self.frames.grow(len(layout.frames) - len(self.frames))
        self.residual.grow(len(layout) - len(self.residual))

    def forward(self, addresses: AddressColumns) -> Tensor:
        count = addresses.instance.to(self.family.dtype)
        total = self.instance(torch.stack([torch.log(count), 1.0 / count], 1)) + F.embedding(
            addresses.family, self.family
        )
        if len(addresses.frames):
            share = addresses.frame_share.to(total.dtype)[addresses.frame_owner]
            pieces = self.frames(addresses.frames).index_select(0, addresses.frame) * share
            total = total.index_add(0, addresses.frame_owner, pieces.to(total.dtype))
        known = torch.nonzero(addresses.rows != UNKNOWN)[:, 0]
        if len(known):
            residual = self.residual(addresses.rows[known]).to(total.dtype)
            total = total.index_add(0, known.to(total.device), residual)
        return torch.cat([total, F.embedding(addresses.family, self.family_type)], 1)


class ValueEmbedding(nn.Module):
    """Embeds drawn values, one layer per address: silu(asinh(z) w + b), or a row per category.

    Args:
        categories: number of categories, 0 for values with a coordinate z.
        size: of the embedding.
        seed: decides the first values of rows.
    """

    def __init__(self, categories: int, size: int, seed: int) -> None:
        super().__init__()
        self.categories = categories
        scale = 1.0 if categories else _VALUE_SLOPE
        self.rows = Bank((categories or 2, size), normal(scale), seed)

    def forward(self, group: DrawGroup) -> Tensor:
        """(n, size) for the n draws of a group."""
        rows = self.rows(group.row_ids)
        if self.categories:
            flat = group.member * self.categories + group.columns["category"]
            return F.embedding(flat, rows.flatten(0, 1))
        # asinh: heavy-tailed priors must not blow up the core
        z = torch.asinh(group.columns["z"]).to(rows.dtype)[:, None]
        weight, bias = rows.index_select(0, group.member).unbind(1)
        return F.silu(torch.addcmul(bias, weight, z))


class Projection(nn.Module):
    """The linear map from [observation, value before, address before, address] to the core's width.

    It is the sum of a part per trace (:meth:`static`), a part per address, looked up for each draw, and a part
    per value.
    """

    def __init__(self, observation: int, address: int, value: int, width: int) -> None:
        super().__init__()
        self.observation = nn.Linear(observation, width, bias=False) if observation else None
        self.address = nn.Linear(address, width, bias=False)
        self.address_before = nn.Linear(address, width, bias=False)
        self.value_before = nn.Linear(value, width, bias=False)
        self.width = width

    def static(self, observation: Tensor | None, traces: int) -> Tensor:
        """The observation's part, (N, width), from its embedding (N, observation), or (1, observation) for all."""
        if self.observation is None or observation is None:
            return self.address.weight.new_zeros((traces, self.width))
        projected: Tensor = self.observation(observation)
        return projected.expand(traces, -1)

    def tokens(self, embeddings: Tensor, address: Tensor, address_before: Tensor, value_before: Tensor) -> Tensor:
        """The other parts, (D, width).

        Args:
            embeddings: of the U distinct addresses, (U, address).
            address, address_before: which of them, (D,); U where there was none before.
            value_before: embedding of the value before, (D, value); 0 where there was none.
        """
        tokens: Tensor = _Tokens.apply(  # type: ignore[no-untyped-call]
            embeddings,
            self.address.weight,
            self.address_before.weight,
            value_before,
            self.value_before.weight,
            address,
            address_before,
            autocast_dtype(embeddings),
        )
        return tokens


class _Tokens(torch.autograd.Function):
    """(e W₁ᵀ)[i] + (e W₂ᵀ)[j] + v W₃ᵀ, 0 for j = U, in three passes over the result.

    Separate operations would write as much several times over: for each draw the result is as large as the core's
    gates. Products with the embeddings are in the precision ``compute``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        e: Tensor,
        w1: Tensor,
        w2: Tensor,
        v: Tensor,
        w3: Tensor,
        i: Tensor,
        j: Tensor,
        compute: torch.dtype,
    ) -> Tensor:
        dtype, count, width = w1.dtype, len(e), len(w1)
        with torch.autocast(e.device.type, enabled=False):
            low, v = e.to(compute), v.to(dtype)
            tables = w1.new_empty((2 * count + 1, width))
            for table, weight in ((tables[:count], w1), (tables[count:-1], w2)):
                if compute == dtype:
                    torch.mm(low, weight.t(), out=table)
                else:
                    table.copy_(torch.mm(low, weight.t().to(compute)))
            tables[-1:].zero_()
            if dtype in (torch.float32, torch.float64) and len(i):
                tokens = F.embedding_bag(torch.stack([i, j + count], 1), tables, mode="sum")
            else:
                tokens = tables.index_select(0, i) + tables.index_select(0, j + count)
            tokens.addmm_(v, w3.t())
        ctx.save_for_backward(low, w1, w2, v, w3, i, j)
        ctx.e_dtype = e.dtype
        return tokens

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        low, w1, w2, v, w3, i, j = ctx.saved_tensors
        dtype, compute, count = w1.dtype, low.dtype, len(low)
        with torch.autocast(low.device.type, enabled=False):
            upstream = upstream.to(dtype)
            # Rows of i first, then of j; the last is what nothing comes from.
            tables = upstream.new_zeros((2 * count + 1, upstream.shape[1]))
            tables.index_add_(0, i, upstream).index_add_(0, j + count, upstream)
            d_low = tables.to(compute)
            now, before = d_low[:count], d_low[count:-1]
            d_e = torch.mm(now, w1.to(compute)).to(dtype)
            d_e += torch.mm(before, w2.to(compute))
            d_w1, d_w2 = (torch.mm(d.t(), low).to(dtype) for d in (now, before))
            # v has few columns: this way round the products are 4 and 12 times as fast.
            d_v = torch.mm(w3.t(), upstream.t()).t()
            d_w3 = torch.mm(v.t(), upstream).t().contiguous()
        return d_e.to(ctx.e_dtype), d_w1, d_w2, d_v, d_w3, None, None, None
