"""Rotations of images about their centers."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Interpolation = Literal["nearest", "bilinear", "bicubic"]


def rotate(images: Tensor, degrees: Tensor, interpolation: Interpolation) -> Tensor:
    """Rotate each of (b, c, h, w) counter-clockwise by one of (b,) degrees; the size stays, new corners are 0.

    Quarter turns of square images are exact for every interpolation, up to rounding.
    """
    height, width = images.shape[2:]
    radians = torch.deg2rad(degrees.to(images.device, torch.float64))
    cos, sin = radians.cos(), radians.sin()
    # The grid is in halves of width and height, so an angle is sheared by their ratio.
    by_row = torch.stack([cos, -sin * height / width, torch.zeros_like(cos)], dim=1)
    by_column = torch.stack([sin * width / height, cos, torch.zeros_like(cos)], dim=1)
    matrices = torch.stack([by_row, by_column], dim=1).to(images.dtype)  # (b, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)  # (b, h, w, 2)
    return F.grid_sample(images, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
