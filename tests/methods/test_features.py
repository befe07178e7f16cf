"""Fused stages compared with torch's resize and pool, and the cache of features."""

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

from bench.files import temporary_file
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
def test_fuse_equals_resize_and_pool_of_torch(
    rows: int, columns: int, later: tuple[int, int], average_pool: bool
) -> None:
    stages = [torch.randn(2, 3, rows, columns), torch.randn(2, 5, *later)]
    assert_close(fuse(stages, average_pool=average_pool), slow_fuse(stages, average_pool), rtol=1e-4, atol=1e-5)


def test_without_a_pool_the_first_stage_is_unchanged() -> None:
    first = torch.randn(1, 2, 4, 4)
    assert torch.equal(fuse([first, torch.randn(1, 1, 2, 2)])[:, :2], first)


def test_the_pool_includes_the_zero_padding() -> None:
    pooled = fuse([torch.ones(1, 1, 4, 5)], average_pool=True)[0, 0]
    expected = torch.ones(4, 5)
    expected[[0, -1]] *= 2 / 3
    expected[:, [0, -1]] *= 2 / 3
    assert_close(pooled, expected)
    assert_close(pooled[0, 0], torch.tensor(4 / 9))


def test_gradients_can_be_computed_after_inference_mode() -> None:
    stage = torch.randn(1, 2, 3, 3)
    with torch.inference_mode():
        fuse([torch.randn(1, 2, 6, 6), stage])
    fuse([torch.randn(1, 2, 6, 6), stage.requires_grad_()]).sum().backward()
    assert stage.grad is not None


class CountedImages:
    """Images that count their iterations."""

    content_hash = "images"

    def __init__(self, count: int) -> None:
        self.images = torch.rand(count, 3, 4, 4)
        self.iterations = 0

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        self.iterations += 1
        for indices in (torch.arange(len(self)) if order is None else order).split(size):
            yield self.images[indices]


def stages_of(images: Tensor) -> list[Tensor]:
    return [images * 2, F.avg_pool2d(images, 2)]


@pytest.mark.parametrize(("budget", "iterations"), [(2**20, 1), (100, 4)])  # an image needs 4 * (48 + 12) bytes
def test_cached_and_computed_features_are_equal(budget: int, iterations: int) -> None:
    images = CountedImages(5)
    features = FrozenFeatures(stages_of, images, setup=IN_MEMORY, budget=budget)
    order = torch.tensor([3, 0, 4, 4, 1])
    for _ in range(3):
        batches = list(features.batches(2, order))
        assert [len(stages[0]) for stages in batches] == [2, 2, 1]
        for number, expected in enumerate(stages_of(images.images[order])):
            assert torch.equal(torch.cat([stages[number] for stages in batches]), expected)
    assert images.iterations == iterations


def test_without_an_order_features_are_in_file_order() -> None:
    images = CountedImages(3)
    features = FrozenFeatures(stages_of, images, setup=IN_MEMORY)
    assert torch.equal(torch.cat([stages[0] for stages in features.batches(2)]), images.images * 2)


def test_cached_features_are_on_the_device_of_the_fit() -> None:
    meta = torch.device("meta")  # the only other device on every machine
    features = FrozenFeatures(lambda images: [images.to(meta)], CountedImages(3), setup=Setup((4, 4), meta, 0))
    assert [stages[0].device for stages in features.batches(2)] == [meta, meta]


def test_the_budget_is_exact_to_the_byte() -> None:
    for budget, iterations in ((480, 1), (479, 3)):
        images = CountedImages(2)
        features = FrozenFeatures(stages_of, images, setup=IN_MEMORY, budget=budget)
        for _ in range(2):
            list(features.batches(1))
        assert images.iterations == iterations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_patches_equal_the_patches_of_the_fused_map(dtype: torch.dtype) -> None:
    stages = [torch.randn(2, 3, 8, 12).to(dtype), torch.randn(2, 5, 4, 6).to(dtype)]
    for average_pool in (False, True):
        expected = patchify(fuse([stage.float() for stage in stages], average_pool=average_pool), 4)
        assert torch.equal(fused_patches(stages, 4, average_pool=average_pool), expected)


