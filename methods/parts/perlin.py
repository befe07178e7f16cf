"""Perlin noise, from which irregular masks of simulated defects are cut."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from .rotation import rotate

MAX_EXPONENT = 5
"""Frequencies are powers of 2 up to 2^5 cells per image."""


def perlin_noise(size: tuple[int, int], draws: Tensor) -> Tensor:
    """Return Perlin noise (h, w) with values in about [-1, 1], float32.

    Unit vectors at the corners of a grid of cells are interpolated by 6 t^5 - 15 t^4 + 10 t^3. The size may be any
    number, not only a multiple of the number of cells.

    Args:
        size: h and w.
        draws: (rows + 1, columns + 1) numbers in [0, 1): the angles at the corners of rows x columns cells, over 2 pi.
    """
    angles = 2 * math.pi * draws.double()
    cells = (draws.shape[0] - 1, draws.shape[1] - 1)
    rows, columns = (torch.arange(n, dtype=torch.float64) * count / n for n, count in zip(size, cells, strict=True))
    row, column = rows.long(), columns.long()
    y, x = (rows - row)[:, None], (columns - column)[None]  # (h, 1) and (1, w), within a cell

    def corner(below: int, right: int) -> Tensor:
        """Return the scalar product of a corner's vector with the offset from that corner, (h, w)."""
        angle = angles[(row + below)[:, None], (column + right)[None]]
        return angle.cos() * (y - below) + angle.sin() * (x - right)

    left = torch.lerp(corner(0, 0), corner(1, 0), _fade(y))
    right = torch.lerp(corner(0, 1), corner(1, 1), _fade(y))
    return (math.sqrt(2) * torch.lerp(left, right, _fade(x))).float()


def random_perlin_noise(size: tuple[int, int], generator: Generator, *, max_degrees: float = 90.0) -> Tensor:
    """Return noise (h, w) of random frequencies, rotated by a random angle; corners from outside are 0.

    Args:
        size: h and w.
        generator: random generator on the CPU.
        max_degrees: bound of the absolute angle.
    """
    draws = torch.rand(*(2 ** _random_exponent(side, generator) + 1 for side in size), generator=generator)
    degrees = max_degrees * (2 * torch.rand(1, generator=generator) - 1)
    return rotate(perlin_noise(size, draws)[None, None], degrees, "bilinear")[0, 0]


def perlin_octaves(size: tuple[int, int], frequencies: Sequence[int], generator: Generator) -> Tensor:
    """Return the sum of noise of these frequencies, each weighted by 1 / frequency, scaled to [0, 1]: (h, w)."""
    octaves = [
        perlin_noise(size, torch.rand(frequency + 1, frequency + 1, generator=generator)) / frequency
        for frequency in frequencies
    ]
    total = torch.stack(octaves).sum(dim=0)
    return (total - total.min()) / (total.max() - total.min()).clamp(min=1e-6)


def _random_exponent(side: int, generator: Generator) -> int:
    """Return a uniform exponent; cells have two pixels or more."""
    highest = min(MAX_EXPONENT, int(math.log2(side)) - 1)
    return int(torch.randint(highest + 1, (), generator=generator))


def _fade(t: Tensor) -> Tensor:
    return t**3 * (t * (6 * t - 15) + 10)
