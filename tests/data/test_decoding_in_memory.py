"""Images of Pillow and arrays are decoded as the file that has their pixels, or are an error with the reason."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data.decoding import Values, decode, decode_in_memory
from bench.errors import BenchError
from bench.method import Preprocessing

PLAIN = Preprocessing(4, 4)
SIXTEEN = Preprocessing(4, 4, black=0, white=4095)


def noise(*shape: int, maximum: int = 255) -> Values:
    return np.random.default_rng(0).integers(0, maximum + 1, shape)


def image_of_mode(mode: str) -> Image.Image:
    if mode in {"I", "I;16", "F"}:
        dtype = {"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]
        return Image.fromarray(noise(6, 8, maximum=4095).astype(dtype))
    image = Image.fromarray(noise(6, 8, 3).astype(np.uint8))
    if mode in {"LA", "RGBA"}:
        image.putalpha(Image.fromarray(noise(6, 8).astype(np.uint8)))
    return image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)


def pixels(image: Image.Image | Values, preprocessing: Preprocessing = SIXTEEN) -> list[int]:
    return np.asarray(decode_in_memory(image, preprocessing, "the image")).tolist()


def of_file(path: Path, preprocessing: Preprocessing = SIXTEEN) -> list[int]:
    return np.asarray(decode(path, preprocessing)).tolist()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"])
def test_an_image_of_every_mode_is_that_of_its_file(tmp_path: Path, mode: str) -> None:
    image = image_of_mode(mode)
    assert image.mode == mode
    image.save(tmp_path / "a.tif")
    assert pixels(image) == of_file(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as opened:
        assert pixels(opened) == pixels(opened) == of_file(tmp_path / "a.tif")  # before and after it is loaded


@pytest.mark.parametrize("dtype", [np.uint16, np.dtype(">u2"), np.int16, np.int32, np.int64, np.float32, np.float64])
def test_numbers_of_every_type_are_scaled_by_their_value(dtype: np.dtype) -> None:
    row = [[0, 0, 0], [128, 128, 128], [255, 255, 255], [255, 255, 255]]
    assert pixels(np.array([[0, 2048, 4095, 5000]]).astype(dtype)) == [row]


def test_arrays_with_one_three_and_four_channels_are_gray_color_and_color_without_alpha() -> None:
    for array in (noise(6, 8, 4).astype(np.uint8), noise(6, 8, 4, maximum=4095).astype(np.uint16)):
        assert pixels(array[..., 0]) == pixels(array[..., :1]) == pixels(np.stack([array[..., 0]] * 3, axis=-1))
        assert pixels(array) == pixels(array[..., :3])
        assert pixels(array[:, ::-2]) == pixels(array[:, ::-2].copy())  # a view with other strides
    assert pixels(noise(6, 8, 3).astype(np.uint8)) == noise(6, 8, 3).tolist()  # 8 bits are not scaled


def test_a_boolean_array_is_black_and_white_as_an_image_of_one_bit() -> None:
    array = noise(6, 8, maximum=1).astype(bool)
    assert pixels(array) == pixels(Image.fromarray(array))
    assert pixels(np.array([[False, True]])) == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_an_opened_image_is_turned_by_its_exif_orientation(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image_of_mode("RGB").save(tmp_path / name, exif=exif)
    with Image.open(tmp_path / name) as opened:
        assert pixels(opened) == pixels(opened) == of_file(tmp_path / name)
    assert pixels(opened) == of_file(tmp_path / name)  # closed, but loaded


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0), (3, 6, 8), (6, 8, 2), (6, 8, 5), (8,), (), (1, 6, 8, 3)])
def test_an_array_of_another_shape_is_an_error_that_names_it(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        BenchError, match=r"the image is not: it has the shape \(.*uint8; an array must have numbers of"
    ):
        pixels(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("array", [np.zeros((4, 4), complex), np.full((4, 4), "a"), np.full((4, 4), None)])
def test_an_array_of_another_type_is_an_error_that_names_it(array: Values) -> None:
    with pytest.raises(BenchError, match=f"the type {array.dtype}; an array must have numbers"):
        pixels(array)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_without_a_known_range_are_errors_and_not_clipped(mode: str) -> None:
    for image in (image_of_mode(mode), np.asarray(image_of_mode(mode))):
        with pytest.raises(BenchError, match="its range is unknown"):
            pixels(image, PLAIN)
    with pytest.raises(BenchError, match="not finite"):
        pixels(np.full((2, 2), np.nan))


def test_an_image_without_pixels_and_one_of_several_pages_are_errors(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="it has no pixels"):
        pixels(Image.new("RGB", (0, 4)))
    page = image_of_mode("RGB")
    for name in ("a.tif", "a.gif", "a.png", "a.webp"):
        page.save(tmp_path / name, save_all=True, append_images=[page.rotate(180)])
        with Image.open(tmp_path / name) as opened:
            with pytest.raises(BenchError, match=r"it has 2 pages .* image.copy\(\)"):
                pixels(opened)
            opened.seek(1)
            assert pixels(opened.copy()) == np.asarray(opened.convert("RGB")).tolist()


def test_a_file_that_pillow_reduces_to_8_bits_is_an_error_that_asks_for_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 4095\n" + np.array([1, 2, 4095], ">u2").tobytes())
    (tmp_path / "b.pgm").write_bytes(b"P5 1 1 4095\n" + np.array([2048], ">u2").tobytes())
    for path in sorted(tmp_path.iterdir()):
        with Image.open(path) as opened, pytest.raises(BenchError, match="pass the path of its file"):
            pixels(opened)
    assert of_file(tmp_path / "b.pgm") == [[[128, 128, 128]]]
    with Image.open(tmp_path / "a.ppm") as opened:
        opened.tile = [opened.tile[0]._replace(args="RGB;16B")]  # as that of a PNG file of 16-bit color
        opened.format = "PNG"
        with pytest.raises(BenchError, match="more than 8 bits per channel; pass the path"):
            pixels(opened)
