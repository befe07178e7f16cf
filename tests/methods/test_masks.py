"""Masks: counts, disjointness, and the adaptive mask compared with a slow loop."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from bench.errors import BenchError
from bench.methods.parts.masks import adaptive_mask, complementary_masks, fixed_masks, random_mask, stripe_masks


def slow_adaptive_mask(distances: Tensor, clusters: Tensor, count: int, lambda_: float) -> tuple[Tensor, Tensor]:
    """Return the mask as the authors describe it, token by token, and the distance of each token to its threshold."""
    mask = torch.zeros(distances.shape, dtype=torch.bool)
    gap = torch.full(distances.shape, math.inf, dtype=torch.float64)
    for image in range(len(distances)):
        for cluster in range(count):
            members = [token for token in range(distances.shape[1]) if clusters[image, token] == cluster]
            if len(members) < 2:
                continue
            values = [float(distances[image, token]) for token in members]
            mean = math.fsum(values) / len(values)
            std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
            for token, value in zip(members, values, strict=True):
                mask[image, token] = value >= mean + lambda_ * std
                gap[image, token] = abs(value - mean - lambda_ * std)
    return mask, gap


@given(
    seed=st.integers(0, 10_000),
    images=st.integers(1, 3),
    tokens=st.integers(1, 40),
    count=st.integers(1, 9),
    lambda_=st.sampled_from([0.0, 0.5, 1.0, 2.5]),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
)
def test_the_adaptive_mask_equals_a_slow_loop(
    seed: int, images: int, tokens: int, count: int, lambda_: float, scale: float
) -> None:
    generator = Generator().manual_seed(seed)
    distances = torch.rand(images, tokens, generator=generator) * scale
    clusters = torch.randint(count, (images, tokens), generator=generator)
    expected, gap = slow_adaptive_mask(distances, clusters, count, lambda_)
    clear = gap > 1e-5 * scale  # closer to the threshold, the result depends on rounding
    assert torch.equal(adaptive_mask(distances, clusters, count=count, lambda_=lambda_)[clear], expected[clear])


def test_the_adaptive_mask_uses_the_std_with_bessels_correction() -> None:
    # Members 0, 0, 3: mean 1, std sqrt(6 / 2) = 1.732; with n instead of n - 1 it would be sqrt(6 / 3) = 1.414.
    distances = torch.tensor([[0.0, 0.0, 3.0]])
    clusters = torch.zeros(1, 3, dtype=torch.int64)
    assert adaptive_mask(distances, clusters, count=1, lambda_=1.15).tolist() == [[False, False, True]]  # 1 + 1.992
    assert adaptive_mask(distances, clusters, count=1, lambda_=1.16).tolist() == [[False, False, False]]  # 1 + 2.009


def test_a_single_member_is_never_masked_and_each_cluster_has_its_own_threshold() -> None:
    distances = torch.tensor([[1.0, 1.0, 5.0, 100.0, 100.0, 101.0, 999.0]])
    clusters = torch.tensor([[0, 0, 0, 1, 1, 1, 2]])
    assert adaptive_mask(distances, clusters, count=4, lambda_=0.5).tolist() == [[False, False, True] * 2 + [False]]


@pytest.mark.parametrize("value", [0.1, 1e-7, 33.3])
@pytest.mark.parametrize("members", [2, 3, 7, 256])
def test_members_with_equal_distances_are_all_masked(value: float, members: int) -> None:
    distances = torch.full((1, members), value)
    mask = adaptive_mask(distances, torch.zeros(1, members, dtype=torch.int64), count=2, lambda_=0.5)
    assert mask.all()


def test_an_infinite_threshold_hides_nothing() -> None:
    distances = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
    clusters = torch.tensor([[0, 0, 1, 1]])
    assert not adaptive_mask(distances, clusters, count=2, lambda_=math.inf).any()


@given(ratio=st.floats(0, 0.999), tokens=st.integers(1, 300))
def test_a_fixed_ratio_hides_its_floor_in_every_row(ratio: float, tokens: int) -> None:
    mask = random_mask(5, tokens, ratio=ratio, generator=Generator().manual_seed(1))
    assert mask.sum(dim=1).tolist() == [math.floor(ratio * tokens)] * 5


def test_a_uniform_ratio_differs_by_row_and_hides_half_on_average() -> None:
    mask = random_mask(2000, 16, ratio="uniform", generator=Generator().manual_seed(1))
    counts = mask.sum(dim=1)
    assert counts.unique().tolist() == list(range(16))  # floor(16 rho) is 0 to 15, never all
    assert abs(counts.float().mean() - 7.5) < 0.4  # the std of the mean is sqrt((256 - 1) / 12 / 2000) = 0.10
    assert (mask.float().mean(dim=0) - 7.5 / 16).abs().max() < 0.06  # all tokens have the same frequency: std 0.011


def test_random_masks_depend_on_their_seed_only() -> None:
    first, repeated, other = (
        random_mask(3, 64, ratio="uniform", generator=Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, repeated)
    assert not torch.equal(first, other)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    cell=st.integers(1, 9),
    subsets=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_complementary_masks_hide_everything_exactly_once(
    height: int, width: int, cell: int, subsets: int, seed: int
) -> None:
    cells = math.ceil(height / cell) * math.ceil(width / cell)
    generator = Generator().manual_seed(seed)
    masks = complementary_masks(height, width, cell=cell, subsets=min(subsets, cells), generator=generator)
    assert masks.shape == (min(subsets, cells), height, width)
    assert (masks.sum(dim=0) == 1).all()
    counts = masks[:, ::cell, ::cell].sum(dim=(1, 2))  # the first token of each cell
    assert counts.max() - counts.min() <= 1
    assert torch.equal(masks, masks[:, ::cell, ::cell].repeat_interleave(cell, 1).repeat_interleave(cell, 2)[
        :, :height, :width
    ])  # fmt: skip


def test_more_subsets_than_cells_raise_an_error_with_both_numbers() -> None:
    with pytest.raises(BenchError, match="5 subsets of 2 x 2 cells"):
        complementary_masks(4, 4, cell=2, subsets=5, generator=Generator())


def test_fixed_masks_are_of_the_kind_that_is_requested() -> None:
    options = {"ratio": 0.3, "cell": 2, "subsets": 3, "seed": 5}
    assert not fixed_masks("none", (4, 6), **options).any()
    random = fixed_masks("random", (4, 6), **options)
    assert random.sum(dim=1).tolist() == [math.floor(0.3 * 24)]
    complementary = fixed_masks("complementary", (4, 6), **options)
    expected = complementary_masks(4, 6, cell=2, subsets=3, generator=Generator().manual_seed(5))
    assert torch.equal(complementary, expected.flatten(1))
    for mask_type in ("random", "complementary"):
        assert not torch.equal(
            fixed_masks(mask_type, (4, 6), **options), fixed_masks(mask_type, (4, 6), **options | {"seed": 6})
        )


def test_stripes_are_columns_rows_and_their_complements() -> None:
    columns, other_columns, rows, other_rows = stripe_masks(4, 8, 1)
    assert columns.int().tolist() == [[1, 1, 0, 0, 1, 1, 0, 0]] * 4
    assert rows.int().tolist() == [[1] * 8, [0] * 8, [1] * 8, [0] * 8]
    assert torch.equal(columns, ~other_columns)
    assert torch.equal(rows, ~other_rows)
    with pytest.raises(BenchError, match="at most the side"):
        stripe_masks(4, 8, 2)
