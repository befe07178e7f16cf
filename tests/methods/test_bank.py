"""The nearest neighbor search in a memory bank, compared with brute force in double precision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.methods.parts import bank
from bench.methods.parts.bank import MemoryBank, nearest_neighbors, project


def bank_of(rows: Tensor, count: int = 1) -> MemoryBank:
    return MemoryBank.from_rows(rows, torch.zeros(rows.shape[1]), count=count)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compressible(rows: int, dimensions: int, *, noise: float, seed: int) -> Tensor:
    """Return rows near a 3-dimensional subspace; `noise` is the standard deviation of the distance from it."""
    return random(rows, 3, seed=seed) @ random(3, dimensions, seed=0) + noise * random(rows, dimensions, seed=seed + 1)


@pytest.fixture
def _always_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small banks are projected too, and no query falls back to the search in all dimensions."""
    monkeypatch.setattr(bank, "MIN_PROJECTED_ROWS", 0)
    monkeypatch.setattr(bank, "FALLBACK_FRACTION", 1)


@pytest.mark.parametrize("count", [1, 3, 50])
def test_nearest_neighbors_equal_brute_force(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank, "TILE", 16)
    queries, rows = torch.randn(150, 12), torch.randn(40, 12)
    squared, index = nearest_neighbors(queries, bank_of(rows), count)
    expected = (queries[:, None] - rows).square().sum(dim=2).sort(dim=1)
    torch.testing.assert_close(squared, expected.values[:, :count])
    assert torch.equal(index, expected.indices[:, :count])


def test_a_row_of_the_bank_has_distance_0_to_itself() -> None:
    rows = 100 + torch.randn(30, 64)
    squared, index = nearest_neighbors(rows, bank_of(rows), 1)
    assert torch.equal(squared, torch.zeros(30, 1))
    assert torch.equal(index[:, 0], torch.arange(30))


