"""Perlin noise: the numbers of DRAEM's code, a loop over pixels, and its random form."""

import math

import numpy as np
import pytest
import torch
from torch import Generator
from torch.testing import assert_close

from bench.methods.parts.perlin import perlin_noise, perlin_octaves, random_perlin_noise


def slow_noise(size: tuple[int, int], draws: np.ndarray) -> np.ndarray:
    noise, fade = np.zeros(size), lambda t: 6 * t**5 - 15 * t**4 + 10 * t**3
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = i * (len(draws) - 1) / size[0], j * (draws.shape[1] - 1) / size[1]
            row, column = int(y), int(x)
            dots = np.zeros((2, 2))
            for below in range(2):
                for right in range(2):
                    angle = 2 * math.pi * draws[row + below, column + right]
                    dots[below, right] = math.cos(angle) * (y - row - below) + math.sin(angle) * (x - column - right)
            edge = dots[0] + fade(y - row) * (dots[1] - dots[0])
            noise[i, j] = math.sqrt(2) * (edge[0] + fade(x - column) * (edge[1] - edge[0]))
    return noise


@pytest.mark.parametrize(("size", "cells"), [((8, 8), (4, 2)), ((6, 9), (1, 4)), ((5, 7), (3, 2))])
def test_noise_equals_a_loop_over_pixels(size: tuple[int, int], cells: tuple[int, int]) -> None:
    draws = np.random.RandomState(0).rand(cells[0] + 1, cells[1] + 1)
    assert_close(perlin_noise(size, torch.from_numpy(draws)).double(), torch.from_numpy(slow_noise(size, draws)))


def test_noise_is_0_at_the_corners_of_cells_and_about_within_1() -> None:
    noise = perlin_noise((64, 64), torch.rand(9, 9))
    assert noise[::8, ::8].abs().max() < 1e-6
    assert 0.4 < noise.abs().max() <= 1.01


def test_random_noise_depends_on_the_generator_and_is_rotated() -> None:
    one, same, other = (random_perlin_noise((32, 48), Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert one.shape == (32, 48)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    upright = random_perlin_noise((32, 48), Generator().manual_seed(0), max_degrees=0.0)
    assert not torch.equal(one, upright)


def test_all_frequencies_up_to_half_the_side_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    cells: set[tuple[int, ...]] = set()
    original = perlin_noise
    monkeypatch.setattr(
        "bench.methods.parts.perlin.perlin_noise",
        lambda size, draws: (cells.add(tuple(n - 1 for n in draws.shape)), original(size, draws))[1],
    )
    generator = Generator().manual_seed(0)
    for _ in range(60):
        random_perlin_noise((16, 128), generator)
    assert {rows for rows, _ in cells} == {1, 2, 4, 8}
    assert {columns for _, columns in cells} == {1, 2, 4, 8, 16, 32}


def test_octaves_are_scaled_to_0_and_1() -> None:
    octaves = perlin_octaves((32, 32), (2, 4), Generator().manual_seed(0))
    assert octaves.min() == 0
    assert octaves.max() == 1
