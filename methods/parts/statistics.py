"""Mean and standard deviation of the channels of feature maps over a training set."""

from collections.abc import Iterable

import torch
from torch import Tensor

from bench.errors import BenchError


@torch.no_grad()
def channel_statistics(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and population standard deviation (c,) over all positions of maps (b, c, h, w), in one iteration.

    Moments are computed relative to the mean of the first batch and summed in float64, so there is no cancellation.
    """
    offset, count = None, 0
    first = second = torch.zeros(())
    for maps in batches:
        offset = maps.mean(dim=(0, 2, 3)) if offset is None else offset  # (c,)
        centered = maps - offset[:, None, None]
        first = first.to(maps.device) + centered.sum(dim=(0, 2, 3), dtype=torch.float64)
        second = second.to(maps.device) + centered.square().sum(dim=(0, 2, 3), dtype=torch.float64)
        count += maps.shape[0] * maps.shape[2] * maps.shape[3]
    if offset is None:
        raise BenchError("Statistics need at least one image, got none. Add images to the training folder.")
    mean = first / count
    std = (second / count - mean.square()).clamp(min=0).sqrt()
    return offset + mean.float(), std.float()
