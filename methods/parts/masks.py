"""Masks of tokens, cells or pixels: random, complementary, striped, or adaptive to distances from cluster centers.

In all masks True means masked; the masked tokens, cells or pixels are restored from the others.
"""

import math
from typing import Literal

import torch
from torch import Generator, Tensor

from bench.errors import BenchError

Ratio = float | Literal["uniform"]
"""The fraction that is masked; "uniform" samples it from U(0, 1) for each image."""


def random_mask(count: int, tokens: int, *, ratio: Ratio, generator: Generator) -> Tensor:
    """Return (count, tokens) on the generator's device: floor(ratio * tokens) True in each row, without replacement."""
    random = torch.rand(count, 1 + tokens, generator=generator, device=generator.device)
    n_masked = math.floor(ratio * tokens) if ratio != "uniform" else (random[:, :1] * tokens).floor()
    return random[:, 1:].argsort(dim=1).argsort(dim=1) < n_masked


def complementary_masks(height: int, width: int, *, cell: int, subsets: int, generator: Generator) -> Tensor:
    """Return (subsets, height, width): random disjoint sets of cell x cell squares that together cover everything once.

    The sizes of the sets differ by one square at most. Squares at the lower and right border are cut off if `cell` does
    not divide the size. Source: Zavrtanik et al., RIAD, Pattern Recognition 2021.
    """
    rows, columns = -(-height // cell), -(-width // cell)
    if not 1 <= subsets <= rows * columns:
        raise BenchError(
            f"Each complementary mask needs at least one cell, got {subsets} subsets of {rows} x {columns} cells. "
            "Use fewer subsets or smaller cells."
        )
    subset = torch.randperm(rows * columns, generator=generator, device=generator.device) % subsets
    subset = subset.view(rows, columns).repeat_interleave(cell, 0).repeat_interleave(cell, 1)[:height, :width]
    return subset == torch.arange(subsets, device=subset.device)[:, None, None]


def stripe_masks(height: int, width: int, scale: int) -> Tensor:
    """Return (4, height, width): columns of stripes, their complement, rows of stripes, their complement.

    A stripe is width / 2^(scale + 1) pixels wide or height / 2^(scale + 1) pixels high. The first mask covers the
    first, third, ... column of stripes, the third mask the first, third, ... row. Source: the code of Yan et al.,
    SCADN, AAAI 2021.
    """
    stripes = 2 ** (scale + 1)
    if scale < 0 or stripes > min(height, width):
        raise BenchError(
            f"The scale of stripes must be >= 0 and 2^(scale + 1) at most the side of the image, got scale {scale} and "
            f"{height} x {width} pixels. Use other scales or larger images."
        )
    rows, columns = (torch.arange(side) * stripes // side % 2 == 0 for side in (height, width))
    columns, rows = columns.expand(height, width), rows[:, None].expand(height, width)
    return torch.stack([columns, ~columns, rows, ~rows])


def fixed_masks(
    mask_type: Literal["none", "random", "complementary"],
    grid: tuple[int, int],
    *,
    ratio: float,
    cell: int,
    subsets: int,
    seed: int,
) -> Tensor:
    """Return masks (passes, rows * columns) of a grid of tokens that are the same for every image and on every device.

    Args:
        mask_type: "none" masks no token, "random" a fraction of them, "complementary" each token in one of the passes.
        grid: rows and columns of tokens.
        ratio: fraction that "random" masks.
        cell: side of a cell of "complementary" in tokens.
        subsets: number of passes of "complementary".
        seed: seed of the random masks.
    """
    rows, columns = grid
    generator = Generator().manual_seed(seed)
    match mask_type:
        case "none":
            return torch.zeros(1, rows * columns, dtype=torch.bool)
        case "random":
            return random_mask(1, rows * columns, ratio=ratio, generator=generator)
        case "complementary":
            return complementary_masks(rows, columns, cell=cell, subsets=subsets, generator=generator).flatten(1)


def adaptive_mask(distances: Tensor, clusters: Tensor, *, count: int, lambda_: float) -> Tensor:
    """Mask the tokens that are far from the center of their cluster: AMI-Net's adaptive mask.

    A token is masked if its distance is at least mean + lambda_ * std of the distances in its cluster (std with
    Bessel's correction). A single member is never masked; members with equal distances are all masked, because of `>=`
    (authors' code).

    Args:
        distances: (b, n) distance of each token to the center of its cluster.
        clusters: (b, n) integers in [0, count), the cluster of each token.
        count: number of clusters.
        lambda_: lambda in the paper.

    Returns:
        (b, n), True for masked tokens. The computation never waits for the device.
    """
    members = clusters[:, :, None] == torch.arange(count, device=clusters.device)  # (b, n, count)
    by_cluster = distances[:, :, None].expand_as(members)
    # Relative to the nearest member: if all distances are equal, mean and std are exactly 0.
    nearest = by_cluster.masked_fill(~members, torch.inf).amin(dim=1)  # (b, count), inf if empty
    excess = (distances - nearest.gather(1, clusters))[:, :, None] * members  # (b, n, count), 0 elsewhere
    sizes = members.sum(dim=1)  # (b, count)
    means = excess.sum(dim=1) / sizes.clamp(min=1)
    squares = ((excess - means[:, None]) * members).square().sum(dim=1)
    limits = means + lambda_ * (squares / (sizes - 1).clamp(min=1)).sqrt()
    is_masked = excess.sum(dim=2) >= limits.gather(1, clusters)
    return is_masked & (sizes.gather(1, clusters) > 1)
