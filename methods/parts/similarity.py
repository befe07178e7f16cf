"""How alike two pictures are, place by place: structural similarity and the similarity of gradient magnitudes.

Every function takes two (b, c, h, w) tensors whose values span about 1 and answers a map of the same shape: 1 where
they agree, less where they don't. Maps are as large as the pictures, which are mirrored at their edges, and gradients
are finite everywhere, at flat places and where both are equal too. Compute them in float32.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .maps import filtered, gaussian_kernel, upsample

WINDOW = gaussian_kernel(1.5, 5)  # 11 x 11 pixels
LUMINANCE, CONTRAST = 0.01**2, 0.03**2  # C1 and C2 for values that span 1
GRADIENT = 0.0026  # c of GMS for values that span 1: the 170 of 8-bit pixels, over 255^2
MEAN, DIFFERENCE = (1 / 3,) * 3, (1.0, 0.0, -1.0)  # along and across an edge: Prewitt's kernel over 3
TINY = 1e-12  # under the root, whose slope at 0 is infinite


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity over an 11 x 11 Gaussian window (sigma 1.5), by channel: (b, c, h, w), from -1 to 1.

    Source: Wang, Bovik, Sheikh, Simoncelli: Image quality assessment, IEEE TIP 2004, eq. 13.
    """
    moments = torch.cat([first, second, first * first, second * second, first * second])
    mean1, mean2, square1, square2, product = filtered(moments, WINDOW, WINDOW).chunk(5)
    means = mean1 * mean2
    squares = mean1 * mean1 + mean2 * mean2
    luminance = (2 * means + LUMINANCE) / (squares + LUMINANCE)
    structure = (2 * (product - means) + CONTRAST) / (square1 + square2 - squares + CONTRAST)
    return luminance * structure


def gradient_magnitude(images: Tensor) -> Tensor:
    """The length of the gradient by Prewitt's kernels over 3, by channel: (b, c, h, w), never below 1e-6."""
    across = filtered(images, MEAN, DIFFERENCE)
    down = filtered(images, DIFFERENCE, MEAN)
    return (across * across + down * down + TINY).sqrt()


def gms(first: Tensor, second: Tensor) -> Tensor:
    """Gradient magnitude similarity by channel: (b, c, h, w), from 0 to 1; exactly 1 where the pictures are equal.

    Source: Xue, Zhang, Mou, Bovik: Gradient magnitude similarity deviation, IEEE TIP 2014, eq. 4.
    """
    one, other = gradient_magnitude(first), gradient_magnitude(second)
    return (2 * one * other + GRADIENT) / (one * one + other * other + GRADIENT)


def msgms(first: Tensor, second: Tensor, scales: int = 4) -> Tensor:
    """The mean of GMS over scales, each half of the one before, enlarged to the pictures' size: (b, c, h, w).

    Where 2^(scales - 1) divides height and width, its mean is the mean over scales of the mean GMS.
    Source: Zavrtanik et al., RIAD, Pattern Recognition 2021.
    """
    size = (first.shape[2], first.shape[3])
    total = gms(first, second)
    for _ in range(scales - 1):
        first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
        total = total + upsample(gms(first, second), size, align_corners=False)
    return total / scales
