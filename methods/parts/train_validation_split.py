"""Validation images to choose the best epoch by, split off the training images as in RIAD's re-implementation."""

import torch
from torch import Generator, Tensor

MIN_IMAGES = 10
"""Number of training images below which none are used for validation."""


def train_validation_split(count: int, fraction: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return random indices of training and of validation images, (n,) and (m,) with n + m = count.

    Args:
        count: number of images.
        fraction: fraction of them for validation, rounded down; there is no validation with fewer than `MIN_IMAGES`
            images.
        generator: random generator on the CPU.
    """
    n_validation = int(fraction * count) if count >= MIN_IMAGES else 0
    validation, train = torch.randperm(count, generator=generator).split([n_validation, count - n_validation])
    return train, validation
