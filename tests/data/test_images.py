"""Images: every kind of file becomes RGB in [0, 1], its mask lies over it, and a broken file is named."""

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


def saved(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def grey(value: int, height: int = 4, width: int = 4) -> np.ndarray:
    return np.full((height, width), value, dtype=np.uint8)


def noise(height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sample(image: Path, *masks: Path, category: str = "bolt") -> Sample:
    return Sample(image, category, "test", "crack" if masks else "good", masks)


def only(image: Path, preprocessing: Preprocessing = SMALL) -> torch.Tensor:
    (batch,) = FileImages([sample(image)], preprocessing).batches(1)
    return batch[0]


def mask_of(tmp_path: Path, mask: np.ndarray | Image.Image, preprocessing: Preprocessing = SMALL) -> np.ndarray:
    given = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    given.save(tmp_path / "mask.png")
    image = saved(tmp_path / "image.png", grey(0, given.height, given.width))
    return defect_mask(sample(image, tmp_path / "mask.png"), preprocessing)


# ---- decoding


def test_rgb_values_are_divided_by_255(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    pixels[0, 0] = (255, 51, 0)
    found = only(saved(tmp_path / "a.png", pixels))
    assert found.shape == (3, 4, 4)
    assert found.dtype == torch.float32
    assert torch.allclose(found[:, 0, 0], torch.tensor([1.0, 0.2, 0.0]))
    assert found[:, 1:].abs().max() == 0


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    assert only(saved(tmp_path / "a.png", grey(51))).unique().tolist() == [pytest.approx(0.2)]


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257], [257 * 128, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        found = np.asarray(decode(saved(tmp_path / name, values)))
        assert found[..., 0].tolist() == [[0, 1], [128, 255]]
        assert found.shape == (2, 2, 3)


def test_big_endian_sixteen_bits_are_read_as_they_are_meant(tmp_path: Path) -> None:
    Image.frombytes("I;16B", (2, 1), np.array([0x1010, 0xFFFF], dtype=">u2").tobytes()).save(tmp_path / "a.tif")
    assert np.asarray(decode(tmp_path / "a.tif"))[0, :, 0].tolist() == [16, 255]


def test_float_images_run_from_0_to_1(tmp_path: Path) -> None:
    found = decode(saved(tmp_path / "a.tif", np.array([[0.0, 0.2], [0.5, 1.0]], dtype=np.float32)))
    assert np.asarray(found)[..., 0].tolist() == [[0, 51], [128, 255]]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0.0, 255.0]], dtype=np.float32),
        np.array([[0.0, np.nan]], dtype=np.float32),
        np.array([[0, 70000]], dtype=np.int32),
        np.array([[-1, 3]], dtype=np.int32),
    ],
)
def test_numbers_of_an_unknown_range_are_refused_and_never_clipped(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(BenchError, match=r"a\.tif is not: its values run from"):
        decode(saved(tmp_path / "a.tif", values))


def test_alpha_is_dropped(tmp_path: Path) -> None:
    pixels = np.dstack([noise(), np.zeros((8, 8), dtype=np.uint8)])
    assert np.array_equal(np.asarray(decode(saved(tmp_path / "a.png", pixels))), pixels[..., :3])


def test_a_palette_shows_its_colours_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=b"\x00\x80")  # of which Pillow's own conversion warns
    for name in ("plain.png", "clear.png"):
        assert np.asarray(decode(tmp_path / name)).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_one_bit_images_become_black_and_white(tmp_path: Path) -> None:
    found = decode(saved(tmp_path / "a.png", np.array([[0, 255]], dtype=np.uint8), "1"))
    assert np.asarray(found)[0, :, 0].tolist() == [0, 255]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert np.asarray(decode(tmp_path / "a.tif"))[0, 0].tolist() == [255, 0, 0]


def test_a_one_pixel_image_fills_its_input(tmp_path: Path) -> None:
    for preprocessing in (Preprocessing(4, 6), Preprocessing(4, 6, keep_aspect=True), Preprocessing(8, 8, crop=4)):
        found = only(saved(tmp_path / "a.png", grey(51, 1, 1)), preprocessing)
        assert found.shape == (3, *preprocessing.size)
        assert torch.allclose(found, torch.tensor(0.2))


