"""A bank of normal patches, and the exact search for those nearest to a query."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.method import Precision

TILE = 1024  # rows of a product at a time
RERANKED = 8  # of so many that half precision finds, distances are taken in float32
LARGE = 2048  # rows from which it pays to seek in few dimensions first
ENERGY = 0.95  # of the rows' squared lengths: what a quarter of the dimensions must hold for that
GROUP = 8  # rows whose least distance is looked at first
OFTEN = 8  # a query to which more than one group in so many may hold the nearest is sought in all dimensions
HELD = 2**22  # distances at once
PAIRS = 256  # of a query and a row, so few that they stay in the cache
FLOOR = 1e-4  # of the largest squared length: what is left out counts for no less, for its root would be all rounding
SLACK = 1e-4  # of the squared lengths: several times what float32 then loses of a distance in few dimensions


@dataclass(frozen=True, slots=True)
class Few:
    """The bank in a quarter of the dimensions, where no two vectors lie further apart than they do in all.

    A vector's numbers are its coordinates along the directions in which the rows are longest and, behind them, the
    length of what these leave out: two such lengths differ by no more than what is left out does (triangle inequality).

    Attributes:
        directions: (d, p), orthonormal.
        floor: the least squared length that is told of what is left out.
        rows: (m, p + 2) those of the bank, and their squared lengths in few dimensions. m is filled up to whole groups
            by rows that are infinitely far away.
    """

    directions: Tensor
    floor: float
    rows: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Few | None":
        """Of rows (m, d) on a CPU; None where they are few, or a quarter of the dimensions holds too little of them.

        On a GPU all dimensions are quick, and to look at what was found would be to wait for it.
        """
        if len(rows) < LARGE or rows.device.type != "cpu":
            return None
        products = rows.T @ rows  # (d, d)
        p = rows.shape[1] // 4 - 2  # with the two numbers behind them a quarter, which a product likes to be round
        if p < 1 or not products.isfinite().all():
            return None
        energies, directions = torch.linalg.eigh(products)  # (d,) ascending, (d, d)
        if energies[-p:].sum() < ENERGY * energies.sum():
            return None
        directions, floor = directions[:, -p:].contiguous(), FLOOR * float(rows.square().sum(dim=1).max())
        short = shortened(rows, directions, floor)  # (m, p + 1)
        joined = torch.cat([short, short.square().sum(dim=1, keepdim=True)], dim=1)
        filling = joined.new_zeros(-len(rows) % GROUP, p + 2)
        filling[:, -1] = torch.inf
        return cls(directions, floor, torch.cat([joined, filling]))


def shortened(vectors: Tensor, directions: Tensor, floor: float) -> Tensor:
    """(n, d) -> (n, p + 1): what `Few` tells of its vectors."""
    along = vectors @ directions
    left = vectors.square().sum(dim=1, keepdim=True) - along.square().sum(dim=1, keepdim=True)
    return torch.cat([along, left.clamp(min=floor).sqrt()], dim=1)


@dataclass(frozen=True, slots=True)
class Bank:
    """The normal patches that were kept.

    Attributes:
        rows: (m, d), less `centre`.
        norms: (m,) their squared lengths, which every distance needs.
        centre: (d,) the mean of all training patches. Near 0, squared distances round least.
        sought: (m, d) the rows in the precision in which they are sought; `rows` itself in float32.
        few: the rows in few dimensions, where that makes the search for one neighbour in float32 quicker.
    """

    rows: Tensor
    norms: Tensor
    centre: Tensor
    sought: Tensor
    few: Few | None

    @classmethod
    def of(cls, rows: Tensor, centre: Tensor, precision: Precision = "float32", *, count: int = 1) -> "Bank":
        """Of rows (m, d), less the centre (d,), on the device on which they are sought.

        count: of neighbours sought. Few dimensions, which take a second to find, are of use for one alone.
        """
        few = Few.of(rows) if precision == "float32" and count == 1 else None
        return cls(rows, rows.square().sum(dim=1), centre, rows.to(getattr(torch, precision)), few)


def nearest(queries: Tensor, bank: Bank, count: int) -> tuple[Tensor, Tensor]:
    """Squared Euclidean distances (n, k) to the nearest rows of the bank, ascending, and their indices (n, k).

    queries: (n, d), less the bank's centre.  k is `count`, or the number of rows where there are fewer. They are sought
    by matrix products, in few dimensions first where the bank knows of these; the distances of those found are taken
    anew from differences, so nothing cancels in them and they hardly depend on which images share a batch. Where they
    are sought in half precision, more than asked for are found, and the nearest of these by their distances in float32.
    """
    queries = queries.contiguous()  # the patches of a single image lie transposed, and would be gathered slowly
    if bank.few and count == 1 and not torch.compiler.is_compiling():  # as `bench export` does
        chunk = min(TILE, max(1, HELD // len(bank.few.rows)))
        found = [_sifted(some, bank, bank.few) for some in queries.split(chunk)]
    else:
        found = [_sought(some, bank, count) for some in queries.split(TILE)]
    return torch.cat([squared for squared, _ in found]), torch.cat([index for _, index in found])


def _sifted(queries: Tensor, bank: Bank, few: Few) -> tuple[Tensor, Tensor]:
    """The nearest row, (n, 1) twice: a distance in few dimensions is a lower bound of that in all.

    The row that is nearest in few dimensions gives an upper bound; only those whose lower bound is not above it are
    looked at in all dimensions. So it is the nearest, to float32's rounding of its distance.
    """
    short = shortened(queries, few.directions, few.floor)  # (n, p + 1)
    asked = torch.cat([-2 * short, torch.ones_like(short[:, :1])], dim=1).T  # (p + 2, n)
    bounds = torch.empty(len(few.rows), len(queries))  # less the query's own squared length in few dimensions
    for part, rows in zip(bounds.split(TILE), few.rows.split(TILE), strict=True):
        torch.mm(rows, asked, out=part)
    bounds = bounds.unflatten(0, (-1, GROUP))  # (m / GROUP, GROUP, n)
    least = bounds.amin(dim=1)  # (m / GROUP, n)
    group, every = least.argmin(dim=0), torch.arange(len(queries))  # (n,)
    first = group * GROUP + bounds[group, :, every].argmin(dim=1)  # (n,)
    upper = (queries - bank.rows[first]).square().sum(dim=1)  # (n,)
    lengths = queries.square().sum(dim=1) + bank.norms.max()
    limit = upper - short.square().sum(dim=1) + SLACK * lengths

    near = least <= limit
    often = near.sum(dim=0) > max(1, len(least) // OFTEN)  # (n,)
    groups, asking = (near & ~often).nonzero(as_tuple=True)
    pair, place = (bounds[groups, :, asking] <= limit[asking, None]).nonzero(as_tuple=True)
    row, asking = groups[pair] * GROUP + place, asking[pair]
    squared = torch.empty(len(row))
    for part, a, r in zip(squared.split(PAIRS), asking.split(PAIRS), row.split(PAIRS), strict=True):
        torch.sum(queries.index_select(0, a).sub_(bank.rows.index_select(0, r)).square_(), dim=1, out=part)
    best = torch.full_like(upper, torch.inf).scatter_reduce_(0, asking, squared, "amin")
    equal = squared == best[asking]
    index = torch.full_like(first, len(bank.rows)).scatter_reduce_(0, asking[equal], row[equal], "amin")
    none = index == len(bank.rows)  # sought in all dimensions instead, or not a number
    best, index = torch.where(none, upper, best)[:, None], torch.where(none, first, index)[:, None]
    if often.any():
        best[often], index[often] = _sought(queries[often], bank, 1)
    return best, index


def _sought(queries: Tensor, bank: Bank, count: int) -> tuple[Tensor, Tensor]:
    """The nearest rows in all dimensions: (n, k) twice."""
    values, places = [], []
    half = bank.sought.dtype != torch.float32
    asked, wanted = queries.to(bank.sought.dtype).T, count + RERANKED - 1 if half else count
    for start in range(0, len(bank.rows), TILE):
        rows, norms = bank.sought[start : start + TILE], bank.norms[start : start + TILE, None]
        # Less the query's own norm. The norms are added in float32: in half precision they would drown the rest.
        distances = norms - 2 * (rows @ asked) if half else torch.addmm(norms, rows, asked, alpha=-2)
        value, place = _lowest(distances, wanted)
        values.append(value)
        places.append(place + start)
    _, best = _lowest(torch.cat(values), wanted)  # (k, n)
    index = torch.cat(places).gather(0, best).T  # (n, k)
    squared, order = (queries[:, None] - bank.rows[index]).square().sum(dim=2).sort(dim=1)
    return squared[:, :count], index.gather(1, order[:, :count])


def _lowest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The lowest values (k, n) of each column and their places, in no order."""
    if count == 1 and len(values) % GROUP == 0:  # several times as fast as torch's own search, which tells all places
        groups = values.unflatten(0, (-1, GROUP))  # (m / GROUP, GROUP, n)
        group = groups.amin(dim=1).argmin(dim=0)  # (n,)
        own, place = groups.gather(0, group.expand(1, GROUP, -1))[0].min(dim=0, keepdim=True)
        return own, group * GROUP + place
    found = values.T.contiguous().topk(min(count, len(values)), dim=1, largest=False, sorted=False)
    return found.values.T, found.indices.T
