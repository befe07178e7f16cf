import pytest
import timm
import torch
from torch import Tensor
from torch.testing import assert_close

from bench.errors import BenchError
from bench.methods.parts.spatial_transformer import (
    RegisteringBackbone,
    SpatialTransformer,
    inverse,
    split_stages,
    warp,
)
from bench.weights import find_weights

SMOOTH = torch.linspace(0, 1, 32).view(32, 1) * torch.linspace(0, 1, 32)  # (32, 32)


def matrices(angles: list[float], first: float, second: float) -> Tensor:
    radians = torch.tensor(angles)
    transformer = SpatialTransformer(4, (8, 8))
    values = torch.stack([radians, torch.full_like(radians, first), torch.full_like(radians, second)], dim=1)
    transformer.head = torch.nn.Identity()
    transformer.trunk = torch.nn.Identity()
    return transformer(values)


def test_matrix_of_a_quarter_turn_and_scales() -> None:
    scaled, turned = matrices([0.0], 2.0, 0.5), matrices([torch.pi / 2], 2.0, 0.5)
    assert_close(scaled, torch.tensor([[[2.0, 0, 0], [0, 0.5, 0]]]))
    assert_close(turned, torch.tensor([[[0.0, -1, 0], [1, 0, 0]]]), rtol=0, atol=1e-6)  # the diagonal alone is scaled


def test_warp_by_a_quarter_turn_and_reflection_at_the_border() -> None:
    maps = torch.rand(1, 2, 6, 6)
    turned = warp(maps, matrices([torch.pi / 2], 1.0, 1.0))
    assert_close(turned, torch.rot90(maps, 1, (2, 3)), rtol=1e-4, atol=1e-5)
    smaller = warp(maps, torch.tensor([[[3.0, 0, 0], [0, 1, 0]]]))  # the image in the middle, mirrored at both sides
    assert_close(smaller[..., :2].flip(3), smaller[..., 2:4], rtol=1e-4, atol=1e-5)
    assert_close(smaller[..., 2:4], maps[..., [1, 4]], rtol=1e-4, atol=1e-5)


def test_inverse_undoes_a_warp() -> None:
    warps = matrices([0.3, -0.7], 1.2, 0.9)
    inverses = inverse(warps)
    assert_close(warps[:, :, :2] @ inverses[:, :, :2], torch.eye(2).expand(2, -1, -1), rtol=0, atol=1e-6)
    maps = SMOOTH.expand(2, 1, -1, -1)
    again = warp(warp(maps, warps), inverses)
    assert (again - maps)[..., 12:20, 12:20].abs().max() < 0.01


def test_warps_are_the_identity_before_training() -> None:
    transformer = SpatialTransformer(5, (9, 14))  # pooled to 3 x 4
    assert transformer.head[0].in_features == 16 * 3 * 4
    assert torch.equal(transformer(torch.rand(2, 5, 9, 14)), torch.eye(2, 3).expand(2, -1, -1))


@pytest.mark.parametrize(
    ("architecture", "stages"),
    [
        ("resnet18", (1, 2, 3)),
        ("tf_efficientnet_lite0", (1, 2, 3)),
        ("tf_efficientnet_lite0", (0, 3)),
    ],
)
@torch.no_grad()
def test_chained_stages_equal_timms_feature_maps(architecture: str, stages: tuple[int, ...]) -> None:
    network = timm.create_model(architecture, features_only=True, out_indices=stages).eval()
    images = torch.rand(1, 3, 32, 32)
    expected, features = network(images), images
    chained = split_stages(network, architecture)
    assert len(chained) == len(stages)
    for layers, stage in zip(chained, expected, strict=True):
        features = layers(features)
        assert_close(features, stage)


@torch.no_grad()
def test_untrained_network_returns_the_backbones_maps() -> None:
    weights = find_weights("tf_efficientnet_lite0", None)
    network = RegisteringBackbone(weights, (1, 2), (64, 64), normalize=True).eval()
    plain = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2)).eval()
    layers = [stage["layers"] for stage in network.stages]
    features = (torch.rand(1, 3, 64, 64) - network.mean) / network.std
    assert network.grids == [(16, 16), (8, 8)]
    assert network.channels == tuple(plain.feature_info.channels())
    for aligned, layer in zip(network(features * network.std + network.mean), layers, strict=True):
        features = layer(features)
        assert_close(aligned, features, rtol=1e-4, atol=1e-4)


def test_a_network_whose_modules_form_no_chain_raises_an_error() -> None:
    with pytest.raises(BenchError, match="must form a chain"):
        RegisteringBackbone(find_weights("random:hrnet_w18_small", None), (1, 2), (64, 64), normalize=False)