# ---- broken files


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "its content has no known image format"),
        (b"these are words", "its content has no known image format"),
        (b"\x89PNG\r\n\x1a\n", "its content has no known image format"),
    ],
    ids=["zero bytes", "text", "a PNG's first 8 bytes"],
)
def test_a_file_that_is_no_image_is_named_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=rf"{path} is not: {reason}") as refusal:
        list(FileImages([sample(path)], SMALL).batches(1))
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_not_there_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"gone\.png is not: No such file"):
        decode(tmp_path / "gone.png")
    with pytest.raises(BenchError, match="is not: Is a directory"):
        decode(tmp_path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, noise(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BenchError, match=f"{name} is not: "):
        decode(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "a.gif"])
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd headers; no matter here
def test_any_damage_gives_an_image_or_a_bench_error(tmp_path: Path, name: str, data: st.DataObject) -> None:
    path = saved(tmp_path / name, noise(6, 9))
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    refusals = []
    try:
        assert decode(path).mode == "RGB"
    except BenchError as refusal:
        refusals.append(str(refusal))
    assert all(str(path) in refusal and "\n" not in refusal for refusal in refusals)


def test_an_image_of_20000_pixels_on_a_side_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = saved(tmp_path / "huge.png", grey(0))
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 20000, 20000)  # the header's width and height
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(BenchError, match=r"huge\.png is not: .*400000000 pixels"):
        decode(path)


def test_a_strip_that_would_grow_huge_with_its_aspect_kept_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "strip.png", grey(0, 1, 5000))
    with pytest.raises(BenchError, match=r"strip\.png is not: 5000 x 1 would become 1280000 x 256"):
        only(path, Preprocessing(256, 256, keep_aspect=True))
    assert only(path).shape == (3, 4, 4)


def test_a_broken_image_in_the_middle_is_told_when_the_walk_reaches_it(tmp_path: Path) -> None:
    samples = [sample(saved(tmp_path / f"{i}.png", grey(i))) for i in range(3)]
    samples[1].image.write_bytes(b"")
    walk = FileImages(samples, SMALL).batches(1)
    assert next(walk).shape == (1, 3, 4, 4)
    with pytest.raises(BenchError, match=r"1\.png"):
        next(walk)


# ---- preprocessing


def test_both_sides_are_squeezed_unless_the_aspect_is_kept() -> None:
    image = Image.fromarray(np.repeat([[0, 60, 120, 180, 240, 255, 30, 90]], 4, axis=0).astype(np.uint8))  # 4 x 8
    squeezed = np.asarray(preprocess(image, SMALL))
    assert squeezed[0].tolist() == [60, 180, 255, 90]  # the right one of each pair is the nearest to its centre
    centre = np.asarray(preprocess(image, Preprocessing(4, 4, resample="nearest", keep_aspect=True)))
    assert centre[0].tolist() == [120, 180, 240, 255]


def test_a_crop_is_cut_from_the_centre_of_the_resized_image() -> None:
    image = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6))
    found = np.asarray(preprocess(image, Preprocessing(6, 6, resample="nearest", crop=2)))
    assert found.tolist() == [[14, 15], [20, 21]]


def test_an_image_of_the_wanted_size_is_left_as_it_is() -> None:
    image = Image.fromarray(noise(8, 8))
    for resample in ("bilinear", "bicubic", "lanczos", "nearest"):
        assert np.array_equal(np.asarray(preprocess(image, Preprocessing(8, 8, resample=resample))), noise(8, 8))


@given(height=st.integers(1, 40), width=st.integers(1, 40), keep_aspect=st.booleans(), crop=st.sampled_from([None, 5]))
@settings(deadline=None)
def test_every_size_becomes_the_size_of_the_preprocessing(
    height: int, width: int, keep_aspect: bool, crop: int | None
) -> None:
    preprocessing = Preprocessing(7, 9, keep_aspect=keep_aspect, crop=crop)
    found = preprocess(Image.fromarray(noise(height, width)), preprocessing)
    assert (found.height, found.width) == preprocessing.size


@pytest.mark.parametrize("preprocessing", [Preprocessing(0, 4), Preprocessing(4, -1), Preprocessing(4, 4, crop=5)])
def test_a_preprocessing_that_makes_no_image_is_refused(preprocessing: Preprocessing) -> None:
    with pytest.raises(BenchError, match="at least 1 x 1"):
        FileImages([], preprocessing)


# ---- masks


def test_an_image_without_a_mask_has_no_defect_pixels(tmp_path: Path) -> None:
    (found,) = FileImages([sample(saved(tmp_path / "a.png", grey(9)))], SMALL).masks()
    assert found.shape == (4, 4)
    assert found.dtype == np.bool_
    assert not found.any()


