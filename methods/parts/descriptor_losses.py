"""Losses of learned descriptors: distances within triplets, and correlations."""

import torch
from torch import Tensor
from torch.nn import functional as F


def triplet_loss(anchors: Tensor, positives: Tensor, margin: float) -> Tensor:
    """Return the mean of max(0, margin + d(positive) - d(negative)), d squared distances of rows (b, d).

    The negative of a row is the next row of the batch; its distance is the smaller one of those to the anchor and to
    the positive ("hardest in triplet").
    """
    negatives = anchors.roll(-1, dims=0)
    near = (anchors - positives).square().sum(dim=1)
    far = torch.minimum((anchors - negatives).square().sum(dim=1), (positives - negatives).square().sum(dim=1))
    return F.relu(margin + near - far).mean()


def squared_correlations(vectors: Tensor) -> Tensor:
    """Return the sum of the squared correlations of the rows of (n, k), each pair of rows once."""
    centered = vectors - vectors.mean(dim=1, keepdim=True)
    standardized = centered / centered.norm(dim=1, keepdim=True).clamp(min=1e-8)
    correlations: Tensor = standardized @ standardized.T
    return correlations.triu(diagonal=1).square().sum()