@given(
    rows=st.integers(3, 90), noise=st.floats(0, 0.3), seed=st.integers(1, 99), duplicate=st.booleans(),
    fraction=st.sampled_from([1, 10, 1000]), max_distances=st.sampled_from([1, 500, 2**24]),
)  # fmt: skip
@settings(deadline=None, max_examples=80)
def test_the_projected_search_equals_brute_force(
    rows: int, noise: float, seed: int, duplicate: bool, fraction: int, max_distances: int
) -> None:
    bank_rows = compressible(rows, 32, noise=noise, seed=seed)
    bank_rows = torch.cat([bank_rows, bank_rows]) if duplicate else bank_rows
    queries = torch.cat([compressible(20, 32, noise=1.0, seed=seed + 100), 50 + torch.zeros(1, 32), bank_rows[:3]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bank, "MIN_PROJECTED_ROWS", 0)
        # 1: no query falls back; 1000: queries with two candidate groups do
        patch.setattr(bank, "FALLBACK_FRACTION", fraction)
        patch.setattr(bank, "MAX_DISTANCES", max_distances)
        memory_bank = bank_of(bank_rows)
        assert memory_bank.projected is not None
        squared, index = nearest_neighbors(queries, memory_bank, 1)
    expected = torch.cdist(queries.double(), bank_rows.double()).square()
    torch.testing.assert_close(squared[:, 0].double(), expected.amin(dim=1), rtol=1e-5, atol=1e-6)
    distances = (queries - bank_rows[index[:, 0]]).square().sum(dim=1)
    assert torch.equal(distances, squared[:, 0])


def test_the_projected_search_returns_the_index_of_the_nearest_row() -> None:
    bank_rows, queries = compressible(3000, 1024, noise=0.3, seed=1), compressible(400, 1024, noise=0.5, seed=3)
    memory_bank = bank_of(bank_rows)
    assert memory_bank.projected is not None
    squared, index = nearest_neighbors(
        queries.T.contiguous().T, memory_bank, 1
    )  # the memory layout of a single image's patches
    expected = torch.cdist(queries.double(), bank_rows.double()).square().min(dim=1)
    torch.testing.assert_close(squared[:, 0].double(), expected.values, rtol=1e-5, atol=0)
    assert torch.equal(index[:, 0], expected.indices)


@pytest.mark.usefixtures("_always_projected")
def test_the_first_of_equally_near_rows_is_returned() -> None:
    bank_rows = compressible(40, 32, noise=0.1, seed=1)
    memory_bank = bank_of(torch.cat([bank_rows, bank_rows]))
    assert memory_bank.projected is not None
    assert torch.equal(nearest_neighbors(bank_rows, memory_bank, 1)[1][:, 0], torch.arange(40))


@pytest.mark.usefixtures("_always_projected")
def test_the_projected_search_is_exact_without_residuals() -> None:
    # Two copies of rows in a plane, 0.008 and 0.010 above it, and queries 25 above it: the second copy is nearer.
    rotation = torch.linalg.qr(random(32, 32, seed=0)).Q
    plane, height = 10 * random(500, 6, seed=1), torch.ones(500, 1)
    copies = [
        torch.cat([plane, high * height, torch.zeros(500, 25)], dim=1) @ rotation for high in (0.008, 0.010, 25.0)
    ]
    bank_rows, queries = torch.cat(copies[:2]), copies[2]
    memory_bank = bank_of(bank_rows)
    assert memory_bank.projected is not None
    squared, _ = nearest_neighbors(queries, memory_bank, 1)
    expected = torch.cdist(queries.double(), bank_rows.double()).square().amin(dim=1)
    torch.testing.assert_close(squared[:, 0].double(), expected, rtol=2e-6, atol=0)


def test_a_query_far_from_all_rows_falls_back_to_the_exhaustive_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bank_rows = compressible(4000, 64, noise=0.1, seed=1)
    far = (
        1000 * torch.linalg.eigh(bank_rows.T @ bank_rows).eigenvectors[:, :5].T
    )  # directions in which the rows are short
    memory_bank = bank_of(bank_rows)
    counts: list[int] = []
    exhaustive_search = bank._exhaustive_search

    def recorded(queries: Tensor, memory_bank: MemoryBank, count: int) -> tuple[Tensor, Tensor]:
        counts.append(len(queries))
        return exhaustive_search(queries, memory_bank, count)

    monkeypatch.setattr(bank, "_exhaustive_search", recorded)
    squared, _ = nearest_neighbors(torch.cat([bank_rows[:7], far]), memory_bank, 1)
    assert counts == [5]
    expected = torch.cdist(far.double(), bank_rows.double()).square().amin(dim=1)
    torch.testing.assert_close(squared[7:, 0].double(), expected, rtol=1e-5, atol=0)
    assert torch.equal(squared[:7], torch.zeros(7, 1))


@pytest.mark.usefixtures("_always_projected")
def test_a_query_of_nan_has_the_distance_nan() -> None:
    bank_rows = compressible(40, 32, noise=0.1, seed=1)
    squared, index = nearest_neighbors(torch.cat([bank_rows[:1], bank_rows[:1] * math.nan]), bank_of(bank_rows), 1)
    assert squared[0, 0] == 0
    assert squared[1, 0].isnan()
    assert 0 <= int(index[1, 0]) < 40


@given(noise=st.floats(0, 1), seed=st.integers(1, 99))
@settings(deadline=None)
def test_a_projected_distance_is_a_lower_bound(noise: float, seed: int) -> None:
    rows = compressible(60, 64, noise=noise, seed=seed)
    longest = float(rows.square().sum(dim=1).max())
    _, directions = torch.linalg.eigh(rows.T @ rows)
    short = project(rows, directions[:, -14:], bank.RESIDUAL_FLOOR * longest)
    assert short.shape == (60, 15)
    bounds, distances = (torch.cdist(part.double(), part.double()).square() for part in (short, rows))
    assert (bounds <= distances + bank.ROUNDING_TOLERANCE * 2 * longest).all()


@pytest.mark.usefixtures("_always_projected")
def test_a_compiled_search_uses_all_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    bank_rows = compressible(40, 32, noise=0.1, seed=1)
    memory_bank = bank_of(bank_rows)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(bank, "_search_with_lower_bounds", lambda *_: pytest.fail("it cannot be traced"))
    assert torch.equal(nearest_neighbors(bank_rows, memory_bank, 1)[1][:, 0], torch.arange(40))


def test_the_bank_is_projected_only_if_that_is_exact_and_useful(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bank_rows = compressible(40, 32, noise=0.1, seed=1)
    assert bank_of(bank_rows).projected is None  # a full search of 40 rows is fast
    monkeypatch.setattr(bank, "MIN_PROJECTED_ROWS", 0)
    assert bank_of(bank_rows).projected is not None
    assert bank_of(bank_rows, count=2).projected is None
    assert bank_of(random(4000, 32, seed=0)).projected is None
    assert bank_of(bank_rows * math.inf).projected is None
    assert MemoryBank.from_rows(bank_rows, bank_rows[0], "bfloat16").projected is None
