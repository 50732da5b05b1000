"""Address banks: the parameters of thousands of small layers, stacked by row.

A bank holds one row of a fixed shape per address, in *pages* of fixed capacity: growing adds a page and never
moves what exists, so live graphs, optimiser state and averaged copies stay valid. A step touches only the rows
that its minibatch uses, forward, backward and in the optimiser.

A bank owns its gradient. The autograd functions that read it return no gradient for the page parameters (their
``.grad`` stays None) and add ``RowGrad(ids, rows)`` to the bank instead, where backward passes accumulate until
:meth:`Bank.clear_gradient`. A dense gradient would be as large as the bank, and a sparse tensor in ``.grad``
can't be accumulated in place, clipped, or read by fused optimisers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from etalumis.networks.autocast import without_autocast

_PAGE_BYTES = 1 << 22
_MOST_ROWS_A_PAGE = 1024
_GOLDEN = 0x9E3779B97F4A7C15

Initialiser = Callable[[Tensor, torch.Generator], object]


class RowGrad(NamedTuple):
    """Gradient of some rows: ids (n,), int64, distinct, on the CPU; rows (n, *shape) on the bank's device."""

    ids: Tensor
    rows: Tensor


class Bank(nn.Module):
    """Rows of one shape.

    Args:
        shape: of one row.
        initialise: fills a new row in place from a generator (float32, CPU).
        seed: with the row's number it decides the row's first values, so a bank grown in steps equals one
            made at once, on every rank.

    In a state dictionary a bank is one tensor ``rows`` of the used rows, (used, *shape); loading makes room.
    """

    _anchor: Tensor

    def __init__(self, shape: Sequence[int], initialise: Initialiser, seed: int = 0) -> None:
        super().__init__()
        self.shape = tuple(shape)
        size = 4 * max(1, torch.Size(self.shape).numel())
        self.capacity = max(1, min(_MOST_ROWS_A_PAGE, _PAGE_BYTES // size))
        self.used = 0
        self.gradient: RowGrad | None = None
        self._memory: Tensor | None = None
        self._initialise = initialise
        self._seed = seed
        self._frozen = False
        # Knows the device and the dtype while there is no page.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    # --- rows -------------------------------------------------------------------------------------------------

    @property
    def pages(self) -> list[nn.Parameter]:
        """The pages, each (capacity, *shape)."""
        return [cast("nn.Parameter", page) for page in self._parameters.values()]

    @property
    def anchor(self) -> list[nn.Parameter]:
        """A page, or none where there is none: what autograd functions take so that a graph is made."""
        return [cast("nn.Parameter", page) for page in islice(self._parameters.values(), 1)]

    def _page(self, number: int) -> Tensor:
        return cast("Tensor", self._parameters[f"page{number}"])

    @property
    def dtype(self) -> torch.dtype:
        return self._anchor.dtype

    def __len__(self) -> int:
        return self.used

    def row(self, number: int) -> Tensor:
        """A view of one row."""
        page, place = divmod(number, self.capacity)
        return self._page(page)[place]

    def views(self, numbers: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
        """Views of rows, or copies where the dtype is another."""
        pages = {page: self._page(page).detach() for page in {number // self.capacity for number in numbers}}
        rows = [pages[number // self.capacity][number % self.capacity] for number in numbers]
        return rows if dtype == self.dtype else [row.to(dtype) for row in rows]

    @property
    def rows(self) -> Tensor:
        """A copy of the used rows, (used, *shape)."""
        used = [page.detach()[: self.used - start] for start, page in self._starts()]
        return torch.cat(used) if used else self._anchor.new_empty((0, *self.shape))

    def grow(self, count: int) -> None:
        """Append ``count`` initialised rows."""
        first = self.used
        self._make_room(first + count)
        row = torch.empty(self.shape)
        generator = torch.Generator()
        with torch.no_grad():
            for number in range(first, first + count):
                generator.manual_seed((self._seed * _GOLDEN + number) & 0x7FFFFFFFFFFFFFFF)
                self._initialise(row, generator)
                self.row(number).copy_(row)

    def freeze(self, frozen: bool = True) -> None:
        """Stop (or resume) the flow of gradients into the rows."""
        self._frozen = frozen
        for page in self.pages:
            page.requires_grad_(not frozen)

    def _make_room(self, rows: int) -> None:
        while len(self._parameters) * self.capacity < rows:
            page = nn.Parameter(self._anchor.new_zeros((self.capacity, *self.shape)), requires_grad=not self._frozen)
            self.register_parameter(f"page{len(self._parameters)}", page)
        self.used = max(self.used, rows)

    def _starts(self) -> Iterator[tuple[int, nn.Parameter]]:
        for number, page in enumerate(self.pages):
            yield number * self.capacity, page

    # --- gradients --------------------------------------------------------------------------------------------

    @property
    def wants_gradient(self) -> bool:
        return not self._frozen

    def clear_gradient(self) -> None:
        """Forget the gradient, as ``zero_grad`` does for dense parameters; the next one may use its memory."""
        self.gradient = None

    def gradient_buffer(self, count: int) -> Tensor:
        """Uninitialised rows, (count, *shape), to fill and pass to :meth:`accumulate` at once.

        Their memory is kept from step to step: the first touch of fresh memory costs several times what writing
        to it does, and a minibatch of many addresses has gradients of hundreds of megabytes.
        """
        like, memory = self._anchor, self._memory
        if self.gradient is not None:
            return like.new_empty((count, *self.shape))
        if memory is None or len(memory) < count or (memory.dtype, memory.device) != (like.dtype, like.device):
            memory = self._memory = like.new_empty((count, *self.shape))
        return memory[:count]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": None}

    def accumulate(self, ids: Tensor, rows: Tensor) -> None:
        """Add to the gradient of distinct rows. ``rows`` becomes the bank's own: pass a tensor nobody else keeps."""
        old = self.gradient
        if old is None:
            self.gradient = RowGrad(ids, rows)
        elif torch.equal(old.ids, ids):
            old.rows.add_(rows)
        else:
            joined, place = torch.unique(torch.cat([old.ids, ids]), return_inverse=True)
            total = rows.new_zeros((len(joined), *self.shape))
            place = place.to(rows.device)
            total.index_add_(0, place[: len(old.ids)], old.rows)
            total.index_add_(0, place[len(old.ids) :], rows)
            self.gradient = RowGrad(joined, total)

    # --- reading rows -----------------------------------------------------------------------------------------

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of *distinct* ids (n,), int64 on the CPU: (n, *shape), differentiable."""
        out: Tensor = _LOOKUP[self._anchor.device.type].apply(self, ids, *self.anchor)
        return out

    def gather(self, ids: Tensor) -> Tensor:
        """Like :meth:`forward`, outside of autograd; ids may repeat."""
        if len(self._parameters) == 1:
            return self._page(0).detach().index_select(0, ids.to(self._anchor.device))
        out = self._anchor.new_empty((len(ids), *self.shape))
        number = torch.div(ids, self.capacity, rounding_mode="floor")
        for page in torch.unique(number).tolist():
            here = torch.nonzero(number == page)[:, 0]
            places = (ids[here] - page * self.capacity).to(out.device)
            out.index_copy_(0, here.to(out.device), self._page(page).detach().index_select(0, places))
        return out

    # --- state dictionaries -----------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "rows"] = self.rows

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "rows"
        if key not in state_dict:
            missing_keys.append(key)
            return
        rows = state_dict[key]
        if rows.shape[1:] != self.shape or len(rows) < self.used:
            error_msgs.append(
                f"{key} has shape {tuple(rows.shape)}, where rows of shape {self.shape}, "
                f"at least {self.used} of them, are needed"
            )
            return
        self._make_room(len(rows))
        with torch.no_grad():
            for start, page in self._starts():
                piece = rows[start : start + self.capacity]
                page[: len(piece)].copy_(piece)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, rows={self.used}, pages={len(self._parameters)}"


def uniform(bound: float) -> Initialiser:
    """Initialiser: uniform on (−bound, bound)."""
    return partial(_uniform, bound)


def normal(stddev: float) -> Initialiser:
    """Initialiser: normal with mean 0."""
    return partial(_normal, stddev)


def _uniform(bound: float, row: Tensor, generator: torch.Generator) -> None:
    row.uniform_(-bound, bound, generator=generator)


def _normal(stddev: float, row: Tensor, generator: torch.Generator) -> None:
    row.normal_(0.0, stddev, generator=generator)


def zeros(row: Tensor, generator: torch.Generator) -> None:
    """Initialiser: zero."""
    row.zero_()


def banks_of(module: nn.Module) -> dict[str, Bank]:
    """All banks inside a module, by name."""
    return {name: child for name, child in module.named_modules() if isinstance(child, Bank)}


# A page is an argument only so that a graph is made; its gradient is None.
class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bank: Bank, ids: Tensor, *pages: Tensor) -> Tensor:
        ctx.bank, ctx.ids, ctx.pages = bank, ids, len(pages)
        return bank.gather(ids)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        if ctx.bank.wants_gradient:
            # A copy: autograd may hand out one buffer, or an expanded view, several times.
            ctx.bank.accumulate(ctx.ids, ctx.bank.gradient_buffer(len(ctx.ids)).copy_(gradient))
        none: tuple[None, ...] = (None,) * (2 + ctx.pages)
        return none


_LOOKUP = without_autocast(_Lookup)
