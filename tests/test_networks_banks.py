"""Banks: rows, owned gradients, pages, grouped products against separate modules."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from etalumis.networks.banks import Bank, banks_of, normal, zeros
from etalumis.networks.grouped import Groups, Run, batched_linear, gathered_linear, grouped_linear


def bank(shape: tuple[int, ...], rows: int, capacity: int | None = None, seed: int = 0) -> Bank:
    made = Bank(shape, normal(1.0), seed)
    if capacity is not None:
        made.capacity = capacity
    made.grow(rows)
    return made.double()


def layers(weight: Bank, bias: Bank) -> list[nn.Linear]:
    """The same layers as separate modules."""
    made = []
    for row in range(len(weight)):
        layer = nn.Linear(*weight.shape, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(weight.row(row).t())
            layer.bias.copy_(bias.row(row))
        made.append(layer)
    return made


GROUPS = Groups((1, 4, 5, 9), (3, 1, 7, 2))  # rows of three pages of four


@pytest.mark.parametrize("function", [grouped_linear, gathered_linear])
@pytest.mark.parametrize("capacity", [4, 100])
def test_grouped_linear_equals_separate_modules(capacity: int, function: Callable[..., Tensor]) -> None:
    weight, bias = bank((6, 5), 11, capacity), bank((5,), 11, capacity, seed=1)
    modules = layers(weight, bias)
    x = torch.randn(13, 6, dtype=torch.float64, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    upstream = torch.randn(13, 5, dtype=torch.float64)

    y = function(x, weight, bias, GROUPS)
    y.backward(upstream)
    parts = other.split(GROUPS.sizes)
    expected = torch.cat([modules[row](part) for row, part in zip(GROUPS.rows, parts, strict=True)])
    expected.backward(upstream)

    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x.grad, other.grad)
    assert weight.gradient is not None
    assert bias.gradient is not None
    assert weight.gradient.ids.tolist() == bias.gradient.ids.tolist() == list(GROUPS.rows)
    for place, row in enumerate(GROUPS.rows):
        torch.testing.assert_close(weight.gradient.rows[place], modules[row].weight.grad.t())
        torch.testing.assert_close(bias.gradient.rows[place], modules[row].bias.grad)
    assert all(page.grad is None for part in (weight, bias) for page in part.pages)
    assert all(module.weight.grad is None for row, module in enumerate(modules) if row not in GROUPS.rows)


@pytest.mark.parametrize("sizes", [(2, 2, 2, 5, 5, 1), (1,), (4, 3, 2, 1), (3, 3, 3)])
def test_batched_linear_equals_a_product_per_group(sizes: tuple[int, ...]) -> None:
    groups = Groups(tuple(range(len(sizes))), sizes)
    x = torch.randn(sum(sizes), 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(len(sizes), 6, 5, dtype=torch.float64, requires_grad=True)
    expected = torch.cat([part @ w[k] for k, part in enumerate(x.split(sizes))])
    torch.testing.assert_close(batched_linear(x, w, groups), expected)
    assert torch.autograd.gradcheck(lambda a, b: batched_linear(a, b.transpose(1, 2), groups), (x, w.mT.detach()))
    assert torch.autograd.gradcheck(lambda a, b: batched_linear(a, b, groups), (x, w))


def test_neighbouring_groups_of_one_size_are_one_run() -> None:
    groups = Groups((7, 2, 9, 4, 1), (2, 2, 5, 2, 2))
    assert groups.runs == (Run(0, 0, 2, 2), Run(2, 4, 1, 5), Run(3, 9, 2, 2))
    assert Groups((), ()).runs == ()


def test_gradients_accumulate_over_uses_and_backward_passes_until_cleared() -> None:
    table = bank((3,), 10, 4)
    dense = table.rows.requires_grad_()
    for ids in ([0, 5, 9], [9, 2], [0, 5, 9]):
        scale = torch.randn(len(ids), 3, dtype=torch.float64)
        (table(torch.tensor(ids)) * scale).sum().backward()
        (dense[ids] * scale).sum().backward()
    assert table.gradient is not None
    assert table.gradient.ids.tolist() == [0, 2, 5, 9]
    assert dense.grad is not None
    torch.testing.assert_close(table.gradient.rows, dense.grad[[0, 2, 5, 9]])
    assert not dense.grad[[1, 3, 4, 6, 7, 8]].any()
    table.clear_gradient()
    assert table.gradient is None


def test_the_gradient_is_the_banks_own() -> None:
    """Autograd may reuse what it hands out: an expanded gradient must not alias, nor a kept one change."""
    table = bank((3,), 4)
    for _ in range(2):
        table(torch.tensor([1, 2])).sum().backward()  # the upstream gradient is an expanded 1
    assert table.gradient is not None
    kept = table.gradient.rows.clone()
    torch.testing.assert_close(kept, torch.full((2, 3), 2.0, dtype=torch.float64))
    table.clear_gradient()
    table(torch.tensor([1, 2])).sum().backward()
    assert torch.equal(kept, torch.full((2, 3), 2.0, dtype=torch.float64))


def test_growing_adds_pages_and_never_moves_one() -> None:
    table = bank((2, 3), 5, 4)
    pointers = [page.data_ptr() for page in table.pages]
    loss = (table(torch.tensor([0, 4])) ** 2).sum()
    rows = table.rows
    table.grow(20)
    assert len(table) == 25
    assert len(table.pages) == 7
    assert [page.data_ptr() for page in table.pages][:2] == pointers
    assert torch.equal(table.rows[:5], rows)
    loss.backward()  # the old graph lives
    assert table.gradient is not None
    torch.testing.assert_close(table.gradient.rows, 2.0 * rows[[0, 4]])
    assert all(page.dtype == torch.float64 for page in table.pages)


def test_rows_depend_on_seed_and_number_only() -> None:
    at_once, in_steps, other = bank((3,), 7, 4), Bank((3,), normal(1.0)), bank((3,), 7, 4, seed=1)
    in_steps.grow(2)
    in_steps.grow(5)
    torch.testing.assert_close(at_once.rows.float(), in_steps.rows)
    assert not torch.isclose(at_once.rows, other.rows).any()
    assert len(torch.unique(at_once.rows)) == 21


def test_state_dictionary_holds_used_rows_and_loading_makes_room() -> None:
    trained = nn.ModuleDict({"a": bank((2, 3), 9, 4), "b": bank((5,), 1)})
    state = trained.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {"a.rows": (9, 2, 3), "b.rows": (1, 5)}
    fresh = nn.ModuleDict({"a": Bank((2, 3), zeros), "b": Bank((5,), zeros)}).double()
    fresh.load_state_dict(state)
    for name, part in banks_of(trained).items():
        assert torch.equal(banks_of(fresh)[name].rows, part.rows)
    with pytest.raises(RuntimeError, match=r"b\.rows has shape"):
        fresh.load_state_dict({**state, "b.rows": torch.zeros(1, 4)})
    with pytest.raises(RuntimeError, match="at least 9"):
        fresh.load_state_dict({**state, "a.rows": torch.zeros(3, 2, 3)})
    with pytest.raises(RuntimeError, match="Missing"):
        fresh.load_state_dict({"a.rows": state["a.rows"]})


def test_a_frozen_bank_gets_no_gradient_but_passes_it_on() -> None:
    weight, bias = bank((6, 5), 11, 4), bank((5,), 11, 4)
    for part in (weight, bias):
        part.freeze()
        part.grow(2)
    assert not any(page.requires_grad for page in weight.pages)
    x = torch.randn(13, 6, dtype=torch.float64, requires_grad=True)
    grouped_linear(x, weight, bias, GROUPS).sum().backward()
    assert weight.gradient is None
    assert bias.gradient is None
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(("sizes", "rough"), [((3, 1, 7, 2), False), ((40, 30, 1, 9), True)])
def test_autocast_computes_in_its_precision_where_it_pays(sizes: tuple[int, ...], rough: bool) -> None:
    """On a CPU that is where addresses have many draws; outputs and gradients are in the banks' precision."""
    weight, bias = bank((6, 5), 11, 4).float(), bank((5,), 11, 4).float()
    x, groups = torch.randn(sum(sizes), 6), Groups((1, 4, 5, 9), sizes)
    exact = grouped_linear(x, weight, bias, groups)
    exact.sum().backward()
    assert weight.gradient is not None
    gradient = weight.gradient.rows.clone()
    weight.clear_gradient()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = grouped_linear(x, weight, bias, groups)
    assert torch.equal(y, exact) != rough
    torch.testing.assert_close(y, exact, rtol=0.05, atol=0.05)
    y.sum().backward()
    assert weight.gradient.rows.dtype == torch.float32
    torch.testing.assert_close(weight.gradient.rows, gradient, rtol=0.05, atol=0.3)


