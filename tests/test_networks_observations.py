"""Observation embeddings: standardisation, shapes, several observations."""

from typing import Any

import pytest
import torch
from torch import nn

import etalumis as et
from etalumis.distributions import Normal
from etalumis.networks import InferenceNetwork
from etalumis.networks.errors import NetworkConfigError
from etalumis.networks.observations import CNN, ObservationEmbedding, Standardise, default_embedding
from network_models import SMALL, traces


def test_the_papers_cnn_has_its_layers() -> None:
    """Section 4.3: Conv3D(1,64,3) … FC(2048,256) on 20 × 35 × 35 voxels."""
    network = CNN((20, 35, 35), 256, 3)
    shapes = [tuple(p.shape) for p in network.parameters() if p.dim() > 1]
    convolutions = [(64, 1), (64, 64), (128, 64), (128, 128), (128, 128)]
    assert shapes == [(*c, 3, 3, 3) for c in convolutions] + [(256, 2048)]
    with torch.no_grad():
        assert network(torch.rand(2, 20, 35, 35)).shape == (2, 256)
    assert network.flops == pytest.approx(4.49e9, rel=1e-3)


@pytest.mark.parametrize(
    ("shape", "dimensions", "arguments"),
    [
        ((8, 10, 9), 3, {"blocks": [[5, 4], [6]], "padding": 1}),
        ((9, 8, 8), 3, {"blocks": [[4], [6]], "stride": 2, "padding": 1}),
        ((2, 12, 13), 2, {"blocks": [[3, 4]]}),
        ((12, 13), 2, {"blocks": [[3], [4]], "pool": 3, "padding": 2}),
    ],
)
def test_a_cnn_is_its_layers_one_after_the_other(
    shape: tuple[int, ...], dimensions: int, arguments: dict[str, Any]
) -> None:
    """However its arrays lie in memory and whatever is computed first: same values, same gradients."""
    network = CNN(shape, 7, dimensions, **arguments).double()
    plain: list[nn.Module] = []
    for block in network.blocks:
        plain += [step for layer in block for step in (layer, nn.ReLU())]
        plain.append({2: nn.MaxPool2d, 3: nn.MaxPool3d}[dimensions](network.pool))
    reference = nn.Sequential(*plain, nn.Flatten(), network.output, nn.ReLU())
    x = torch.randn(3, *shape, dtype=torch.float64)
    found = []
    for y in (network(x), reference(x[:, None] if len(shape) == dimensions else x)):
        network.zero_grad()
        (y * torch.arange(7)).sum().backward()
        found.append([y, *(p.grad for p in network.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert all(p.is_contiguous() and p.grad.is_contiguous() for p in network.parameters())


def test_a_cnn_in_half_precision_is_close() -> None:
    network, x = CNN((8, 12, 12), 16, 3, blocks=[[8, 8], [16]], padding=1), torch.randn(4, 8, 12, 12)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((), "mlp"),
        ((7,), "mlp"),
        ((9, 9), "mlp"),
        ((28, 40), "cnn2d"),
        ((8, 14, 14), "cnn3d_small"),
        ((20, 35, 35), "cnn3d"),
    ],
)
def test_every_shape_has_an_embedding(shape: tuple[int, ...], kind: str) -> None:
    assert default_embedding(shape)["kind"] == kind
    embedding = ObservationEmbedding({"x": shape}, 16, {})
    x = torch.rand(2, *shape)
    embedding.fit({"x": x})
    out = embedding({"x": x})
    assert out is not None
    assert out.shape == (2, 16)


def test_channels_of_images_and_strides() -> None:
    assert CNN((3, 28, 28), 8, 2)(torch.rand(2, 3, 28, 28)).shape == (2, 8)
    strided = CNN((8, 14, 14), 8, 3, blocks=[[4], [8]], padding=1, stride=2)
    assert strided(torch.rand(2, 8, 14, 14)).shape == (2, 8)
    with pytest.raises(NetworkConfigError, match=r"\(8, 14, 14\) are too small.*cnn3d_small"):
        ObservationEmbedding({"detector": (8, 14, 14)}, 8, {"detector": {"kind": "cnn3d"}})
    with pytest.raises(NetworkConfigError, match=r"\(9, 9\) are too small.*padding: 1"):
        ObservationEmbedding({"image": (9, 9)}, 8, {"image": {"kind": "cnn2d"}})
    assert ObservationEmbedding({"image": (9, 9)}, 8, {"image": {"kind": "cnn2d", "padding": 1}}).size == 8


@pytest.mark.parametrize("compress", ["none", "asinh", "log1p"])
@pytest.mark.parametrize("standardise", ["each", "all"])
def test_standardised_data_have_unit_scale(compress: str, standardise: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 30.0 + 200.0 * torch.randn(5000, 3, generator=generator) ** 3 * torch.tensor([1.0, 2.0, 5.0])
    standard = Standardise((3,), compress, standardise)
    standard.fit(x)
    y = standard(x)
    if standardise == "each":
        torch.testing.assert_close(y.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
        torch.testing.assert_close(y.std(0), torch.ones(3), atol=1e-3, rtol=0)
    else:
        assert y.square().mean().sqrt().item() == pytest.approx(1.0, rel=1e-4)
    if compress == "asinh":
        unit = x.square().mean().sqrt()
        torch.testing.assert_close(standard._compressed(x), torch.asinh(x / unit))


def test_constant_elements_and_missing_values_become_zero() -> None:
    x = torch.stack([torch.full((50,), 3.0), torch.arange(50.0)], 1)
    x[:10, 1] = torch.nan
    standard = Standardise((2,), "none", "each")
    standard.fit(x)
    y = standard(x)
    assert not y[:, 0].any()
    assert not y[:10, 1].any()
    assert y[10:, 1].std().item() == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("offset", [1e8, -1e13])
def test_an_offset_that_leaves_nothing_in_float32_is_named(offset: float) -> None:
    def far() -> None:
        x = et.sample(Normal(0.0, 1.0), name="x")
        et.observe(Normal(x, 1.0), name="near")
        et.observe(Normal([x, offset + x], 0.1), name="far")

    with pytest.raises(NetworkConfigError, match=r"observation 'far' is -?1e\+.* give or take .*subtract the offset"):
        InferenceNetwork.for_batch(SMALL, traces(far, 50))


def test_large_numbers_that_vary_enough_or_not_at_all_are_taken() -> None:
    def large() -> None:
        x = et.sample(Normal(0.0, 1.0), name="x")
        et.observe(Normal(1e8 + 1e5 * x, 1e3), name="wide")
        et.observe(Normal([1e8, x], [1e-12, 1.0]), name="constant")

    network = InferenceNetwork.for_batch(SMALL, traces(large, 50))
    (standard,) = network.observations.standards
    assert isinstance(standard, Standardise)
    assert float(standard.scale[0]) == pytest.approx(1e5, rel=0.5)
    assert float(standard.scale[1]) == 1.0


def test_scalars_and_vectors_are_joined_and_images_embedded_alone() -> None:
    shapes = {"a": (), "image": (6, 6), "b": (3,), "c": (2,)}
    embedding = ObservationEmbedding(shapes, 8, {"c": {"kind": "mlp", "hidden": [4]}})
    assert embedding.joined == ["a", "b"]
    assert embedding.single == ["image", "c"]
    x = {name: torch.rand(5, *shape) for name, shape in shapes.items()}
    embedding.fit(x)
    first = embedding(x)
    assert first is not None
    for name in shapes:
        changed = {**x, name: x[name] + 1.0}
        assert not torch.equal(embedding(changed), first), name


def test_no_observation_is_no_embedding() -> None:
    embedding = ObservationEmbedding({}, 8, {})
    assert embedding.size == 0
    assert embedding({}) is None
