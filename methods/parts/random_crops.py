"""Random square regions of images at any position and scale, and changed copies of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

READ_BATCH = 8
"""Images that are read at once."""


class Source(Protocol):
    """Images from which regions are cut."""

    def __len__(self) -> int:
        """Return the number of images."""

    def batches(self, size: int, order: Tensor | None = None) -> Iterable[Tensor]:
        """Yield (b, 3, h, w) RGB in [0, 1], b <= size, in the order of the indices."""


def draw_images(sources: Sequence[Source], count: int, downsample: int, generator: Generator) -> Tensor:
    """Return random images of all sources as (n, 3, h, w) uint8, n about `count` or all images if there are fewer."""
    share = -(-count // len(sources))
    images = [
        F.avg_pool2d(batch, downsample).mul(255).round().to(torch.uint8)
        for source in sources
        for batch in source.batches(READ_BATCH, torch.randperm(len(source), generator=generator)[:share])
    ]
    return torch.cat(images)


@dataclass(frozen=True, slots=True)
class PairSampler:
    """Draws random regions of images, and for each a positive: the region shifted and changed a little.

    Attributes:
        zoom: range of the factor by which a region is enlarged, uniform in its logarithm.
        jitter: largest change of brightness, and largest relative change of each color channel, the same for both.
        shift: largest shift of the positive, relative to the region's side.
        luminance: largest relative change of the positive's brightness.
        noise: standard deviation of the noise of the positive.
    """

    zoom: tuple[float, float]
    jitter: float
    shift: float = 0.1
    luminance: float = 0.1
    noise: float = 0.02

    def draw(self, images: Tensor, count: int, pixels: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Return regions and positives, (count, 3, pixels, pixels) each, in [0, 1].

        Args:
            images: (n, 3, h, w) uint8.
            count: number of regions.
            pixels: side of the result.
            generator: random generator on the CPU, so that regions are the same on every device.
        """
        size, device = torch.tensor(images.shape[2:]), images.device
        index = torch.randint(len(images), (count,), generator=generator).to(device)
        exponent = torch.empty(count).uniform_(*torch.tensor(self.zoom).log().tolist(), generator=generator)
        side = (pixels / exponent.exp()).clamp(max=float(size.min()))
        corner = torch.rand(2, count, generator=generator) * (size[:, None] - side)  # top and left
        shifted = corner + self.shift * side * _symmetric(2, count, generator=generator)
        gain = 1 + self.jitter * _symmetric(count, 3, 1, 1, generator=generator)
        offset = self.jitter * _symmetric(count, 1, 1, 1, generator=generator)
        luminance = 1 + self.luminance * _symmetric(count, 1, 1, 1, generator=generator)
        noise = self.noise * torch.randn(count, 3, pixels, pixels, generator=generator)
        regions, positives = (
            sample_regions(images, index, region_corner.to(device), side.to(device), pixels) * gain.to(device)
            + offset.to(device)
            for region_corner in (corner, shifted)
        )
        return regions.clamp(0, 1), (positives * luminance.to(device) + noise.to(device)).clamp(0, 1)


def sample_regions(images: Tensor, index: Tensor, corner: Tensor, side: Tensor, pixels: int) -> Tensor:
    """Resample square regions bilinearly: (b, 3, pixels, pixels) in [0, 1].

    Args:
        images: (n, 3, h, w) uint8.
        index: (b,) of the image of each region.
        corner: (2, b) first row and first column of a region in pixels, not necessarily whole.
        side: (b,) of a region in pixels. Beyond the border of an image, the pixels of the border are repeated.
        pixels: side of the result.
    """
    centers = (torch.arange(pixels, device=images.device) + 0.5) / pixels
    axes = []
    for start, length in zip(corner, images.shape[2:], strict=True):
        position = (start[:, None] + side[:, None] * centers - 0.5).clamp(0, length - 1)  # (b, pixels)
        first = position.floor().long()
        axes.append((first, (first + 1).clamp(max=length - 1), position - first))
    (row, next_row, down), (column, next_column, right) = axes
    down, right = down[:, :, None, None], right[:, None, :, None]

    def pick(rows: Tensor, columns: Tensor) -> Tensor:
        return images[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].float()  # (b, pixels, pixels, 3)

    upper = torch.lerp(pick(row, column), pick(row, next_column), right)
    lower = torch.lerp(pick(next_row, column), pick(next_row, next_column), right)
    return torch.lerp(upper, lower, down).permute(0, 3, 1, 2) / 255


def cut_patches(images: Tensor, index: Tensor, corner: Tensor, side: int) -> Tensor:
    """Return squares of images (n, c, h, w) at whole pixels: (b, c, side, side).

    Args:
        images: images of any dtype.
        index: (b,) of the image of each square.
        corner: (b, 2) its first row and column.
        side: side in pixels.
    """
    offsets = torch.arange(side, device=images.device)
    row, column = corner[:, :1] + offsets, corner[:, 1:] + offsets  # (b, side) each
    return images[index[:, None, None], :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)


def random_windows(images: Tensor, side: int, generator: Generator) -> Tensor:
    """Return a part of each of (b, c, h, w) at a random whole pixel: (b, c, side, side).

    Its center is uniform over the image, and the part is then shifted into the image: otherwise the pixels at a corner
    would hardly ever be sampled.
    """
    offsets = [
        (torch.rand(len(images), generator=generator) * n - side / 2).round().long().clamp(0, n - side)
        for n in images.shape[2:]
    ]
    corners = torch.stack(offsets, dim=1).tolist()
    windows = [image[:, i : i + side, j : j + side] for image, (i, j) in zip(images, corners, strict=True)]
    return torch.stack(windows)


def _symmetric(*shape: int, generator: Generator) -> Tensor:
    """Return numbers that are uniform in [-1, 1)."""
    return 2 * torch.rand(*shape, generator=generator) - 1
