"""Defects simulated on good images: textures blended into random shapes, as in DRAEM."""

import torch
from torch import Generator, Tensor

from .perlin import random_perlin_noise
from .textures import augment


def simulate_defects(
    images: Tensor,
    textures: Tensor,
    *,
    threshold: float,
    clean_fraction: float,
    opacity: tuple[float, float],
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Return images with simulated defects (b, 3, h, w) and the masks of the defects (b, 1, h, w), 0 or 1.

    Args:
        images: (b, 3, h, w) good images on the CPU.
        textures: (b, 3, h, w) textures of the defects, before their colors are changed.
        threshold: value of Perlin noise above which a pixel belongs to a defect.
        clean_fraction: probability that an image gets no defect.
        opacity: range of the weight of the image in the mixture.
        generator: random generator on the CPU.
    """
    count, size = len(images), (images.shape[2], images.shape[3])
    noise = torch.stack([random_perlin_noise(size, generator) for _ in range(count)])  # (b, h, w)
    low, high = opacity
    weights = low + (high - low) * torch.rand(count, generator=generator)
    is_clean = torch.rand(count, generator=generator) < clean_fraction
    masks = ((noise > threshold) & ~is_clean[:, None, None])[:, None].float()  # (b, 1, h, w)
    return blend(images, augment(textures, generator), masks, weights), masks


def blend(images: Tensor, textures: Tensor, masks: Tensor, opacity: Tensor) -> Tensor:
    """Replace masked pixels by a mixture: opacity times the image, and the rest from the texture.

    Args:
        images: (b, 3, h, w) good images.
        textures: (b, 3, h, w) textures of the defects.
        masks: (b, 1, h, w), 1 for defect pixels.
        opacity: (b,) weight of the image in the mixture.
    """
    weight = opacity.to(images.dtype)[:, None, None, None]
    return (1 - masks) * images + masks * ((1 - weight) * textures + weight * images)
