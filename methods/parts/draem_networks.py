"""The two networks of DRAEM: one reconstructs an image without its defects, one segments what differs.

Source: the authors' code of DRAEM, https://github.com/VitjanZ/DRAEM at 2dbf673 [C]. All convolutions are 3 x 3 with a
bias; all but the last have a batch norm and a ReLU after them.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .maps import upsample


class ReconstructionNetwork(nn.Module):
    """An autoencoder without skip connections: (b, 3, h, w) to the same shape; h and w are multiples of 16.

    With width 128 it has 69,048,579 parameters.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * factor for factor in (1, 2, 4, 8, 8)]
        self.encoder = nn.ModuleList(_block(*channels, channels[1]) for channels in pairwise([3, *widths]))
        self.decoder = nn.ModuleList()
        for before, after in ((8, 4), (4, 2), (2, 1), (1, 1)):
            self.decoder.append(_block(before * width, before * width))
            self.decoder.append(_block(before * width, before * width, after * width))
        self.head = nn.Conv2d(width, 3, 3, padding=1)
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the reconstruction; its values are not limited."""
        features = self.encode(images)
        for position, block in enumerate(self.decoder):
            features = block(_double(features) if position % 2 == 0 else features)
        output: Tensor = self.head(features)
        return output

    def encode(self, images: Tensor) -> Tensor:
        """Return the latent map (b, 8 * width, h / 16, w / 16)."""
        features = images
        for level, block in enumerate(self.encoder):
            features = block(F.max_pool2d(features, 2) if level else features)
        return features


class SegmentationNetwork(nn.Module):
    """A U-Net over an image and its reconstruction: (b, 6, h, w) to logits (b, 2, h, w); sides are multiples of 32.

    With width 64 it has 28,374,146 parameters.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * factor for factor in (1, 2, 4, 8, 8, 8)]
        self.encoder = nn.ModuleList(_block(*channels, channels[1]) for channels in pairwise([6, *widths]))
        self.decoder = nn.ModuleList()
        before = 8
        for after, skip in ((8, 8), (4, 8), (2, 4), (1, 2), (1, 1)):
            self.decoder.append(_block(before * width, after * width))
            self.decoder.append(_block((after + skip) * width, after * width, after * width))
            before = after
        self.head = nn.Conv2d(width, 2, 3, padding=1)
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map (b, 6, h, w) to the logits of "normal" and "defect" of each pixel, (b, 2, h, w)."""
        features, skips = images, []
        for level, block in enumerate(self.encoder):
            features = block(F.max_pool2d(features, 2) if level else features)
            skips.append(features)
        skips.pop()
        for position, block in enumerate(self.decoder):
            features = block(_double(features) if position % 2 == 0 else torch.cat([features, skips.pop()], dim=1))
        logits: Tensor = self.head(features)
        return logits


def _double(features: Tensor) -> Tensor:
    """Resize (b, c, h, w) to (b, c, 2 * h, 2 * w)."""
    return upsample(features, (2 * features.shape[2], 2 * features.shape[3]), align_corners=True)


def _block(*channels: int) -> nn.Sequential:
    """Return convolutions between these numbers of channels, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
