"""Fused stages against torch's own resize and pool, and a cache that changes nothing but the time."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from bench.methods.parts.features import FrozenFeatures, fuse


def slow_fuse(stages: list[Tensor], average_pool: bool) -> Tensor:
    size = stages[0].shape[2:]
    resized = [F.interpolate(stage, size, mode="bilinear", align_corners=True) for stage in stages]
    return torch.cat([F.avg_pool2d(stage, 3, 1, 1) if average_pool else stage for stage in resized], dim=1)


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    later=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    average_pool=st.booleans(),
)
def test_stages_are_fused_as_by_torchs_resize_and_pool(
    rows: int, columns: int, later: tuple[int, int], average_pool: bool
) -> None:
    stages = [torch.randn(2, 3, rows, columns), torch.randn(2, 5, *later)]
    assert_close(fuse(stages, average_pool=average_pool), slow_fuse(stages, average_pool), rtol=1e-4, atol=1e-5)


def test_without_a_pool_the_first_stage_is_left_as_it_is() -> None:
    first = torch.randn(1, 2, 4, 4)
    assert torch.equal(fuse([first, torch.randn(1, 1, 2, 2)])[:, :2], first)


def test_the_pool_counts_zeros_beyond_the_border() -> None:
    pooled = fuse([torch.ones(1, 1, 4, 5)], average_pool=True)[0, 0]
    expected = torch.ones(4, 5)
    expected[[0, -1]] *= 2 / 3
    expected[:, [0, -1]] *= 2 / 3
    assert_close(pooled, expected)
    assert_close(pooled[0, 0], torch.tensor(4 / 9))


def test_gradients_flow_through_fused_stages_even_after_inference_mode() -> None:
    stage = torch.randn(1, 2, 3, 3)
    with torch.inference_mode():
        fuse([torch.randn(1, 2, 6, 6), stage])
    fuse([torch.randn(1, 2, 6, 6), stage.requires_grad_()]).sum().backward()
    assert stage.grad is not None


class Pictures:
    """Images that tell how often they were walked over."""

    digest = "pictures"

    def __init__(self, count: int) -> None:
        self.images = torch.rand(count, 3, 4, 4)
        self.walks = 0

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        self.walks += 1
        for chosen in (torch.arange(len(self)) if order is None else order).split(size):
            yield self.images[chosen]


def stages_of(images: Tensor) -> list[Tensor]:
    return [images * 2, F.avg_pool2d(images, 2)]


@pytest.mark.parametrize(("budget", "walks"), [(2**20, 1), (100, 4)])  # an image needs 4 * (48 + 12) = 240 bytes
def test_kept_or_computed_anew_the_features_are_the_same(budget: int, walks: int) -> None:
    pictures = Pictures(5)
    features = FrozenFeatures(stages_of, pictures, budget=budget)
    order = torch.tensor([3, 0, 4, 4, 1])
    for _ in range(3):
        found = list(features.batches(2, order))
        assert [len(stages[0]) for stages in found] == [2, 2, 1]
        for number, expected in enumerate(stages_of(pictures.images[order])):
            assert torch.equal(torch.cat([stages[number] for stages in found]), expected)
    assert pictures.walks == walks


def test_without_an_order_features_come_as_the_files_lie() -> None:
    pictures = Pictures(3)
    features = FrozenFeatures(stages_of, pictures)
    assert torch.equal(torch.cat([stages[0] for stages in features.batches(2)]), pictures.images * 2)


def test_a_budget_is_exact_to_the_byte() -> None:
    for budget, walks in ((480, 1), (479, 3)):
        pictures = Pictures(2)
        features = FrozenFeatures(stages_of, pictures, budget=budget)
        for _ in range(2):
            list(features.batches(1))
        assert pictures.walks == walks
