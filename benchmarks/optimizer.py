"""The optimiser over address banks: what a step costs that touches some rows of many.

``row_sparse_vs_dense``: one Adam-LARC step that has the gradients of 500 addresses, against one step of torch's Adam
over the same banks with every gradient there, of 2,000 addresses with the paper's head (512 → 272 → 32): 296 million
weights, 4.7 GB with moments and gradients. Torch's is the faster of its foreach and fused forms. ``--quick`` takes a
fifth of the addresses, known and touched. LARC needs the update before it can scale it, and two norms: about 1.8 times
the time of plain Adam over the same rows, so that a quarter of the rows can't save three quarters of the time.

``rows_vs_bandwidth``: the share of the memory's bandwidth that a plain Adam step over those rows reaches: seven
numbers of four bytes go through memory for each weight (read weight, gradient and two moments, write all but the
gradient). The bandwidth is that of ``a += b`` over 256 MiB, measured alternately.

``rows_vs_modules``: the same plain step against torch's Adam (foreach, then fused) over a parameter for each layer of
each address, of which all but the touched have no gradient.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common import Measure, Result, Settings, alternate, compare, main
from etalumis.networks.banks import Bank, zeros
from etalumis.optim import RowAdam


class Size(NamedTuple):
    known: int
    touched: int
    inputs: int
    hidden: int
    outputs: int


FULL = Size(2000, 500, 512, 272, 32)
QUICK = Size(400, 100, 512, 272, 32)


class Heads(nn.Module):
    """The four banks of the per_address head."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        for name, shape in zip(("weight1", "bias1", "weight2", "bias2"), shapes(size), strict=True):
            bank = Bank(shape, zeros)
            bank.grow(size.known)
            self.add_module(name, bank)
        with torch.no_grad():
            for page in self.parameters():
                page.normal_(0.0, 0.1)

    def give(self, ids: Tensor) -> None:
        """Gradients for these rows."""
        for bank in self.children():
            assert isinstance(bank, Bank)
            bank.clear_gradient()
            bank.accumulate(ids, 0.01 * torch.randn(len(ids), *bank.shape))


def shapes(size: Size) -> list[tuple[int, ...]]:
    """Of the rows of each bank."""
    return [(size.inputs, size.hidden), (size.hidden,), (size.hidden, size.outputs), (size.outputs,)]


def milliseconds(work: Measure | torch.optim.Optimizer) -> Measure:
    """A measure of one step in milliseconds."""

    step: Callable[[], object] = work.step if isinstance(work, torch.optim.Optimizer) else work

    def measure() -> float:
        start = time.perf_counter()
        step()
        return 1e3 * (time.perf_counter() - start)

    return measure


def rows_against_dense(size: Size, ids: Tensor, settings: Settings) -> Result:
    """Adam-LARC over some rows against Adam over all pages."""
    ours = Heads(size)
    ours.give(ids)
    sparse = milliseconds(RowAdam(ours, lr=1e-6, larc="update"))
    pages = [nn.Parameter(page.detach().clone()) for page in ours.parameters()]
    for page in pages:
        page.grad = 0.01 * torch.randn(page.shape)
    forms = {form: torch.optim.Adam(pages, lr=1e-6, **{form: True}) for form in ("foreach", "fused")}
    forms["fused"].state = forms["foreach"].state  # one set of moments for both
    measured = dict(zip(forms, alternate([milliseconds(o) for o in forms.values()], settings.repeats), strict=True))
    form = min(measured, key=lambda f: measured[f])
    note = f"{note_of(size)}; dense Adam is {form}: " + ", ".join(f"{f} {t:.0f} ms" for f, t in measured.items())
    dense = milliseconds(forms[form])
    return compare(
        "row_sparse_vs_dense",
        sparse,
        dense,
        unit="ms",
        target=None,
        settings=settings,
        smaller_is_better=True,
        note=note,
    )


def rows_against_modules(size: Size, ids: Tensor, settings: Settings) -> Iterator[Result]:
    """Adam over some rows against the memory's bandwidth, and against Adam over separate parameters."""
    ours = Heads(size)
    ours.give(ids)
    rows = milliseconds(RowAdam(ours, lr=1e-6))
    numbers = sum(bank.gradient.rows.numel() for bank in ours.children() if isinstance(bank, Bank) and bank.gradient)
    long = torch.zeros(1 << 26)
    other = torch.ones_like(long)
    add = milliseconds(lambda: float(long.add_(other)[0]))

    def per_ms(measure: Measure, moved: int) -> Measure:
        return lambda: moved / measure() / 1e6

    yield compare(
        "rows_vs_bandwidth",
        per_ms(rows, 28 * numbers),
        per_ms(add, 12 * len(long)),
        unit="GB/s",
        target=None,
        settings=settings,
        rounds=2,
        note=f"{note_of(size)}, {numbers / 1e6:.0f} million weights touched",
    )
    separate = [nn.Parameter(torch.zeros(shape)) for shape in shapes(size) for _ in range(size.known)]
    for layer, shape in enumerate(shapes(size)):
        for number in ids.tolist():
            separate[layer * size.known + number].grad = 0.01 * torch.randn(shape)
    for form in ("foreach", "fused"):
        modules = milliseconds(torch.optim.Adam(separate, lr=1e-6, **{form: True}))
        yield compare(
            "rows_vs_modules" if form == "foreach" else "rows_vs_modules_fused",
            rows,
            modules,
            unit="ms",
            target=None,
            settings=settings,
            smaller_is_better=True,
            note=note_of(size),
        )


def note_of(size: Size) -> str:
    """How large it is."""
    weights = size.known * sum(torch.Size(shape).numel() for shape in shapes(size))
    return f"{size.touched} of {size.known:,} addresses, {weights / 1e6:.0f} million weights known"


def results(settings: Settings) -> Iterator[Result]:
    """All results."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = QUICK if settings.quick else FULL
    ids = torch.randperm(size.known)[: size.touched].sort().values
    yield rows_against_dense(size, ids, settings)
    yield from rows_against_modules(size, ids, settings)


if __name__ == "__main__":
    sys.exit(main("optimizer", results))
