"""Optimisers: equal to torch's over separate modules with None gradients; LARC, clipping, resuming, growing."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from etalumis.execution import TraceBatch
from etalumis.networks import InferenceNetwork, banks_of, pack, rows_of
from etalumis.networks.banks import Bank, normal
from etalumis.optim import (
    Accumulation,
    MultiStep,
    PolynomialDecay,
    RowAdam,
    RowOptimizer,
    RowSGD,
    clip_grad_norm,
    scaled_lr,
)
from network_models import SMALL, every_family, gradients, small, traces

ROWS = 11


class Rows(nn.Module):
    """Two banks over several pages, one of large and one of small rows, and two dense parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.large = Bank((30, 20), normal(1.0), 1)
        self.small = Bank((5,), normal(1.0), 2)
        for bank in (self.large, self.small):
            bank.capacity = 4
            bank.grow(ROWS)
        self.dense = nn.Linear(3, 2)
        self.unused = nn.Parameter(torch.ones(2))
        self.double()


class Separate(nn.Module):
    """The same numbers as a parameter per row."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.large = nn.ParameterList(nn.Parameter(row) for row in rows.large.rows)
        self.small = nn.ParameterList(nn.Parameter(row) for row in rows.small.rows)
        self.dense = copy.deepcopy(rows.dense)
        self.unused = nn.Parameter(torch.ones(2).double())


def gradients_of_steps(steps: int) -> Iterator[dict[str, dict[int, Tensor] | Tensor]]:
    """Random gradients on random rows; some rows never come, some steps have no gradient for a bank."""
    rng = np.random.default_rng(0)
    for step in range(steps):
        made: dict[str, dict[int, Tensor] | Tensor] = {"dense": torch.from_numpy(rng.normal(size=(2, 3)))}
        for name, shape in (("large", (30, 20)), ("small", (5,))):
            ids = rng.choice(ROWS - 1, size=0 if step % 5 == 4 else 4, replace=False)
            made[name] = {int(i): torch.from_numpy(rng.normal(size=shape)) for i in ids}
        yield made


def give(module: nn.Module, made: dict) -> None:
    module.dense.weight.grad = made["dense"].clone()
    for name in ("large", "small"):
        part = getattr(module, name)
        if not isinstance(part, Bank):
            for row, gradient in made[name].items():
                part[row].grad = gradient.clone()
        elif made[name]:
            part.accumulate(torch.tensor(list(made[name])), torch.stack(list(made[name].values())))


def assert_equal(rows: Rows, separate: Separate) -> None:
    torch.testing.assert_close(rows.large.rows, torch.stack(list(separate.large)), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(rows.small.rows, torch.stack(list(separate.small)), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(rows.dense.weight, separate.dense.weight, rtol=1e-12, atol=1e-13)


Make = Callable[[nn.Module], torch.optim.Optimizer]
PAIRS: dict[str, tuple[Make, Make]] = {
    "Adam": (lambda m: RowAdam(m, lr=0.1), lambda m: torch.optim.Adam(m.parameters(), lr=0.1)),
    "AdamW": (
        lambda m: RowAdam(m, lr=0.1, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1),
        lambda m: torch.optim.AdamW(m.parameters(), lr=0.1, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1),
    ),
    "SGD": (lambda m: RowSGD(m, lr=0.1), lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)),
    "plain SGD": (lambda m: RowSGD(m, lr=0.1, momentum=0.0), lambda m: torch.optim.SGD(m.parameters(), lr=0.1)),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_rows_move_as_separate_parameters_whose_gradient_is_none(pair: tuple[Make, Make]) -> None:
    rows = Rows()
    separate = Separate(rows)
    ours, theirs = pair[0](rows), pair[1](separate)
    for made in gradients_of_steps(20):
        for module, optimizer in ((rows, ours), (separate, theirs)):
            optimizer.zero_grad()
            give(module, made)
            optimizer.step()
        assert all(page.grad is None for bank in (rows.large, rows.small) for page in bank.pages)
    assert_equal(rows, separate)


def test_large_rows_equal_torchs_fused_adam_to_the_last_bit() -> None:
    rows = Rows().float()
    separate = nn.ParameterList(nn.Parameter(row) for row in rows.large.rows)
    ours = RowAdam(rows, lr=0.1, weight_decay=0.1)
    theirs = torch.optim.AdamW(separate.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    for made in gradients_of_steps(20):
        ours.zero_grad()
        theirs.zero_grad()
        chosen = {row: gradient.float() for row, gradient in made["large"].items()}
        for row, gradient in chosen.items():
            separate[row].grad = gradient.clone()
        if chosen:
            rows.large.accumulate(torch.tensor(list(chosen)), torch.stack(list(chosen.values())))
        ours.step()
        theirs.step()
    assert torch.equal(rows.large.rows, torch.stack(list(separate)))


@pytest.mark.parametrize("larc", ["update", "gradient"])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_larc_limits_the_step_of_each_layer(larc: str, kind: str) -> None:
    """Against the formula, layer by layer: r = min(trust ‖w‖ / (‖u‖ + ε) / lr, 1), 1 where a norm is 0."""
    lr, trust, decay = 0.05, 0.01, 0.1
    rows = Rows()
    with torch.no_grad():
        rows.small.row(3).zero_()
    separate = Separate(rows)
    ours: RowOptimizer
    if kind == "adam":
        ours = RowAdam(rows, lr=lr, weight_decay=decay, larc=larc, trust=trust)
        one: Make = lambda m: torch.optim.Adam(m.parameters(), lr=1.0)  # noqa: E731
    else:
        ours = RowSGD(rows, lr=lr, weight_decay=decay, larc=larc, trust=trust)
        one = lambda m: torch.optim.SGD(m.parameters(), lr=1.0, momentum=0.9)  # noqa: E731
    theirs = one(separate)
    limited = 0
    for made in gradients_of_steps(8):
        for module, optimizer in ((rows, ours), (separate, theirs)):
            optimizer.zero_grad()
            give(module, made)
        ours.step()
        weights = {p: p.detach().clone() for p in separate.parameters() if p.grad is not None}
        measured = {p: p.grad.clone() for p in weights if p.grad is not None}
        theirs.step()  # at rate 1: minus the update
        for p, w in weights.items():
            u = w - p.detach()
            norm = float((u if larc == "update" else measured[p]).norm())
            r = 1.0
            if float(w.norm()) and norm:
                r = min(trust * float(w.norm()) / (norm + 1e-8) / lr, 1.0)
            limited += r < 1.0
            p.data.copy_(w * (1.0 - lr * decay) - lr * r * u)
    assert limited > 20
    torch.testing.assert_close(rows.large.rows, torch.stack(list(separate.large)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rows.small.rows, torch.stack(list(separate.small)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rows.dense.weight, separate.dense.weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [PAIRS["AdamW"][0], PAIRS["SGD"][0]], ids=["Adam", "SGD"])
def test_resumed_equals_uninterrupted(make: Make, tmp_path: Path) -> None:
    steps = list(gradients_of_steps(12))
    rows = Rows()
    optimizer = make(rows)

    def go(module: Rows, optimizer: torch.optim.Optimizer, part: list) -> None:
        for made in part:
            optimizer.zero_grad()
            give(module, made)
            optimizer.step()

    go(rows, optimizer, steps[:6])
    torch.save({"model": rows.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    go(rows, optimizer, steps[6:])

    again = Rows()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    stored = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(stored["model"])
    resumed = make(again)
    resumed.load_state_dict(stored["optimizer"])
    go(again, resumed, steps[6:])
    for mine, other in zip(rows.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine[:ROWS], other[:ROWS])


def test_state_holds_used_rows_with_their_step_counts() -> None:
    rows = Rows()
    optimizer = RowAdam(rows, lr=0.1)
    for made in gradients_of_steps(10):
        optimizer.zero_grad()
        give(rows, made)
        optimizer.step()
    state = optimizer.state_dict()["state"]
    assert set(state) == {"large", "small", "dense.weight"}
    assert state["large"]["exp_avg"].shape == (ROWS, 30, 20)
    counts = [0] * ROWS
    for made in gradients_of_steps(10):
        for row in made["large"]:
            counts[int(row)] += 1
    assert state["large"]["step"].tolist() == counts
    assert counts[-1] == 0 < max(counts) < 10


def test_state_of_another_network_or_optimiser_is_refused() -> None:
    rows = Rows()
    optimizer = RowAdam(rows)
    give(rows, next(gradients_of_steps(1)))
    optimizer.step()
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match="does not fit"):
        RowSGD(Rows()).load_state_dict(state)
    with pytest.raises(ValueError, match="does not fit"):
        RowAdam(nn.Linear(2, 2)).load_state_dict(state)
    broken = {**state["state"], "dense.weight": {k: torch.zeros(7) for k in state["state"]["dense.weight"]}}
    with pytest.raises(ValueError, match="another network"):
        RowAdam(Rows()).load_state_dict({**state, "state": broken})


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda m: RowAdam(m, larc="both"), "larc is one of"),
        (lambda m: RowAdam(m, lr=-1.0), "lr and weight_decay"),
        (lambda m: RowAdam(m, betas=(1.0, 0.9)), "betas"),
        (lambda m: RowSGD(m, momentum=1.0), "momentum"),
        (lambda m: PolynomialDecay(RowSGD(m), 0), "iterations"),
        (lambda m: MultiStep(RowSGD(m), 0), "iterations"),
        (lambda m: MultiStep(RowSGD(m), 9, milestones=(0.5, 0.2)), "rising"),
        (lambda m: MultiStep(RowSGD(m), 9, milestones=(3,)), "shares of the training"),
    ],
)
def test_wrong_settings_are_named(make: Callable[[nn.Module], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(Rows())


# --- with the network -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch() -> TraceBatch:
    return traces(every_family, 60)


def train(network: InferenceNetwork, optimizer: RowOptimizer, batch: TraceBatch, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        part = batch.select(np.random.default_rng(step).integers(0, len(batch), 8))
        network.loss(pack(part, network.layout, epoch=step))[0].backward()
        clip_grad_norm(optimizer, 5.0)
        optimizer.step()


@pytest.mark.parametrize("head", ["per_address", "shared", "film"])
def test_a_network_that_grows_while_it_trains_equals_one_generated_ahead(
    batch: TraceBatch, head: str, tmp_path: Path
) -> None:
    """Rows that have not been met yet do not move: adding them late changes nothing, moments included, also where
    weights and moments have been on disk in between."""
    rows = rows_of(batch)
    k = np.array([int(batch.draws("k")[1][n]) for n in range(len(batch))])
    early = batch.select(np.flatnonzero(k == 2))
    settings = {**SMALL, "head": {"kind": head, "hidden": 8}}
    ahead, late = (InferenceNetwork(settings, {"y": (), "pair": (2,)}, "test").double() for _ in range(2))
    ahead.grow(rows_of(early))
    ahead.grow(rows)
    late.grow(rows_of(early))
    assert len(late.layout) < len(ahead.layout)
    assert set(late.heads) < set(ahead.heads)
    for network in (ahead, late):
        network.standardise(batch)
    optimizers = [RowAdam(network, lr=0.01) for network in (ahead, late)]
    for network, optimizer in zip((ahead, late), optimizers, strict=True):
        train(network, optimizer, early, range(5))
    torch.save([late.state_dict(), optimizers[1].state_dict()], tmp_path / "state.pt")
    states = torch.load(tmp_path / "state.pt", weights_only=True)
    late = InferenceNetwork(settings, {"y": (), "pair": (2,)}, "test").double()
    late.load_state_dict(states[0])
    optimizers[1] = RowAdam(late, lr=0.01)
    optimizers[1].load_state_dict(states[1])
    late.grow(rows)
    for network, optimizer in zip((ahead, late), optimizers, strict=True):
        train(network, optimizer, batch, range(5, 10))
    assert late.layout.rows == ahead.layout.rows
    mine, other = late.state_dict(), ahead.state_dict()
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, other[name], rtol=1e-9, atol=1e-12)


def test_clipping_counts_rows(batch: TraceBatch) -> None:
    network = small(batch)
    network.loss(pack(batch, network.layout))[0].backward()
    before = gradients(network)
    norm = math.sqrt(sum(float(g.square().sum()) for g in before.values()))
    banks = math.sqrt(sum(float(before[name].square().sum()) for name in banks_of(network)))
    assert banks > 0.3 * norm
    assert float(clip_grad_norm(network, math.inf)) == pytest.approx(norm)
    assert float(clip_grad_norm(RowAdam(network), norm / 3.0)) == pytest.approx(norm)
    for name, gradient in gradients(network).items():
        torch.testing.assert_close(gradient, before[name] / 3.0, rtol=1e-6, atol=1e-12)
    next(network.parameters()).grad = torch.full_like(next(network.parameters()), math.nan)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        clip_grad_norm(network, 1.0)
    network.zero_grad()
    assert float(clip_grad_norm(network, 1.0)) == 0.0


def test_zero_grad_clears_rows_and_step_takes_a_closure(batch: TraceBatch) -> None:
    network = small(batch)
    optimizer = RowAdam(network)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss, _ = network.loss(pack(batch, network.layout))
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert isinstance(first, Tensor)
    assert closure().item() < first.item()
    assert any(bank.gradient is not None for bank in banks_of(network).values())
    optimizer.zero_grad()
    assert all(bank.gradient is None for bank in banks_of(network).values())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("power", [1, 2])
def test_polynomial_decay(power: int) -> None:
    optimizer = RowSGD(Rows(), lr=1.0)
    schedule = PolynomialDecay(optimizer, 10, power=power, end_lr=0.1)
    rates = []
    for _ in range(13):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [0.1 + 0.9 * max(0.0, 1 - i / 10) ** power for i in range(13)]
    assert rates == pytest.approx(expected)
    again = PolynomialDecay(RowSGD(Rows(), lr=1.0), 10, power=power, end_lr=0.1)
    again.load_state_dict(schedule.state_dict())
    assert again.last_epoch == 13


def test_multi_step() -> None:
    optimizer = RowSGD(Rows(), lr=1.0)
    schedule = MultiStep(optimizer, 10, milestones=(0.2, 0.75), gamma=0.5)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [1.0] * 2 + [0.5] * 6 + [0.25] * 4
    again = RowSGD(Rows(), lr=4.0)
    MultiStep(again, 20, milestones=(0.5,), gamma=0.5).load_state_dict(schedule.state_dict())
    assert again.param_groups[0]["lr"] == 2.0, "a longer training with another rate goes by its own settings"


@pytest.mark.parametrize(
    ("rule", "factor"),
    [("none", 1.0), ("sub_square_root", 2.0), ("square_root", 4.0), ("linear", 16.0), (0.75, 8.0), (0, 1.0)],
)
def test_learning_rates_scale_with_the_minibatch(rule: str | float, factor: float) -> None:
    assert scaled_lr(1e-3, rule, minibatch=4096, reference=256) == pytest.approx(1e-3 * factor)


@pytest.mark.parametrize(
    ("rule", "reference", "match"),
    [
        ("cubic", 64, "give none, sub_square_root, square_root, linear"),
        (2.0, 64, "exponent of 0 to 1"),
        ("linear", None, "needs reference_minibatch"),
        ("linear", 0, "at least 1"),
    ],
)
def test_scaling_that_can_not_be_is_named(rule: str | float, reference: int | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        scaled_lr(1e-3, rule, 256, reference)


@pytest.mark.parametrize("sizes", [(20, 20, 20), (31, 4, 25), (60,), (17, 43)])
def test_accumulated_gradients_are_those_of_the_joined_minibatch(batch: TraceBatch, sizes: tuple[int, ...]) -> None:
    """Parts of any size, of which trainers take the mean of the means; also fewer parts than were announced."""
    network = small(batch)
    optimizer = RowAdam(network)
    network.loss(pack(batch, network.layout))[0].backward()
    joined = gradients(network)
    for announced in {len(sizes), 4}:
        optimizer.zero_grad()
        accumulation = Accumulation()
        start = 0
        for size in sizes:
            part = pack(batch.select(np.arange(start, start + size)), network.layout)
            (network.loss(part)[0] / announced * accumulation.add(part.num_traces)).backward()
            start += size
        assert accumulation.traces == len(batch) == start
        accumulation.finish(optimizer, announced)
        assert accumulation.traces == 0
        found = gradients(network)
        assert sum(float(gradient.norm()) for gradient in found.values()) > 1.0
        for name, gradient in joined.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_a_step_looks_for_parameters_only_after_growth(batch: TraceBatch) -> None:
    network = small(batch)
    optimizer = RowAdam(network)
    before = optimizer.parts.dense
    train(network, optimizer, batch, range(2))
    assert optimizer.parts.dense is before
    for bank in banks_of(network).values():
        bank.grow(bank.capacity)
    assert optimizer.parts.dense is not before
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in network.parameters()}


def test_state_of_small_rows_follows_their_pages() -> None:
    """Moments of small rows of all pages stand in one table, which grows with the pages."""
    rows = Rows()
    optimizer = RowAdam(rows, lr=0.1)
    steps = list(gradients_of_steps(6))
    for made in steps:
        optimizer.zero_grad()
        give(rows, made)
        optimizer.step()
    before = optimizer.state_dict()["state"]["small"]
    rows.small.grow(2 * rows.small.capacity)
    give(rows, steps[0])
    optimizer.zero_grad()
    rows.small.accumulate(torch.tensor([len(rows.small) - 1, 0]), torch.ones(2, 5).double())
    optimizer.step()
    after = optimizer.state_dict()["state"]["small"]
    assert len(after["step"]) == ROWS + 2 * rows.small.capacity
    assert after["step"][-1] == 1
    assert after["step"][0] == before["step"][0] + 1
    assert torch.equal(after["exp_avg"][1:ROWS], before["exp_avg"][1:])