CORNER = np.pad(np.ones((2, 2), dtype=np.uint8), ((0, 2), (0, 2)))  # a defect of 2 x 2 in the corner of 4 x 4


@pytest.mark.parametrize("factor", [255, 1, 3, 128, 127])
def test_a_mask_of_any_constant_value_is_binary(tmp_path: Path, factor: int) -> None:
    assert np.array_equal(mask_of(tmp_path, CORNER * factor), CORNER == 1)


def test_a_mask_of_class_indices_unites_the_classes(tmp_path: Path) -> None:
    assert np.array_equal(mask_of(tmp_path, CORNER * np.array([1, 5, 0, 0], dtype=np.uint8)), CORNER == 1)


@pytest.mark.parametrize("value", [1, 255, 65535])
def test_a_sixteen_bit_mask_keeps_its_small_values(tmp_path: Path, value: int) -> None:
    assert np.array_equal(mask_of(tmp_path, CORNER.astype(np.uint16) * np.uint16(value)), CORNER == 1)


def test_one_bit_palette_colour_and_transparent_masks_are_read(tmp_path: Path) -> None:
    expected = CORNER == 1
    assert np.array_equal(mask_of(tmp_path, Image.fromarray(CORNER * 255).convert("1")), expected)
    for colour in ([255, 0, 0], [0, 0, 255], [128, 0, 0], [1, 1, 1]):
        painted = CORNER[..., None] * np.array(colour, dtype=np.uint8)
        assert np.array_equal(mask_of(tmp_path, painted), expected), colour
        assert np.array_equal(mask_of(tmp_path, Image.fromarray(painted).convert("RGBA")), expected), colour
        palette = Image.fromarray(CORNER).convert("P")
        palette.putpalette([0, 0, 0, *colour])
        assert np.array_equal(mask_of(tmp_path, palette), expected), colour


def test_soft_edges_of_a_mask_are_cut_at_half(tmp_path: Path) -> None:
    soft = np.array([[0, 60, 127, 128]] * 4, dtype=np.uint8)
    assert mask_of(tmp_path, soft)[0].tolist() == [False, False, False, True]
    wide = np.array([[0, 300, 32767, 32768]] * 4, dtype=np.uint16)
    assert mask_of(tmp_path, wide)[0].tolist() == [False, False, False, True]
    assert mask_of(tmp_path, wide % 301)[0].tolist() == [False, True, True, True]  # 0, 300, 259, 260: class indices


def test_several_masks_are_united(tmp_path: Path) -> None:
    image = saved(tmp_path / "a.png", grey(0))
    masks = [saved(tmp_path / f"m{i}.png", turned * 255) for i, turned in enumerate((CORNER, np.rot90(CORNER, 2)))]
    found = defect_mask(sample(image, *masks), SMALL)
    assert found.sum() == 8
    assert np.array_equal(found, np.rot90(found, 2))


def test_a_mask_is_enlarged_by_nearest_neighbour_whatever_the_image_takes(tmp_path: Path) -> None:
    found = mask_of(tmp_path, CORNER * 255, Preprocessing(16, 16, resample="lanczos"))
    assert np.array_equal(found, np.kron(CORNER, np.ones((4, 4))) == 1)


def test_a_mask_is_cut_as_its_image_is(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8), dtype=np.uint8)
    pixels[1, 5] = pixels[3, 0] = 255  # the second lies outside the centre
    preprocessing = Preprocessing(4, 4, resample="nearest", keep_aspect=True)
    found = mask_of(tmp_path, pixels, preprocessing)
    assert np.argwhere(found).tolist() == [[1, 3]]
    assert only(saved(tmp_path / "same.png", pixels), preprocessing)[0].argwhere().tolist() == [[1, 3]]


def test_a_mask_of_half_the_images_size_lies_over_it(tmp_path: Path) -> None:
    image, mask = saved(tmp_path / "a.png", grey(0, 9, 12)), saved(tmp_path / "m.png", grey(255, 4, 6))
    assert defect_mask(sample(image, mask), SMALL).all()


# ---- Masks as other code resizes them, and images at their own size


def test_a_softened_mask_has_values_in_between_along_its_edges(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4), dtype=np.uint8)
    pixels[:, :1] = 1  # a mask of class indices
    image, mask = saved(tmp_path / "a.png", grey(0)), saved(tmp_path / "m.png", pixels)
    # From 4 columns to 2, each new one is a triangle of 4 old ones: (3 + 3 + 1) / 8 in the middle, so 3 of 7 here.
    found = soft_mask(sample(image, mask), Preprocessing(4, 2))
    assert found[:, 1].tolist() == [0] * 4
    assert found[:, 0].tolist() == [round(255 * 3 / 7)] * 4
    assert not soft_mask(sample(image), SMALL).any()


