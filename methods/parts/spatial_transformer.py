"""A trainable backbone with a spatial transformer after each stage, which warps feature maps to a common pose (RegAD).

The warps are affine without translation: a rotation by an angle whose diagonal is multiplied by two scales. They are
estimated from the feature map itself, and are the identity before training.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import timm
import torch
from timm.models import FeatureListNet
from timm.models.efficientnet import EfficientNetFeatures
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError
from bench.weights import RANDOM, Weights, architecture_name, pretrained_cfg

from .backbone import load_weights

TRUNK_CHANNELS = (64, 16)
"""Output channels of the two convolutions of a spatial transformer [C]."""

HIDDEN = 1024
"""Width of the layer that estimates the warp [C]."""


class SpatialTransformer(nn.Module):
    """Estimates a warp from a feature map: (b, c, h, w) to matrices (b, 2, 3)."""

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((channels, *TRUNK_CHANNELS), TRUNK_CHANNELS, strict=False):
            convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
            grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(TRUNK_CHANNELS[-1] * prod(grid), HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3)
        )  # angle in radians, and two scales
        last = self.head[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([0.0, 1.0, 1.0]))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (b, c, h, w) to a matrix (b, 2, 3) each: [[s cos a, -sin a, 0], [sin a, t cos a, 0]]."""
        angle, first, second = self.head(self.trunk(maps).flatten(1)).float().unbind(dim=1)  # (b,) each
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        rows = [torch.stack(row, dim=1) for row in ((first * cos, -sin, zero), (sin, second * cos, zero))]
        return torch.stack(rows, dim=1)  # (b, 2, 3)


class RegisteringBackbone(nn.Module):
    """A pretrained backbone, trainable, whose stages are each followed by a warp; the next stage gets the warped map.

    Attributes:
        channels, grids: channels and grid (h, w) of each stage.
        mean, std: (1, 3, 1, 1) by which images are normalized.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Weights, stages: Sequence[int], size: tuple[int, int], *, normalize: bool) -> None:
        """Create the network with the pretrained weights; random ones come from the global generator.

        Args:
            weights: weights of a ResNet, a VGG or an EfficientNet of timm, or of another network whose modules form a
                chain.
            stages: stages as timm counts them; all modules up to the last one are used.
            size: height and width of the images, multiples of each stride.
            normalize: whether images are normalized as the weights require; False leaves them in [0, 1].

        Raises:
            BenchError: if the modules of the architecture do not form a chain.
        """
        super().__init__()
        architecture = architecture_name(weights.tag)
        network: Any = timm.create_model(architecture, features_only=True, out_indices=tuple(stages))
        if weights.source != "random":
            load_weights(network, weights)
        self.channels: tuple[int, ...] = tuple(network.feature_info.channels())
        self.grids = [(size[0] // stride, size[1] // stride) for stride in network.feature_info.reduction()]
        transformers = map(SpatialTransformer, self.channels, self.grids)
        self.stages = nn.ModuleList(
            nn.ModuleDict({"layers": layers, "transformer": transformer})
            for layers, transformer in zip(split_stages(network, architecture), transformers, strict=True)
        )
        cfg = pretrained_cfg(weights.tag.removeprefix(RANDOM)) or pretrained_cfg(architecture)
        mean, std = (cfg.mean, cfg.std) if normalize else ((0.0,), (1.0,))
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def register(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the warped map (b, c_i, h_i, w_i) and the matrix (b, 2, 3) of each stage, in float32."""
        maps, matrices = [], []
        features = (images - self.mean) / self.std
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleDict)
            features = stage["layers"](features)
            matrices.append(stage["transformer"](features))
            features = warp(features.float(), matrices[-1])
            maps.append(features)
        return maps, matrices

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of (b, 3, h, w) images in [0, 1], each warped and then warped back to the image's pose."""
        maps, matrices = self.register(images)
        inverses = [inverse(matrix) for matrix in matrices]
        aligned = []
        for number, features in enumerate(maps):
            for matrix in reversed(inverses[: number + 1]):
                features = warp(features, matrix)  # noqa: PLW2901
            aligned.append(features)
        return aligned


def split_stages(network: nn.Module, architecture: str) -> list[nn.Sequential]:
    """Return the modules of timm's feature extractor in a chain per stage, up to the last one.

    Raises:
        BenchError: if they do not form a chain.
    """
    if not isinstance(network, FeatureListNet | EfficientNetFeatures):
        raise BenchError(
            f"The modules of the backbone must form a chain, as those of a ResNet, a VGG or an EfficientNet do; those "
            f"of '{architecture}' do not. Choose another one, as --set backbone=resnet18.tv_in1k."
        )
    chain: list[tuple[str, nn.Module]] = []
    for name, module in network.named_children():
        is_list = name == "blocks"
        chain += [(f"blocks_{i}", block) for i, block in module.named_children()] if is_list else [(name, module)]
    ends = [name.replace(".", "_") for name in network.feature_info.module_name()]
    stages: list[nn.Sequential] = []
    layers: list[nn.Module] = []
    for name, module in chain:
        layers.append(module)
        if name == ends[len(stages)]:
            stages.append(nn.Sequential(*layers))
            layers = []
            if len(stages) == len(ends):
                break
    return stages


def warp(maps: Tensor, matrices: Tensor) -> Tensor:
    """Sample each of (b, c, h, w) at the positions that its matrix (b, 2, 3) gives, bilinearly; borders are reflected.

    Positions are in halves of height and width from the center, as in `torch.nn.functional.affine_grid`.
    """
    grid = F.affine_grid(matrices, list(maps.shape), align_corners=False)  # (b, h, w, 2)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def inverse(matrices: Tensor) -> Tensor:
    """Return the inverse of warps (b, 2, 3) without translation."""
    (a, b), (c, d) = (row.unbind(dim=1) for row in matrices[:, :, :2].unbind(dim=1))
    zero = torch.zeros_like(a)
    rows = [torch.stack(row, dim=1) for row in ((d, -b, zero), (-c, a, zero))]
    return torch.stack(rows, dim=1) / (a * d - b * c)[:, None, None]
