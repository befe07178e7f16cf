"""PatchCore's greedy choice as plainly as it can be written: what `benchmarks/patchcore.py` measures ours against.

Written from the paper (https://arxiv.org/abs/2106.08265, algorithm 1) and from what the authors' code does
(https://github.com/amazon-science/patchcore-inspection, fcaa92f): each pick passes over all rows.
"""

import torch
from torch import Tensor


def distances(rows: Tensor, columns: Tensor) -> Tensor:
    """(n, d), (m, d) -> (n, m) Euclidean distances, by products of all with all."""
    own, other = (rows * rows).sum(dim=1, keepdim=True), (columns * columns).sum(dim=1)
    return (own + other - 2 * rows @ columns.T).clamp(min=0).sqrt()


def greedy_coreset(features: Tensor, count: int, starts: Tensor) -> Tensor:
    """Indices of `count` rows: always the one that is farthest from what was picked, first on average from `starts`."""
    anchors = distances(features, features[starts]).mean(dim=1, keepdim=True)  # (n, 1)
    picks = []
    for _ in range(count):
        pick = int(anchors.argmax())
        picks.append(pick)
        apart = distances(features, features[pick : pick + 1])  # (n, 1)
        anchors = torch.cat([anchors, apart], dim=1).min(dim=1).values.reshape(-1, 1)
    return torch.tensor(picks)
