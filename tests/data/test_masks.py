"""Masks: which pixels a mask file marks, whatever its levels, and what the resize leaves of them."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from bench.data.data_report import mask_report, mask_warnings
from bench.data.masks import SampleMask, mark_defects, read_mask, sample_mask
from bench.dataset import Sample
from bench.errors import BenchError
from bench.method import Preprocessing

SMALL = Preprocessing(4, 4, resample="nearest")
CORNER = np.pad(np.ones((2, 2), dtype=np.uint8), ((0, 2), (0, 2)))  # a defect of 2 x 2 in the corner of 4 x 4
Y, X = np.mgrid[:96, :96]
DISC = (Y - 40) ** 2 + (X - 30) ** 2 <= 15**2
SECOND = (Y - 70) ** 2 + (X - 75) ** 2 <= 10**2


def gray(value: int, height: int = 4, width: int = 4) -> np.ndarray:
    return np.full((height, width), value, dtype=np.uint8)


def save_image(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def sample(image: Path, *masks: Path) -> Sample:
    return Sample(image, "bolt", "test", "crack", masks)


def prepared(tmp_path: Path, mask: np.ndarray | Image.Image, preprocessing: Preprocessing = SMALL) -> SampleMask:
    picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    picture.save(tmp_path / "mask.png")
    image = save_image(tmp_path / "image.png", gray(0, picture.height, picture.width))
    return sample_mask(sample(image, tmp_path / "mask.png"), preprocessing)


def mask_of(tmp_path: Path, mask: np.ndarray | Image.Image, preprocessing: Preprocessing = SMALL) -> np.ndarray:
    return prepared(tmp_path, mask, preprocessing).mask


def as_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


# ---- levels


@pytest.mark.parametrize("factor", [255, 1, 3, 128, 127])
def test_a_mask_of_any_constant_value_is_binary(tmp_path: Path, factor: int) -> None:
    assert np.array_equal(mask_of(tmp_path, CORNER * factor), CORNER == 1)


def test_a_mask_of_class_indices_is_the_union_of_the_classes(tmp_path: Path) -> None:
    assert np.array_equal(mask_of(tmp_path, CORNER * np.array([1, 5, 0, 0], dtype=np.uint8)), CORNER == 1)


@pytest.mark.parametrize("value", [1, 255, 65535])
def test_a_sixteen_bit_mask_keeps_its_small_values(tmp_path: Path, value: int) -> None:
    assert np.array_equal(mask_of(tmp_path, CORNER.astype(np.uint16) * np.uint16(value)), CORNER == 1)


@pytest.mark.parametrize("levels", [(100, 200), (64, 255), (85, 170), (1, 255), (20, 21)])
@pytest.mark.parametrize("arrangement", ["two regions", "columns", "core and ring"])
def test_every_discrete_level_is_a_defect(levels: tuple[int, int], arrangement: str) -> None:
    values = np.zeros((96, 96), np.uint8)
    if arrangement == "two regions":
        values[DISC], values[SECOND] = levels
        expected = DISC | SECOND
    elif arrangement == "columns":
        values[DISC] = levels[1]
        values[:, ::2][DISC[:, ::2]] = levels[0]
        expected = DISC
    else:
        values[DISC] = levels[0]
        values[(Y - 40) ** 2 + (X - 30) ** 2 <= 8**2] = levels[1]
        expected = DISC
    result = mark_defects(values)
    assert np.array_equal(result.defects, expected)
    assert result.encoding == "levels"
    assert result.levels == levels


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_instance_numbers_of_any_depth_are_defects(dtype: type) -> None:
    values = np.zeros((96, 96), dtype)
    for index in range(40):  # blocks of 5 x 5 with 40 different numbers
        row, column = divmod(index, 8)
        values[row * 10 : row * 10 + 5, column * 10 : column * 10 + 5] = 1000 + index * 700
    result = mark_defects(values)
    assert result.defects.sum() == 40 * 25
    assert result.encoding == "levels"


def test_the_soft_edges_of_a_resized_mask_are_cut_at_half() -> None:
    large = Image.fromarray((np.kron(DISC, np.ones((4, 4))) * 255).astype(np.uint8))
    values = np.asarray(large.resize((96, 96), Image.Resampling.BILINEAR))
    assert len(np.unique(values)) > 3
    result = mark_defects(values)
    assert result.encoding == "soft edges"
    assert np.array_equal(result.defects, values > 127)
    assert abs(int(result.defects.sum()) - int(DISC.sum())) <= 8


@pytest.mark.parametrize("radius", [1, 3, 6])
def test_a_blurred_mask_is_cut_at_half(radius: int) -> None:
    blurred = Image.fromarray((DISC * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    result = mark_defects(np.asarray(blurred))
    assert result.encoding == "soft edges"
    assert np.array_equal(result.defects, 2 * np.asarray(blurred).astype(int) > np.asarray(blurred).max())


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_the_noise_of_jpeg_is_not_a_defect(quality: int) -> None:
    result = mark_defects(as_jpeg((DISC * 255).astype(np.uint8), quality), "JPEG")
    assert (result.defects ^ DISC).sum() <= 4
    assert not mark_defects(as_jpeg(np.zeros((96, 96), np.uint8), quality), "JPEG").defects.any()


@pytest.mark.parametrize("quality", [75, 95])
def test_two_levels_in_a_jpeg_file_are_both_defects(quality: int) -> None:
    values = np.where(DISC, 200, np.where(SECOND, 100, 0)).astype(np.uint8)
    result = mark_defects(as_jpeg(values, quality), "JPEG")
    assert result.encoding == "levels"
    missed, invented = (DISC | SECOND) & ~result.defects, result.defects & ~(DISC | SECOND)
    assert missed.sum() == 0
    assert invented.sum() <= 0.1 * (DISC | SECOND).sum()


def test_soft_edges_of_few_pixels_are_cut_at_half(tmp_path: Path) -> None:
    soft = np.array([[0, 60, 127, 128]] * 4, dtype=np.uint8)
    assert mask_of(tmp_path, soft)[0].tolist() == [False, False, True, True]  # half of the maximum is 64
    wide = np.array([[0, 300, 32767, 32768]] * 4, dtype=np.uint16)
    assert mask_of(tmp_path, wide)[0].tolist() == [False, False, True, True]
    assert mask_of(tmp_path, wide % 301)[0].tolist() == [False, True, True, True]  # 0, 300, 259, 260: class indices


# ---- colors, palettes, alpha


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


def test_two_colors_are_both_defects(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2, 0], pixels[:2, 1] = (0, 0, 60), (250, 0, 0)
    assert np.array_equal(mask_of(tmp_path, pixels), CORNER == 1)


def test_a_voc_palette_counts_every_entry_above_zero(tmp_path: Path) -> None:
    voc = [0, 0, 0, 128, 0, 0, 0, 128, 0, 64, 0, 0]  # entries 0, 1, 2 and 8 of the palette of PASCAL VOC
    image = Image.fromarray(CORNER * np.array([1, 3, 0, 0], dtype=np.uint8)).convert("P")
    image.putpalette(voc)
    assert np.array_equal(mask_of(tmp_path, image), CORNER == 1)


@pytest.mark.parametrize("palette", [[0, 0, 0] * 3, [200, 10, 10, 10, 200, 10, 10, 10, 200]])
def test_a_palette_without_distinct_colors_or_without_black_counts_by_entry(tmp_path: Path, palette: list[int]) -> None:
    image = Image.fromarray(CORNER * np.array([1, 2, 0, 0], dtype=np.uint8)).convert("P")
    image.putpalette(palette)
    assert np.array_equal(mask_of(tmp_path, image), CORNER == 1)


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (9, 0, 0)])
def test_the_opacity_marks_if_the_visible_color_is_constant(tmp_path: Path, color: tuple[int, int, int]) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., :3] = color
    pixels[..., 3] = CORNER * 255
    assert np.array_equal(mask_of(tmp_path, pixels), CORNER == 1)


def test_colors_below_transparency_do_not_mark(tmp_path: Path) -> None:
    pixels = np.full((4, 4, 4), 77, np.uint8)  # an invisible color everywhere
    pixels[..., 3] = 0
    pixels[:2, 0], pixels[:2, 1] = (255, 0, 0, 255), (0, 90, 0, 255)
    assert np.array_equal(mask_of(tmp_path, pixels), CORNER == 1)


def save_png_16(path: Path, values: np.ndarray, color_type: int) -> Path:
    """Write a 16-bit PNG of several channels, (h, w, c), which Pillow cannot write."""
    height, width, _ = values.shape
    chunks = [
        b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0),
        b"IDAT" + zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)),
        b"IEND",
    ]
    content = b"".join(struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data)) for data in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


@pytest.mark.parametrize("color", [(0,), (65535,), (256,), (0, 0, 0), (65535, 65535, 65535), (9, 0, 0)])
@pytest.mark.parametrize("opacity", [1, 256, 65535])
def test_the_opacity_of_sixteen_bits_marks_as_that_of_eight(
    tmp_path: Path, color: tuple[int, ...], opacity: int
) -> None:
    pixels = np.zeros((4, 4, len(color) + 1), np.uint16)
    pixels[..., :-1], pixels[..., -1] = color, CORNER.astype(np.uint16) * np.uint16(opacity)
    image = save_image(tmp_path / "image.png", gray(0))
    path = save_png_16(tmp_path / "mask.png", pixels, 4 if len(color) == 1 else 6)
    assert np.array_equal(sample_mask(sample(image, path), SMALL).mask, CORNER == 1)
    pixels[..., :-1], pixels[..., -1] = CORNER[..., None], 65535  # opaque: the color marks
    save_png_16(path, pixels, 4 if len(color) == 1 else 6)
    assert np.array_equal(sample_mask(sample(image, path), SMALL).mask, CORNER == 1)


def test_the_lowest_signed_and_the_upper_unsigned_32_bit_numbers_are_labels(tmp_path: Path) -> None:
    image = save_image(tmp_path / "image.png", gray(0))
    path = save_image(tmp_path / "mask.tif", CORNER.astype(np.int32) * np.int32(-(2**31)))
    assert np.array_equal(sample_mask(sample(image, path), SMALL).mask, CORNER == 1)
    signed, unsigned = (struct.pack("<HHIH", 339, 3, 1, number_format) for number_format in (2, 1))  # SampleFormat
    path.write_bytes(path.read_bytes().replace(signed, unsigned))
    mask = read_mask(path, image, SMALL)
    assert np.array_equal(mask.defects, CORNER == 1)
    assert mask.levels == (2**31,)


# ---- several masks, sizes, orientation


def test_several_masks_give_their_union(tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.png", gray(0))
    masks = [save_image(tmp_path / f"m{i}.png", turned * 255) for i, turned in enumerate((CORNER, np.rot90(CORNER, 2)))]
    result = sample_mask(sample(image, *masks), SMALL)
    assert result.mask.sum() == 8
    assert np.array_equal(result.mask, np.rot90(result.mask, 2))
    assert result.regions == 1  # the two corners touch


def test_an_image_without_a_mask_has_no_defect_pixels(tmp_path: Path) -> None:
    result = sample_mask(sample(save_image(tmp_path / "a.png", gray(9))), SMALL)
    assert result.mask.shape == (4, 4)
    assert result.mask.dtype == np.bool_
    assert not result.mask.any()
    assert not result.soft.any()


def test_a_mask_is_enlarged_by_nearest_neighbor_with_any_filter_of_the_image(tmp_path: Path) -> None:
    result = mask_of(tmp_path, CORNER * 255, Preprocessing(16, 16, resample="lanczos"))
    assert np.array_equal(result, np.kron(CORNER, np.ones((4, 4))) == 1)


def test_a_mask_of_half_the_size_of_its_image_fits(tmp_path: Path) -> None:
    image, mask = save_image(tmp_path / "a.png", gray(0, 9, 12)), save_image(tmp_path / "m.png", gray(255, 4, 6))
    assert sample_mask(sample(image, mask), SMALL).mask.all()


def test_a_soft_mask_has_intermediate_values_along_its_edges(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4), dtype=np.uint8)
    pixels[:, :1] = 1  # a mask of class indices
    # From 4 columns to 2, each output is a triangular average of the inputs; at the border the weights are 3, 3 and 1.
    result = prepared(tmp_path, pixels, Preprocessing(4, 2)).soft
    assert result[:, 1].tolist() == [0] * 4
    assert result[:, 0].tolist() == [round(255 * 3 / 7)] * 4


def test_a_soft_mask_without_a_resize_is_the_mask(tmp_path: Path) -> None:
    result = prepared(tmp_path, CORNER * 255)
    assert np.array_equal(result.soft == 255, result.mask)


def test_a_mask_follows_the_orientation_of_its_own_exif_data(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gray(0, 4, 8)).save(tmp_path / "a.png", exif=exif)  # upright: 4 wide, 8 high
    pixels = np.zeros((4, 8), np.uint8)
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "m.png", exif=exif)
    result = sample_mask(sample(tmp_path / "a.png", tmp_path / "m.png"), Preprocessing(8, 4, resample="nearest"))
    assert np.argwhere(result.mask).tolist() == [[0, 3]]  # a quarter turn clockwise


def test_a_mask_that_fits_only_the_stored_image_is_named_as_such(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gray(0, 4, 8)).save(tmp_path / "a.jpg", exif=exif)
    mask = save_image(tmp_path / "m.png", gray(255, 4, 8))
    with pytest.raises(BenchError, match=r"m\.png is not: it has 8 x 4 pixels, its image 4 x 8 after its EXIF.*stored"):
        sample_mask(sample(tmp_path / "a.jpg", mask), SMALL)


def test_a_mask_of_another_aspect_ratio_is_an_error_with_both_sizes(tmp_path: Path) -> None:
    image, mask = save_image(tmp_path / "a.png", gray(0, 100, 200)), save_image(tmp_path / "m.png", gray(255, 200, 100))
    with pytest.raises(BenchError, match=r"m\.png is not: it has 100 x 200 pixels, its image 200 x 100"):
        sample_mask(sample(image, mask), SMALL)


def test_a_mask_of_several_pages_is_an_error_and_read_at_the_page_of_its_image(tmp_path: Path) -> None:
    pages = [Image.fromarray(gray(0)), Image.fromarray(CORNER * 255)]
    for name in ("a.tif", "m.tif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with pytest.raises(BenchError, match=r"m\.tif is not: it has 2 pages"):
        sample_mask(sample(tmp_path / "a.tif", tmp_path / "m.tif"), SMALL)
    second = Preprocessing(4, 4, resample="nearest", page=2)
    assert np.array_equal(sample_mask(sample(tmp_path / "a.tif", tmp_path / "m.tif"), second).mask, CORNER == 1)
    plain = save_image(tmp_path / "m.png", CORNER * 255)  # a mask of one page
    assert np.array_equal(sample_mask(sample(tmp_path / "a.tif", plain), second).mask, CORNER == 1)


def test_a_mask_with_values_that_are_not_finite_is_an_error(tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.png", gray(0))
    mask = save_image(tmp_path / "m.tif", np.where(CORNER, np.nan, 0).astype(np.float32))
    with pytest.raises(BenchError, match=r"m\.tif is not: it has values that are not finite"):
        sample_mask(sample(image, mask), SMALL)


@pytest.mark.parametrize("values", [(1, 2), (128, 255), ((255, 255, 255), (255, 0, 0))])
def test_a_mask_of_several_levels_without_zero_is_an_error(tmp_path: Path, values: tuple[object, object]) -> None:
    pixels = np.where(DISC[..., None], values[1], values[0]).astype(np.uint8).squeeze()  # (h, w) or (h, w, 3)
    with pytest.raises(BenchError, match="and no zero, but zero must be the level of the good pixels"):
        mask_of(tmp_path, pixels)


def test_an_unreadable_mask_is_named_and_so_is_an_unreadable_image_with_a_mask(tmp_path: Path) -> None:
    image, mask = save_image(tmp_path / "a.png", gray(0)), save_image(tmp_path / "m.png", gray(255))
    mask.write_bytes(mask.read_bytes()[:40])
    with pytest.raises(BenchError, match=r"A mask must be .*m\.png"):
        sample_mask(sample(image, mask), SMALL)
    save_image(mask, gray(255))
    image.write_bytes(b"")
    with pytest.raises(BenchError, match=r"An image must be .*a\.png"):
        sample_mask(sample(image, mask), SMALL)


# ---- regions and reports


def test_regions_are_counted_at_full_size_and_at_the_size_of_the_input(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16), np.uint8)
    pixels[0, 0] = pixels[2, 2] = 255  # nearest neighbor takes rows and columns 2, 6, 10 and 14 of 16
    result = prepared(tmp_path, pixels)
    assert (result.regions, result.input_regions) == (2, 1)
    diagonal = np.eye(16, dtype=np.uint8) * 255
    result = prepared(tmp_path, diagonal)
    assert (result.regions, result.input_regions) == (1, 1)  # 8 neighbors


def test_the_report_names_masks_that_are_black_vanish_and_may_be_inverted(tmp_path: Path) -> None:
    thin = np.zeros((16, 16), np.uint8)
    thin[0] = 255
    inverted = 255 - np.pad(np.full((4, 4), 255, np.uint8), 6)
    masks = {"black": gray(0, 16, 16), "thin": thin, "inverted": inverted, "plain": np.kron(CORNER, gray(255))}
    samples = []
    for name, pixels in masks.items():
        image = save_image(tmp_path / f"{name}.png", gray(0, 16, 16))
        samples.append(sample(image, save_image(tmp_path / f"{name}_mask.png", pixels)))
    report = mask_report(samples, [sample_mask(one, SMALL) for one in samples])
    assert report["images"] == 4
    assert (report["regions"], report["input_regions"]) == (3, 2)
    assert report["black"] == ["bolt/test/crack/black.png"]
    assert report["vanished"] == report["changed"] == ["bolt/test/crack/thin.png"]
    assert report["inverted"] == ["bolt/test/crack/inverted.png"]
    texts = list(mask_warnings("bolt", report, at_original=False))
    assert [text.split(":")[0] for text in texts] == ["bolt"] * 4
    assert sum("--resolution original" in text for text in texts) == 2
    assert not any("resize" in text or "input" in text for text in mask_warnings("bolt", report, at_original=True))


def test_a_large_defect_is_not_taken_for_an_inverted_mask(tmp_path: Path) -> None:
    inside = np.pad(gray(255, 14, 14), 1)  # 196 of 256 pixels, 0 of the 60 of the border
    assert not prepared(tmp_path, inside).may_be_inverted
    at_one_side = np.zeros((16, 16), np.uint8)
    at_one_side[:14, 2:14] = 255  # 168 of 256 pixels, 12 of the 60 of the border
    assert not prepared(tmp_path, at_one_side).may_be_inverted
    half = np.zeros((16, 16), np.uint8)
    half[:8] = 255  # 128 of 256 pixels, 30 of the 60 of the border
    assert not prepared(tmp_path, half).may_be_inverted


def test_an_inverted_mask_is_found_also_if_its_defect_reaches_the_border(tmp_path: Path) -> None:
    inside, at_border = gray(255, 16, 16), gray(255, 16, 16)
    inside[6:10, 6:10] = 0
    at_border[:, :3] = 0  # 208 of 256 pixels are marked, and 26 + 14 = 40 of the 60 of the border
    for pixels in (inside, at_border, gray(255, 16, 16)):
        assert prepared(tmp_path, pixels).may_be_inverted
    assert prepared(tmp_path, at_border).border_fraction == 40 / 60


def test_a_category_without_masks_has_no_report(tmp_path: Path) -> None:
    samples = [sample(save_image(tmp_path / "a.png", gray(0)))]
    assert mask_report(samples, [sample_mask(samples[0], SMALL)]) == {}
    assert list(mask_warnings("bolt", {}, at_original=False)) == []
