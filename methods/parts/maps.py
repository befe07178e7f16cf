"""From patch scores to anomaly maps and image scores: what most methods do at the end."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Score = Literal["max", "std", "mean"]
"""How an image's score is made from its map."""

Kernel = tuple[float, ...]
"""Weights of a filter along one axis, an odd number of them, the middle one for the place itself."""

TRUNCATE = 4.0  # standard deviations at which the Gaussian ends, scipy's default


def upsample(maps: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """(..., h, w) -> (..., *size), bilinear. `align_corners`: corners keep their values; otherwise edges meet edges.

    Equal to `torch.nn.functional.interpolate`, as two matrix products: several times as fast on many channels.
    """
    down, across = (
        _stretching(n, target, align_corners, maps.device, maps.dtype)
        for n, target in zip(maps.shape[-2:], size, strict=True)
    )
    return down @ (maps @ across.T)


def gaussian(maps: Tensor, sigma: float) -> Tensor:
    """Smooths (..., h, w) by a Gaussian of `sigma` pixels; 0 leaves them as they are.

    Equal to `scipy.ndimage.gaussian_filter(map, sigma)`: mirrored at the edges, cut off at 4 sigma.
    """
    if sigma == 0:
        return maps
    kernel = gaussian_kernel(sigma, int(TRUNCATE * sigma + 0.5))
    return filtered(maps, kernel, kernel)


def mean_filter(maps: Tensor, side: int) -> Tensor:
    """The mean of side x side pixels around each of (..., h, w); `side` is odd, 1 leaves them as they are.

    Equal to `scipy.ndimage.uniform_filter(map, side)`: mirrored at the edges.
    """
    if side == 1:
        return maps
    kernel = (1 / side,) * side
    return filtered(maps, kernel, kernel)


def filtered(maps: Tensor, down: Kernel, across: Kernel) -> Tensor:
    """Correlates each of (..., h, w) with the outer product of two kernels, mirrored at the edges: c b a | a b c."""
    by_rows, by_columns = (
        _filtering(n, kernel, maps.device, maps.dtype)
        for n, kernel in zip(maps.shape[-2:], (down, across), strict=True)
    )
    return by_rows @ (maps @ by_columns.T)


@lru_cache(maxsize=16)
def gaussian_kernel(sigma: float, radius: int) -> Kernel:
    """2 * radius + 1 weights of a Gaussian of `sigma` pixels; their sum is 1."""
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    return tuple((weights / weights.sum()).tolist())


def image_score(maps: Tensor, how: Score) -> Tensor:
    """(b, h, w) -> (b,): the largest value, the population standard deviation, or the mean of each map."""
    values = maps.flatten(1)  # (b, h * w)
    match how:
        case "max":
            return values.amax(dim=1)
        case "std":
            return values.std(dim=1, correction=0)
        case "mean":
            return values.mean(dim=1)


@lru_cache(maxsize=64)
def _stretching(n: int, target: int, align_corners: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(target, n): linear interpolation along one axis as a matrix.

    Kept between calls, so it is made outside inference mode: a later call may record gradients.
    """
    with torch.inference_mode(mode=False):
        place = torch.arange(target, dtype=torch.float64)
        if align_corners:
            place = place * ((n - 1) / max(target - 1, 1))
        else:
            place = ((place + 0.5) * (n / target) - 0.5).clamp(0, n - 1)
        return (1 - (place[:, None] - torch.arange(n)).abs()).clamp(min=0).to(device, dtype)


@lru_cache(maxsize=64)
def _filtering(n: int, kernel: Kernel, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(n, n): a kernel along one axis as a matrix, which needs no padding and is fast at the sizes of images."""
    with torch.inference_mode(mode=False):
        radius = len(kernel) // 2
        reached = torch.arange(n)[:, None] + torch.arange(-radius, radius + 1)  # (n, 2 * radius + 1)
        mirrored = reached % (2 * n)  # d c b a | a b c d | d c b a
        mirrored = torch.where(mirrored < n, mirrored, 2 * n - 1 - mirrored)
        matrix = torch.zeros(n, n, dtype=torch.float64)
        matrix.scatter_add_(1, mirrored, torch.tensor(kernel, dtype=torch.float64).expand(n, -1))
        return matrix.to(device, dtype)
