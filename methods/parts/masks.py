"""Which tokens, cells or pixels are hidden: at random, in complementary sets, or where clusters tell.

In every mask of the house True means hidden, and what is hidden is restored from what is not.
"""

import math
from typing import Literal

import torch
from torch import Generator, Tensor

from bench.errors import BenchError

Ratio = float | Literal["uniform"]
"""The fraction hidden; "uniform" draws one from U(0, 1) for each image."""


def random_mask(count: int, tokens: int, *, ratio: Ratio, generator: Generator) -> Tensor:
    """(count, tokens) on the generator's device: in each row floor(ratio * tokens), drawn without replacement."""
    drawn = torch.rand(count, 1 + tokens, generator=generator, device=generator.device)
    hidden = math.floor(ratio * tokens) if ratio != "uniform" else (drawn[:, :1] * tokens).floor()
    return drawn[:, 1:].argsort(dim=1).argsort(dim=1) < hidden


def complementary_masks(height: int, width: int, *, cell: int, subsets: int, generator: Generator) -> Tensor:
    """(subsets, height, width): random disjoint sets of cell x cell squares, equal but for one, that cover all once.

    Squares at the lower and right border are cut off where `cell` does not divide the size.
    Source: Zavrtanik et al., RIAD, Pattern Recognition 2021.
    """
    rows, columns = -(-height // cell), -(-width // cell)
    if not 1 <= subsets <= rows * columns:
        raise BenchError(
            f"Complementary masks need at least one cell each; {subsets} subsets of {rows} x {columns} cells came. "
            "Lower the number of subsets or the size of a cell."
        )
    places = torch.randperm(rows * columns, generator=generator, device=generator.device) % subsets
    owners = places.view(rows, columns).repeat_interleave(cell, 0).repeat_interleave(cell, 1)[:height, :width]
    return owners == torch.arange(subsets, device=owners.device)[:, None, None]


def adaptive_mask(distances: Tensor, clusters: Tensor, *, count: int, lambda_: float) -> Tensor:
    """Hides the tokens that lie far from the centre of their own cluster: AMI-Net's adaptive mask.

    distances: (b, n) of each token to its centre.  clusters: (b, n) integers in [0, count), its centre's index.
    A cluster hides the members whose distance reaches mean + lambda_ * std of its members' distances (Bessel's
    correction); a single member is never hidden, and members that all tie are all hidden, as `>=` says [C].

    Returns (b, n). Nothing here waits for the device.
    """
    members = clusters[:, :, None] == torch.arange(count, device=clusters.device)  # (b, n, count)
    spread = distances[:, :, None].expand_as(members)
    # Distances are measured from the nearest member: where all tie, mean and std are then 0 without rounding.
    nearest = spread.masked_fill(~members, torch.inf).amin(dim=1)  # (b, count), inf where empty
    excess = (distances - nearest.gather(1, clusters))[:, :, None] * members  # (b, n, count), 0 elsewhere
    sizes = members.sum(dim=1)  # (b, count)
    means = excess.sum(dim=1) / sizes.clamp(min=1)
    squares = ((excess - means[:, None]) * members).square().sum(dim=1)
    limits = means + lambda_ * (squares / (sizes - 1).clamp(min=1)).sqrt()
    reached = excess.sum(dim=2) >= limits.gather(1, clusters)
    return reached & (sizes.gather(1, clusters) > 1)
