"""A whole training step, ours against pyprob's and against a plain Algorithm 1. One thread.

    python -m benchmarks.training --json [--quick]

Packing, loss, backward pass and optimiser count; the workload is that of :mod:`benchmarks.workload`. Flops are
nominal: 6 · draws · (4 · 512 · (148 + 512) + 512 · 271 + 271 · 30), whatever is executed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import numpy as np
import torch

from benchmarks import common
from benchmarks.algorithm1 import Algorithm1
from benchmarks.common import Measure, Result, Settings, compare, rate
from benchmarks.pyprob_peer import PeerUnavailableError, PyprobPeer
from benchmarks.workload import COMPONENTS, DRAWS, HIDDEN, MIXED, ONE_TYPE, SIZE, Training, traces
from etalumis.execution import TraceBatch
from etalumis.networks.memory import keep_freed_memory
from etalumis.networks.settings import DEFAULTS

FEW = "pyprob's mixed minibatch takes seconds: its steps are few"
NOMINAL_FLOPS = 6 * DRAWS * (4 * HIDDEN * (148 + HIDDEN) + HIDDEN * 271 + 271 * 3 * COMPONENTS)  # of one trace
CURVE_STEPS, QUICK_CURVE_STEPS = 40, 10
SQUARE = 1024  # of the matrix product that tells the machine's rate


def results(settings: Settings) -> Iterator[Result]:
    torch.set_num_threads(1)
    keep_freed_memory()  # as `etalumis train` does
    mixed, one = traces(MIXED), traces(ONE_TYPE)
    head = f"head {DEFAULTS['head']['kind']}"
    network = Training()
    ours_mixed, ours_one = throughput(network, mixed), throughput(network, one)
    peer, why = connect()
    peer_mixed = peer_measure(peer, "mixed", 2 if settings.quick else None)
    peer_one = peer_measure(peer, "one_type", None)

    def against(name: str, ours: Measure, theirs: Measure | None, target: float | None, note: str, n: int) -> Result:
        return compare(name, ours, theirs, unit="traces/s", target=target, settings=settings, note=note, rounds=n)

    yield against("mixed_vs_pyprob", ours_mixed, peer_mixed, 60.0, why or f"{head}; {FEW}", 1)
    per_address = throughput(Training("per_address"), mixed)
    yield against("mixed_per_address_vs_pyprob", per_address, peer_mixed, 25.0, why or FEW, 1)
    del per_address
    yield against("one_type_vs_pyprob", ours_one, peer_one, 2.7, why or head, 2)
    bf16 = throughput(Training(bf16=True), one)
    yield against("one_type_bf16_vs_pyprob", bf16, peer_one, 4.0, why or curves(settings), 2)
    if peer is not None:
        peer.close()
    plain = Algorithm1([mixed, one])
    yield against("mixed_vs_algorithm1", ours_mixed, throughput(plain, mixed), None, head, 1)
    yield against("one_type_vs_algorithm1", ours_one, throughput(plain, one), None, head, 2)
    del plain
    yield compare(
        "mixed_cost_per_draw_vs_one_type",
        lambda: 1e6 / (DRAWS * ours_mixed()),
        lambda: 1e6 / (DRAWS * ours_one()),
        unit="us/draw",
        target=1.5,
        settings=settings,
        rounds=3,
        note=head,
    )
    yield share_of_matmul(ours_one, settings)


def throughput(step: Callable[[TraceBatch], float], batch: TraceBatch) -> Measure:
    """Traces per second of one step."""
    one_step = rate(lambda count: step(batch), 1)
    return lambda: len(batch) * one_step()


def connect() -> tuple[PyprobPeer | None, str]:
    """pyprob with a network for both minibatches, or why there is none."""
    try:
        peer = PyprobPeer()
        minibatches = {"mixed": MIXED, "one_type": ONE_TYPE}
        sizes = {"lstm_dim": HIDDEN, "proposal_mixture_components": COMPONENTS}
        peer.ask("make_network", minibatches=minibatches, draws=DRAWS, size=SIZE, **sizes)
        peer.ask("train", minibatch="one_type")
    except (PeerUnavailableError, RuntimeError) as error:
        return None, f"no pyprob here: {error}"
    return peer, ""


def peer_measure(peer: PyprobPeer | None, minibatch: str, few: int | None) -> Measure | None:
    """Its traces per second; where ``few`` is given it is measured so often, at once."""
    if peer is None:
        return None

    def measure() -> float:
        return float(peer.ask("train", minibatch=minibatch)["rate"])

    if few is None:
        return measure
    return partial(next, cycle([measure() for _ in range(few)]))


def curves(settings: Settings) -> str:
    """The loss in bf16 beside that in fp32, from equal weights on equal fresh minibatches of one type."""
    rough, exact = Training(kinds=[0], bf16=True), Training(kinds=[0])
    for training in (rough, exact):
        training.optimizer.param_groups[0]["lr"] = 1e-3
    steps = QUICK_CURVE_STEPS if settings.quick else CURVE_STEPS
    batches = [traces(ONE_TYPE, seed) for seed in range(1, steps + 1)]
    losses = np.array([[training(batch) for training in (rough, exact)] for batch in batches])
    (first, last), gap = losses[[0, -1], 1], np.abs(losses[:, 0] - losses[:, 1]).max()
    return (
        f"loss over {steps} fresh minibatches: {first:.3f} to {last:.3f} in fp32, to {losses[-1, 0]:.3f} in bf16, "
        f"never more than {gap:.3f} apart"
    )


def share_of_matmul(ours_one: Measure, settings: Settings) -> Result:
    """Nominal flops a second of the step against those of a square matrix product."""
    a, b = torch.randn(2, SQUARE, SQUARE)
    out = torch.empty_like(a)

    def product(count: int) -> None:
        for _ in range(count):
            torch.mm(a, b, out=out)

    return compare(
        "one_type_flops_vs_matmul",
        lambda: NOMINAL_FLOPS * ours_one() / 1e9,
        lambda: 2e-9 * SQUARE**3 * rate(product, 4)(),
        unit="Gflop/s",
        target=0.8,
        settings=settings,
        rounds=4,
        note=f"against fp32 products of {SQUARE}x{SQUARE} matrices",
    )


if __name__ == "__main__":
    sys.exit(common.main("training", results))
