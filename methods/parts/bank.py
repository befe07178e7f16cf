"""A memory bank of normal patch features, and the exact search for nearest neighbors in it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.method import Precision

TILE = 1024
"""Number of rows of the bank per matrix product."""

N_RERANKED = 8
"""Number of neighbors from the search in half precision whose distances are computed again in float32."""

MIN_PROJECTED_ROWS = 2048
"""Number of rows of a bank from which the search in projected dimensions is faster."""

MIN_EXPLAINED_ENERGY = 0.95
"""Fraction of the rows' squared norms that a quarter of the dimensions must contain for the projected search."""

GROUP = 8
"""Number of rows whose minimum distance is compared first."""

FALLBACK_FRACTION = 8
"""A query with more than one in so many groups as candidates is searched in all dimensions."""

MAX_DISTANCES = 2**22
"""Number of distances in memory at once."""

PAIR_BLOCK = 256
"""Number of pairs of query and row per block, few enough for the cache of the CPU."""

RESIDUAL_FLOOR = 1e-4
"""Minimum of a squared residual norm, relative to the largest squared norm: below it the root is rounding error."""

ROUNDING_TOLERANCE = 1e-4
"""Relative to the squared norms: several times the rounding error of a projected distance in float32."""


@dataclass(frozen=True, slots=True)
class ProjectedBank:
    """The bank in a quarter of the dimensions, in which no distance is larger than in all dimensions.

    A projected vector has its coordinates along the directions in which the rows are longest, and the norm of the
    residual: two such norms differ by at most the norm of the residuals' difference (triangle inequality).

    Attributes:
        directions: (d, p) orthonormal directions.
        floor: lower bound of a squared residual norm.
        rows: (m, p + 2) projected rows and their squared norms. m is padded to whole groups by rows at infinite
            distance.
    """

    directions: Tensor
    floor: float
    rows: Tensor

    @classmethod
    def from_rows(cls, rows: Tensor) -> "ProjectedBank | None":
        """Project rows (m, d) on a CPU; None if they are few, or if a quarter of the dimensions explains too little.

        None on a GPU: the search in all dimensions is fast, and the number of candidates would require synchronization.
        """
        if len(rows) < MIN_PROJECTED_ROWS or rows.device.type != "cpu":
            return None
        products = rows.T @ rows  # (d, d)
        p = rows.shape[1] // 4 - 2  # p + 2 is d / 4, which keeps the matrix product aligned
        if p < 1 or not products.isfinite().all():
            return None
        energies, directions = torch.linalg.eigh(products)  # (d,) ascending, (d, d)
        if energies[-p:].sum() < MIN_EXPLAINED_ENERGY * energies.sum():
            return None
        directions = directions[:, -p:].contiguous()  # (d, p)
        floor = RESIDUAL_FLOOR * float(rows.square().sum(dim=1).max())
        projected = project(rows, directions, floor)  # (m, p + 1)
        joined = torch.cat([projected, projected.square().sum(dim=1, keepdim=True)], dim=1)
        padding = joined.new_zeros(-len(rows) % GROUP, p + 2)
        padding[:, -1] = torch.inf
        return cls(directions, floor, torch.cat([joined, padding]))


def project(vectors: Tensor, directions: Tensor, floor: float) -> Tensor:
    """Map (n, d) to (n, p + 1): coordinates along the directions, and the norm of the residual."""
    coordinates = vectors @ directions
    residual = vectors.square().sum(dim=1, keepdim=True) - coordinates.square().sum(dim=1, keepdim=True)
    return torch.cat([coordinates, residual.clamp(min=floor).sqrt()], dim=1)


@dataclass(frozen=True, slots=True)
class MemoryBank:
    """Normal patch features, prepared for the search.

    Attributes:
        rows: (m, d) patch features minus `center`.
        norms: (m,) squared norms of the rows.
        center: (d,) mean of all training patches. Squared distances have the smallest rounding error near 0.
        search_rows: (m, d) the rows in the precision of the search; `rows` itself at float32.
        projected: the rows in few dimensions, if that makes the search for one neighbor in float32 faster.
    """

    rows: Tensor
    norms: Tensor
    center: Tensor
    search_rows: Tensor
    projected: ProjectedBank | None

    @classmethod
    def from_rows(
        cls, rows: Tensor, center: Tensor, precision: Precision = "float32", *, count: int = 1
    ) -> "MemoryBank":
        """Prepare rows (m, d), minus the center (d,), on their device.

        Args:
            rows: patch features minus the center.
            center: mean of all training patches.
            precision: precision of the search.
            count: number of neighbors per query. The projection, which takes a second to compute, is used for one
                neighbor only.
        """
        projected = ProjectedBank.from_rows(rows) if precision == "float32" and count == 1 else None
        return cls(rows, rows.square().sum(dim=1), center, rows.to(getattr(torch, precision)), projected)


