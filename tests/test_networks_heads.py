"""Heads: outputs against their formulas address by address, gradients, what they start as and what they keep."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from etalumis.networks.banks import banks_of
from etalumis.networks.grouped import Groups
from etalumis.networks.heads import HEADS, Head
from etalumis.networks.packing import DrawGroup

INPUTS, OUTPUTS, EMBEDDING, ROWS = 6, 5, 4, 9
KINDS = sorted(HEADS)


def group(rows: tuple[int, ...] = (7, 2, 4, 0), sizes: tuple[int, ...] = (1, 3, 3, 2)) -> DrawGroup:
    """Draws of some rows; columns and positions are none of a head's business."""
    count = len(rows)
    return DrawGroup(
        head="mixture",
        kind="mixture",
        groups=Groups(rows, sizes),
        row_ids=torch.tensor(rows),
        address=torch.arange(count),
        member=torch.repeat_interleave(torch.arange(count), torch.tensor(sizes)),
        position=torch.arange(sum(sizes)),
        columns={},
    )


def made(kind: str, shaken: bool = True) -> Head:
    torch.manual_seed(0)
    head = HEADS[kind](INPUTS, OUTPUTS, EMBEDDING, 8, 3)
    head.grow(ROWS)
    head = head.double()
    if shaken:
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return head


def one_by_one(head: Head, kind: str, states: Tensor, draws: DrawGroup, embeddings: Tensor) -> Tensor:
    """The formulas of the docstrings, a draw at a time."""
    banks = {name: bank.rows for name, bank in banks_of(head).items()}
    out = []
    for x, member in zip(states, draws.member.tolist(), strict=True):
        row = {name: values[draws.groups.rows[member]] for name, values in banks.items()}
        if kind == "per_address":
            hidden = torch.relu(x @ row["weight1"] + row["bias1"])
            out.append(hidden @ row["weight2"] + row["bias2"])
        elif kind == "shared":
            hidden = torch.relu(head.layer(x) + head.condition(embeddings[member]))
            out.append(hidden @ row["weight2"] + row["bias2"])
        else:
            scale, shift, down, up = row["modulation"].split([8, 8, 32, 32])
            hidden = torch.relu(head.layer1(x) * (1.0 + scale) + shift)
            weight = head.layer2.weight + (down.view(8, 4) @ up.view(4, 8)).t()
            out.append(weight @ hidden + head.layer2.bias)
    return torch.stack(out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(1, 3, 3, 2), (2, 2, 2, 2), (1, 1, 1, 1)])
def test_heads_are_their_formulas(kind: str, sizes: tuple[int, ...]) -> None:
    head, draws = made(kind), group(sizes=sizes)
    states = torch.randn(sum(sizes), INPUTS, dtype=torch.float64)
    embeddings = torch.randn(4, EMBEDDING, dtype=torch.float64)
    torch.testing.assert_close(head(states, draws, embeddings), one_by_one(head, kind, states, draws, embeddings))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_heads(kind: str) -> None:
    """Of the states by differences; of the rows and the shared layers by those of the formulas."""
    head, draws = made(kind), group()
    states = torch.randn(9, INPUTS, dtype=torch.float64, requires_grad=True)
    embeddings = torch.randn(4, EMBEDDING, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, e: head(x, draws, e), (states, embeddings))

    head.zero_grad()
    for bank in banks_of(head).values():
        bank.clear_gradient()
    upstream = torch.randn(9, head.outputs, dtype=torch.float64)
    (head(states, draws, embeddings) * upstream).sum().backward()
    step = 1e-6
    for bank in banks_of(head).values():
        assert bank.gradient is not None
        assert bank.gradient.ids.tolist() == list(draws.groups.rows)
        for row, found in zip(draws.groups.rows, bank.gradient.rows, strict=True):
            direction = torch.randn_like(found)
            values = []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    bank.row(row).add_(direction, alpha=sign * step)
                    values.append((head(states, draws, embeddings) * upstream).sum())
                    bank.row(row).sub_(direction, alpha=sign * step)
            numeric = (values[0] - values[1]) / (2.0 * step)
            torch.testing.assert_close((found * direction).sum(), numeric, rtol=1e-5, atol=1e-7)


def test_a_film_head_starts_as_one_head_for_all_addresses() -> None:
    head, draws = made("film", shaken=False), group()
    states = torch.randn(1, INPUTS, dtype=torch.float64).expand(9, -1)
    out = head(states, draws, torch.zeros(4, EMBEDDING, dtype=torch.float64))
    torch.testing.assert_close(out, out[:1].expand_as(out))
    out.square().sum().backward()
    assert head.modulation.gradient is not None
    moving = head.modulation.gradient.rows.split(head.parts, 1)
    assert [bool(part.any()) for part in moving] == [True, True, False, True]  # U moves once V has


@pytest.mark.parametrize(("kind", "kilobytes"), [("per_address", 593), ("shared", 35), ("film", 7)])
def test_what_heads_of_the_papers_size_keep_for_an_address(kind: str, kilobytes: int) -> None:
    head = HEADS[kind](512, 30, 72, None, 0)
    numbers = sum(math.prod(bank.shape) for bank in banks_of(head).values())
    assert round(4 * numbers / 1000) == kilobytes


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_heads_stay_close_and_gradients_are_in_the_parameters_precision(kind: str) -> None:
    head, draws = made(kind).float(), group(sizes=(40, 20, 20, 3))
    states, embeddings = torch.randn(83, INPUTS), torch.randn(4, EMBEDDING)
    exact = head(states, draws, embeddings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(states, draws, embeddings)
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)
    rough.float().sum().backward()
    assert {bank.gradient.rows.dtype for bank in banks_of(head).values() if bank.gradient} == {torch.float32}
    assert {p.grad.dtype for p in head.parameters() if p.grad is not None} <= {torch.float32}
