"""A plain port of PatchCore's coreset selection, the reference of `benchmarks/patchcore.py`.

Written from the paper (https://arxiv.org/abs/2106.08265, algorithm 1) and from what the authors' code does
(https://github.com/amazon-science/patchcore-inspection, fcaa92f): each selection computes distances to all rows.
"""

import torch
from torch import Tensor


def distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Map (n, d) and (m, d) to Euclidean distances (n, m) by a matrix product."""
    row_norms, column_norms = (rows * rows).sum(dim=1, keepdim=True), (columns * columns).sum(dim=1)
    return (row_norms + column_norms - 2 * rows @ columns.T).clamp(min=0).sqrt()


def greedy_coreset(features: Tensor, count: int, starts: Tensor) -> Tensor:
    """Return the indices of `count` rows, each the farthest from those selected before; the first from `starts`."""
    anchors = distances(features, features[starts]).mean(dim=1, keepdim=True)  # (n, 1)
    selected = []
    for _ in range(count):
        index = int(anchors.argmax())
        selected.append(index)
        distance = distances(features, features[index : index + 1])  # (n, 1)
        anchors = torch.cat([anchors, distance], dim=1).min(dim=1).values.reshape(-1, 1)
    return torch.tensor(selected)