def nearest_neighbors(queries: Tensor, bank: MemoryBank, count: int) -> tuple[Tensor, Tensor]:
    """Return squared Euclidean distances (n, k) to the nearest rows, ascending, and the indices of the rows (n, k).

    The search uses matrix products, first in projected dimensions if the bank has them. The distances of the returned
    rows are then computed from differences, so there is no cancellation and hardly any dependence on the other images
    of the batch. In half precision the search returns more rows than `count`, and those nearest by float32 distances
    are the result.

    Args:
        queries: (n, d), minus the bank's center.
        bank: the bank to search.
        count: number of neighbors; k is `count`, or the number of rows if there are fewer.
    """
    queries = queries.contiguous()  # the patches of a single image are transposed in memory, which is slow to index
    if bank.projected and count == 1 and not torch.compiler.is_compiling():  # it compiles in `bench export`
        chunk = min(TILE, max(1, MAX_DISTANCES // len(bank.projected.rows)))
        results = [_search_with_lower_bounds(part, bank, bank.projected) for part in queries.split(chunk)]
    else:
        results = [_exhaustive_search(part, bank, count) for part in queries.split(TILE)]
    return torch.cat([squared for squared, _ in results]), torch.cat([index for _, index in results])


def _search_with_lower_bounds(queries: Tensor, bank: MemoryBank, projected: ProjectedBank) -> tuple[Tensor, Tensor]:
    """Return distance and index of the nearest row, (n, 1) each; a projected distance is a lower bound of the distance.

    The nearest row in projected dimensions gives an upper bound; only rows whose lower bound is not above it are
    compared in all dimensions. So the result is the nearest row, up to float32 rounding of its distance.
    """
    short = project(queries, projected.directions, projected.floor)  # (n, p + 1)
    factors = torch.cat([-2 * short, torch.ones_like(short[:, :1])], dim=1).T  # (p + 2, n)
    bounds = torch.empty(len(projected.rows), len(queries))  # minus the query's own squared norm
    for part, rows in zip(bounds.split(TILE), projected.rows.split(TILE), strict=True):
        torch.mm(rows, factors, out=part)
    bounds = bounds.unflatten(0, (-1, GROUP))  # (m / GROUP, GROUP, n)
    minimum = bounds.amin(dim=1)  # (m / GROUP, n)
    group, all_queries = minimum.argmin(dim=0), torch.arange(len(queries))  # (n,)
    first = group * GROUP + bounds[group, :, all_queries].argmin(dim=1)  # (n,)
    upper = (queries - bank.rows[first]).square().sum(dim=1)  # (n,)
    norms = queries.square().sum(dim=1) + bank.norms.max()
    limit = upper - short.square().sum(dim=1) + ROUNDING_TOLERANCE * norms

    near = minimum <= limit
    fallback = near.sum(dim=0) > max(1, len(minimum) // FALLBACK_FRACTION)  # (n,)
    groups, query = (near & ~fallback).nonzero(as_tuple=True)
    pair, member = (bounds[groups, :, query] <= limit[query, None]).nonzero(as_tuple=True)
    row, query = groups[pair] * GROUP + member, query[pair]
    squared = torch.empty(len(row))
    for part, q, r in zip(squared.split(PAIR_BLOCK), query.split(PAIR_BLOCK), row.split(PAIR_BLOCK), strict=True):
        torch.sum(queries.index_select(0, q).sub_(bank.rows.index_select(0, r)).square_(), dim=1, out=part)
    best = torch.full_like(upper, torch.inf).scatter_reduce_(0, query, squared, "amin")
    equal = squared == best[query]
    index = torch.full_like(first, len(bank.rows)).scatter_reduce_(0, query[equal], row[equal], "amin")
    unset = index == len(bank.rows)  # searched in all dimensions instead, or NaN
    best, index = torch.where(unset, upper, best)[:, None], torch.where(unset, first, index)[:, None]
    if fallback.any():
        best[fallback], index[fallback] = _exhaustive_search(queries[fallback], bank, 1)
    return best, index


def _exhaustive_search(queries: Tensor, bank: MemoryBank, count: int) -> tuple[Tensor, Tensor]:
    """Return distances and indices of the nearest rows in all dimensions, (n, k) each."""
    values, indices = [], []
    half = bank.search_rows.dtype != torch.float32
    columns, n_candidates = queries.to(bank.search_rows.dtype).T, count + N_RERANKED - 1 if half else count
    for start in range(0, len(bank.rows), TILE):
        rows, norms = bank.search_rows[start : start + TILE], bank.norms[start : start + TILE, None]
        # Without the query's own norm. The norms are added in float32: half precision would lose the other term.
        distances = norms - 2 * (rows @ columns) if half else torch.addmm(norms, rows, columns, alpha=-2)
        value, index = _topk_smallest(distances, n_candidates)
        values.append(value)
        indices.append(index + start)
    _, best = _topk_smallest(torch.cat(values), n_candidates)  # (k, n)
    candidates = torch.cat(indices).gather(0, best).T  # (n, k)
    squared, order = (queries[:, None] - bank.rows[candidates]).square().sum(dim=2).sort(dim=1)
    return squared[:, :count], candidates.gather(1, order[:, :count])


def _topk_smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the smallest values (k, n) of each column and their row indices, unsorted."""
    if count == 1 and len(values) % GROUP == 0:  # several times as fast as torch.min, which computes all indices
        groups = values.unflatten(0, (-1, GROUP))  # (m / GROUP, GROUP, n)
        group = groups.amin(dim=1).argmin(dim=0)  # (n,)
        smallest, member = groups.gather(0, group.expand(1, GROUP, -1))[0].min(dim=0, keepdim=True)
        return smallest, group * GROUP + member
    result = values.T.contiguous().topk(min(count, len(values)), dim=1, largest=False, sorted=False)
    return result.values.T, result.indices.T
