"""Decoding: every format becomes upright 8-bit RGB by one rule; other pages, sizes and damaged files are errors."""

import itertools
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from bench.data import decoding
from bench.data.decoding import FORMATS, decode, decode_in_memory, has_more_than_8_bits, image_size, load
from bench.dataset import EXTENSIONS
from bench.errors import BenchError
from bench.method import Preprocessing

PLAIN = Preprocessing(4, 4)
SIXTEEN = Preprocessing(4, 4, black=0, white=65535)
TURNS = {1: 0, 3: 2, 6: 3, 8: 1}
"""EXIF orientation -> the number of quarter turns (np.rot90, counterclockwise) that make the stored image upright."""


def noise(height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save_image(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def png_chunk(chunk_type: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + chunk_type + data + struct.pack(">I", zlib.crc32(chunk_type + data))


def save_png_16(path: Path, values: np.ndarray, color_type: int) -> Path:
    """Write a 16-bit PNG of several channels, (h, w, c), which Pillow cannot write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))
    return path


COMPRESSIONS = {"": 1, "lzw": 5, "zlib": 8, "packbits": 32773}


def compress(data: bytes, compression: str) -> bytes:
    """Return one strip or tile; the codes of LZW and PackBits are literals only."""
    if compression == "zlib":
        return zlib.compress(data)
    if compression == "packbits":
        return b"".join(bytes([len(part) - 1]) + part for part in (data[i : i + 128] for i in range(0, len(data), 128)))
    if compression == "lzw":  # 9 bits per code; the table is cleared (256) before a code needs 10 bits; 257 ends
        parts = (data[i : i + 128] for i in range(0, len(data), 128))
        bits = "".join(f"{code:09b}" for part in parts for code in (256, *part)) + f"{257:09b}"
        return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    return data


def save_tiff(
    path: Path, values: np.ndarray, order: str = "<", compression: str = "", photometric: int = -1, *,
    planar: bool = False, tile: int = 0,
) -> Path:  # fmt: skip
    """Write a TIFF, (h, w) or (h, w, c), in byte order "<" or ">" and with a layout that Pillow cannot write."""
    height, width = values.shape[:2]
    channels = values.reshape(height, width, -1)
    n_channels = channels.shape[2]
    rows, columns = (tile, tile) if tile else (height, width)
    padded = np.pad(channels, ((0, -height % rows), (0, -width % columns), (0, 0)))
    planes = np.split(padded, n_channels, axis=2) if planar else [padded]
    blocks = [
        compress(plane[y : y + rows, x : x + columns].astype(values.dtype.newbyteorder(order)).tobytes(), compression)
        for plane in planes for y in range(0, height, rows) for x in range(0, width, columns)
    ]  # fmt: skip
    starts = list(itertools.accumulate(map(len, blocks), initial=8))
    size, number_format = values.dtype.itemsize, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    photometric = photometric if photometric >= 0 else 2 if n_channels > 2 else 1
    tags = {
        256: [width], 257: [height], 258: [8 * size] * n_channels, 259: [COMPRESSIONS[compression]], 262: [photometric],
        324 if tile else 273: starts[:-1], 277: [n_channels], 284: [2 if planar else 1],
        325 if tile else 279: [len(block) for block in blocks], 339: [number_format] * n_channels,
    } | ({322: [tile], 323: [tile]} if tile else {278: [height]})  # fmt: skip
    if n_channels == 4 and photometric == 2:
        tags[338] = [2]  # alpha
    at = starts[-1] + 2 + 12 * len(tags) + 4
    entries, more = b"", b""
    for tag in sorted(tags):
        data = struct.pack(f"{order}{len(tags[tag])}I", *tags[tag])
        entries += struct.pack(order + "HHI", tag, 4, len(tags[tag]))
        entries += data if len(data) == 4 else struct.pack(order + "I", at + len(more))
        more += data if len(data) > 4 else b""
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", starts[-1])
    path.write_bytes(header + b"".join(blocks) + struct.pack(order + "H", len(tags)) + entries + bytes(4) + more)
    return path


# ---- orientation


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.avif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_every_format_is_turned_upright_by_its_exif_orientation(tmp_path: Path, name: str, orientation: int) -> None:
    stored = np.zeros((16, 32, 3), dtype=np.uint8)
    stored[:8, :8] = 255  # the top left corner as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if name.endswith(("jpg", "avif", "webp")) else {}
    Image.fromarray(stored).save(tmp_path / name, exif=exif, **options)
    expected = np.rot90(stored, TURNS[orientation])
    result = np.asarray(decode(tmp_path / name, PLAIN))
    assert result.shape == expected.shape
    assert np.array_equal(result > 127, expected > 127)
    assert image_size(tmp_path / name, PLAIN) == expected.shape[1::-1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_agree_with_pillow(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(5, 9)).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(np.asarray(decode(tmp_path / "a.png", PLAIN)), expected)


def test_an_uncompressed_gray_tiff_file_is_turned(tmp_path: Path) -> None:
    """Pillow 13 maps such a file into memory with width and height exchanged."""
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "a.tif", exif=exif)
    assert np.array_equal(np.asarray(decode(tmp_path / "a.tif", PLAIN))[..., 0], np.rot90(values, 3))


def test_sixteen_bits_are_turned_as_well(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10000
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name, exif=exif)
        assert np.array_equal(load(tmp_path / name, PLAIN), np.rot90(values, 3))


def test_damaged_exif_data_is_not_an_orientation(tmp_path: Path) -> None:
    Image.fromarray(noise(4, 6)).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(tmp_path / "a.png", PLAIN).size == (6, 4)


# ---- more than 8 bits


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257], [257 * 128, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif", "a.pgm"):
        path = save_image(tmp_path / name, values)
        result = np.asarray(decode(path, SIXTEEN))
        assert result[..., 0].tolist() == [[0, 1], [128, 255]]
        assert result.shape == (2, 2, 3)
        assert has_more_than_8_bits(path, PLAIN)


def test_big_endian_sixteen_bits_are_read_correctly(tmp_path: Path) -> None:
    Image.frombytes("I;16B", (2, 1), np.array([0x1010, 0xFFFF], dtype=">u2").tobytes()).save(tmp_path / "a.tif")
    assert np.asarray(decode(tmp_path / "a.tif", SIXTEEN))[0, :, 0].tolist() == [16, 255]


def test_values_are_mapped_from_black_to_white_and_clipped_outside(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.tif", np.array([[-40.0, 0.0, 20.0, 30.0, 99.0]], dtype=np.float32))
    result = np.asarray(decode(path, Preprocessing(4, 4, black=0, white=50)))
    assert result[0, :, 0].tolist() == [0, 0, 102, 153, 255]  # 255 * 20 / 50 = 102


@pytest.mark.parametrize("color_type", [2, 6])
def test_sixteen_bit_color_png_files_keep_all_bits(tmp_path: Path, color_type: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3 if color_type == 2 else 4))
    path = save_png_16(tmp_path / "a.png", values, color_type)
    assert has_more_than_8_bits(path, PLAIN)
    assert np.array_equal(load(path, PLAIN), values[..., :3])


def test_a_sixteen_bit_gray_png_file_with_alpha_keeps_all_bits_of_gray(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 2))
    assert np.array_equal(load(save_png_16(tmp_path / "a.png", values, 4), PLAIN), values[..., 0])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_color_tiff_files_keep_all_bits(tmp_path: Path, order: str, compressed: bool) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3))
    path = save_tiff(tmp_path / "a.tif", values.astype(np.uint16), order, "zlib" if compressed else "")
    assert np.array_equal(load(path, PLAIN), values)


def test_sixteen_bit_planes_are_read_as_contiguous_pixels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (20, 33, 4), dtype=np.uint16)
    for order, n_channels, tile in itertools.product("<>", (3, 4), (0, 16)):
        path = save_tiff(tmp_path / "a.tif", values[..., :n_channels], order, planar=True, tile=tile)
        assert has_more_than_8_bits(path, PLAIN)
        assert np.array_equal(load(path, PLAIN), values[..., :3])
        assert np.array_equal(load(path, PLAIN, with_alpha=True), values[..., :n_channels])
    scaled = decode(save_tiff(tmp_path / "a.tif", np.array([[[0, 257, 514]]], np.uint16), planar=True), SIXTEEN)
    assert np.asarray(scaled).tolist() == [[[0, 1, 2]]]
    eight = save_tiff(tmp_path / "b.tif", noise(), planar=True)
    assert not has_more_than_8_bits(eight, PLAIN)
    assert np.array_equal(np.asarray(decode(eight, PLAIN)), noise())


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_planes_of_which_pillow_loses_bits_are_errors_with_the_fix(tmp_path: Path, order: str) -> None:
    values = np.full((4, 4, 4), 300, dtype=np.uint16)
    for pixels, compression, photometric in (
        (values[..., :3], "zlib", 2),
        (values[..., :3], "lzw", 2),
        (values, "", 5),
    ):
        path = save_tiff(tmp_path / "a.tif", pixels, order, compression, photometric, planar=True)
        assert has_more_than_8_bits(path, PLAIN)
        with pytest.raises(
            BenchError, match=r"a\.tif is not: it stores the channels .* separate planes.*contiguous pl"
        ):
            decode(path, SIXTEEN)
    gray = save_tiff(tmp_path / "b.tif", values[..., 0].astype(np.float32), order, planar=True)
    with pytest.raises(BenchError, match=r"b\.tif is not: it stores one channel .*contiguous planes"):
        decode(gray, SIXTEEN)


@pytest.mark.parametrize("compression", ["", "zlib", "lzw", "packbits"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32])
def test_gray_tiff_files_of_both_byte_orders_have_the_same_values(
    tmp_path: Path, dtype: type, compression: str
) -> None:
    values = np.arange(12).reshape(3, 4).astype(dtype) * dtype(1000) + dtype(1)
    values = values if dtype is np.uint16 else values - dtype(5000)  # -4999, -3999, ..., 6001
    for order in "<>":
        path = save_tiff(tmp_path / "a.tif", values, order, compression)
        assert np.array_equal(load(path, PLAIN), values)
        with Image.open(path) as opened:
            expected = np.asarray(decode(path, SIXTEEN))
            assert np.array_equal(np.asarray(decode_in_memory(opened, SIXTEEN, "the image")), expected)


def test_sixteen_bits_of_which_zero_is_white_are_inverted_as_8_bits_are(tmp_path: Path) -> None:
    for compression in ("", "zlib"):
        path = save_tiff(tmp_path / "a.tif", np.array([[0, 257, 65535]], np.uint16), "<", compression, photometric=0)
        assert load(path, PLAIN).tolist() == [[65535, 65278, 0]]
        path = save_tiff(tmp_path / "b.tif", np.array([[0, 1, 255]], np.uint8), "<", compression, photometric=0)
        assert np.asarray(decode(path, PLAIN))[0, :, 0].tolist() == [255, 254, 0]
    floats = save_tiff(tmp_path / "c.tif", np.array([[0, 1]], np.float32), photometric=0)
    with pytest.raises(BenchError, match=r"c\.tif is not: it has floats of which zero is white.*zero as black"):
        decode(floats, SIXTEEN)


def test_unsigned_integers_of_32_bits_stay_positive(tmp_path: Path) -> None:
    values = np.array([[0, 2**31 - 1, 2**31, 2**32 - 1]], np.uint32)
    for compression in ("", "zlib"):
        path = save_tiff(tmp_path / "a.tif", values, "<", compression)
        assert load(path, PLAIN).tolist() == values.tolist()
    full = Preprocessing(4, 4, black=0, white=2**32 - 1)
    assert np.asarray(decode(path, full))[0, :, 0].tolist() == [0, 127, 128, 255]


def test_a_tiff_file_with_a_pixel_layout_that_cannot_be_read_is_named_as_such(tmp_path: Path) -> None:
    for dtype, shape in ((np.float16, (4, 4)), (np.float64, (4, 4)), (np.uint16, (4, 4, 2))):
        path = save_tiff(tmp_path / "a.tif", np.zeros(shape, dtype))
        with pytest.raises(
            BenchError, match=r"a\.tif is not: it is a TIFF file with .* pixel layout that cannot be re"
        ):
            decode(path, SIXTEEN)
    (tmp_path / "b.tif").write_bytes(b"no TIFF file")
    with pytest.raises(BenchError, match=r"b\.tif is not: its content has no known image format"):
        decode(tmp_path / "b.tif", SIXTEEN)


def test_portable_graymaps_keep_their_numbers_whatever_their_maximum(tmp_path: Path) -> None:
    values = np.array([[0, 800], [1200, 4095]], dtype=np.uint16)
    (tmp_path / "a.pgm").write_bytes(b"P5\n2 2\n4095\n" + values.astype(">u2").tobytes())
    assert load(tmp_path / "a.pgm", PLAIN).tolist() == values.tolist()
    color = np.repeat(values[..., None], 3, axis=2)
    (tmp_path / "a.ppm").write_bytes(b"P6\n2 2\n4095\n" + color.astype(">u2").tobytes())
    assert np.array_equal(load(tmp_path / "a.ppm", PLAIN), color)
    (tmp_path / "b.pgm").write_bytes(b"P2\n2 1\n4095\n0 4095\n")
    with pytest.raises(BenchError, match=r"b\.pgm is not: it is a text PGM"):
        decode(tmp_path / "b.pgm", SIXTEEN)


def test_a_jpeg_2000_file_of_several_channels_with_more_than_8_bits_is_an_error(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.jp2", noise(16, 16))
    assert decode(path, PLAIN).size == (16, 16)
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\x4f\xff\x51") + 42] = 11  # 12 bits per channel
    path.write_bytes(content)
    with pytest.raises(BenchError, match=r"a\.jp2 is not: it is a JPEG 2000 file of several channels with more than 8"):
        decode(path, PLAIN)


def test_more_than_8_bits_without_a_known_range_are_errors_with_the_fix(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.png", np.array([[0, 65535]], dtype=np.uint16))
    with pytest.raises(BenchError, match=r"a\.png is not: it has more than 8 bits per channel.*--depth 16"):
        decode(path, PLAIN)


def test_values_that_are_not_finite_are_errors(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.tif", np.array([[0.0, np.nan]], dtype=np.float32))
    with pytest.raises(BenchError, match=r"a\.tif is not: it has values that are not finite"):
        decode(path, SIXTEEN)


# ---- 8 bits


def test_alpha_is_dropped(tmp_path: Path) -> None:
    pixels = np.dstack([noise(), np.zeros((8, 8), dtype=np.uint8)])
    path = save_image(tmp_path / "a.png", pixels)
    assert np.array_equal(np.asarray(decode(path, PLAIN)), pixels[..., :3])
    assert not has_more_than_8_bits(path, PLAIN)


def test_a_palette_gives_its_colors_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=b"\x00\x80")  # Pillow's conversion warns about this
    for name in ("plain.png", "clear.png"):
        assert np.asarray(decode(tmp_path / name, PLAIN)).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_one_bit_images_become_black_and_white(tmp_path: Path) -> None:
    result = decode(save_image(tmp_path / "a.png", np.array([[0, 255]], dtype=np.uint8), "1"), PLAIN)
    assert np.asarray(result)[0, :, 0].tolist() == [0, 255]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert np.asarray(decode(tmp_path / "a.tif", PLAIN))[0, 0].tolist() == [255, 0, 0]


# ---- pages


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp"])
def test_a_file_of_several_pages_is_an_error_with_their_number_or_read_at_a_stated_page(
    tmp_path: Path, name: str
) -> None:
    pages = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 120, 230)]
    options = {"lossless": True} if name.endswith("webp") else {}
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], **options)
    with pytest.raises(BenchError, match=rf"{name} is not: it has 3 pages or frames; fit with --page N"):
        decode(tmp_path / name, PLAIN)
    values = [int(np.asarray(decode(tmp_path / name, Preprocessing(4, 4, page=page)))[0, 0, 0]) for page in (1, 2, 3)]
    assert values == [10, 120, 230]
    with pytest.raises(BenchError, match="it has 3 pages, so there is no page 4"):
        decode(tmp_path / name, Preprocessing(4, 4, page=4))


def test_a_reduced_copy_inside_a_tiff_file_is_not_a_page(tmp_path: Path) -> None:
    from PIL import TiffImagePlugin

    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1  # NewSubfileType: a reduced copy of another page
    first, small = Image.fromarray(noise(16, 16)), Image.fromarray(noise(4, 4))
    small.encoderinfo = {"tiffinfo": tags}
    first.save(tmp_path / "a.tif", save_all=True, append_images=[small])
    assert decode(tmp_path / "a.tif", PLAIN).size == (16, 16)


def test_a_photograph_with_an_embedded_preview_is_one_page(tmp_path: Path) -> None:
    first, second = Image.fromarray(noise(16, 16)), Image.fromarray(noise(8, 8))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    assert decode(tmp_path / "a.jpg", PLAIN).size == (16, 16)


# ---- sizes and formats


def with_png_size(path: Path, width: int, height: int) -> Path:
    """Change the declared size of a PNG file."""
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    return path


def test_a_large_image_is_an_error_by_its_declared_size_and_read_with_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_image(tmp_path / "large.png", noise(8, 8))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 63)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # Pillow's limit does not matter, and does not warn
    with pytest.raises(BenchError, match=r"large\.png is not: it declares 8 x 8 pixels.*fit with --allow-large"):
        decode(path, PLAIN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(path, Preprocessing(4, 4, allow_large=True)).size == (8, 8)
    assert Image.MAX_IMAGE_PIXELS == 20


def test_a_decompression_bomb_is_an_error_even_if_large_images_are_allowed(tmp_path: Path) -> None:
    path = with_png_size(save_image(tmp_path / "bomb.png", noise(4, 4)), 60000, 60000)
    for allow_large in (False, True):
        with pytest.raises(BenchError, match=r"bomb\.png is not: it declares 60000 x 60000 pixels"):
            decode(path, Preprocessing(4, 4, allow_large=allow_large))


def test_postscript_is_not_opened_under_any_name(tmp_path: Path) -> None:
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
    for name in ("a.eps", "a.png"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BenchError, match="its content has no known image format"):
            decode(tmp_path / name, PLAIN)


def test_every_extension_belongs_to_a_format_that_is_read() -> None:
    Image.init()
    assert {Image.registered_extensions().get(extension) for extension in EXTENSIONS} <= set(FORMATS)
    assert {Image.registered_extensions()[extension] for extension in EXTENSIONS} == set(FORMATS)


# ---- damage


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"missing\.png is not: No such file"):
        decode(tmp_path / "missing.png", PLAIN)
    with pytest.raises(BenchError, match="is not: Is a directory"):
        decode(tmp_path, PLAIN)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    path = save_image(tmp_path / name, noise(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BenchError, match=f"{name} is not: "):
        decode(path, PLAIN)


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
        assert decode(path, PLAIN).mode == "RGB"
    except BenchError as error:
        messages.append(str(error))
    assert all(str(path) in message and "\n" not in message for message in messages)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_an_error_at_once_and_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "linked_pipe.png").symlink_to("pipe.png")
    for name in ("pipe.png", "linked_pipe.png"):
        with pytest.raises(BenchError, match=rf"/{name} is not: not a regular file\. Fix or remove it\.$"):
            decode(tmp_path / name, PLAIN)
    save_image(tmp_path / "0.png", noise(4, 6))
    (tmp_path / "link.png").symlink_to("0.png")
    assert decode(tmp_path / "link.png", PLAIN).size == (6, 4)


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_a_truncated_file_is_an_error_also_if_pillow_is_set_to_fill_it(
    tmp_path: Path, extension: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{extension}"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(BenchError, match="truncated"):
        decode(path, PLAIN)
    assert ImageFile.LOAD_TRUNCATED_IMAGES  # the user's own setting is kept
