"""Resizing, smoothing and image scores, compared with torch, with scipy and with values computed by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from bench.methods.parts.maps import gaussian_filter, image_score, mean_filter, upsample

sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=60, deadline=None)
@given(sizes, st.floats(0.3, 8.0), st.integers(0, 2**32 - 1))
def test_gaussian_filter_equals_scipy_also_for_images_smaller_than_its_radius(
    size: tuple[int, int], sigma: float, seed: int
) -> None:
    maps = np.random.default_rng(seed).random((2, *size), dtype=np.float32)
    expected = np.stack([ndimage.gaussian_filter(one, sigma) for one in maps])
    np.testing.assert_allclose(gaussian_filter(torch.from_numpy(maps), sigma).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_gaussian_filter_equals_scipy_for_a_large_image() -> None:
    maps = torch.rand(2, 256, 192)
    expected = np.stack([ndimage.gaussian_filter(one, 4.0) for one in maps.numpy()])
    np.testing.assert_allclose(gaussian_filter(maps, 4.0).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_gaussian_filter_with_sigma_zero_returns_the_maps() -> None:
    maps = torch.rand(1, 5, 7)
    assert torch.equal(gaussian_filter(maps, 0.0), maps)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.booleans())
def test_upsample_equals_torch_bilinear_interpolation(
    size: tuple[int, int], target: tuple[int, int], align_corners: bool
) -> None:
    maps = torch.rand(2, 3, *size)
    expected = F.interpolate(maps, size=target, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(upsample(maps, target, align_corners=align_corners), expected, rtol=1e-4, atol=1e-5)


def test_upsample_aligns_corners_or_borders() -> None:
    row = torch.tensor([[[0.0, 1.0]]])
    assert upsample(row, (1, 3), align_corners=True).flatten().tolist() == [0.0, 0.5, 1.0]
    assert upsample(row, (1, 4), align_corners=False).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]


@pytest.mark.parametrize(("score", "expected"), [("max", 4.0), ("std", 1.5), ("mean", 2.5)])
def test_image_score_by_hand(score: str, expected: float) -> None:
    maps = torch.tensor([[[1.0, 1.0], [4.0, 4.0]]])
    assert image_score(maps, score).tolist() == [expected]  # type: ignore[arg-type]


def test_gradients_can_be_computed_after_inference_mode() -> None:
    maps = torch.rand(1, 11, 13, requires_grad=True)
    with torch.inference_mode():
        gaussian_filter(upsample(maps, (17, 19), align_corners=True), 1.25)
    gaussian_filter(upsample(maps, (17, 19), align_corners=True), 1.25).sum().backward()
    assert maps.grad is not None


@given(sizes, st.sampled_from([1, 3, 21]))
def test_mean_filter_equals_scipy_also_for_images_smaller_than_its_side(size: tuple[int, int], side: int) -> None:
    maps = torch.rand(2, *size)
    expected = np.stack([ndimage.uniform_filter(one, side) for one in maps.double().numpy()])
    np.testing.assert_allclose(mean_filter(maps, side).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_mean_filter_distributes_a_point_over_a_square_and_preserves_the_sum() -> None:
    maps = torch.zeros(1, 50, 50)
    maps[0, 25, 30] = 441.0
    filtered = mean_filter(maps, 21)
    assert torch.allclose(filtered[0, 15:36, 20:41], torch.ones(21, 21))
    assert abs(float(filtered.sum()) - 441) < 1e-2
