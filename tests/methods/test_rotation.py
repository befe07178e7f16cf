"""Rotations against torch.rot90 and Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from bench.methods.parts.rotation import rotate


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_of_squares_are_exact(interpolation: str, turns: int) -> None:
    images = torch.rand(2, 3, 8, 8)
    rotated = rotate(images, torch.tensor([90.0 * turns, 0.0]), interpolation)
    assert_close(rotated[0], torch.rot90(images[0], turns, (1, 2)), rtol=1e-4, atol=1e-4)
    assert_close(rotated[1], images[1], rtol=1e-4, atol=1e-4)


def smooth_image(height: int, width: int) -> Tensor:
    rows, columns = torch.linspace(0, 1, height), torch.linspace(0, 1, width)
    return 0.5 + 0.2 * torch.sin(3 * rows)[:, None] + 0.2 * torch.cos(2 * columns)


def test_an_image_that_is_not_square_is_rotated_as_by_pillow() -> None:
    image = smooth_image(40, 60)
    expected = np.asarray(Image.fromarray(image.numpy()).rotate(30, Image.Resampling.BILINEAR))
    rotated = rotate(image[None, None], torch.tensor([30.0]), "bilinear")[0, 0].numpy()
    difference = np.abs(rotated - expected)
    assert (difference < 1e-4).mean() > 0.94  # the others are at the border of the new corners
    assert (expected == 0).mean() > 0.1
    assert rotated[0, 0] == 0


def test_rotating_back_restores_the_center() -> None:
    images = smooth_image(32, 32).expand(1, 3, -1, -1)
    back = rotate(rotate(images, torch.tensor([25.0]), "bicubic"), torch.tensor([-25.0]), "bicubic")
    assert_close(back[:, :, 10:22, 10:22], images[:, :, 10:22, 10:22], rtol=0, atol=1e-3)
