"""The encoders of Patch SVDD for patches of 32 and 64 pixels, also at many positions of an image in one pass."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAK = 0.1
"""Slope of the LeakyReLU for negative sums."""

SMALL, LARGE = 32, 64
"""Sides of the patches in pixels."""

WIDTHS = (1, 2, 4, 4, 2, 1, 1)
"""Channels of the convolutions before the last one, in units of the width."""

STRIDE = 2
"""Pixels per position of the small encoder on a whole image."""


class PatchEncoder(nn.Module):
    """Convolutions without padding that end at one vector per patch, and a layer for the four quarters of a patch."""

    def __init__(self, width: int, dimensions: int) -> None:
        super().__init__()
        channels = [3, *(width * factor for factor in WIDTHS), dimensions]
        self.small = nn.ModuleList(
            nn.Conv2d(c, outputs, 3, stride=1 if i else STRIDE) for i, (c, outputs) in enumerate(pairwise(channels))
        )
        self.join = nn.Conv2d(dimensions, 4 * width, 2, stride=2)
        self.project = nn.Conv2d(4 * width, dimensions, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode patches of 32 pixels, or those at every second pixel of an image: (b, 3, h, w) to (b, d, h', w').

        h' is (h - 3) // 2 - 13, so 1 for 32 pixels; the vector at i, j depends on 31 pixels from row 2 i, column 2 j.
        """
        maps = inputs.contiguous(memory_format=torch.channels_last)
        for i, convolution in enumerate(self.small):
            maps = convolution(F.leaky_relu(maps, LEAK) if i else maps)
        vectors: Tensor = maps.tanh()
        return vectors

    def join_quarters(self, quarters: Tensor) -> Tensor:
        """Encode patches of 64 pixels from those of their quarters, side by side: (b, d, 2 n, 2 m) to (b, d, n, m)."""
        joined: Tensor = self.project(F.leaky_relu(self.join(quarters), LEAK)).tanh()
        return joined

    def encode(self, patches: Tensor) -> Tensor:
        """Encode patches of 32 or 64 pixels, one vector each: (b, 3, side, side) to (b, d)."""
        parts = patches.shape[2] // SMALL  # 1, or 2 in each direction
        cells = patches.unflatten(3, (parts, SMALL)).unflatten(2, (parts, SMALL))  # (b, 3, parts, 32, parts, 32)
        vectors: Tensor = self(cells.permute(2, 4, 0, 1, 3, 5).flatten(0, 2))  # (parts * parts * b, d, 1, 1)
        if parts == 1:
            return vectors.flatten(1)
        grid = vectors.view(2, 2, len(patches), -1).permute(2, 3, 0, 1)  # (b, d, 2, 2)
        return self.join_quarters(grid).flatten(1)

    def encode_images(self, images: Tensor, strides: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Encode the patches of 64 and of 32 pixels at multiples of the two even strides: (b, d, n, m) each.

        One pass computes all of them: a patch of 64 pixels has the vectors of its quarters, 16 positions apart.
        """
        maps = self(images)
        height, width = images.shape[2:]
        step = strides[1] // STRIDE
        rows, columns = ((side - SMALL) // strides[1] + 1 for side in (height, width))
        small = maps[:, :, : step * rows : step, : step * columns : step]
        row, column = (
            (torch.arange((side - LARGE) // strides[0] + 1)[:, None] * (strides[0] // STRIDE))
            + torch.tensor([0, SMALL // STRIDE])
            for side in (height, width)
        )  # (n, 2) positions of the quarters
        quarters = maps[:, :, row.flatten().to(maps.device)[:, None], column.flatten().to(maps.device)]
        return self.join_quarters(quarters), small


class PositionClassifier(nn.Module):
    """Predicts from two vectors which of eight directions leads from the first patch to the second.

    The last matrix is divided by the norm of its columns. In the authors' code no gradient reaches it ("frozen").
    """

    def __init__(self, dimensions: int, hidden: int = 128, *, frozen: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dimensions, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, 8)
        self.fc3.weight.requires_grad_(not frozen)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Map two of (b, d) to logits (b, 8)."""
        hidden = F.leaky_relu(self.fc1(first - second), LEAK)
        hidden = F.leaky_relu(self.fc2(hidden), LEAK)
        return F.linear(hidden, self.fc3.weight / self.fc3.weight.norm(dim=0, keepdim=True), self.fc3.bias)
