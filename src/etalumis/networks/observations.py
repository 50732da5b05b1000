"""Embeddings of observations: from measured arrays to the vector that every step of the core sees.

Each observation is compressed and standardised by constants taken from data, then embedded by the network that
the configuration names; several observations are embedded one by one and joined. Scalars and vectors that the
configuration does not mention are joined before embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etalumis.networks.errors import NetworkConfigError

_TINY = 1e-12
_COMPRESSIONS = ("none", "asinh", "log1p")
_STANDARDS = ("each", "all", "none")
_COARSE = 0.05  # of an observation's spread: what float32 numbers of its size may at most be apart
_PAPER_AXIS = 20  # voxels per axis below which the paper's unpadded CNN has nothing left


class Standardise(nn.Module):
    """(f(x / unit) − loc) / scale, with constants from data; missing values (NaN) become 0.

    Args:
        shape: of one observation.
        compress: f: ``"none"``, ``"asinh"`` (linear near 0, logarithmic beyond the unit) or ``"log1p"``
            (sign(x) log(1 + |x|)).
        standardise: ``"each"`` element by its own mean and standard deviation, ``"all"`` by one scale (loc 0:
            for voxels, where most elements are noise), or ``"none"``.
    """

    unit: Tensor
    loc: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int], compress: str, standardise: str) -> None:
        super().__init__()
        if compress not in _COMPRESSIONS or standardise not in _STANDARDS:
            raise NetworkConfigError(
                f"compress is one of {_COMPRESSIONS} and standardise one of {_STANDARDS}; "
                f"got {compress!r} and {standardise!r}"
            )
        self.compress, self.standardise = compress, standardise
        constants = tuple(shape) if standardise == "each" else ()
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer("loc", torch.zeros(constants))
        self.register_buffer("scale", torch.ones(constants))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take the constants from observations (n, *shape)."""
        x = x.double()
        if self.compress != "none":
            self.unit.fill_(max(x.nan_to_num(0.0).square().mean().sqrt().item(), _TINY))
        y = self._compressed(x)
        if self.standardise == "each":
            loc = y.nanmean(0).nan_to_num(0.0)
            scale = (y - loc).square().nanmean(0).sqrt().nan_to_num(1.0)
            self.loc.copy_(loc)
            # An element that never varies says nothing: any scale will do.
            self.scale.copy_(torch.where(scale > _TINY * (1.0 + loc.abs()), scale, 1.0))
        elif self.standardise == "all":
            self.scale.fill_(max(y.nan_to_num(0.0).square().mean().sqrt().item(), _TINY))

    def forward(self, x: Tensor) -> Tensor:
        y = (self._compressed(x) - self.loc) / self.scale
        return torch.where(y.isnan(), 0.0, y)

    def _compressed(self, x: Tensor) -> Tensor:
        if self.compress == "asinh":
            # asinh x = sign(x) log(|x| + √(1 + x²)); torch.asinh is not vectorised on CPUs
            size = (x / self.unit).abs()
            square = size * size
            return torch.sign(x) * torch.log1p(size + square / (1.0 + torch.sqrt(1.0 + square)))
        if self.compress == "log1p":
            return torch.sign(x) * torch.log1p((x / self.unit).abs())
        return x


