"""Resizing and smoothing of anomaly maps, and image scores."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Score = Literal["max", "std", "mean"]
"""How the score of an image is computed from its map."""

Kernel = tuple[float, ...]
"""Weights of a filter along one axis; their number is odd, the middle one is that of the pixel itself."""

Border = Literal["reflect", "zeros", "valid"]
"""What a filter does at the borders: reflect the image, add zeros, or omit the pixels without a complete window."""

TRUNCATE = 4.0
"""Standard deviations at which the Gaussian is cut off, scipy's default."""


def upsample(maps: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Resize (..., h, w) bilinearly to (..., *size).

    Equal to `torch.nn.functional.interpolate`, as two matrix products: several times as fast for many channels.
    """
    by_rows, by_columns = (
        _interpolation_matrix(n, target, align_corners, maps.device, maps.dtype)
        for n, target in zip(maps.shape[-2:], size, strict=True)
    )
    return by_rows @ (maps @ by_columns.T)


def gaussian_filter(maps: Tensor, sigma: float) -> Tensor:
    """Smooth (..., h, w) by a Gaussian of `sigma` pixels; 0 returns the maps unchanged.

    Equal to `scipy.ndimage.gaussian_filter(map, sigma)`: reflected at the borders, cut off at 4 sigma.
    """
    if sigma == 0:
        return maps
    kernel = gaussian_kernel(sigma, int(TRUNCATE * sigma + 0.5))
    return separable_filter(maps, kernel, kernel)


def mean_filter(maps: Tensor, side: int, border: Border = "reflect") -> Tensor:
    """Return the mean of side x side pixels around each of (..., h, w); `side` is odd, 1 returns the maps unchanged.

    With border "reflect" equal to `scipy.ndimage.uniform_filter(map, side)`; with "zeros", zeros outside are counted.
    """
    if side == 1:
        return maps
    kernel = (1 / side,) * side
    return separable_filter(maps, kernel, kernel, border)


def median_filter(maps: Tensor) -> Tensor:
    """Return the median of 3 x 3 pixels around each of (..., h, w), with zeros outside; gradients flow through it."""
    padded = F.pad(maps, (1, 1, 1, 1))
    triple = padded[..., :-2, :], padded[..., 1:-1, :], padded[..., 2:, :]  # 3 times (..., h, w + 2)
    columns = _sort_three(*triple)
    low, middle, high = ([part[..., :-2], part[..., 1:-1], part[..., 2:]] for part in columns)
    # In a table whose columns are sorted, the median of all nine is the median of these three.
    largest_low = torch.maximum(torch.maximum(low[0], low[1]), low[2])
    smallest_high = torch.minimum(torch.minimum(high[0], high[1]), high[2])
    return _sort_three(largest_low, _sort_three(*middle)[1], smallest_high)[1]


def _sort_three(first: Tensor, second: Tensor, third: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the smallest, the middle and the largest at each position."""
    smaller, larger = torch.minimum(first, second), torch.maximum(first, second)
    middle = torch.maximum(smaller, torch.minimum(larger, third))
    return torch.minimum(smaller, third), middle, torch.maximum(larger, third)


def separable_filter(maps: Tensor, vertical: Kernel, horizontal: Kernel, border: Border = "reflect") -> Tensor:
    """Correlate each of (..., h, w) with the outer product of two kernels.

    Border "reflect" is c b a | a b c; "valid" returns maps that are smaller by the lengths of the kernels minus 1.
    """
    by_rows, by_columns = (
        _filter_matrix(n, kernel, border, maps.device, maps.dtype)
        for n, kernel in zip(maps.shape[-2:], (vertical, horizontal), strict=True)
    )
    return by_rows @ (maps @ by_columns.T)


@lru_cache(maxsize=16)
def gaussian_kernel(sigma: float, radius: int) -> Kernel:
    """Return 2 * radius + 1 weights of a Gaussian of `sigma` pixels; their sum is 1."""
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    return tuple((weights / weights.sum()).tolist())


def image_score(maps: Tensor, score: Score) -> Tensor:
    """Reduce (b, h, w) to (b,): the maximum, the population standard deviation, or the mean of each map."""
    values = maps.flatten(1)  # (b, h * w)
    match score:
        case "max":
            return values.amax(dim=1)
        case "std":
            return values.std(dim=1, correction=0)
        case "mean":
            return values.mean(dim=1)


@lru_cache(maxsize=64)
def _interpolation_matrix(n: int, target: int, align_corners: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return (target, n): linear interpolation along one axis.

    The matrix is cached, so it is created outside inference mode: a later call may record gradients.
    """
    with torch.inference_mode(mode=False):
        position = torch.arange(target, dtype=torch.float64)
        if align_corners:
            position = position * ((n - 1) / max(target - 1, 1))
        else:
            position = ((position + 0.5) * (n / target) - 0.5).clamp(0, n - 1)
        return (1 - (position[:, None] - torch.arange(n)).abs()).clamp(min=0).to(device, dtype)


@lru_cache(maxsize=64)
def _filter_matrix(n: int, kernel: Kernel, border: Border, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return (n, n), with border "valid" fewer rows: a kernel along one axis, fast at the usual sizes of images."""
    with torch.inference_mode(mode=False):
        radius = len(kernel) // 2
        index = torch.arange(n)[:, None] + torch.arange(-radius, radius + 1)  # (n, 2 * radius + 1)
        if border != "reflect":
            return _unreflected_matrix(index, kernel, border).to(device, dtype)
        reflected = index % (2 * n)  # d c b a | a b c d | d c b a
        reflected = torch.where(reflected < n, reflected, 2 * n - 1 - reflected)
        matrix = torch.zeros(n, n, dtype=torch.float64)
        matrix.scatter_add_(1, reflected, torch.tensor(kernel, dtype=torch.float64).expand(n, -1))
        return matrix.to(device, dtype)


def _unreflected_matrix(index: Tensor, kernel: Kernel, border: Border) -> Tensor:
    n, radius = len(index), len(kernel) // 2
    matrix = torch.zeros(n, n + 2 * radius, dtype=torch.float64)
    matrix.scatter_(1, index + radius, torch.tensor(kernel, dtype=torch.float64).expand(n, -1))
    matrix = matrix[:, radius : n + radius]  # without the zeros outside
    return matrix[radius : n - radius] if border == "valid" else matrix
