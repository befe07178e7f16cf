"""The U-Net of RIAD: five stages down, four stages up with skip connections."""

from itertools import pairwise
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """Maps images (b, 3, h, w) to images with values in [-1, 1]; h and w must be multiples of 16.

    The first stage has `width` channels, the others 2, 4, 8 and 8 times as many. A stage is two convolutions, each with
    batch norm and ReLU. In the encoder the first convolution of a stage halves the size; in the decoder a transposed
    convolution doubles it, and the encoder's output at that size is concatenated. With width 64 there are 28,800,835
    parameters.

    Source: plutoyuxie's re-implementation of RIAD, models/unet.py. Its convolutions have a bias before each batch
    norm, which has no effect; here they have none.
    """

    STRIDE: ClassVar[int] = 16

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * factor for factor in (1, 2, 4, 8, 8)]
        self.down = nn.ModuleList([nn.Sequential(_conv_bn_relu(3, width), _conv_bn_relu(width, width))])
        self.down.extend(
            nn.Sequential(_conv_bn_relu(before, after, halve=True), _conv_bn_relu(after, after))
            for before, after in pairwise(widths)
        )
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths[::-1])
        )
        self.up = nn.ModuleList(
            nn.Sequential(_conv_bn_relu(2 * after, after), _conv_bn_relu(after, after)) for after in widths[-2::-1]
        )
        self.head = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to the same shape."""
        features, skips = images, []
        for down in self.down:
            features = down(features)
            skips.append(features)
        skips.pop()
        for upsample, up in zip(self.upsample, self.up, strict=True):
            features = up(torch.cat([upsample(features), skips.pop()], dim=1))
        output: Tensor = self.head(features).tanh()  # (b, 3, h, w)
        return output

    @staticmethod
    def activation_bytes(width: int, size: tuple[int, int]) -> int:
        """Return the bytes in float32 that a forward pass of one (h, w) image saves for the backward pass.

        Without gradients the peak is about a third of that.
        """
        # Activations per convolution: the outputs of batch norm and ReLU; in the decoder also the concatenation.
        levels = enumerate((1, 2, 4, 8, 8))
        return sum(4 * (4 if level == 4 else 11) * width * factor * prod(size) // 4**level for level, factor in levels)


def _conv_bn_relu(before: int, after: int, *, halve: bool = False) -> nn.Sequential:
    kernel, stride = (4, 2) if halve else (3, 1)
    convolution = nn.Conv2d(before, after, kernel, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))