class MLP(nn.Module):
    """Fully connected ReLU layers over the flattened observation, (n, *shape) → (n, output)."""

    def __init__(self, shape: Sequence[int], output: int, hidden: Sequence[int] = (256,)) -> None:
        super().__init__()
        sizes = [math.prod(shape), *hidden, output]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class CNN(nn.Module):
    """Blocks of convolutions with ReLU, each block closed by max-pooling, then one fully connected layer.

    Computed with channels innermost in memory, as pooling and bf16 kernels like it (docs/performance.md); weights
    stay in the usual order, so that optimisers and checkpoints see nothing of it.

    Args:
        shape: of one observation, one axis per spatial dimension, or one more in front for channels.
        output: numbers per observation.
        dimensions: 2 or 3.
        blocks: channels of each convolution, block by block. The default is the paper's.
        kernel: size of the convolutions.
        padding: voxels of zeros around the input of each convolution: 0 as in the paper, kernel // 2 keeps sizes.
        pool: factor of the max-pooling.
        stride: of the first convolution: a cheap way to look at large images.

    Attributes:
        flops: of one observation's forward pass, in products and sums of convolutions and the last layer.
    """

    def __init__(
        self,
        shape: Sequence[int],
        output: int,
        dimensions: int,
        blocks: Sequence[Sequence[int]] = ((64, 64), (128, 128, 128)),
        kernel: int = 3,
        padding: int = 0,
        pool: int = 2,
        stride: int = 1,
    ) -> None:
        super().__init__()
        if len(shape) not in (dimensions, dimensions + 1):
            raise NetworkConfigError(f"a {dimensions}D CNN can't read observations of shape {tuple(shape)}")
        convolution = (nn.Conv2d, nn.Conv3d)[dimensions - 2]
        self.dimensions, self.pool = dimensions, pool
        self.add_channel = len(shape) == dimensions
        channels, axes = (1, tuple(shape)) if self.add_channel else (shape[0], tuple(shape[1:]))
        self.flops = 0
        self.blocks = nn.ModuleList()
        for block in blocks:
            layers = []
            for features in block:
                layers.append(convolution(channels, features, kernel, stride, padding))
                axes = tuple((size + 2 * padding - kernel) // stride + 1 for size in axes)
                self.flops += 2 * channels * features * kernel**dimensions * math.prod(max(size, 0) for size in axes)
                channels, stride = features, 1
            self.blocks.append(nn.ModuleList(layers))
            axes = tuple(size // pool for size in axes)
            if min(axes) < 1:
                raise NetworkConfigError(_too_small(shape, dimensions))
        self.output = nn.Linear(channels * math.prod(axes), output)
        self.flops += 2 * self.output.in_features * output

    def forward(self, x: Tensor) -> Tensor:
        y = x[:, None] if self.add_channel else x
        for block in self.blocks:
            layers = list(cast("nn.ModuleList", block))
            for layer in layers[:-1]:
                y = torch.relu_(_convolution(cast("_Convolution", layer), y))
            y = _convolution(cast("_Convolution", layers[-1]), y)
            # Pooling first: max(relu) = relu(max), with fewer numbers to go through.
            y = torch.relu_(_POOLING[self.dimensions](y, self.pool))
        return torch.relu(self.output(y.flatten(1)))


_Convolution = nn.Conv2d | nn.Conv3d
_POOLING: dict[int, Any] = {2: F.max_pool2d, 3: F.max_pool3d}
_CONVOLVE: dict[int, Any] = {4: F.conv2d, 5: F.conv3d}
_INNERMOST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _convolution(layer: _Convolution, x: Tensor) -> Tensor:
    """The layer's result, channels innermost."""
    order = _INNERMOST[x.dim()]
    weight = layer.weight.contiguous(memory_format=order)
    y: Tensor = _CONVOLVE[x.dim()](x.contiguous(memory_format=order), weight, layer.bias, layer.stride, layer.padding)
    return y


def _too_small(shape: Sequence[int], dimensions: int) -> str:
    preset = "cnn3d_small" if dimensions == 3 else "cnn2d with padding: 1"
    return (
        f"observations of shape {tuple(shape)} are too small for this CNN: take kind {preset} (padded convolutions), "
        "fewer blocks or a smaller kernel"
    )


def _cnn2d(shape: Sequence[int], output: int, **arguments: Any) -> nn.Module:
    return CNN(shape, output, 2, **arguments)


def _cnn3d(shape: Sequence[int], output: int, **arguments: Any) -> nn.Module:
    return CNN(shape, output, 3, **arguments)


def _cnn3d_small(shape: Sequence[int], output: int, **arguments: Any) -> nn.Module:
    return CNN(shape, output, 3, **{"blocks": ((16, 16), (32,)), "padding": 1, **arguments})


EMBEDDINGS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "cnn2d": _cnn2d,
    "cnn3d": _cnn3d,
    "cnn3d_small": _cnn3d_small,
}


def default_embedding(shape: Sequence[int]) -> dict[str, Any]:
    """What embeds an observation of this shape where the configuration is silent."""
    if len(shape) <= 1:
        return {"kind": "mlp", "compress": "none", "standardise": "each"}
    if len(shape) == 2:
        return {"kind": "cnn2d" if min(shape) >= _PAPER_AXIS else "mlp", "compress": "none", "standardise": "all"}
    kind = "cnn3d" if len(shape) == 3 and min(shape) >= _PAPER_AXIS else "cnn3d_small" if len(shape) == 3 else "mlp"
    return {"kind": kind, "compress": "none", "standardise": "all"}


class ObservationEmbedding(nn.Module):
    """All observations of a trace as one vector, (N, size); 0 numbers where the network reads no observation.

    Args:
        shapes: of each observation, by name.
        size: of the output.
        config: by observation name ``{"kind": "mlp" | "cnn2d" | "cnn3d" | "cnn3d_small", "compress": …,
            "standardise": …, **arguments of the kind}``.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], size: int, config: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        unknown = sorted(set(config) - set(shapes))
        if unknown:
            raise NetworkConfigError(f"the data has no observations {unknown}; it has {sorted(shapes)}")
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.size = size if shapes else 0
        self.joined = [name for name, shape in self.shapes.items() if len(shape) <= 1 and name not in config]
        self.single = [name for name in self.shapes if name not in self.joined]
        self.standards = nn.ModuleList()
        self.networks = nn.ModuleList()
        for name in self.single:
            shape = self.shapes[name]
            arguments = {**default_embedding(shape), **config.get(name, {})}
            kind = arguments.pop("kind")
            if kind not in EMBEDDINGS:
                raise NetworkConfigError(f"unknown observation embedding {kind!r}; there are {sorted(EMBEDDINGS)}")
            self.standards.append(Standardise(shape, arguments.pop("compress"), arguments.pop("standardise")))
            self.networks.append(_build(EMBEDDINGS[kind], name, shape, size, arguments))
        if self.joined:
            width = sum(math.prod(self.shapes[name]) for name in self.joined)
            self.standards.append(Standardise((width,), "none", "each"))
            self.networks.append(MLP((width,), size))
        self.join = nn.Linear(size * len(self.networks), size) if len(self.networks) > 1 else None

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor | None:
        """Embeddings of observations (N, *shape) by name; None where there are none to embed."""
        dtype = next((parameter.dtype for parameter in self.parameters()), torch.float32)
        parts = [
            network(standard(x))
            for network, standard, x in zip(
                self.networks, self.standards, self._inputs(observations, dtype), strict=True
            )
        ]
        if self.join is None:
            return parts[0] if parts else None
        return F.relu(self.join(torch.cat(parts, 1)))

    def fit(self, observations: Mapping[str, Tensor]) -> None:
        """Take the constants of standardisation from observations (n, *shape) by name, in float64 as they are.

        Raises:
            NetworkConfigError: naming one whose offset leaves nothing of its spread in float32.
        """
        for name in self.shapes:
            _check_offset(name, observations[name].double())
        for standard, x in zip(self.standards, self._inputs(observations, torch.float64), strict=True):
            if isinstance(standard, Standardise):
                standard.fit(x)

    def _inputs(self, observations: Mapping[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [observations[name].to(dtype) for name in self.single]
        if self.joined:
            columns = [observations[name].to(dtype).reshape(-1, math.prod(self.shapes[name])) for name in self.joined]
            inputs.append(torch.cat(columns, 1))
        return inputs


def _check_offset(name: str, x: Tensor) -> None:
    """See that float32, in which observations reach the network, can tell the values of each element apart."""
    loc = x.nanmean(0)
    spread = (x - loc).square().nanmean(0).sqrt()
    size = loc.abs()
    varies = spread > 16 * torch.finfo(torch.float64).eps * size  # more than by rounding
    lost = varies & (torch.finfo(torch.float32).eps * size > _COARSE * spread)
    if lost.any():
        where = int(lost.flatten().nonzero()[0])
        offset, width = (float(part.flatten()[where]) for part in (loc, spread))
        raise NetworkConfigError(
            f"observation {name!r} is {offset:.6g} give or take {width:.3g}: the network reads float32, which can't "
            f"tell such values apart; subtract the offset in the simulator, as observe(Normal(x - {offset:.6g}, ...))"
        )


def _build(make: Any, name: str, shape: Sequence[int], size: int, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        network: nn.Module = make(shape, size, **arguments)
    except TypeError as error:
        raise NetworkConfigError(f"embedding of observation {name!r}: {error}") from None
    return network