def test_a_gradient_uses_the_memory_of_the_one_cleared_before() -> None:
    table = bank((30,), 8)
    places = []
    for ids in ([0, 1, 2, 5], [3, 1], [7, 6, 5]):
        table(torch.tensor(ids)).sum().backward()
        assert table.gradient is not None
        assert torch.equal(table.gradient.rows, torch.ones(len(ids), 30, dtype=torch.float64))
        places.append(table.gradient.rows.data_ptr())
        table.clear_gradient()
    assert len(set(places)) == 1
    assert len(pickle.dumps(copy.deepcopy(table)._memory)) < 100
    table(torch.tensor([0, 1])).sum().backward()
    table(torch.tensor([1, 2])).sum().backward()  # while a gradient is there, the next has its own memory
    assert table.gradient is not None
    assert table.gradient.rows[:, 0].tolist() == [1.0, 2.0, 1.0]


def test_banks_copy_and_move_with_their_module() -> None:
    table = bank((3,), 6, 4)
    twin: Tensor = copy.deepcopy(table)(torch.tensor([5, 0]))
    assert torch.equal(twin, table(torch.tensor([5, 0])))
    assert table.float().rows.dtype == torch.float32
    table.grow(6)
    assert {page.dtype for page in table.pages} == {torch.float32}
