"""The search for the nearest rows of a bank, beside brute force in double precision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.methods.parts import bank
from bench.methods.parts.bank import Bank, nearest, shortened


def bank_of(rows: Tensor, count: int = 1) -> Bank:
    return Bank.of(rows, torch.zeros(rows.shape[1]), count=count)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compressible(rows: int, dimensions: int, *, noise: float, seed: int) -> Tensor:
    """Rows that lie `noise` beside a surface of 3 dimensions."""
    return drawn(rows, 3, seed=seed) @ drawn(3, dimensions, seed=0) + noise * drawn(rows, dimensions, seed=seed + 1)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small banks are sought in few dimensions too, and no query is given up."""
    monkeypatch.setattr(bank, "LARGE", 0)
    monkeypatch.setattr(bank, "OFTEN", 1)


@pytest.mark.parametrize("count", [1, 3, 50])
def test_nearest_is_brute_force(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank, "TILE", 16)
    queries, rows = torch.randn(150, 12), torch.randn(40, 12)
    squared, index = nearest(queries, bank_of(rows), count)
    expected = (queries[:, None] - rows).square().sum(dim=2).sort(dim=1)
    torch.testing.assert_close(squared, expected.values[:, :count])
    assert torch.equal(index, expected.indices[:, :count])


def test_a_row_of_the_bank_is_at_distance_zero_from_itself() -> None:
    rows = 100 + torch.randn(30, 64)
    squared, index = nearest(rows, bank_of(rows), 1)
    assert torch.equal(squared, torch.zeros(30, 1))
    assert torch.equal(index[:, 0], torch.arange(30))


