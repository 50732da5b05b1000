"""Cores: the packed path against the stepping path, against torch's own recurrent layers, and causality."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from etalumis.networks.cores import GRU, LSTM, Core, Transformer, core
from etalumis.networks.cores.transformer import Rectangles
from etalumis.networks.errors import NetworkConfigError

SIZES = (5, 5, 3, 1)
LONG = (9, 8, 8, 6, 6, 5, 3, 3, 2, 2, *[1] * 12)  # one long trace among short ones

KINDS: list[dict[str, Any]] = [
    {"kind": "lstm", "hidden": 6, "layers": 1},
    {"kind": "lstm", "hidden": 6, "layers": 3},
    {"kind": "gru", "hidden": 6, "layers": 1},
    {"kind": "gru", "hidden": 6, "layers": 4},
    {"kind": "transformer", "hidden": 8, "layers": 1, "heads": 2, "observation": "prefix"},
    {"kind": "transformer", "hidden": 8, "layers": 3, "heads": 4, "feedforward": 2, "observation": "prefix"},
    {"kind": "transformer", "hidden": 8, "layers": 2, "heads": 1},
]
every_core = pytest.mark.parametrize("config", KINDS, ids=lambda c: "-".join(str(v) for v in c.values()))


def made(config: dict[str, Any]) -> Core:
    """A core in double precision whose every parameter counts."""
    torch.manual_seed(3)
    module = core(config).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def packed_input(width: int, sizes: tuple[int, ...] = SIZES, more: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens, and static vectors of the traces and of ``more`` without draws."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(sum(sizes), width, generator=generator, dtype=torch.float64, requires_grad=True)
    static = torch.randn(sizes[0] + more, width, generator=generator, dtype=torch.float64, requires_grad=True)
    return tokens, static


def recurrent_layers(ours: LSTM | GRU, theirs: nn.RNNBase, size: int) -> None:
    """Weights of ours into torch's."""
    with torch.no_grad():
        for layer in range(ours.layers):
            getattr(theirs, f"weight_hh_l{layer}").copy_(ours.recurrent[layer].t())
            hidden_bias = getattr(theirs, f"bias_hh_l{layer}").zero_()
            if isinstance(ours, GRU):
                hidden_bias[-size:] = ours.reset_bias[layer]
            weight, bias = torch.eye(ours.width), ours.bias
            if layer:
                weight, bias = ours.between[layer - 1].weight, ours.between[layer - 1].bias
            getattr(theirs, f"weight_ih_l{layer}").copy_(weight)
            getattr(theirs, f"bias_ih_l{layer}").copy_(bias)


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_packed_recurrent_cores_equal_torchs(kind: str, layers: int) -> None:
    ours: Any = made({"kind": kind, "hidden": 6, "layers": layers})
    theirs = (nn.LSTM if kind == "lstm" else nn.GRU)(ours.width, 6, layers).double()
    recurrent_layers(ours, theirs, 6)
    tokens, static = packed_input(ours.width)
    upstream = torch.randn(len(tokens), 6, dtype=torch.float64)
    found = ours(tokens, static, SIZES)
    (found * upstream).sum().backward()
    grads = [tokens.grad, static.grad, *(p.grad for p in ours.recurrent)]
    grads += [p.grad for p in getattr(ours, "reset_bias", ())]

    tokens.grad = static.grad = None
    joined = tokens + torch.cat([static[:n] for n in SIZES])
    expected, _ = theirs(nn.utils.rnn.PackedSequence(joined, torch.tensor(SIZES)))
    (expected.data * upstream).sum().backward()
    wanted = [tokens.grad, static.grad, *(getattr(theirs, f"weight_hh_l{k}").grad.t() for k in range(layers))]
    if kind == "gru":
        wanted += [getattr(theirs, f"bias_hh_l{k}").grad[-6:] for k in range(layers)]
    torch.testing.assert_close(found, expected.data)
    torch.testing.assert_close(grads, wanted)


