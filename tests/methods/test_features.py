"""Fused stages against torch's own resize and pool, and a cache that changes nothing but the time."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from bench.method import Setup
from bench.methods.parts import cache
from bench.methods.parts.features import FrozenFeatures, fuse, fused_patches
from bench.methods.parts.transformer import patchify

IN_MEMORY = Setup((4, 4), torch.device("cpu"), 0)


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
    features = FrozenFeatures(stages_of, pictures, setup=IN_MEMORY, budget=budget)
    order = torch.tensor([3, 0, 4, 4, 1])
    for _ in range(3):
        found = list(features.batches(2, order))
        assert [len(stages[0]) for stages in found] == [2, 2, 1]
        for number, expected in enumerate(stages_of(pictures.images[order])):
            assert torch.equal(torch.cat([stages[number] for stages in found]), expected)
    assert pictures.walks == walks


def test_without_an_order_features_come_as_the_files_lie() -> None:
    pictures = Pictures(3)
    features = FrozenFeatures(stages_of, pictures, setup=IN_MEMORY)
    assert torch.equal(torch.cat([stages[0] for stages in features.batches(2)]), pictures.images * 2)


def test_what_is_kept_comes_on_the_device_of_the_fit() -> None:
    meta = torch.device("meta")  # the only other one that is everywhere
    features = FrozenFeatures(lambda images: [images.to(meta)], Pictures(3), setup=Setup((4, 4), meta, 0))
    assert [stages[0].device for stages in features.batches(2)] == [meta, meta]


def test_a_budget_is_exact_to_the_byte() -> None:
    for budget, walks in ((480, 1), (479, 3)):
        pictures = Pictures(2)
        features = FrozenFeatures(stages_of, pictures, setup=IN_MEMORY, budget=budget)
        for _ in range(2):
            list(features.batches(1))
        assert pictures.walks == walks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_are_cut_from_fused_stages_without_the_map_in_between(dtype: torch.dtype) -> None:
    stages = [torch.randn(2, 3, 8, 12).to(dtype), torch.randn(2, 5, 4, 6).to(dtype)]
    for average_pool in (False, True):
        expected = patchify(fuse([stage.float() for stage in stages], average_pool=average_pool), 4)
        assert torch.equal(fused_patches(stages, 4, average_pool=average_pool), expected)


# ---- Features in files ----


def setup_in(folder: Path) -> Setup:
    return Setup((4, 4), torch.device("cpu"), 0, cache=folder)


def kept_in(folder: Path, pictures: Pictures, identity: str = "a backbone", **more: object) -> list[Tensor]:
    features = FrozenFeatures(stages_of, pictures, identity=identity, setup=setup_in(folder), **more)
    return [torch.cat(stages) for stages in zip(*features.batches(2), strict=True)]


def assert_right(found: list[Tensor], pictures: Pictures) -> None:
    for one, other in zip(found, stages_of(pictures.images), strict=True):
        assert torch.equal(one, other)


def test_all_fits_that_share_images_and_backbone_share_one_file(tmp_path: Path) -> None:
    pictures = Pictures(9)
    for _ in range(3):
        assert_right(kept_in(tmp_path / "features", pictures, budget=0), pictures)
    assert pictures.walks == 1
    kept_in(tmp_path / "features", pictures, identity="another backbone")
    assert pictures.walks == 2
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_what_is_kept_in_a_file_is_exact_in_half_precision_too(tmp_path: Path) -> None:
    pictures = Pictures(3)

    def halves(images: Tensor) -> list[Tensor]:
        return [stage.bfloat16() for stage in stages_of(images)]

    features = FrozenFeatures(halves, pictures, identity="half", setup=setup_in(tmp_path))
    for one, other in zip(next(features.batches(3)), stages_of(pictures.images), strict=True):
        assert torch.equal(one, other.bfloat16())


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda content: content[:-5], lambda content: content + b"x", lambda _: b"", lambda _: b"\x80" * 99],
)
def test_a_damaged_file_is_never_used_but_made_anew(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = Pictures(3)
    kept_in(tmp_path, pictures)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert_right(kept_in(tmp_path, pictures), pictures)
    assert pictures.walks == 2
    assert "damaged" in caplog.text
    assert file.read_bytes() == whole


def test_a_file_under_the_name_of_another_key_is_not_used(tmp_path: Path) -> None:
    pictures, others = Pictures(3), Pictures(3)
    others.digest = "others"
    kept_in(tmp_path, pictures)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    kept_in(tmp_path, others)
    (other,) = set(tmp_path.iterdir()) - {file}
    other.write_bytes(content)
    assert_right(kept_in(tmp_path, others), others)


def test_the_folder_stays_within_its_bound_and_gives_up_what_was_unused_for_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = Pictures(5)
    kept_in(tmp_path, pictures, "first")
    (first,) = tmp_path.iterdir()
    monkeypatch.setattr(cache, "FOLDER_BYTES", int(2.5 * first.stat().st_size))
    kept_in(tmp_path, pictures, "second")
    (second,) = set(tmp_path.iterdir()) - {first}
    for age, file in ((20, second), (30, first)):
        os.utime(file, (time.time() - age,) * 2)
    kept_in(tmp_path, pictures, "first")  # now the second is unused for longest
    kept_in(tmp_path, pictures, "third")
    assert first.exists()
    assert not second.exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_without_room_on_the_disk_features_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures(3)
    monkeypatch.setattr(cache, "RESERVE_BYTES", 2**62)
    assert_right(kept_in(tmp_path / "features", pictures), pictures)
    assert list((tmp_path / "features").iterdir()) == []
    (tmp_path / "file").touch()
    assert_right(kept_in(tmp_path / "file" / "features", pictures), pictures)  # no folder can be there


def test_what_a_killed_process_left_behind_goes_after_a_day(tmp_path: Path) -> None:
    old, young = tmp_path / "a.unfinished", tmp_path / "b.unfinished"
    for path, age in ((old, 90_000), (young, 10)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    kept_in(tmp_path, Pictures(1))
    assert not old.exists()
    assert young.exists()


def test_two_that_write_the_same_file_at_once_both_find_it_right(tmp_path: Path) -> None:
    pictures = Pictures(40)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: kept_in(tmp_path, pictures), range(8)):
            assert_right(found, pictures)
    assert len(list(tmp_path.iterdir())) == 1