@given(
    rows=st.integers(3, 90), noise=st.floats(0, 0.3), seed=st.integers(1, 99), twice=st.booleans(),
    often=st.sampled_from([1, 10, 1000]), held=st.sampled_from([1, 500, 2**24]),
)  # fmt: skip
@settings(deadline=None, max_examples=80)
def test_seeking_in_few_dimensions_first_finds_what_brute_force_finds(
    rows: int, noise: float, seed: int, twice: bool, often: int, held: int
) -> None:
    kept = compressible(rows, 32, noise=noise, seed=seed)
    kept = torch.cat([kept, kept]) if twice else kept
    queries = torch.cat([compressible(20, 32, noise=1.0, seed=seed + 100), 50 + torch.zeros(1, 32), kept[:3]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bank, "LARGE", 0)
        patch.setattr(bank, "OFTEN", often)  # 1: no query is sought in all dimensions; 1000: those with two groups are
        patch.setattr(bank, "HELD", held)
        made = bank_of(kept)
        assert made.few is not None
        squared, index = nearest(queries, made, 1)
    expected = torch.cdist(queries.double(), kept.double()).square()
    torch.testing.assert_close(squared[:, 0].double(), expected.amin(dim=1), rtol=1e-5, atol=1e-6)
    own = (queries - kept[index[:, 0]]).square().sum(dim=1)
    assert torch.equal(own, squared[:, 0])


def test_seeking_in_few_of_many_dimensions_tells_the_row_that_is_nearest() -> None:
    kept, queries = compressible(3000, 1024, noise=0.3, seed=1), compressible(400, 1024, noise=0.5, seed=3)
    made = bank_of(kept)
    assert made.few is not None
    squared, index = nearest(queries.T.contiguous().T, made, 1)  # as the patches of a single image lie in memory
    expected = torch.cdist(queries.double(), kept.double()).square().min(dim=1)
    torch.testing.assert_close(squared[:, 0].double(), expected.values, rtol=1e-5, atol=0)
    assert torch.equal(index[:, 0], expected.indices)


@pytest.mark.usefixtures("few")
def test_of_equally_near_rows_the_first_is_told() -> None:
    kept = compressible(40, 32, noise=0.1, seed=1)
    made = bank_of(torch.cat([kept, kept]))
    assert made.few is not None
    assert torch.equal(nearest(kept, made, 1)[1][:, 0], torch.arange(40))


@pytest.mark.usefixtures("few")
def test_a_bank_that_leaves_nothing_out_is_searched_as_exactly() -> None:
    # Two copies of flat rows, 0.008 and 0.010 above their plane, and queries 25 above it: the second copy is nearer.
    turned = torch.linalg.qr(drawn(32, 32, seed=0)).Q
    flat, height = 10 * drawn(500, 6, seed=1), torch.ones(500, 1)
    lying = [torch.cat([flat, high * height, torch.zeros(500, 25)], dim=1) @ turned for high in (0.008, 0.010, 25.0)]
    kept, queries = torch.cat(lying[:2]), lying[2]
    made = bank_of(kept)
    assert made.few is not None
    squared, _ = nearest(queries, made, 1)
    expected = torch.cdist(queries.double(), kept.double()).square().amin(dim=1)
    torch.testing.assert_close(squared[:, 0].double(), expected, rtol=2e-6, atol=0)


def test_a_query_far_from_all_rows_is_sought_in_all_dimensions_before_any_pair_is_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = compressible(4000, 64, noise=0.1, seed=1)
    far = 1000 * torch.linalg.eigh(kept.T @ kept).eigenvectors[:, :5].T  # where the rows hardly reach
    made = bank_of(kept)
    asked: list[int] = []
    sought = bank._sought

    def watched(queries: Tensor, made: Bank, count: int) -> tuple[Tensor, Tensor]:
        asked.append(len(queries))
        return sought(queries, made, count)

    monkeypatch.setattr(bank, "_sought", watched)
    squared, _ = nearest(torch.cat([kept[:7], far]), made, 1)
    assert asked == [5]
    expected = torch.cdist(far.double(), kept.double()).square().amin(dim=1)
    torch.testing.assert_close(squared[7:, 0].double(), expected, rtol=1e-5, atol=0)
    assert torch.equal(squared[:7], torch.zeros(7, 1))


@pytest.mark.usefixtures("few")
def test_a_query_that_is_no_number_has_a_distance_that_is_none() -> None:
    kept = compressible(40, 32, noise=0.1, seed=1)
    squared, index = nearest(torch.cat([kept[:1], kept[:1] * math.nan]), bank_of(kept), 1)
    assert squared[0, 0] == 0
    assert squared[1, 0].isnan()
    assert 0 <= int(index[1, 0]) < 40


@given(noise=st.floats(0, 1), seed=st.integers(1, 99))
@settings(deadline=None)
def test_a_distance_in_few_dimensions_is_never_above_that_in_all(noise: float, seed: int) -> None:
    rows = compressible(60, 64, noise=noise, seed=seed)
    longest = float(rows.square().sum(dim=1).max())
    _, directions = torch.linalg.eigh(rows.T @ rows)
    short = shortened(rows, directions[:, -14:], bank.FLOOR * longest)
    assert short.shape == (60, 15)
    bounds, distances = (torch.cdist(some.double(), some.double()).square() for some in (short, rows))
    assert (bounds <= distances + bank.SLACK * 2 * longest).all()


@pytest.mark.usefixtures("few")
def test_what_is_traced_seeks_in_all_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = compressible(40, 32, noise=0.1, seed=1)
    made = bank_of(kept)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(bank, "_sifted", lambda *_: pytest.fail("a choice by values can't be traced"))
    assert torch.equal(nearest(kept, made, 1)[1][:, 0], torch.arange(40))


def test_few_dimensions_are_used_only_where_they_hold_the_rows_and_one_neighbour_is_sought(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = compressible(40, 32, noise=0.1, seed=1)
    assert bank_of(kept).few is None  # 40 rows are quickly looked at
    monkeypatch.setattr(bank, "LARGE", 0)
    assert bank_of(kept).few is not None
    assert bank_of(kept, count=2).few is None
    assert bank_of(drawn(4000, 32, seed=0)).few is None
    assert bank_of(kept * math.inf).few is None
    assert Bank.of(kept, kept[0], "bfloat16").few is None
