"""The U-Net of RIAD: five stages down, four up, each joined to its counterpart."""

from itertools import pairwise
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """Images (b, 3, h, w) to images of values from -1 to 1; 16 divides h and w.

    width: channels of the first stage; the others have 2, 4, 8 and 8 times as many. A stage is two convolutions, each
    with batch norm and ReLU. On the way down the first of them halves the size; on the way up a transposed convolution
    doubles it, and what the way down had at that size is joined to it. Width 64 makes 28,800,835 parameters.

    Source: plutoyuxie's re-implementation of RIAD, models/unet.py. Its convolutions have a bias before each batch norm,
    which takes it off again; here they have none.
    """

    STRIDE: ClassVar[int] = 16

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * times for times in (1, 2, 4, 8, 8)]
        self.down = nn.ModuleList([nn.Sequential(_convolved(3, width), _convolved(width, width))])
        self.down.extend(
            nn.Sequential(_convolved(before, after, halve=True), _convolved(after, after))
            for before, after in pairwise(widths)
        )
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths[::-1])
        )
        self.up = nn.ModuleList(
            nn.Sequential(_convolved(2 * after, after), _convolved(after, after)) for after in widths[-2::-1]
        )
        self.colour = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) -> the same shape."""
        maps, passed = images, []
        for down in self.down:
            maps = down(maps)
            passed.append(maps)
        passed.pop()
        for enlarge, up in zip(self.enlarge, self.up, strict=True):
            maps = up(torch.cat([enlarge(maps), passed.pop()], dim=1))
        painted: Tensor = self.colour(maps).tanh()
        return painted

    @staticmethod
    def remembered(width: int, size: tuple[int, int]) -> int:
        """Bytes in float32 that a pass on one image of (h, w) pixels keeps for its gradients; without them, a third."""
        # Of each convolution's stage what batch norm and ReLU gave; on the way up the join of two as well.
        halvings = enumerate((1, 2, 4, 8, 8))
        return sum(4 * (4 if level == 4 else 11) * width * times * prod(size) // 4**level for level, times in halvings)


def _convolved(before: int, after: int, *, halve: bool = False) -> nn.Sequential:
    side, stride = (4, 2) if halve else (3, 1)
    convolution = nn.Conv2d(before, after, side, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))
