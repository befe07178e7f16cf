"""SSIM, GMS, MSGMS and the cosine distance, compared with scipy, with torch and with values computed by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import correlate, gaussian_filter
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from bench.methods.parts.similarity import cosine_distance, gms, gradient_magnitude, msgms, ssim

Array = NDArray[np.float64]
C1, C2, C = 1e-4, 9e-4, 0.0026


def random_images(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=Generator().manual_seed(seed))


def ramp(slope: float) -> Tensor:
    """Return (1, 1, 16, 16) whose brightness increases by `slope` per column."""
    return (slope * torch.arange(16.0)).expand(1, 1, 16, 16)


def slow_ssim(one: Array, other: Array) -> Array:
    """Return the formula of 2004 for one channel in float64, with scipy's 11 x 11 Gaussian."""
    mean = lambda values: gaussian_filter(values, 1.5, radius=5)
    mu1, mu2 = mean(one), mean(other)
    var1, var2, covariance = mean(one * one) - mu1**2, mean(other * other) - mu2**2, mean(one * other) - mu1 * mu2
    return (2 * mu1 * mu2 + C1) * (2 * covariance + C2) / ((mu1**2 + mu2**2 + C1) * (var1 + var2 + C2))


def slow_gms(one: Array, other: Array) -> Array:
    kernel = np.array([[1, 0, -1]] * 3) / 3
    first, second = (np.hypot(correlate(values, kernel), correlate(values, kernel.T)) for values in (one, other))
    return (2 * first * second + C) / (first**2 + second**2 + C)


@settings(max_examples=25)
@given(seed=st.integers(0, 999), height=st.integers(5, 40), width=st.integers(5, 40))
def test_ssim_and_gms_equal_their_formulas_with_scipy(seed: int, height: int, width: int) -> None:
    one, other = random_images(seed, 1, 2, height, width), random_images(seed + 1, 1, 2, height, width)
    for fast, slow in ((ssim, slow_ssim), (gms, slow_gms)):
        channels = zip(one[0].double().numpy(), other[0].double().numpy(), strict=True)
        expected = torch.from_numpy(np.stack([slow(*pair) for pair in channels]))
        assert_close(fast(one, other)[0].double(), expected, rtol=1e-3, atol=1e-4)


def test_ssim_of_constant_images_is_the_luminance_term() -> None:
    # (2 * 0.2 * 0.6 + 0.0001) / (0.04 + 0.36 + 0.0001)
    dark, light = torch.full((1, 1, 12, 12), 0.2), torch.full((1, 1, 12, 12), 0.6)
    assert_close(ssim(dark, light), torch.full((1, 1, 12, 12), 0.2401 / 0.4001), rtol=1e-3, atol=0)


def test_the_gradient_of_a_ramp_is_twice_its_slope_and_borders_have_no_edge() -> None:
    # Prewitt's kernel over 3: the mean over three rows of x[i + 1] - x[i - 1].
    magnitude = gradient_magnitude(ramp(0.05))
    assert_close(magnitude[..., 1:-1], torch.full((1, 1, 16, 14), 0.1))
    assert_close(magnitude[..., 0], torch.full((1, 1, 16), 0.05))  # reflected, so half of it
    assert gradient_magnitude(torch.full((1, 1, 9, 9), 0.7)).max() <= 1e-6 + 1e-7


def test_gms_of_two_ramps_by_hand() -> None:
    # Gradients 0.1 and 0.02: (2 * 0.002 + 0.0026) / (0.01 + 0.0004 + 0.0026) = 0.0066 / 0.013.
    assert_close(gms(ramp(0.05), ramp(0.01))[..., 1:-1], torch.full((1, 1, 16, 14), 0.0066 / 0.013))


@pytest.mark.parametrize("similarity", [ssim, gms, msgms])
@pytest.mark.parametrize("constant", [True, False])
def test_the_similarity_of_equal_images_is_1_with_a_finite_gradient(similarity: object, constant: bool) -> None:
    image = torch.full((1, 3, 32, 32), 0.5) if constant else random_images(0, 1, 3, 32, 32)
    other = image.clone().requires_grad_()
    values = similarity(image, other)
    assert values.shape == (1, 3, 32, 32)
    assert_close(values, torch.ones_like(values), rtol=0, atol=1e-4)
    (1 - values).mean().backward()
    assert other.grad is not None
    assert torch.isfinite(other.grad).all()


@pytest.mark.parametrize("similarity", [ssim, gms, msgms])
def test_the_similarity_is_symmetric_and_at_most_1(similarity: object) -> None:
    one, other = random_images(1, 2, 3, 32, 40), random_images(2, 2, 3, 32, 40)
    values = similarity(one, other)
    assert_close(values, similarity(other, one))
    assert values.max() <= 1 + 1e-6
    assert values.mean() < 0.9


def test_msgms_is_the_mean_over_four_scales_each_half_of_the_one_before() -> None:
    one, other = random_images(3, 1, 1, 32, 48), random_images(4, 1, 1, 32, 48)
    expected, first, second = [], one[0, 0].double().numpy(), other[0, 0].double().numpy()
    halve = lambda values: (values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]) / 4
    for _ in range(4):
        expected.append(slow_gms(first, second).mean())
        first, second = halve(first), halve(second)
    assert float(msgms(one, other).mean()) == pytest.approx(np.mean(expected), rel=1e-4)
    assert torch.equal(msgms(one, other, scales=1), gms(one, other))


def test_msgms_detects_a_wide_edge_that_gms_hardly_detects() -> None:
    constant, edge = torch.full((1, 1, 64, 64), 0.5), torch.full((1, 1, 64, 64), 0.5)
    edge += 0.2 * torch.sigmoid((torch.arange(64.0) - 32) / 6)  # a step of 0.2 over about 24 pixels
    pixel = (0, 0, 32, 32)
    assert 1 - gms(constant, edge)[pixel] < 0.15  # its gradient is 2 * 0.2 / 24 = 0.0167
    assert 1 - msgms(constant, edge)[pixel] > 0.4  # 8 times that at the coarsest scale


def test_the_cosine_distance_is_one_minus_the_cosine() -> None:
    first, second = torch.randn(5, 7), torch.randn(5, 7)
    assert_close(cosine_distance(first, second), 1 - F.cosine_similarity(first, second, dim=-1))
    assert cosine_distance(torch.zeros(3), torch.ones(3)) == 1