def test_a_softened_mask_at_its_own_size_is_the_mask(tmp_path: Path) -> None:
    image, mask = saved(tmp_path / "a.png", grey(0)), saved(tmp_path / "m.png", CORNER * 255)
    assert np.array_equal(soft_mask(sample(image, mask), SMALL) == 255, defect_mask(sample(image, mask), SMALL))


@pytest.mark.parametrize(
    ("size", "preparation", "part"),
    [
        ((900, 700), Preprocessing(256, 256), (0, 0, 900, 700)),
        ((8, 4), Preprocessing(4, 4, keep_aspect=True), (2, 0, 6, 4)),
        ((1024, 1024), Preprocessing(256, 256, crop=224), (64, 64, 960, 960)),
        ((600, 300), Preprocessing(256, 256, keep_aspect=True, crop=224), (169, 19, 431, 281)),
        ((1, 1), Preprocessing(8, 8, crop=2), (0, 0, 1, 1)),
    ],
)
def test_what_the_input_shows_of_an_image_is_found_in_it_again(
    size: tuple[int, int], preprocessing: Preprocessing, part: tuple[int, int, int, int]
) -> None:
    assert visible_box(size, preprocessing) == part


@given(width=st.integers(1, 60), height=st.integers(1, 60), keep_aspect=st.booleans(), crop=st.sampled_from([None, 5]))
def test_what_the_input_shows_lies_inside_the_image(
    width: int, height: int, keep_aspect: bool, crop: int | None
) -> None:
    left, top, right, bottom = visible_box((width, height), Preprocessing(7, 9, keep_aspect=keep_aspect, crop=crop))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_at_its_own_size_a_map_is_enlarged_and_a_mask_only_cut(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8), dtype=np.uint8)
    pixels[1, 5] = pixels[3, 0] = 255  # the second lies outside the centre
    image, mask = saved(tmp_path / "a.png", grey(0, 4, 8)), saved(tmp_path / "m.png", pixels)
    found = OriginalResolution([sample(image, mask)], Preprocessing(2, 2, keep_aspect=True))
    assert np.argwhere(found.mask(0)).tolist() == [[1, 3]]
    ramp = np.array([[0, 4], [0, 4]], dtype=np.float32)
    # Pixel centres of the four columns lie at 1/4, 3/4, 5/4 and 7/4 of the two: 0, a quarter, three quarters, all.
    assert found.map(0, ramp).tolist() == [[0, 1, 3, 4]] * 4
    assert found.map(0, ramp).dtype == np.float32


def test_at_original_resolution_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    image, mask = saved(tmp_path / "a.png", grey(0, 8, 8)), saved(tmp_path / "m.png", grey(255))
    with pytest.raises(BenchError, match=r"m\.png is not: it has 4 x 4 pixels, its image 8 x 8"):
        OriginalResolution([sample(image, mask)], SMALL).mask(0)


def test_a_mask_of_other_proportions_is_refused_with_both_sizes(tmp_path: Path) -> None:
    image, mask = saved(tmp_path / "a.png", grey(0, 100, 200)), saved(tmp_path / "m.png", grey(255, 200, 100))
    with pytest.raises(BenchError, match=r"m\.png is not: it has 100 x 200 pixels, its image 200 x 100"):
        defect_mask(sample(image, mask), SMALL)


def test_a_broken_mask_is_named_and_so_is_a_broken_image_below_a_good_mask(tmp_path: Path) -> None:
    image, mask = saved(tmp_path / "a.png", grey(0)), saved(tmp_path / "m.png", grey(255))
    mask.write_bytes(mask.read_bytes()[:40])
    with pytest.raises(BenchError, match=r"A mask must be .*m\.png"):
        defect_mask(sample(image, mask), SMALL)
    saved(mask, grey(255))
    image.write_bytes(b"")
    with pytest.raises(BenchError, match=r"An image must be .*a\.png"):
        defect_mask(sample(image, mask), SMALL)


# ---- walks and digests


@pytest.fixture
def six(tmp_path: Path) -> list[Sample]:
    return [sample(saved(tmp_path / "images" / f"{i}.png", grey(40 * i))) for i in range(6)]


