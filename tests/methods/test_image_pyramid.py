import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bench.methods.parts.image_pyramid import ImagePyramid, quantized_resize


def cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def resize_row(row: list[int], scale: float) -> list[float]:
    """Resize a row pixel by pixel: nothing before its first pixel, mirrored after its last one."""
    results = []
    for target in range(math.ceil(len(row) * scale)):
        center = (target + 0.5) / scale - 0.5
        taps = range(max(0, math.floor(center) - 20), math.floor(center) + 20)
        weights = [cubic(min(scale, 1) * (center - tap)) for tap in taps]
        mirrored = [tap % (2 * len(row)) for tap in taps]
        values = [row[tap if tap < len(row) else 2 * len(row) - 1 - tap] for tap in mirrored]
        results.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    return results


@pytest.mark.parametrize("scale", [0.3, 0.79, 1.0, 1.27])
def test_resize_equals_a_loop_over_pixels(scale: float) -> None:
    levels = torch.randint(256, (9, 13))
    rows = torch.tensor([resize_row(row, scale) for row in levels.tolist()])
    expected = torch.tensor([resize_row(column, scale) for column in rows.T.tolist()]).T
    images = (2 * (levels / 255 - 0.5) + 1e-3).expand(1, 3, -1, -1)  # truncated to the levels
    resized = quantized_resize(images, scale)
    assert_close(resized[0, 1], (2 * (expected / 255 - 0.5)).clamp(-1, 1), rtol=0, atol=1e-5)


def test_levels_are_truncated() -> None:
    levels = torch.tensor([[10.9, 11.1, 300.0, -4.0]]).expand(1, 3, 4, 4)
    resized = quantized_resize(2 * (levels / 255 - 0.5), 1.0)
    assert_close(127.5 * (resized[0, 0, 0] + 1), torch.tensor([10.0, 11.0, 255.0, 0.0]), rtol=0, atol=1e-3)


def test_scales_of_a_pyramid() -> None:
    pyramid = ImagePyramid.from_sides(128, 64, 25, 0.75)
    assert pyramid.shrink == 0.5
    assert pyramid.factor == pytest.approx((25 / 64) ** 0.25)
    images: Tensor = torch.rand(2, 3, 128, 128)
    scales = pyramid.resize(images)
    assert [scale.shape[2] for scale in scales] == list(pyramid.sides)
    assert pyramid.enlarge(scales[0], 1).shape == scales[1].shape
    assert ImagePyramid.from_sides(30, 64, 25, 0.75) == ImagePyramid(1, (25 / 30) ** 0.5, (25, 28, 30))  # not 64
