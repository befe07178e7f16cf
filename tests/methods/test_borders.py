"""Filters and similarities with other borders than reflection, against convolutions and plain definitions."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from bench.methods.parts.inference_batches import passes_per_batch
from bench.methods.parts.maps import mean_filter, median_filter, separable_filter, upsample
from bench.methods.parts.similarity import WINDOW, gms, gms_pyramid, msgms, ssim

VERTICAL, HORIZONTAL = (1.0, 2.0, 4.0), (0.5, -1.0, 3.0, 2.0, 1.0)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("border", "padding"), [("zeros", (1, 2)), ("valid", (0, 0))])
def test_filters_equal_a_convolution_with_that_padding(border: str, padding: tuple[int, int]) -> None:
    maps, kernel = images(2, 1, 9, 7), torch.outer(torch.tensor(VERTICAL), torch.tensor(HORIZONTAL))
    expected = F.conv2d(maps, kernel[None, None], padding=padding)
    assert_close(separable_filter(maps, VERTICAL, HORIZONTAL, border), expected)


def test_mean_filter_counts_the_zeros_outside() -> None:
    expected = F.avg_pool2d(images(1, 8, 6), 3, stride=1, padding=1)
    assert_close(mean_filter(images(1, 8, 6), 3, "zeros"), expected)


def test_median_filter_equals_the_median_of_nine_pixels() -> None:
    maps = images(2, 3, 6, 5) - 0.5
    padded = F.pad(maps, (1, 1, 1, 1))
    expected = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).median(dim=4).values
    assert torch.equal(median_filter(maps), expected)


def test_median_filter_has_the_gradient_of_the_pixel_that_is_the_median() -> None:
    maps = torch.tensor([[1.0, 9.0, 2.0], [8.0, 5.0, 7.0], [3.0, 6.0, 4.0]], requires_grad=True)
    median_filter(maps)[1, 1].backward()
    assert maps.grad.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_ssim_with_zeros_equals_convolutions() -> None:
    first, second = images(1, 1, 20, 16), images(1, 1, 20, 16, seed=1)
    kernel = torch.outer(torch.tensor(WINDOW), torch.tensor(WINDOW))[None, None]
    blur = lambda maps: F.conv2d(maps, kernel, padding=5)
    a, b = blur(first), blur(second)
    variances, covariance = blur(first**2) - a**2 + blur(second**2) - b**2, blur(first * second) - a * b
    expected = (2 * a * b + 1e-4) * (2 * covariance + 9e-4) / ((a**2 + b**2 + 1e-4) * (variances + 9e-4))
    assert_close(ssim(first, second, "zeros"), expected, rtol=1e-4, atol=1e-5)


def test_gms_without_padding_is_the_interior_of_the_reflected_one() -> None:
    first, second = images(1, 2, 10, 12), images(1, 2, 10, 12, seed=1)
    assert_close(gms(first, second, "valid"), gms(first, second)[:, :, 1:-1, 1:-1])


def test_msgms_is_the_mean_of_the_upsampled_scales() -> None:
    first, second = images(1, 1, 16, 16), images(1, 1, 16, 16, seed=1)
    scales = list(gms_pyramid(first, second, 2, "valid", median=True))
    halves = [F.avg_pool2d(median_input, 2) for median_input in (first, second)]
    assert_close(scales[0], gms(median_filter(first), median_filter(second), "valid"))
    assert_close(scales[1], gms(*map(median_filter, halves), "valid"))
    expected = sum(upsample(scale, (16, 16), align_corners=False) for scale in scales) / 2
    assert_close(msgms(first, second, 2, "valid", median=True), expected)


def test_passes_per_batch_follow_the_budget() -> None:
    assert passes_per_batch(torch.device("cpu"), 2**20) == 3 * 64
    assert passes_per_batch(torch.device("cpu"), 2**40) == 1
