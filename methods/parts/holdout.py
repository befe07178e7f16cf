"""Training images held out to choose the epoch by, as RIAD's re-implementation does."""

import torch
from torch import Generator, Tensor

HOLDOUT_FROM = 10  # training images; with fewer, none is spared to judge epochs by


def held_out(count: int, fraction: float, draws: Generator) -> tuple[Tensor, Tensor]:
    """Indices of so many images in random order: those that judge epochs, maybe none, and those that are learned."""
    spared = int(fraction * count) if count >= HOLDOUT_FROM else 0
    held, learned = torch.randperm(count, generator=draws).split([spared, count - spared])
    return held, learned
