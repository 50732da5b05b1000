"""Cores: the packed path against the stepping path and against torch's own LSTM."""

import pytest
import torch
from torch import nn

from etalumis.networks.cores import LSTM, core
from etalumis.networks.errors import NetworkConfigError

SIZES = (5, 5, 3, 1)


def packed_input(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(sum(SIZES), width, generator=generator, dtype=torch.float64, requires_grad=True)
    static = torch.randn(SIZES[0], width, generator=generator, dtype=torch.float64, requires_grad=True)
    return tokens, static


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_packed_lstm_equals_torchs(layers: int) -> None:
    ours = LSTM(6, layers).double()
    theirs = nn.LSTM(24, 6, layers).double()
    with torch.no_grad():
        for layer in range(layers):
            getattr(theirs, f"weight_hh_l{layer}").copy_(ours.recurrent[layer].t())
            getattr(theirs, f"bias_hh_l{layer}").zero_()
            weight, bias = torch.eye(24), ours.bias
            if layer:
                weight, bias = ours.between[layer - 1].weight, ours.between[layer - 1].bias
            getattr(theirs, f"weight_ih_l{layer}").copy_(weight)
            getattr(theirs, f"bias_ih_l{layer}").copy_(bias)
    tokens, static = packed_input(24)
    upstream = torch.randn(len(tokens), 6, dtype=torch.float64)
    found = ours(tokens, static, SIZES)
    (found * upstream).sum().backward()
    grads = [tokens.grad, static.grad, *(p.grad for p in ours.recurrent)]

    tokens.grad = static.grad = None
    joined = tokens + torch.cat([static[:n] for n in SIZES])
    expected, _ = theirs(nn.utils.rnn.PackedSequence(joined, torch.tensor(SIZES)))
    (expected.data * upstream).sum().backward()
    wanted = [tokens.grad, static.grad, *(getattr(theirs, f"weight_hh_l{k}").grad.t() for k in range(layers))]
    torch.testing.assert_close(found, expected.data)
    torch.testing.assert_close(grads, wanted)


@pytest.mark.parametrize("layers", [1, 3])
def test_stepping_equals_packed(layers: int) -> None:
    ours = LSTM(6, layers).double()
    tokens, static = packed_input(24)
    expected = ours(tokens, static, SIZES).detach()
    state = ours.state()
    slots = torch.tensor([7, 2, 0, 5, 3])  # of the five traces, in any places
    state.begin(slots, torch.zeros(1, 24).double())
    state.step(slots, torch.ones(5, 24).double())  # forgotten when executions begin anew
    state.begin(slots, static.detach())
    start = 0
    for count in SIZES:
        found = state.step(slots[:count], tokens[start : start + count].detach())
        torch.testing.assert_close(found, expected[start : start + count])
        start += count


def test_slots_are_independent_of_each_other() -> None:
    ours = LSTM(4).double()
    static = torch.randn(1, 16).double()
    tokens = torch.randn(6, 16).double()
    alone, together = ours.state(), ours.state()
    alone.begin(torch.tensor([0]), static)
    together.begin(torch.tensor([0, 1]), static)
    for step in range(3):
        together.step(torch.tensor([1]), tokens[3 + step][None])
        torch.testing.assert_close(
            alone.step(torch.tensor([0]), tokens[step][None]), together.step(torch.tensor([0]), tokens[step][None])
        )


def test_unknown_cores_are_named() -> None:
    assert core({"kind": "lstm", "hidden": 8, "layers": 2}).size == 8
    for config in ({"kind": "abacus"}, {"kind": "lstm", "beads": 3}, {"kind": "lstm", "layers": 0}):
        with pytest.raises(NetworkConfigError):
            core(config)
