"""Observation embeddings: standardisation, shapes, several observations."""

import pytest
import torch

from etalumis.networks.errors import NetworkConfigError
from etalumis.networks.observations import CNN, ObservationEmbedding, Standardise, default_embedding


def test_the_papers_cnn_has_its_layers() -> None:
    """Section 4.3: Conv3D(1,64,3) … FC(2048,256) on 20 × 35 × 35 voxels."""
    network = CNN((20, 35, 35), 256, 3)
    shapes = [tuple(p.shape) for p in network.parameters() if p.dim() > 1]
    convolutions = [(64, 1), (64, 64), (128, 64), (128, 128), (128, 128)]
    assert shapes == [(*c, 3, 3, 3) for c in convolutions] + [(256, 2048)]
    with torch.no_grad():
        assert network(torch.rand(2, 20, 35, 35)).shape == (2, 256)


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
    with pytest.raises(NetworkConfigError, match="too small"):
        CNN((8, 14, 14), 8, 3)


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
