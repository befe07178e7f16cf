"""Multivariate Gaussians, one per position: estimated over batches of images, and Mahalanobis distances to them."""

import torch
from torch import Tensor

MAX_ELEMENTS = 2**24
"""Elements of the matrices that are factored at once."""


class GaussianEstimator:
    """Accumulates mean and covariance at each of n positions over batches of images.

    The sums are of differences from the running mean (Chan, Golub, LeVeque 1979), so large means cause no cancellation.

    Attributes:
        count: number of images so far.
        mean: (n, d) running mean.
        scatter: (n, d, d) sum over the images of the outer products of the differences from the mean.
    """

    def __init__(self, n_positions: int, dimensions: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(n_positions, dimensions, device=device)
        self.scatter = torch.zeros(n_positions, dimensions, dimensions, device=device)

    def add(self, features: Tensor) -> None:
        """Add the features (n, b, d) of b images."""
        b = features.shape[1]
        mean = features.mean(dim=1)  # (n, d)
        centered = features - mean[:, None]
        delta = mean - self.mean
        total = self.count + b
        self.scatter.baddbmm_(centered.transpose(1, 2), centered)
        self.scatter.baddbmm_(delta[:, :, None], delta[:, None], alpha=self.count * b / total)
        self.mean += delta * (b / total)
        self.count = total

    def covariance(self) -> Tensor:
        """Return the covariances (n, d, d) with divisor count - 1; 0 for one image. The sums are overwritten."""
        return self.scatter.div_(max(1, self.count - 1))


def whitening(covariance: Tensor, regularization: float) -> Tensor:
    """Return W (n, d, d), lower triangular, with W^T W = (covariance + regularization * I)^-1, by Cholesky factors.

    The covariances are overwritten by the result. Factors are computed in float64: the regularization can be many
    orders of magnitude below the largest eigenvalue.

    Raises:
        torch.linalg.LinAlgError: if a regularized covariance is not positive definite.
    """
    dimensions = covariance.shape[1]
    identity = torch.eye(dimensions, dtype=torch.float64, device=covariance.device)
    for chunk in covariance.split(max(1, MAX_ELEMENTS // dimensions**2)):
        factor = torch.linalg.cholesky(chunk.double() + regularization * identity)
        chunk.copy_(torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False))
    return covariance


def mahalanobis_distance(features: Tensor, mean: Tensor, whitening: Tensor) -> Tensor:
    """Return the distances (n, b) of features (n, b, d) from Gaussians with mean (n, d) and whitening (n, d, d)."""
    whitened = torch.bmm(features - mean[:, None], whitening.transpose(1, 2))  # (n, b, d)
    distances: Tensor = torch.linalg.vector_norm(whitened, dim=2)
    return distances
