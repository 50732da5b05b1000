"""What each rank of the tests of the exchange does: ``python exchange_ranks.py mpi|gloo [abort]`` under a launcher.

Ends with status 0 where all checks held on all ranks.
"""

from __future__ import annotations

import math
import re
import signal
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from etalumis.networks import InferenceNetwork, banks_of, pack
from etalumis.optim.parts import Parts
from etalumis.strategies.collective import Collective, CollectiveError
from etalumis.strategies.exchange import Exchanged, RowExchange
from etalumis.strategies.mpi import MPICollective
from etalumis.strategies.torch_distributed import TorchCollective
from network_models import every_family, gradients, small, traces

MAKE: dict[str, Callable[[], Collective]] = {"mpi": MPICollective, "gloo": lambda: TorchCollective("gloo")}


def raised(call: Callable[[], object], kind: type[Exception] = CollectiveError) -> str:
    """The message of the error that a call raises."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


# --- collectives ---------------------------------------------------------------------------------------------------


def tensors_travel(ranks: Collective) -> None:
    rank, size = ranks.rank, ranks.world_size
    for dtype in (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8):
        for numbers in (0, 1, 7, 100_000):
            mine = torch.arange(numbers).remainder(13).to(dtype) + rank
            everyone = torch.stack([mine - rank + other for other in range(size)])
            for op, expected in (("sum", everyone.sum(0)), ("max", everyone.amax(0)), ("min", everyone.amin(0))):
                tensor = mine.clone()
                assert ranks.all_reduce(tensor, op) is tensor
                assert torch.equal(tensor, expected.to(dtype)), (dtype, numbers, op)
            assert torch.equal(ranks.all_gather(mine), everyone)
    scalar = torch.tensor(float(rank))
    assert float(ranks.all_reduce(scalar)) == size * (size - 1) / 2
    across = torch.full((3, 4), float(rank + 1)).t()
    ranks.all_reduce(across, "max")
    assert torch.equal(across, torch.full((4, 3), float(size)))
    for dtype in (torch.bfloat16, torch.bool, torch.float64):
        for numbers in (0, 5, 200_000):
            word = (torch.arange(numbers).remainder(3) * (rank == size - 1)).to(dtype)
            assert ranks.broadcast(word, root=size - 1) is word
            assert torch.equal(word, torch.arange(numbers).remainder(3).to(dtype))
    for numbers in (3, 200_000):
        slices = (10 * rank + torch.arange(size, dtype=torch.bfloat16))[:, None].repeat(1, numbers)
        memory = torch.empty_like(slices)
        assert ranks.all_to_all(slices, memory) is memory
        expected = (10 * torch.arange(size, dtype=torch.bfloat16) + rank)[:, None].repeat(1, numbers)
        assert torch.equal(memory, expected)
        assert torch.equal(ranks.all_to_all(slices), expected)


def sums_have_the_same_bits_everywhere(ranks: Collective) -> None:
    for numbers in (1000, 1_000_003):
        generator = torch.Generator().manual_seed(ranks.rank)
        total = ranks.all_reduce(torch.randn(numbers, generator=generator))
        assert same_everywhere(ranks, [total])


def words_travel(ranks: Collective) -> None:
    words = [bytes([rank]) * (1000 * rank) for rank in range(ranks.world_size)]
    assert ranks.all_gather_bytes(words[ranks.rank]) == words
    assert ranks.all_gather_bytes(b"") == [b""] * ranks.world_size
    assert ranks.broadcast_bytes(words[ranks.rank], root=1) == words[1]
    assert ranks.broadcast_bytes(words[ranks.rank]) == b""


def waiting_hears_signals_leaves_the_core_and_ends(ranks: Collective) -> None:
    """Rank 0 waits for the others, who come late."""
    ranks.barrier()
    heard: list[float] = []
    if ranks.rank == 0:
        start, busy, patience = time.monotonic(), time.process_time(), ranks.timeout
        signal.signal(signal.SIGALRM, lambda *_: heard.append(time.monotonic() - start))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        ranks.timeout = 0.5
        message = raised(ranks.barrier)
        ranks.timeout = patience
        assert re.search(r"waited 0\.5 s in vain for ranks? [1-9][0-9, ]* to join in a", message), message
        assert len(heard) == 1, heard
        assert time.process_time() - busy < 0.25
    else:
        time.sleep(1.2)
        ranks.barrier()
    ranks.barrier()


def same_everywhere(ranks: Collective, tensors: list[Tensor]) -> bool:
    words = b"".join(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() for tensor in tensors)
    return len(set(ranks.all_gather_bytes(words))) == 1


# --- the exchange --------------------------------------------------------------------------------------------------


class Shares:
    """One minibatch, unequally dealt by the branches of its traces: no rank meets all addresses, one meets no address
    of some banks, and one of four has no trace at all."""

    def __init__(self, ranks: Collective) -> None:
        self.ranks = ranks
        self.batch = traces(every_family, 60)
        branch = np.array([int(self.batch.draws("k")[1][n]) for n in range(60)])
        few = np.isin(branch, (0, 1))
        some = few & (np.arange(60) < 10)
        dealt = {2: [few, ~few], 4: [some, np.zeros(60, bool), few & ~some, ~few]}[ranks.world_size]
        self.mine = np.flatnonzero(dealt[ranks.rank])

    def network(self) -> InferenceNetwork:
        return small(self.batch)

    def backward(self, network: InferenceNetwork, share: np.ndarray) -> int:
        """Gradient of the mean loss of some traces; returns their number."""
        if len(share):
            network.loss(pack(self.batch.select(share), network.layout))[0].backward()
        return len(share)


def clear(network: InferenceNetwork) -> None:
    network.zero_grad()
    for bank in banks_of(network).values():
        bank.clear_gradient()


def gradients_equal_those_of_the_joined_minibatch(ranks: Collective, shares: Shares) -> None:
    network, alone = shares.network(), shares.network()
    shares.backward(alone, np.arange(60))
    joined = gradients(alone)
    exchange = RowExchange(ranks, Parts(network))
    missing = 0
    for repeat in range(3):
        clear(network)
        count = shares.backward(network, shares.mine)
        missing += sum(bank.gradient is None for bank in banks_of(network).values())
        done = exchange(count, loss=100.0 * count)
        assert abs(done.loss - 100.0) < 1e-9
        check(done, network, alone)
        found = gradients(network)
        for name, expected in joined.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-14, msg=f"{name}, step {repeat}")
        assert same_everywhere(ranks, Parts(network).gradients())
    assert all(bank.gradient is not None for bank in banks_of(alone).values())
    assert int(ranks.all_reduce(torch.tensor([missing]))) > 0, "no rank lacked a bank"


def an_exchange_behind_the_backward_pass_is_the_same(ranks: Collective, shares: Shares) -> None:
    """With rows that all have or some lack, in bf16, too; where one rank does it all at the end; with a factor."""
    for compression in ("none", "bf16"):
        network, after = (shares.network() if compression == "none" else shares.network().float() for _ in range(2))
        plain = RowExchange(ranks, Parts(after), compression)
        exchange = RowExchange(ranks, Parts(network), compression, network.LAST_GRADIENTS)
        for lazy in (None, 1, ranks.world_size - 1):
            clear(network)
            clear(after)
            count, called = len(shares.mine), []

            def begin(exchange: RowExchange, count: int, called: list[int]) -> None:
                called.append(count)
                exchange.begin(count, 0.5)
                time.sleep(0.02)  # of work that remains

            now = partial(begin, exchange, count, called)
            network.before_last_gradients = None if lazy == ranks.rank else now
            shares.backward(network, shares.mine)
            assert len(called) == (lazy != ranks.rank and count > 0)
            done, expected = exchange(count, 0.5), plain(shares.backward(after, shares.mine), 0.5)
            assert (done.hidden > 0.0) == bool(called)
            assert (done.traces, done.rows, done.tensors) == (expected.traces, expected.rows, expected.tensors)
            assert min(done.waiting, done.transfer, done.hidden) >= 0.0
            found, joined = gradients(network), gradients(after)
            assert found.keys() == joined.keys()
            for name, gradient in joined.items():
                assert torch.equal(found[name], gradient) or ranks.world_size > 2, name
                torch.testing.assert_close(found[name], gradient, msg=name)
            assert same_everywhere(ranks, Parts(network).gradients())


def check(done: Exchanged, network: InferenceNetwork, alone: InferenceNetwork) -> None:
    assert done.traces == 60
    assert min(done.waiting, done.transfer, done.hidden) >= 0.0
    numbers = rows = 0
    for name, bank in banks_of(alone).items():
        mine = banks_of(network)[name].gradient
        assert (mine is None) == (bank.gradient is None), name
        if mine is not None and bank.gradient is not None:
            assert torch.equal(mine.ids, bank.gradient.ids.sort()[0]), name
            rows += len(mine.ids)
            numbers += mine.rows.numel()
    dense = [parameter for parameter in Parts(alone).dense.values() if parameter.grad is not None]
    assert (done.rows, done.tensors) == (rows, len(dense))
    numbers += sum(parameter.numel() for parameter in dense)
    assert 8 * numbers < done.bytes < 1.5 * 8 * numbers + 50_000


def gradients_may_stay_for_the_next_exchange(ranks: Collective, shares: Shares) -> None:
    """What is a gradient still is not overwritten while it is read: a joined gradient joined again is itself, and one
    accumulated on top adds."""
    network, alone = shares.network(), shares.network()
    shares.backward(alone, np.arange(60))
    joined = gradients(alone)
    exchange = RowExchange(ranks, Parts(network))
    exchange(shares.backward(network, shares.mine))
    for factor in (1.0, 2.0, 3.0):
        if factor > 1.0:
            shares.backward(network, np.arange(60))
        exchange(60)
        found = gradients(network)
        for name, expected in joined.items():
            torch.testing.assert_close(found[name], factor * expected, rtol=1e-12, atol=1e-14, msg=name)


def frozen_banks_and_nothing_at_all(ranks: Collective, shares: Shares) -> None:
    network = shares.network()
    exchange = RowExchange(ranks, Parts(network))
    for wrong in (lambda: exchange(-1), lambda: RowExchange(ranks, exchange.parts, "fp8")):  # type: ignore[arg-type]
        assert raised(wrong, ValueError)
    nothing = exchange(0)
    assert (nothing.traces, nothing.rows, nothing.tensors) == (0, 0, 0)
    assert not Parts(network).gradients()
    frozen = {name: bank for name, bank in banks_of(network).items() if name.startswith("heads.")}
    assert frozen
    for bank in frozen.values():
        bank.freeze()
    done = exchange(shares.backward(network, shares.mine))
    assert all(bank.gradient is None for bank in frozen.values())
    assert done.rows > 0
    before = [gradient.clone() for gradient in Parts(network).gradients()]
    exchange(60 if ranks.rank == 0 else 0)
    for one, other in zip(before, Parts(network).gradients(), strict=True):
        assert torch.equal(one, other), "a rank without traces counts"
    exchange(0)
    assert not Parts(network).gradients()


def compressed(ranks: Collective, shares: Shares) -> None:
    """Each rank's numbers are rounded to 8 significant bits, and their sum once more."""
    network = shares.network().float()
    done, results = [], []
    for compression in ("none", "bf16"):
        clear(network)
        count = shares.backward(network, shares.mine)
        sizes = {name: ranks.all_reduce(gradient.abs() * count / 60) for name, gradient in gradients(network).items()}
        done.append(RowExchange(ranks, Parts(network), compression)(count))
        assert same_everywhere(ranks, Parts(network).gradients())
        results.append(gradients(network))
    assert done[1].bytes < 0.6 * done[0].bytes
    exact, rounded = results
    for name, expected in exact.items():
        error, bound = (rounded[name] - expected).abs(), 1.01 * 2.0**-8 * (sizes[name] + expected.abs())
        assert bool((error <= bound).all()), name
    assert any(not torch.equal(rounded[name], exact[name]) for name in exact)
    double, alone = shares.network(), shares.network()
    RowExchange(ranks, Parts(double), "bf16")(shares.backward(double, shares.mine))
    shares.backward(alone, np.arange(60))
    found = gradients(double)
    for name, expected in gradients(alone).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-14, msg=name)


