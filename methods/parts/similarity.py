"""Similarity of two images at each pixel (structural similarity, gradient magnitude similarity), and of two vectors.

Every function of images maps two (b, c, h, w) float32 tensors, whose values span about 1, to a map of the same shape: 1
where they are equal, less where they differ. By default images are reflected at the borders; `border` can be set to
that of a public implementation. Gradients are finite everywhere, also at constant regions and at equal pixels.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from .maps import Border, gaussian_kernel, median_filter, separable_filter, upsample

WINDOW = gaussian_kernel(1.5, 5)  # 11 x 11 pixels
GRADIENT = 0.0026  # c of GMS for values that span 1: 170 for 8-bit pixels, over 255^2
MEAN, DIFFERENCE = (1 / 3,) * 3, (1.0, 0.0, -1.0)  # along and across an edge: Prewitt's kernel over 3
EPSILON = 1e-12  # under the root, whose slope at 0 is infinite


def ssim(first: Tensor, second: Tensor, border: Border = "reflect", value_range: float | Tensor = 1.0) -> Tensor:
    """Return structural similarity with an 11 x 11 Gaussian window (sigma 1.5), by channel: (b, c, h, w) in [-1, 1].

    `value_range` is the difference of the largest and the smallest possible value.
    Source: Wang, Bovik, Sheikh, Simoncelli: Image quality assessment, IEEE TIP 2004, eq. 13.
    """
    moments = torch.cat([first, second, first * first, second * second, first * second])
    mean1, mean2, square1, square2, product = separable_filter(moments, WINDOW, WINDOW, border).chunk(5)
    means = mean1 * mean2
    squares = mean1 * mean1 + mean2 * mean2
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    luminance = (2 * means + c1) / (squares + c1)
    structure = (2 * (product - means) + c2) / (square1 + square2 - squares + c2)
    return luminance * structure


def gradient_magnitude(images: Tensor, border: Border = "reflect") -> Tensor:
    """Return the length of the gradient by Prewitt's kernels over 3, by channel: (b, c, h, w), at least 1e-6."""
    horizontal = separable_filter(images, MEAN, DIFFERENCE, border)
    vertical = separable_filter(images, DIFFERENCE, MEAN, border)
    return (horizontal * horizontal + vertical * vertical + EPSILON).sqrt()


def gms(first: Tensor, second: Tensor, border: Border = "reflect") -> Tensor:
    """Return gradient magnitude similarity by channel: (b, c, h, w) in (0, 1], exactly 1 where the images are equal.

    Source: Xue, Zhang, Mou, Bovik: Gradient magnitude similarity deviation, IEEE TIP 2014, eq. 4.
    """
    one, two = gradient_magnitude(first, border), gradient_magnitude(second, border)
    return (2 * one * two + GRADIENT) / (one * one + two * two + GRADIENT)


def gms_pyramid(
    first: Tensor, second: Tensor, scales: int = 4, border: Border = "reflect", *, median: bool = False
) -> Iterator[Tensor]:
    """Yield GMS at each scale, (b, c, h, w) of that scale; each scale is half of the one before.

    `median` blurs both images by a 3 x 3 median at each scale, before the gradients.
    """
    for scale in range(scales):
        if scale:
            first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
        blurred = (median_filter(first), median_filter(second)) if median else (first, second)
        yield gms(*blurred, border)


def msgms(
    first: Tensor, second: Tensor, scales: int = 4, border: Border = "reflect", *, median: bool = False
) -> Tensor:
    """Return the mean of GMS over scales, each upsampled to full size: (b, c, h, w).

    If 2^(scales - 1) divides height and width and the border is not "valid", its mean is the mean over scales of the
    mean GMS. Source: Zavrtanik et al., RIAD, Pattern Recognition 2021.
    """
    size = (first.shape[2], first.shape[3])
    total, *others = gms_pyramid(first, second, scales, border, median=median)
    total = upsample(total, size, align_corners=False) if border == "valid" else total
    for similarity in others:
        total = total + upsample(similarity, size, align_corners=False)
    return total / scales


def cosine_distance(original: Tensor, restored: Tensor) -> Tensor:
    """Return 1 - cosine along the last axis, from dot product and norms: half the cost of F.cosine_similarity."""
    norms = torch.linalg.vector_norm(original, dim=-1) * torch.linalg.vector_norm(restored, dim=-1)
    distance: Tensor = 1 - torch.linalg.vecdot(original, restored) / norms.clamp(min=1e-12)
    return distance
