"""The paper's 3D CNN, forward and backward, against the rate of matrix products on the same core. One thread.

    python -m benchmarks.conv3d --json [--quick]

Flops are those of the convolutions and of the last layer, forward and backward, without the gradient of the image,
which nobody needs. Beside the two results for the minibatch that the others are about: the same for several sizes,
and the network as it is written down (axes in their usual order, ReLU before pooling).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import Measure, Result, Settings, compare
from etalumis.networks.autocast import has_bf16_products
from etalumis.networks.memory import keep_freed_memory
from etalumis.networks.observations import CNN

SHAPE, OUTPUT = (20, 35, 35), 256
TRACES, QUICK_TRACES = 32, 4
SIZES = (8, 16, 64)
SQUARE, PRODUCTS = 1024, 40
FIRST_LAYER_FLOPS = 2 * 27 * 64 * 18 * 33 * 33  # forward

Network = Callable[[Tensor], Tensor]


def results(settings: Settings) -> Iterator[Result]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kept = "" if keep_freed_memory() else "freed memory goes back to the system: slower"
    network = CNN(SHAPE, OUTPUT, 3)
    flops = 3 * network.flops - FIRST_LAYER_FLOPS
    traces = QUICK_TRACES if settings.quick else TRACES
    yield compare(
        "fp32_vs_matmul",
        scaled(step(network, network, traces), flops / 1e9),
        matrix_products(torch.float32),
        unit="Gflop/s",
        target=0.85,
        settings=settings,
        note="; ".join(filter(None, [f"minibatch {traces}", kept])),
        rounds=2,
    )
    yield bf16_vs_fp32("bf16_vs_fp32", network, traces, settings)
    if settings.quick:
        return
    yield compare(
        "bf16_vs_bf16_matmul",
        scaled(step(network, network, traces, bf16=True), flops / 1e9),
        matrix_products(torch.bfloat16),
        unit="Gflop/s",
        target=None,
        settings=settings,
    )
    for size in SIZES:
        yield compare(
            f"fp32_vs_written_{size}",
            step(network, network, size),
            step(network, as_written(network), size),
            unit="traces/s",
            target=None,
            settings=settings,
        )
        yield bf16_vs_fp32(f"bf16_vs_fp32_{size}", network, size, settings)


def bf16_vs_fp32(name: str, network: CNN, traces: int, settings: Settings) -> Result:
    """Autocast against single precision; not measured where the processor has no bf16 products, which takes minutes."""
    if not has_bf16_products():
        return Result(name, None, None, None, None, "traces/s", 0, "this processor has no bf16 products")
    return compare(
        name,
        step(network, network, traces, bf16=True),
        step(network, network, traces),
        unit="traces/s",
        target=1.6,
        settings=settings,
        note=f"minibatch {traces}",
    )


def step(network: CNN, function: Network, traces: int, bf16: bool = False, backward: bool = True) -> Measure:
    """Traces per second, forward and backward, or forward alone."""
    x = torch.rand(traces, *SHAPE)

    def measure() -> float:
        network.zero_grad()
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = function(x)
        if backward:
            y.float().sum().backward()  # type: ignore[no-untyped-call]
        return traces / (time.perf_counter() - start)

    return measure


def matrix_products(dtype: torch.dtype) -> Measure:
    """Gflop/s of square matrix products."""
    a, b = torch.rand(SQUARE, SQUARE).to(dtype), torch.rand(SQUARE, SQUARE).to(dtype)
    out = torch.empty_like(a)

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=out)
        return 2e-9 * PRODUCTS * SQUARE**3 / (time.perf_counter() - start)

    return measure


def scaled(measure: Measure, factor: float) -> Measure:
    """A measure in other units."""
    return lambda: factor * measure()


def as_written(network: CNN) -> Network:
    """The same layers, one after the other, as the paper lists them."""
    layers: list[nn.Module] = []
    for block in network.blocks:
        assert isinstance(block, nn.ModuleList)
        for layer in block:
            layers += [layer, nn.ReLU()]
        layers.append(nn.MaxPool3d(network.pool))
    whole = nn.Sequential(*layers, nn.Flatten(), network.output, nn.ReLU())
    return lambda x: whole(x[:, None])


if __name__ == "__main__":
    sys.exit(common.main("conv3d", results))