def not_a_number_is_everyones(ranks: Collective, shares: Shares) -> None:
    network = shares.network()
    exchange = RowExchange(ranks, Parts(network))
    count = shares.backward(network, shares.mine)
    if ranks.rank == 0:
        assert network.addresses.residual.gradient is not None
        network.addresses.residual.gradient.rows[0] = math.nan
    exchange(count)
    gradient = network.addresses.residual.gradient
    assert gradient is not None
    assert bool(gradient.rows.isnan().any())


def networks_that_differ_are_named(ranks: Collective, shares: Shares) -> None:
    network = shares.network()
    bank = network.addresses.residual
    rows = len(bank)
    exchange = RowExchange(ranks, Parts(network))
    count = shares.backward(network, shares.mine)
    if ranks.rank == 1:
        bank.grow(1)
    message = raised(lambda: exchange(count))
    assert f"addresses.residual is {rows} rows (5,) torch.float64 on rank 0, {rows + 1} rows" in message, message
    assert "different from rank 0 are ranks [1]." in message, message
    if ranks.rank != 1:
        bank.grow(1)
    exchange(count)
    if ranks.rank == 0:
        network.register_parameter("more", torch.nn.Parameter(torch.zeros(3)))
    message = raised(lambda: exchange(count))
    others = list(range(1, ranks.world_size))
    assert "more is (3,) torch.float32 (1,) on rank 0, missing on rank 1" in message, message
    assert f"ranks {others}." in message, message


def main() -> None:
    torch.set_num_threads(1)
    ranks = MAKE[sys.argv[1]]()
    tensors_travel(ranks)
    sums_have_the_same_bits_everywhere(ranks)
    words_travel(ranks)
    shares = Shares(ranks)
    gradients_equal_those_of_the_joined_minibatch(ranks, shares)
    gradients_may_stay_for_the_next_exchange(ranks, shares)
    an_exchange_behind_the_backward_pass_is_the_same(ranks, shares)
    frozen_banks_and_nothing_at_all(ranks, shares)
    compressed(ranks, shares)
    not_a_number_is_everyones(ranks, shares)
    networks_that_differ_are_named(ranks, shares)
    waiting_hears_signals_leaves_the_core_and_ends(ranks)
    print(f"rank {ranks.rank}: all checks held", flush=True)
    ranks.barrier()
    if "abort" in sys.argv[2:]:
        if ranks.rank == 1:
            ranks.abort("out of cheese")
        ranks.barrier()
    ranks.close()


if __name__ == "__main__":
    main()
