"""Pyramids of square images for GANs of several scales, and the resize of SinGAN by which they change scales.

To resize them, images in [-1, 1] are first truncated to 8 bits. The kernel is cubic with a = -0.5, widened by 1 / scale
when an image shrinks. Beyond the right and lower border the image is mirrored; beyond the left and upper
border there is nothing, because negative positions overflow in the original code. Weights are then divided by their
sum.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ImagePyramid:
    """The scales of square images, from the smallest one.

    Attributes:
        shrink: factor from the images to the largest scale.
        factor: size of a scale relative to the next larger one, < 1.
        sides: sides in pixels.
    """

    shrink: float
    factor: float
    sides: tuple[int, ...]

    @classmethod
    def from_sides(cls, side: int, max_side: int, min_side: int, factor: float) -> "ImagePyramid":
        """Return the pyramid of images of `side` pixels, with the number of scales that suits the factor best.

        The smallest side is `min_side`, or one more by rounding; it must be less than the other two sides.
        """
        largest = min(max_side, side)
        steps = math.ceil(math.log(min_side / side, factor)) + 1 - math.ceil(math.log(largest / side, factor))
        shrink = min(max_side / side, 1)
        top = math.ceil(side * shrink)
        factor = (min_side / top) ** (1 / steps)
        return cls(shrink, factor, tuple(math.ceil(top * factor ** (steps - i)) for i in range(steps + 1)))

    def resize(self, images: Tensor) -> list[Tensor]:
        """Return images (b, 3, h, h) in [0, 1] at all scales, each (b, 3, side, side) in [-1, 1]."""
        top = quantized_resize(2 * (images - 0.5), self.shrink)
        last = len(self.sides) - 1
        return [quantized_resize(top, self.factor ** (last - scale)) for scale in range(last + 1)]

    def enlarge(self, images: Tensor, scale: int) -> Tensor:
        """Return images of the scale before `scale` at `scale`, cut at the right and at the lower border."""
        side = self.sides[scale]
        return quantized_resize(images, 1 / self.factor)[:, :, :side, :side]


@torch.no_grad()
def quantized_resize(images: Tensor, scale: float) -> Tensor:
    """Resize (b, c, h, w) in [-1, 1] to (b, c, ceil(h * scale), ceil(w * scale)), clamped to [-1, 1]."""
    values = (255 * ((images + 1) / 2).clamp(0, 1)).floor()  # the original operations: a rounding can change a level
    by_rows, by_columns = (_resize_matrix(side, scale, images.device) for side in images.shape[2:])
    resized = by_rows @ values.double() @ by_columns.T
    return (((resized / 255).float() - 0.5) * 2).clamp(-1, 1)


@lru_cache(maxsize=64)
def _resize_matrix(side: int, scale: float, device: torch.device) -> Tensor:
    """Return (target, side), float64: the resize along one axis."""
    with torch.inference_mode(mode=False):
        target, shrink = math.ceil(side * scale), min(scale, 1.0)
        centers = (torch.arange(target, dtype=torch.float64) + 0.5) / scale - 0.5
        radius = math.ceil(2 / shrink) + 1
        taps = torch.arange(-radius, radius + 1) + centers.floor().long()[:, None]  # (target, 2 * radius + 1)
        weights = _cubic(shrink * (centers[:, None] - taps)) * (taps >= 0)
        weights /= weights.sum(dim=1, keepdim=True)
        mirrored = taps.clamp(min=0) % (2 * side)
        mirrored = torch.where(mirrored < side, mirrored, 2 * side - 1 - mirrored)
        matrix = torch.zeros(target, side, dtype=torch.float64)
        return matrix.scatter_add_(1, mirrored, weights).to(device)


def _cubic(x: Tensor) -> Tensor:
    x = x.abs()
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, inner, torch.where(x <= 2, outer, torch.zeros_like(x)))