def shades(batches: list[torch.Tensor]) -> list[list[int]]:
    return [(batch[:, 0, 0, 0] * 255 / 40).round().int().tolist() for batch in batches]


def test_a_walk_without_an_order_goes_by_files_in_batches_of_at_most_the_size(six: list[Sample]) -> None:
    images = FileImages(six, SMALL)
    assert len(images) == 6
    assert shades(list(images.batches(4))) == [[0, 1, 2, 3], [4, 5]]
    assert shades(list(images.batches(100))) == [[0, 1, 2, 3, 4, 5]]


def test_an_order_picks_and_repeats(six: list[Sample]) -> None:
    images = FileImages(six, SMALL)
    assert shades(list(images.batches(2, torch.tensor([5, 0, 3, 3, 1])))) == [[5, 0], [3, 3], [1]]
    every = torch.arange(6)
    assert all(map(torch.equal, images.batches(4), images.batches(4, every)))


def test_no_images_are_no_batches(six: list[Sample]) -> None:
    assert list(FileImages(six, SMALL).batches(2, torch.tensor([], dtype=torch.int64))) == []
    assert list(FileImages([], SMALL).batches(2)) == []


def test_a_second_walk_gives_the_same_bits_kept_in_memory_or_not(
    six: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessing = Preprocessing(5, 7, resample="lanczos")
    kept = FileImages(six, preprocessing)
    first = torch.cat(list(kept.batches(4)))
    assert torch.equal(first, torch.cat(list(kept.batches(3))))
    monkeypatch.setattr("bench.data.images.KEPT_BYTES", 0)
    decoded_again = FileImages(six, preprocessing)
    for _ in range(2):
        assert torch.equal(first, torch.cat(list(decoded_again.batches(4))))


def test_what_a_method_writes_into_a_batch_does_not_reach_the_next_walk(six: list[Sample]) -> None:
    images = FileImages(six, SMALL)
    for batch in images.batches(6):
        batch.zero_()
    assert shades(list(images.batches(6))) == [[0, 1, 2, 3, 4, 5]]


def test_a_walk_can_be_left_in_the_middle(six: list[Sample]) -> None:
    images = FileImages(six, SMALL)
    walk = images.batches(1)
    next(walk)
    walk.close()
    assert len(list(images.batches(1))) == 6


def test_the_digest_follows_contents_order_and_preprocessing_not_the_folder(six: list[Sample], tmp_path: Path) -> None:
    def digest(samples: list[Sample], preprocessing: Preprocessing = SMALL) -> str:
        return FileImages(samples, preprocessing).digest

    moved = tmp_path / "elsewhere"
    (tmp_path / "images").rename(moved)
    elsewhere = [sample(moved / each.image.name) for each in six]
    before = digest(elsewhere)
    moved.rename(tmp_path / "images")
    assert digest(six) == before
    assert digest(six[::-1]) != before
    assert digest(six[:5]) != before
    assert digest(six, Preprocessing(4, 4, resample="bilinear")) != before
    content = bytearray(six[2].image.read_bytes())
    content[-1] ^= 1
    six[2].image.write_bytes(content)
    assert digest(six) != before


def test_contents_follow_names_labels_and_masks(tmp_path: Path) -> None:
    image, mask = saved(tmp_path / "a.png", grey(0)), saved(tmp_path / "m.png", grey(255))
    seen = {
        content_hash([Sample(image, "bolt", "test", "crack", (mask,))]),
        content_hash([Sample(image, "bolt", "test", "crack")]),
        content_hash([Sample(image, "bolt", "test", "dent", (mask,))]),
        content_hash([Sample(image, "bolt", "train", "crack", (mask,))]),
        content_hash([Sample(image, "tile", "test", "crack", (mask,))]),
        content_hash([Sample(saved(tmp_path / "b.png", grey(0)), "bolt", "test", "crack", (mask,))]),
        content_hash([Sample(image, "bolt", "test", "crack", (saved(tmp_path / "n.png", grey(0)),))]),
    }
    assert len(seen) == 7


def test_contents_read_a_name_that_is_no_utf_8_and_tell_a_file_that_is_gone(tmp_path: Path) -> None:
    odd = saved(tmp_path / "plain.png", grey(0)).rename(tmp_path / "sch\udcf6n.png")
    assert len(content_hash([sample(odd)])) == 64
    with pytest.raises(BenchError, match=r"gone\.png is not: No such file"):
        content_hash([sample(tmp_path / "gone.png")])