# ---- Features in files ----


def setup_in(folder: Path) -> Setup:
    return Setup((4, 4), torch.device("cpu"), 0, cache=folder)


def features_of(folder: Path, images: CountedImages, identity: str = "a backbone", **more: object) -> list[Tensor]:
    features = FrozenFeatures(stages_of, images, identity=identity, setup=setup_in(folder), **more)
    return [torch.cat(stages) for stages in zip(*features.batches(2), strict=True)]


def assert_correct(features: list[Tensor], images: CountedImages) -> None:
    for one, other in zip(features, stages_of(images.images), strict=True):
        assert torch.equal(one, other)


def test_fits_with_equal_images_and_backbone_share_one_file(tmp_path: Path) -> None:
    images = CountedImages(9)
    for _ in range(3):
        assert_correct(features_of(tmp_path / "features", images, budget=0), images)
    assert images.iterations == 1
    features_of(tmp_path / "features", images, identity="another backbone")
    assert images.iterations == 2
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_features_in_half_precision_are_stored_exactly(tmp_path: Path) -> None:
    images = CountedImages(3)

    def extract_half(images: Tensor) -> list[Tensor]:
        return [stage.bfloat16() for stage in stages_of(images)]

    features = FrozenFeatures(extract_half, images, identity="half", setup=setup_in(tmp_path))
    for one, other in zip(next(features.batches(3)), stages_of(images.images), strict=True):
        assert torch.equal(one, other.bfloat16())


def with_flipped_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [
        with_flipped_bit,
        lambda content: content[:-5],
        lambda content: content + b"x",
        lambda _: b"",
        lambda _: b"\x80" * 99,
    ],
)
def test_a_damaged_file_is_replaced(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = CountedImages(3)
    features_of(tmp_path, images)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert_correct(features_of(tmp_path, images), images)
    assert images.iterations == 2
    assert "damaged" in caplog.text
    assert file.read_bytes() == whole


def test_a_file_of_another_key_is_not_used(tmp_path: Path) -> None:
    images, others = CountedImages(3), CountedImages(3)
    others.content_hash = "others"
    features_of(tmp_path, images)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    features_of(tmp_path, others)
    (other,) = set(tmp_path.iterdir()) - {file}
    other.write_bytes(content)
    assert_correct(features_of(tmp_path, others), others)


def test_the_folder_has_a_maximum_size_and_the_least_recently_used_file_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = CountedImages(5)
    features_of(tmp_path, images, "first")
    (first,) = tmp_path.iterdir()
    monkeypatch.setattr(cache, "FOLDER_BYTES", int(2.5 * first.stat().st_size))
    features_of(tmp_path, images, "second")
    (second,) = set(tmp_path.iterdir()) - {first}
    for age, file in ((20, second), (30, first)):
        os.utime(file, (time.time() - age,) * 2)
    features_of(tmp_path, images, "first")  # now the second is the least recently used one
    features_of(tmp_path, images, "third")
    assert first.exists()
    assert not second.exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_without_free_disk_space_features_are_cached_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = CountedImages(3)
    monkeypatch.setattr(cache, "RESERVE_BYTES", 2**62)
    assert_correct(features_of(tmp_path / "features", images), images)
    assert list((tmp_path / "features").iterdir()) == []
    (tmp_path / "file").touch()
    assert_correct(features_of(tmp_path / "file" / "features", images), images)  # a folder cannot be created there


def test_a_temporary_file_of_a_process_that_has_ended_is_removed(tmp_path: Path) -> None:
    with temporary_file(tmp_path / "a.safetensors") as of_this_process:
        left = of_this_process.with_name(of_this_process.name.replace(".a.", ".b."))
        left.touch()
        features_of(tmp_path, CountedImages(1))
        assert not left.exists()
        assert of_this_process.exists()


def test_the_same_file_can_be_written_by_several_threads(tmp_path: Path) -> None:
    images = CountedImages(40)
    with ThreadPoolExecutor(4) as pool:
        for features in pool.map(lambda _: features_of(tmp_path, images), range(8)):
            assert_correct(features, images)
    assert len(list(tmp_path.iterdir())) == 1
