"""SCADN's generator, which restores images of which half is masked, and the discriminator of its training.

Source: Xudong-Yan/SCADN at 5f25dd9 [C], an EdgeConnect network. Its convolutions before an instance norm have a bias,
which has no effect; here they have none.
"""

from itertools import pairwise
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

SLOPE = 0.2
"""Negative slope of the discriminator's leaky ReLUs."""


class Generator(nn.Module):
    """Maps images (b, 3, h, w) to images in [0, 1]; h and w must be multiples of 8.

    Three convolutions halve the size, dilated residual blocks follow, and three convolutions after nearest neighbor
    upsampling restore it. With width 64 and 8 blocks there are 42,068,355 parameters.
    """

    STRIDE: ClassVar[int] = 8

    def __init__(self, width: int, blocks: int) -> None:
        """Create the layers with random weights; width 64 and 8 blocks in the code."""
        super().__init__()
        widths = [width * factor for factor in (1, 2, 4, 8)]
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), *_conv_norm_relu(nn.Conv2d(3, width, 7, bias=False))]
        for before, after in pairwise(widths):
            layers += _conv_norm_relu(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False))
        layers += [ResidualBlock(widths[-1]) for _ in range(blocks)]
        for before, after in pairwise(widths[::-1]):
            layers.append(nn.Upsample(scale_factor=2.0))
            layers += _conv_norm_relu(nn.Conv2d(before, after, 3, padding=1, bias=False))
        self.layers = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7))
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to the same shape."""
        restored: Tensor = (self.layers(images).tanh() + 1) / 2
        return restored

    @staticmethod
    def activation_bytes(width: int, blocks: int, size: tuple[int, int]) -> int:
        """Return the bytes in float32 that a forward pass of one (h, w) image saves for the backward pass."""
        # Multiples of the width per pixel: convolutions and norms of encoder and decoder, upsampled features, and 6
        # activations per block.
        return int(4 * (3.75 + 3.5 + 3.5 + 0.75 * blocks) * width * prod(size))


class ResidualBlock(nn.Module):
    """x + norm(conv(relu(norm(dilated conv(x))))), reflected at the borders."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(2),
            *_conv_norm_relu(nn.Conv2d(channels, channels, 3, dilation=2, bias=False)),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            InstanceNorm(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (b, channels, h, w) to the same shape."""
        summed: Tensor = features + self.layers(features)
        return summed


class InstanceNorm(nn.Module):
    """Instance norm without parameters and running statistics."""

    EPSILON: ClassVar[float] = 1e-5

    def forward(self, features: Tensor) -> Tensor:
        """Map (b, channels, h, w) to the same shape and layout; mean 0 and variance 1 in each channel."""
        if features.is_contiguous():
            return F.instance_norm(features, eps=self.EPSILON)
        # Channels last: torch's function would copy the tensor to the default layout and back.
        centered = features - features.mean(dim=(2, 3), keepdim=True)
        return centered * (centered.square().mean(dim=(2, 3), keepdim=True) + self.EPSILON).rsqrt()


class Discriminator(nn.Module):
    """Maps images (b, 3, h, w) to a logit per overlapping patch; positive means classified as original."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for (before, after), stride in zip(pairwise(widths), (2, 2, 2, 1), strict=True):
            layers += [nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=False), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1, bias=False))
        initialize(self)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                spectral_norm(layer)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (b, 1, h / 8 - 2, w / 8 - 2)."""
        logits: Tensor = self.layers(images)
        return logits


@torch.no_grad()
def initialize(network: nn.Module) -> None:
    """Sample all convolution weights from N(0, 0.02), and set biases to 0 [C]."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _conv_norm_relu(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, InstanceNorm(), nn.ReLU(inplace=True)]