@every_core
@pytest.mark.parametrize("sizes", [SIZES, LONG, (1,), (1, 1, 1), (4,)], ids=len)
def test_stepping_equals_packed(config: dict[str, Any], sizes: tuple[int, ...]) -> None:
    module = made(config)
    tokens, static = packed_input(module.width, sizes, more=2)
    with torch.no_grad():
        expected = module(tokens, static, sizes)
        state = module.state()
        slots = torch.randperm(sizes[0] + 2)[: sizes[0]]  # of the traces, in any places
        state.begin(slots, torch.zeros(1, module.width).double())
        for _ in range(3):
            state.step(slots, torch.ones(len(slots), module.width).double())
        state.begin(slots, static[: sizes[0]])  # what was before is forgotten
        start = 0
        for count in sizes:
            found = state.step(slots[:count], tokens[start : start + count])
            torch.testing.assert_close(found, expected[start : start + count], rtol=1e-10, atol=1e-12)
            start += count


@every_core
def test_slots_join_at_different_times_and_are_used_again(config: dict[str, Any]) -> None:
    """Executions start whenever a slot is free; each has the outputs it has alone."""
    module = made(config)
    rng = torch.Generator().manual_seed(1)
    lengths = [3, 40, 1, 7, 20, 2, 5, 30, 4]
    tokens = [torch.randn(n, module.width, generator=rng).double() for n in lengths]
    static = torch.randn(len(lengths), module.width, generator=rng).double()
    with torch.no_grad():
        alone = [module(t, static[n][None], (1,) * len(t)) for n, t in enumerate(tokens)]
        state, waiting, running = module.state(), list(range(len(lengths))), dict[int, list[int]]()
        done = 0
        for clock in range(200):
            for slot in (5, 0, 9):
                if slot not in running and waiting and clock >= slot:
                    running[slot] = [waiting.pop(0), 0]
                    state.begin(torch.tensor([slot]), static[running[slot][0]][None])
            advancing = [slot for slot in running if (clock + slot) % 3]  # not all wait at the same time
            if advancing:
                now = torch.stack([tokens[running[s][0]][running[s][1]] for s in advancing])
                found = state.step(torch.tensor(advancing), now)
                for slot, output in zip(advancing, found, strict=True):
                    trace, step = running[slot]
                    torch.testing.assert_close(output, alone[trace][step], rtol=1e-10, atol=1e-12)
                    running[slot][1] += 1
                    done += 1
                    if step + 1 == lengths[trace]:
                        del running[slot]
        assert done == sum(lengths)


@every_core
def test_gradients_equal_numerical_ones(config: dict[str, Any]) -> None:
    module = made(config)
    sizes = (3, 2, 2, 1)
    tokens, static = packed_input(module.width, sizes, more=1)
    parameters = list(module.parameters())
    assert torch.autograd.gradcheck(
        lambda *inputs: module(inputs[0], inputs[1], sizes), (tokens, static, *parameters), fast_mode=True
    )
    module(tokens, static, sizes).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 1e-12 for p in parameters)
    assert static.grad is not None
    assert static.grad[3].abs().sum() == 0.0  # of the trace without draws
    assert (static.grad[:3].abs().sum(1) > 0.0).all()


@every_core
def test_nothing_sees_what_comes_later_or_in_other_traces(config: dict[str, Any]) -> None:
    module = made(config)
    tokens, static = packed_input(module.width, LONG)
    rank = torch.cat([torch.arange(n) for n in LONG])
    step = torch.repeat_interleave(torch.arange(len(LONG)), torch.tensor(LONG))
    with torch.no_grad():
        before = module(tokens, static, LONG)
        for changed in (0, 5, 40, sum(LONG) - 1):
            others = tokens.clone()
            others[changed] += torch.linspace(0.5, 2.0, module.width)
            moved = (module(others, static, LONG) - before).abs().amax(1)
            reached = (rank == rank[changed]) & (step >= step[changed])
            assert (moved[~reached] < 1e-12).all()
            assert (moved[reached] > 1e-9).all()
        other = static.clone()
        other[2] += torch.linspace(0.5, 2.0, module.width)
        moved = (module(tokens, other, LONG) - before).abs().amax(1)
        assert (moved[rank != 2] < 1e-12).all()
        assert (moved[rank == 2] > 1e-9).all()


@every_core
def test_traces_without_draws(config: dict[str, Any]) -> None:
    module = made(config)
    assert module(torch.zeros(0, module.width).double(), torch.zeros(3, module.width).double(), ()).shape == (
        0,
        module.size,
    )


