"""Locally aware patch features of PatchCore, which SimpleNet uses as well: neighborhoods pooled to vectors."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .maps import upsample


def locally_aware(
    stages: list[Tensor], patch: int, *, pretrain_dim: int, target_dim: int
) -> tuple[Tensor, tuple[int, int]]:
    """Map stages (b, c_i, h_i, w_i) to patch features (b * h * w, target_dim), float32, row-major, and the first grid.

    Each feature is concatenated with its patch x patch neighbors (zero padding), each stage is pooled to
    `pretrain_dim` and upsampled to the first stage's grid, then all of them are pooled to `target_dim`. Paper, eq. 2
    and 3; the one-dimensional adaptive average pools are those of the authors' code.
    """
    grid = (stages[0].shape[2], stages[0].shape[3])
    pooled = []
    for stage in stages:
        pooled_stage = _pool_channels(
            _neighborhoods(stage.float(), patch), pretrain_dim
        )  # (b, pretrain_dim, h_i * w_i)
        pooled_stage = pooled_stage.reshape(len(stage), -1, *stage.shape[2:])  # (b, pretrain_dim, h_i, w_i)
        pooled.append(upsample(pooled_stage, grid, align_corners=False).flatten(2))  # (b, pretrain_dim, h * w)
    joined = _pool_channels(torch.cat(pooled, dim=1), target_dim)  # (b, target_dim, h * w)
    return joined.transpose(1, 2).flatten(0, 1), grid


def _neighborhoods(stage: Tensor, patch: int) -> Tensor:
    """Map (b, c, h, w) to (b, c * patch^2, h * w): `F.unfold`, but several times as fast, by a copy of windows."""
    padded = F.pad(stage.contiguous(), (patch // 2,) * 4)
    windows = padded.unfold(2, patch, 1).unfold(3, patch, 1)  # (b, c, h, w, patch, patch)
    return windows.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)


def _pool_channels(values: Tensor, count: int) -> Tensor:
    """Map (b, c, n) to (b, count, n): adaptive average pooling of the channels, vectorized over n."""
    if values.shape[1] == count:
        return values
    as_image = values.unsqueeze(2).permute(0, 3, 1, 2)  # (b, n, c, 1), channels last
    return F.adaptive_avg_pool2d(as_image, (count, 1)).squeeze(3).transpose(1, 2)
