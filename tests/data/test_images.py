"""Images: all file formats become RGB in [0, 1], masks fit their images, and unreadable files are named."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.data.images import (
    FileImages,
    OriginalResolution,
    content_hash,
    decode,
    defect_mask,
    preprocess,
    soft_mask,
    visible_box,
)
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


def mask_of(tmp_path: Path, mask: np.ndarray | Image.Image, preprocessing: Preprocessing = SMALL) -> np.ndarray:
    mask_image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    mask_image.save(tmp_path / "mask.png")
    image = save_image(tmp_path / "image.png", gray(0, mask_image.height, mask_image.width))
    return defect_mask(sample(image, tmp_path / "mask.png"), preprocessing)


# ---- decoding


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


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257], [257 * 128, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        result = np.asarray(decode(save_image(tmp_path / name, values)))
        assert result[..., 0].tolist() == [[0, 1], [128, 255]]
        assert result.shape == (2, 2, 3)


def test_big_endian_sixteen_bits_are_read_correctly(tmp_path: Path) -> None:
    Image.frombytes("I;16B", (2, 1), np.array([0x1010, 0xFFFF], dtype=">u2").tobytes()).save(tmp_path / "a.tif")
    assert np.asarray(decode(tmp_path / "a.tif"))[0, :, 0].tolist() == [16, 255]


def test_float_images_run_from_0_to_1(tmp_path: Path) -> None:
    result = decode(save_image(tmp_path / "a.tif", np.array([[0.0, 0.2], [0.5, 1.0]], dtype=np.float32)))
    assert np.asarray(result)[..., 0].tolist() == [[0, 51], [128, 255]]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0.0, 255.0]], dtype=np.float32),
        np.array([[0.0, np.nan]], dtype=np.float32),
        np.array([[0, 70000]], dtype=np.int32),
        np.array([[-1, 3]], dtype=np.int32),
    ],
)
def test_values_of_an_unknown_range_are_an_error_and_not_clipped(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(BenchError, match=r"a\.tif is not: its values run from"):
        decode(save_image(tmp_path / "a.tif", values))


def test_alpha_is_dropped(tmp_path: Path) -> None:
    pixels = np.dstack([noise(), np.zeros((8, 8), dtype=np.uint8)])
    assert np.array_equal(np.asarray(decode(save_image(tmp_path / "a.png", pixels))), pixels[..., :3])


def test_a_palette_gives_its_colors_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=b"\x00\x80")  # Pillow's conversion warns about this
    for name in ("plain.png", "clear.png"):
        assert np.asarray(decode(tmp_path / name)).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_one_bit_images_become_black_and_white(tmp_path: Path) -> None:
    result = decode(save_image(tmp_path / "a.png", np.array([[0, 255]], dtype=np.uint8), "1"))
    assert np.asarray(result)[0, :, 0].tolist() == [0, 255]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert np.asarray(decode(tmp_path / "a.tif"))[0, 0].tolist() == [255, 0, 0]


def test_a_one_pixel_image_fills_its_input(tmp_path: Path) -> None:
    for preprocessing in (Preprocessing(4, 6), Preprocessing(4, 6, keep_aspect=True), Preprocessing(8, 8, crop=4)):
        result = only(save_image(tmp_path / "a.png", gray(51, 1, 1)), preprocessing)
        assert result.shape == (3, *preprocessing.size)
        assert torch.allclose(result, torch.tensor(0.2))


# ---- broken files


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


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"missing\.png is not: No such file"):
        decode(tmp_path / "missing.png")
    with pytest.raises(BenchError, match="is not: Is a directory"):
        decode(tmp_path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    path = save_image(tmp_path / name, noise(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BenchError, match=f"{name} is not: "):
        decode(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "a.gif"])
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore")  # Pillow warns about damaged headers
def test_any_damage_gives_an_image_or_a_bench_error(tmp_path: Path, name: str, data: st.DataObject) -> None:
    path = save_image(tmp_path / name, noise(6, 9))
    content = bytearray(path.read_bytes())
    for index in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[index] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    messages = []
    try:
        assert decode(path).mode == "RGB"
    except BenchError as error:
        messages.append(str(error))
    assert all(str(path) in message and "\n" not in message for message in messages)


def test_an_image_of_20000_pixels_on_a_side_is_an_error_before_it_is_decoded(tmp_path: Path) -> None:
    path = save_image(tmp_path / "huge.png", gray(0))
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 20000, 20000)  # the header's width and height
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(BenchError, match=r"huge\.png is not: .*400000000 pixels"):
        decode(path)


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


@pytest.mark.parametrize("preprocessing", [Preprocessing(0, 4), Preprocessing(4, -1), Preprocessing(4, 4, crop=5)])
def test_a_preprocessing_without_pixels_is_an_error(preprocessing: Preprocessing) -> None:
    with pytest.raises(BenchError, match="must give at least 1 x 1 pixels"):
        FileImages([], preprocessing)


# ---- masks


def test_an_image_without_a_mask_has_no_defect_pixels(tmp_path: Path) -> None:
    (result,) = FileImages([sample(save_image(tmp_path / "a.png", gray(9)))], SMALL).masks()
    assert result.shape == (4, 4)
    assert result.dtype == np.bool_
    assert not result.any()


CORNER = np.pad(np.ones((2, 2), dtype=np.uint8), ((0, 2), (0, 2)))  # a defect of 2 x 2 in the corner of 4 x 4


@pytest.mark.parametrize("factor", [255, 1, 3, 128, 127])
def test_a_mask_of_any_constant_value_is_binary(tmp_path: Path, factor: int) -> None:
    assert np.array_equal(mask_of(tmp_path, CORNER * factor), CORNER == 1)


def test_a_mask_of_class_indices_is_the_union_of_the_classes(tmp_path: Path) -> None:
    assert np.array_equal(mask_of(tmp_path, CORNER * np.array([1, 5, 0, 0], dtype=np.uint8)), CORNER == 1)


@pytest.mark.parametrize("value", [1, 255, 65535])
def test_a_sixteen_bit_mask_keeps_its_small_values(tmp_path: Path, value: int) -> None:
    assert np.array_equal(mask_of(tmp_path, CORNER.astype(np.uint16) * np.uint16(value)), CORNER == 1)


def test_one_bit_palette_color_and_transparent_masks_are_read(tmp_path: Path) -> None:
    expected = CORNER == 1
    assert np.array_equal(mask_of(tmp_path, Image.fromarray(CORNER * 255).convert("1")), expected)
    for color in ([255, 0, 0], [0, 0, 255], [128, 0, 0], [1, 1, 1]):
        painted = CORNER[..., None] * np.array(color, dtype=np.uint8)
        assert np.array_equal(mask_of(tmp_path, painted), expected), color
        assert np.array_equal(mask_of(tmp_path, Image.fromarray(painted).convert("RGBA")), expected), color
        palette = Image.fromarray(CORNER).convert("P")
        palette.putpalette([0, 0, 0, *color])
        assert np.array_equal(mask_of(tmp_path, palette), expected), color


def test_soft_edges_of_a_mask_are_thresholded_at_half(tmp_path: Path) -> None:
    soft = np.array([[0, 60, 127, 128]] * 4, dtype=np.uint8)
    assert mask_of(tmp_path, soft)[0].tolist() == [False, False, False, True]
    wide = np.array([[0, 300, 32767, 32768]] * 4, dtype=np.uint16)
    assert mask_of(tmp_path, wide)[0].tolist() == [False, False, False, True]
    assert mask_of(tmp_path, wide % 301)[0].tolist() == [False, True, True, True]  # 0, 300, 259, 260: class indices


def test_several_masks_give_their_union(tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.png", gray(0))
    masks = [
        save_image(tmp_path / f"m{i}.png", rotated * 255) for i, rotated in enumerate((CORNER, np.rot90(CORNER, 2)))
    ]
    result = defect_mask(sample(image, *masks), SMALL)
    assert result.sum() == 8
    assert np.array_equal(result, np.rot90(result, 2))


def test_a_mask_is_enlarged_by_nearest_neighbor_with_any_filter_of_the_image(tmp_path: Path) -> None:
    result = mask_of(tmp_path, CORNER * 255, Preprocessing(16, 16, resample="lanczos"))
    assert np.array_equal(result, np.kron(CORNER, np.ones((4, 4))) == 1)


def test_a_mask_is_cropped_like_its_image(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8), dtype=np.uint8)
    pixels[1, 5] = pixels[3, 0] = 255  # the second is outside the center crop
    preprocessing = Preprocessing(4, 4, resample="nearest", keep_aspect=True)
    result = mask_of(tmp_path, pixels, preprocessing)
    assert np.argwhere(result).tolist() == [[1, 3]]
    assert only(save_image(tmp_path / "same.png", pixels), preprocessing)[0].argwhere().tolist() == [[1, 3]]


def test_a_mask_of_half_the_size_of_its_image_fits(tmp_path: Path) -> None:
    image, mask = save_image(tmp_path / "a.png", gray(0, 9, 12)), save_image(tmp_path / "m.png", gray(255, 4, 6))
    assert defect_mask(sample(image, mask), SMALL).all()


# ---- soft masks and original resolution


def test_a_soft_mask_has_intermediate_values_along_its_edges(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4), dtype=np.uint8)
    pixels[:, :1] = 1  # a mask of class indices
    image, mask = save_image(tmp_path / "a.png", gray(0)), save_image(tmp_path / "m.png", pixels)
    # From 4 columns to 2, each output is a triangular average of the inputs; at the border the weights are 3, 3 and 1.
    result = soft_mask(sample(image, mask), Preprocessing(4, 2))
    assert result[:, 1].tolist() == [0] * 4
    assert result[:, 0].tolist() == [round(255 * 3 / 7)] * 4
    assert not soft_mask(sample(image), SMALL).any()


def test_a_soft_mask_without_a_resize_is_the_mask(tmp_path: Path) -> None:
    image, mask = save_image(tmp_path / "a.png", gray(0)), save_image(tmp_path / "m.png", CORNER * 255)
    assert np.array_equal(soft_mask(sample(image, mask), SMALL) == 255, defect_mask(sample(image, mask), SMALL))


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


def test_a_mask_of_another_aspect_ratio_is_an_error_with_both_sizes(tmp_path: Path) -> None:
    image, mask = save_image(tmp_path / "a.png", gray(0, 100, 200)), save_image(tmp_path / "m.png", gray(255, 200, 100))
    with pytest.raises(BenchError, match=r"m\.png is not: it has 100 x 200 pixels, its image 200 x 100"):
        defect_mask(sample(image, mask), SMALL)


def test_an_unreadable_mask_is_named_and_so_is_an_unreadable_image_with_a_mask(tmp_path: Path) -> None:
    image, mask = save_image(tmp_path / "a.png", gray(0)), save_image(tmp_path / "m.png", gray(255))
    mask.write_bytes(mask.read_bytes()[:40])
    with pytest.raises(BenchError, match=r"A mask must be .*m\.png"):
        defect_mask(sample(image, mask), SMALL)
    save_image(mask, gray(255))
    image.write_bytes(b"")
    with pytest.raises(BenchError, match=r"An image must be .*a\.png"):
        defect_mask(sample(image, mask), SMALL)


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


def test_no_images_are_no_batches(six: list[Sample]) -> None:
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
    def digest(samples: list[Sample], preprocessing: Preprocessing = SMALL) -> str:
        return FileImages(samples, preprocessing).digest

    moved = tmp_path / "moved"
    (tmp_path / "images").rename(moved)
    moved_samples = [sample(moved / original.image.name) for original in six]
    before = digest(moved_samples)
    moved.rename(tmp_path / "images")
    assert digest(six) == before
    assert digest(six[::-1]) != before
    assert digest(six[:5]) != before
    assert digest(six, Preprocessing(4, 4, resample="bilinear")) != before
    content = bytearray(six[2].image.read_bytes())
    content[-1] ^= 1
    six[2].image.write_bytes(content)
    assert digest(six) != before


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
