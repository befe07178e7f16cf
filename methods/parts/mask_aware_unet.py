"""SSM's network: RIAD's U-Net with blocks that use the mask, and the mask as an additional output."""

from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .unet import UNet


class MaskAwareUNet(nn.Module):
    """Maps images whose masked pixels are 0, and the mask, to restored images and predicted masks in [-1, 1].

    Height and width must be multiples of 16. A decoder stage doubles the size by nearest neighbor and a 1 x 1
    convolution. With width 64 there are 33,296,324 parameters.

    Source: MediaBrain-SJTU/SSM at dbf8e0c [C]. Its convolutions before a batch norm have a bias, which has no effect in
    training; the U-Net's have none.
    """

    STRIDE = UNet.STRIDE

    def __init__(self, width: int) -> None:
        super().__init__()
        unet = UNet(width)
        self.down, self.up = unet.down, unet.up
        widths = [8 * width, 8 * width, 4 * width, 2 * width, width]  # after the encoder and each decoder stage
        # A 1 x 1 convolution and nearest neighbor upsampling commute, so the convolution is applied first.
        self.upsample = nn.ModuleList(nn.Conv2d(before, after, 1) for before, after in pairwise(widths))
        self.mask_blocks = nn.ModuleList(MaskBlock(channels) for channels in widths)
        self.head = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, images: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Restore images and predict the mask.

        Args:
            images: (b, 3, h, w), 0 for masked pixels.
            visible: (b, 1, h, w), 1 for visible and 0 for masked pixels.

        Returns:
            The restored images (b, 3, h, w) and the predicted `visible` (b, 1, h, w).
        """
        features, skips = images, []
        for down in self.down:
            features = down(features)
            skips.append(features)
        features = self.mask_blocks[0](skips.pop(), visible)
        for upsample, up, block in zip(self.upsample, self.up, list(self.mask_blocks)[1:], strict=True):
            doubled = F.interpolate(upsample(features), scale_factor=2.0)
            features = block(up(torch.cat([doubled, skips.pop()], dim=1)), visible)
        output = self.head(features).tanh()  # (b, 4, h, w)
        return output[:, :3], output[:, 3:]

    @staticmethod
    def activation_bytes(width: int, size: tuple[int, int]) -> int:
        """Return the bytes in float32 that a forward pass of one (h, w) image saves for the backward pass."""
        # Activations per mask block: input, both batch norms with the concatenation, ReLU, and the correction.
        levels = enumerate((1, 2, 4, 8, 8))
        blocks: int = sum(4 * 7 * width * factor * prod(size) // 4**level for level, factor in levels)
        return UNet.activation_bytes(width, size) + blocks


class MaskBlock(nn.Module):
    """Adds a correction that is computed from the feature maps and the mask, at visible positions only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.correction = nn.Sequential(
            nn.Conv2d(channels + 1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, features: Tensor, visible: Tensor) -> Tensor:
        """Map (b, channels, h, w) and the mask (b, 1, H, W) to (b, channels, h, w)."""
        mask = F.interpolate(visible, features.shape[2:]).to(features.dtype)  # (b, 1, h, w), by nearest neighbor
        corrected: Tensor = features + mask * self.correction(torch.cat([self.norm(features), mask], dim=1))
        return corrected
