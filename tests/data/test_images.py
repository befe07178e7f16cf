"""Images: files become tensors in [0, 1], maps and masks fit the original images, and unreadable files are named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.data.content import content_hash
from bench.data.images import FileImages, OriginalResolution
from bench.data.preprocessing import preprocess, visible_box
from bench.dataset import Sample
from bench.errors import BenchError
from bench.method import Preprocessing

SMALL = Preprocessing(4, 4, resample="nearest")


def save_image(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def gray(value: int, height: int = 4, width: int = 4) -> np.ndarray:
    return np.full((height, width), value, dtype=np.uint8)


def noise(height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sample(image: Path, *masks: Path, category: str = "bolt") -> Sample:
    return Sample(image, category, "test", "crack" if masks else "good", masks)


def only(image: Path, preprocessing: Preprocessing = SMALL) -> torch.Tensor:
    (batch,) = FileImages([sample(image)], preprocessing).batches(1)
    return batch[0]


# ---- tensors


def test_rgb_values_are_divided_by_255(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    pixels[0, 0] = (255, 51, 0)
    result = only(save_image(tmp_path / "a.png", pixels))
    assert result.shape == (3, 4, 4)
    assert result.dtype == torch.float32
    assert torch.allclose(result[:, 0, 0], torch.tensor([1.0, 0.2, 0.0]))
    assert result[:, 1:].abs().max() == 0


def test_gray_becomes_three_equal_channels(tmp_path: Path) -> None:
    assert only(save_image(tmp_path / "a.png", gray(51))).unique().tolist() == [pytest.approx(0.2)]


def test_a_one_pixel_image_fills_its_input(tmp_path: Path) -> None:
    for preprocessing in (Preprocessing(4, 6), Preprocessing(4, 6, keep_aspect=True), Preprocessing(8, 8, crop=4)):
        result = only(save_image(tmp_path / "a.png", gray(51, 1, 1)), preprocessing)
        assert result.shape == (3, *preprocessing.size)
        assert torch.allclose(result, torch.tensor(0.2))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "its content has no known image format"),
        (b"some text", "its content has no known image format"),
        (b"\x89PNG\r\n\x1a\n", "its content has no known image format"),
    ],
    ids=["zero bytes", "text", "a PNG's first 8 bytes"],
)
def test_a_file_that_is_not_an_image_is_named_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=rf"{path} is not: {reason}") as error:
        list(FileImages([sample(path)], SMALL).batches(1))
    assert "\n" not in str(error.value)


def test_a_long_image_that_becomes_too_large_with_keep_aspect_is_named(tmp_path: Path) -> None:
    path = save_image(tmp_path / "strip.png", gray(0, 1, 5000))
    with pytest.raises(BenchError, match=r"strip\.png is not: 5000 x 1 would become 1280000 x 256"):
        only(path, Preprocessing(256, 256, keep_aspect=True))
    assert only(path).shape == (3, 4, 4)


def test_an_unreadable_image_raises_when_its_batch_is_requested(tmp_path: Path) -> None:
    samples = [sample(save_image(tmp_path / f"{i}.png", gray(i))) for i in range(3)]
    samples[1].image.write_bytes(b"")
    batches = FileImages(samples, SMALL).batches(1)
    assert next(batches).shape == (1, 3, 4, 4)
    with pytest.raises(BenchError, match=r"1\.png"):
        next(batches)


# ---- preprocessing


def test_both_sides_are_resized_independently_unless_keep_aspect_is_set() -> None:
    image = Image.fromarray(np.repeat([[0, 60, 120, 180, 240, 255, 30, 90]], 4, axis=0).astype(np.uint8))  # 4 x 8
    resized = np.asarray(preprocess(image, SMALL))
    assert resized[0].tolist() == [60, 180, 255, 90]  # the right pixel of each pair is nearest to the center
    center = np.asarray(preprocess(image, Preprocessing(4, 4, resample="nearest", keep_aspect=True)))
    assert center[0].tolist() == [120, 180, 240, 255]


def test_a_crop_is_cut_from_the_center_of_the_resized_image() -> None:
    image = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6))
    result = np.asarray(preprocess(image, Preprocessing(6, 6, resample="nearest", crop=2)))
    assert result.tolist() == [[14, 15], [20, 21]]


def test_an_image_of_the_right_size_is_not_changed() -> None:
    image = Image.fromarray(noise(8, 8))
    for resample in ("bilinear", "bicubic", "lanczos", "nearest"):
        assert np.array_equal(np.asarray(preprocess(image, Preprocessing(8, 8, resample=resample))), noise(8, 8))


@given(height=st.integers(1, 40), width=st.integers(1, 40), keep_aspect=st.booleans(), crop=st.sampled_from([None, 5]))
@settings(deadline=None)
def test_every_size_becomes_the_size_of_the_preprocessing(
    height: int, width: int, keep_aspect: bool, crop: int | None
) -> None:
    preprocessing = Preprocessing(7, 9, keep_aspect=keep_aspect, crop=crop)
    result = preprocess(Image.fromarray(noise(height, width)), preprocessing)
    assert (result.height, result.width) == preprocessing.size


@pytest.mark.parametrize(("height", "width", "crop"), [(0, 4, None), (4, -1, None), (4, 4, 0), (4, 5, 5)])
def test_a_size_or_crop_that_leaves_no_pixels_is_an_error(height: int, width: int, crop: int | None) -> None:
    with pytest.raises(BenchError, match=f"got height {height}, width {width}, crop {crop}"):
        Preprocessing(height, width, crop=crop)


# ---- original resolution


@pytest.mark.parametrize(
    ("size", "preprocessing", "box"),
    [
        ((900, 700), Preprocessing(256, 256), (0, 0, 900, 700)),
        ((8, 4), Preprocessing(4, 4, keep_aspect=True), (2, 0, 6, 4)),
        ((1024, 1024), Preprocessing(256, 256, crop=224), (64, 64, 960, 960)),
        ((600, 300), Preprocessing(256, 256, keep_aspect=True, crop=224), (169, 19, 431, 281)),
        ((1, 1), Preprocessing(8, 8, crop=2), (0, 0, 1, 1)),
    ],
)
def test_the_visible_box_is_the_part_of_the_image_in_the_input(
    size: tuple[int, int], preprocessing: Preprocessing, box: tuple[int, int, int, int]
) -> None:
    assert visible_box(size, preprocessing) == box


@given(width=st.integers(1, 60), height=st.integers(1, 60), keep_aspect=st.booleans(), crop=st.sampled_from([None, 5]))
def test_the_visible_box_is_inside_the_image(width: int, height: int, keep_aspect: bool, crop: int | None) -> None:
    left, top, right, bottom = visible_box((width, height), Preprocessing(7, 9, keep_aspect=keep_aspect, crop=crop))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_at_original_resolution_a_map_is_enlarged_and_a_mask_only_cropped(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8), dtype=np.uint8)
    pixels[1, 5] = pixels[3, 0] = 255  # the second is outside the center crop
    image, mask = save_image(tmp_path / "a.png", gray(0, 4, 8)), save_image(tmp_path / "m.png", pixels)
    result = OriginalResolution([sample(image, mask)], Preprocessing(2, 2, keep_aspect=True))
    assert np.argwhere(result.mask(0)).tolist() == [[1, 3]]
    ramp = np.array([[0, 4], [0, 4]], dtype=np.float32)
    # The centers of the four columns are at 1/4, 3/4, 5/4 and 7/4 of the two: weights 0, 1/4, 3/4 and 1.
    assert result.map(0, ramp).tolist() == [[0, 1, 3, 4]] * 4
    assert result.map(0, ramp).dtype == np.float32


def test_at_original_resolution_a_mask_of_another_size_is_an_error(tmp_path: Path) -> None:
    image, mask = save_image(tmp_path / "a.png", gray(0, 8, 8)), save_image(tmp_path / "m.png", gray(255))
    with pytest.raises(BenchError, match=r"m\.png is not: it has 4 x 4 pixels, its image 8 x 8"):
        OriginalResolution([sample(image, mask)], SMALL).mask(0)


# ---- batches and digests


@pytest.fixture
def six(tmp_path: Path) -> list[Sample]:
    return [sample(save_image(tmp_path / "images" / f"{i}.png", gray(40 * i))) for i in range(6)]


def gray_values(batches: list[torch.Tensor]) -> list[list[int]]:
    return [(batch[:, 0, 0, 0] * 255 / 40).round().int().tolist() for batch in batches]


def test_batches_without_an_order_follow_the_samples(six: list[Sample]) -> None:
    images = FileImages(six, SMALL)
    assert len(images) == 6
    assert gray_values(list(images.batches(4))) == [[0, 1, 2, 3], [4, 5]]
    assert gray_values(list(images.batches(100))) == [[0, 1, 2, 3, 4, 5]]


def test_an_order_selects_and_repeats_images(six: list[Sample]) -> None:
    images = FileImages(six, SMALL)
    assert gray_values(list(images.batches(2, torch.tensor([5, 0, 3, 3, 1])))) == [[5, 0], [3, 3], [1]]
    indices = torch.arange(6)
    assert all(map(torch.equal, images.batches(4), images.batches(4, indices)))


def test_no_images_give_no_batches(six: list[Sample]) -> None:
    assert list(FileImages(six, SMALL).batches(2, torch.tensor([], dtype=torch.int64))) == []
    assert list(FileImages([], SMALL).batches(2)) == []


def test_a_second_pass_gives_the_same_bits_with_and_without_the_cache(
    six: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessing = Preprocessing(5, 7, resample="lanczos")
    cached = FileImages(six, preprocessing)
    first = torch.cat(list(cached.batches(4)))
    assert torch.equal(first, torch.cat(list(cached.batches(3))))
    monkeypatch.setattr("bench.data.images.CACHE_BYTES", 0)
    uncached = FileImages(six, preprocessing)
    for _ in range(2):
        assert torch.equal(first, torch.cat(list(uncached.batches(4))))


def test_a_change_of_a_batch_does_not_affect_the_next_pass(six: list[Sample]) -> None:
    images = FileImages(six, SMALL)
    for batch in images.batches(6):
        batch.zero_()
    assert gray_values(list(images.batches(6))) == [[0, 1, 2, 3, 4, 5]]


def test_a_pass_can_be_stopped_early(six: list[Sample]) -> None:
    images = FileImages(six, SMALL)
    batches = images.batches(1)
    next(batches)
    batches.close()
    assert len(list(images.batches(1))) == 6


def test_the_digest_depends_on_contents_order_and_preprocessing_but_not_on_the_folder(
    six: list[Sample], tmp_path: Path
) -> None:
    def content_hash(samples: list[Sample], preprocessing: Preprocessing = SMALL) -> str:
        return FileImages(samples, preprocessing).content_hash

    moved = tmp_path / "moved"
    (tmp_path / "images").rename(moved)
    moved_samples = [sample(moved / original.image.name) for original in six]
    before = content_hash(moved_samples)
    moved.rename(tmp_path / "images")
    assert content_hash(six) == before
    assert content_hash(six[::-1]) != before
    assert content_hash(six[:5]) != before
    assert content_hash(six, Preprocessing(4, 4, resample="bilinear")) != before
    content = bytearray(six[2].image.read_bytes())
    content[-1] ^= 1
    six[2].image.write_bytes(content)
    assert content_hash(six) != before


def test_the_content_hash_depends_on_names_labels_and_masks(tmp_path: Path) -> None:
    image, mask = save_image(tmp_path / "a.png", gray(0)), save_image(tmp_path / "m.png", gray(255))
    hashes = {
        content_hash([Sample(image, "bolt", "test", "crack", (mask,))]),
        content_hash([Sample(image, "bolt", "test", "crack")]),
        content_hash([Sample(image, "bolt", "test", "dent", (mask,))]),
        content_hash([Sample(image, "bolt", "train", "crack", (mask,))]),
        content_hash([Sample(image, "tile", "test", "crack", (mask,))]),
        content_hash([Sample(save_image(tmp_path / "b.png", gray(0)), "bolt", "test", "crack", (mask,))]),
        content_hash([Sample(image, "bolt", "test", "crack", (save_image(tmp_path / "n.png", gray(0)),))]),
    }
    assert len(hashes) == 7


def test_the_content_hash_accepts_any_file_name_and_names_a_missing_file(tmp_path: Path) -> None:
    renamed = save_image(tmp_path / "plain.png", gray(0)).rename(tmp_path / "sch\udcf6n.png")
    assert len(content_hash([sample(renamed)])) == 64
    with pytest.raises(BenchError, match=r"missing\.png is not: No such file"):
        content_hash([sample(tmp_path / "missing.png")])
