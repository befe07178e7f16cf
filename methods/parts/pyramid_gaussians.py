"""Gaussians at each position of feature maps of several stages, from fewer images than channels.

The embedding of a position of the finest map is its feature, joined with that of the cell of each coarser map which
covers it. With the centered embeddings X (d, n) of n images, the covariance is C = X X^T / (n - 1) + e I, with e > 0.
The squared Mahalanobis distance of a difference v from the mean is

    v^T C^-1 v = min over y of (|v - X y|^2 + (n - 1) e |y|^2) / e,

where y solves a system of n equations instead of d. It is a sum of squares, so it never cancels below 0; and since y
is a minimum, its rounding errors have only a second-order effect. Coarse maps are never enlarged: sums over their
channels are computed once per cell.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

MAX_ELEMENTS = 2**24
"""Elements of the float64 matrices that are factored at once."""


class PyramidGaussians:
    """One Gaussian per position of the finest map.

    Attributes:
        regularization: e above.
        means: (1, c_i, h_i, w_i) per stage.
        centered: (h_i * w_i, c_i, n) per stage.
        inverse_factors: (h * w, n, n) lower triangular; inverses of the Cholesky factors of X^T X + (n - 1) e I.
    """

    def __init__(self, supports: Sequence[Tensor], regularization: float) -> None:
        """Estimate the Gaussians.

        Args:
            supports: (n, c_i, h_i, w_i) per stage; the grid of the first one is a multiple of each of the others.
            regularization: added to the diagonal of each covariance, > 0.
        """
        self.regularization = regularization
        self._grids = [(stage.shape[2], stage.shape[3]) for stage in supports]
        self.means = [stage.mean(dim=0, keepdim=True) for stage in supports]
        self.centered = [
            (stage - mean).flatten(2).permute(2, 1, 0).contiguous()  # (h_i * w_i, c_i, n)
            for stage, mean in zip(supports, self.means, strict=True)
        ]
        self.n_supports = len(supports[0])
        self.inverse_factors = self._factor()

    def _factor(self) -> Tensor:
        n, (rows, columns) = self.n_supports, self._grids[0]
        device = self.centered[0].device
        identity = torch.eye(n, dtype=torch.float64, device=device)
        factors = torch.empty(rows * columns, n, n, device=device)
        step = max(rows // grid[0] for grid in self._grids)  # rows of the finest grid per row of the coarsest
        step *= max(1, MAX_ELEMENTS // (step * columns * n * n))
        for start in range(0, rows, step):
            height = min(step, rows - start)
            gram = torch.zeros(height * columns, n, n, dtype=torch.float64, device=device)
            for grid, centered in zip(self._grids, self.centered, strict=True):
                scale = rows // grid[0]
                cells = slice(start // scale * grid[1], (start + height) // scale * grid[1])
                embeddings = centered[cells].double()  # (cells, c, n)
                products = torch.bmm(embeddings.transpose(1, 2), embeddings)  # (cells, n, n)
                gram += _enlarge(products.view(-1, grid[1], n * n), (height, columns)).view(-1, n, n)
            factor = torch.linalg.cholesky(gram.add_((n - 1) * self.regularization * identity))
            inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
            factors[start * columns : (start + height) * columns] = inverse
        return factors

    def distance(self, features: Sequence[Tensor]) -> Tensor:
        """Return the Mahalanobis distance (b, h, w) of features (b, c_i, h_i, w_i) per stage."""
        b, n, fine = len(features[0]), self.n_supports, self._grids[0]
        deltas = [
            (stage - mean).flatten(2).permute(2, 1, 0)  # (h_i * w_i, c_i, b)
            for stage, mean in zip(features, self.means, strict=True)
        ]
        products = torch.zeros(prod(fine), n, b, device=features[0].device)
        for grid, centered, delta in zip(self._grids, self.centered, deltas, strict=True):
            coarse = torch.bmm(centered.transpose(1, 2), delta)  # (h_i * w_i, n, b)
            products += _enlarge(coarse.view(*grid, n * b), fine).view_as(products)
        solution = torch.bmm(self.inverse_factors.transpose(1, 2), torch.bmm(self.inverse_factors, products))
        squared = (n - 1) * self.regularization * solution.square().sum(dim=1)  # (h * w, b)
        for grid, centered, delta in zip(self._grids, self.centered, deltas, strict=True):
            within = _group(solution, fine, grid)  # (h_i * w_i, n, cell * b)
            restored = torch.bmm(centered, within).view(*delta.shape[:2], -1, b)  # (h_i * w_i, c_i, cell, b)
            residual = (delta[:, :, None] - restored).square_().sum(dim=1)  # (h_i * w_i, cell, b)
            squared += _ungroup(residual, fine, grid)
        return (squared / self.regularization).sqrt().T.reshape(b, *fine)


def _enlarge(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """Repeat the cells (h, w, d) to a finer grid: (rows, columns, d)."""
    h, w, d = cells.shape
    shape = (h, grid[0] // h, w, grid[1] // w, d)
    return cells[:, None, :, None].expand(shape).reshape(*grid, d)


def _group(values: Tensor, fine: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Group the fine positions by cells of a coarser grid: (rows * columns, n, b) to (h * w, n, cell * b)."""
    (h, w), (rows, columns), (_, n, b) = grid, fine, values.shape
    cells = values.view(h, rows // h, w, columns // w, n, b)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(h * w, n, -1)


def _ungroup(values: Tensor, fine: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Return values (h * w, cell, b) of grouped positions in the order of the fine grid: (rows * columns, b)."""
    (h, w), (rows, columns), b = grid, fine, values.shape[2]
    return values.view(h, w, rows // h, columns // w, b).transpose(1, 2).reshape(rows * columns, b)
