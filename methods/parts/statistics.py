"""Mean and standard deviation of the channels of feature maps over a training set."""

from collections.abc import Iterable

import torch
from torch import Tensor

from bench.errors import BenchError


@torch.no_grad()
def channel_statistics(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and population standard deviation (c,) over all positions of features (b, c, h, w), in one iteration.

    Moments are computed relative to the mean of the first batch and summed in float64, so there is no cancellation.
    """
    offset, count = None, 0
    first = second = torch.zeros(())
    for features in batches:
        offset = features.mean(dim=(0, 2, 3)) if offset is None else offset  # (c,)
        centered = features - offset[:, None, None]
        first = first.to(features.device) + centered.sum(dim=(0, 2, 3), dtype=torch.float64)
        second = second.to(features.device) + centered.square().sum(dim=(0, 2, 3), dtype=torch.float64)
        count += features.shape[0] * features.shape[2] * features.shape[3]
    if offset is None:
        raise BenchError("Statistics need at least one image, got none. Add images to the training folder.")
    mean = first / count
    std = (second / count - mean.square()).clamp(min=0).sqrt()
    return offset + mean.float(), std.float()