def test_attention_equals_the_textbook_formula() -> None:
    """One block against softmax(q k / √d + mask) v with the rotations as complex numbers, trace by trace."""
    module: Any = made({"kind": "transformer", "hidden": 8, "layers": 1, "heads": 2})
    block = module.blocks[0]
    length, heads, pairs = 7, 2, 2
    tokens = torch.randn(length, 8).double()
    static = torch.randn(1, 8).double()
    x = tokens + static + module.start
    h = nn.functional.layer_norm(x, (8,), block.norm_attention.weight, block.norm_attention.bias)
    q, k, v = (part.view(length, heads, 4) for part in block.queries_keys_values(h).chunk(3, 1))
    speed = 10_000.0 ** (-torch.arange(pairs).double() / pairs)
    turn = torch.polar(torch.ones(length, pairs).double(), torch.arange(length)[:, None] * speed)[:, None]
    q, k = (torch.complex(part[..., :pairs], part[..., pairs:]) * turn for part in (q, k))
    scores = torch.einsum("ihp,jhp->hij", q, k.conj()).real / math.sqrt(4.0)
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    attended = torch.einsum("hij,jhf->ihf", scores.softmax(2), v).reshape(length, 8)
    x = x + block.out(attended)
    h = nn.functional.layer_norm(x, (8,), block.norm_feedforward.weight, block.norm_feedforward.bias)
    x = x + block.down(nn.functional.gelu(block.up(h)))
    expected = nn.functional.layer_norm(x, (8,), module.norm.weight, module.norm.bias)
    torch.testing.assert_close(module(tokens, static, (1,) * length), expected)


def test_one_long_trace_costs_its_own_square_only() -> None:
    sizes = torch.tensor([1000] * 4 + [1] * 996)
    shapes = Rectangles(sizes, torch.device("cpu")).shapes
    assert shapes == [(1, 1000), (999, 4)]
    ragged = Rectangles(torch.tensor(LONG), torch.device("cpu")).shapes
    assert sum(n * t for n, t in ragged) < 2 * sum(LONG)


def test_positions_far_beyond_training_stay_finite() -> None:
    module = core({"kind": "transformer", "hidden": 16, "layers": 2, "heads": 2})
    assert isinstance(module, Transformer)
    cosine, sine = module.rotation(torch.tensor([0, 1_000_000]))
    torch.testing.assert_close(cosine**2 + sine**2, torch.ones_like(cosine))
    with torch.no_grad():
        assert module(torch.randn(3000, 16), torch.zeros(1, 16), (1,) * 3000).isfinite().all()


@every_core
def test_half_precision_products_stay_close(config: dict[str, Any]) -> None:
    module = core({**config, "hidden": 32})
    tokens, static = torch.randn(sum(SIZES), module.width), torch.randn(SIZES[0], module.width)
    expected = module(tokens, static, SIZES)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(tokens, static, SIZES)
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()
    found.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("gru", r"core='gru' must have a kind and its settings, such as \{kind: gru, hidden: 64\}"),
        ({"kind": "abacus"}, r"unknown core 'abacus'; the cores are \['gru', 'lstm', 'transformer'\]"),
        ({"kind": "gru", "beads": 3}, r"core 'gru': unknown settings \['beads'\]; it has \['hidden', 'layers'\]"),
        ({"kind": "lstm", "heads": 3}, r"core 'lstm': unknown settings \['heads'\]"),
        ({"kind": "lstm", "layers": 0}, "core 'lstm': layers=0 must be a whole number of at least 1"),
        ({"kind": "lstm", "hidden": 8.5}, "core 'lstm': hidden=8.5"),
        ({"kind": "gru", "layers": 0}, "core 'gru': layers=0 must be a whole number of at least 1"),
        ({"kind": "gru", "hidden": "many"}, "core 'gru': hidden='many'"),
        ({"kind": "transformer", "hidden": 10, "heads": 4}, "hidden=10 must be a multiple of twice heads=4"),
        ({"kind": "transformer", "observation": "cross"}, "observation='cross' must be added or prefix"),
    ],
)
def test_settings_that_make_no_sense_are_named(config: Any, said: str) -> None:
    with pytest.raises(NetworkConfigError, match=said):
        core(config)
