"""Decode images: the only module with which a run, `bench predict`, `bench check` and thumbnails open a file.

Every file is read as a viewer shows it: turned by its EXIF orientation, in one of `FORMATS`, only if it has one page or
the page is stated, and only if its declared size is below the limit. Files with more than 8 bits per channel keep all
their bits until `to_8_bit` maps the range from black to white to 0..255.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from bench.data.raw_modes import has_deep_jpeg2000_channels, ppm_maximum, raw_mode, read_netpbm, set_raw_mode
from bench.data.tiff import (
    SIGNATURES,
    UNREADABLE,
    correct_byte_order,
    correct_values,
    has_16_bit_planes,
    set_plane_order,
)
from bench.errors import BenchError
from bench.files import open_regular
from bench.preprocessing import Preprocessing

FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP",
)  # fmt: skip
"""Pillow's names of the formats that are read. Formats that run other programs, such as PostScript, are not."""

MAX_PIXELS = 89_478_485
"""Largest number of pixels of a file without `allow_large`: Pillow's limit, 256 MiB as 24-bit RGB."""

MAX_LARGE_PIXELS = 1 << 30
"""Largest number of pixels of a file with `allow_large`."""

Values = NDArray[Any]
"""(h, w) or (h, w, 3), values of an image with more than 8 bits per channel."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that turns the stored image upright. Source: EXIF 2.32, tag 0x0112."""

_ORIENTATION = 0x0112
_WIDTH, _LENGTH, _SUBFILE_TYPE = 256, 257, 254  # TIFF 6.0
_NOT_A_PAGE = 0b101  # bits of NewSubfileType: a reduced copy, a transparency mask
_MULTI_FRAME = ("Multi-Frame Image (Panorama)", "Multi-Frame Image: (Disparity)", "Multi-Frame Image: (Multi-Angle)")

_limit_lock = threading.Lock()


def decode(path: Path, preprocessing: Preprocessing) -> Image.Image:
    """Return the file as 8-bit RGB, upright, at its full size.

    Grayscale, palette, RGBA and CMYK files are converted; alpha is dropped. More than 8 bits per channel are mapped
    from `preprocessing.black` and `preprocessing.white` to 0 and 255.

    Raises:
        BenchError: the file is not an image of a known format, is truncated, too large, has several pages of which none
            is stated, or has more than 8 bits per channel while the range is unknown.
    """
    with file_errors(path, "An image"):
        pixels = load(path, preprocessing)
        return to_rgb(pixels) if isinstance(pixels, Image.Image) else to_8_bit(pixels, preprocessing)


def load(path: Path, preprocessing: Preprocessing, *, with_alpha: bool = False) -> Image.Image | Values:
    """Return the upright page of a file: an image of 8 bits or less per channel, with alpha if it has it, else values.

    The values are (h, w) or (h, w, 3), or `with_alpha`, if the file has it, (h, w, 2) or (h, w, 4).
    """
    with open_page(path, preprocessing) as image:
        layout = raw_mode(image)
        if image.format == "PPM" and layout in {"L", "RGB"} and ppm_maximum(image) > 255:
            return read_netpbm(image)
        if has_deep_jpeg2000_channels(image):
            raise ValueError("it is a JPEG 2000 file of several channels with more than 8 bits; save it as PNG or TIFF")
        if _is_16_bit_color(image):
            values = _read_16_bit_color(image, layout, path, preprocessing)  # (h, w, 2), (h, w, 3) or (h, w, 4)
            return values if with_alpha else values[..., 0] if values.shape[2] == 2 else values[..., :3]
        return _upright_pixels(image)


def decode_in_memory(image: Image.Image | Values, preprocessing: Preprocessing, name: str) -> Image.Image:
    """Return an image of Pillow or an array as `decode` returns the file that has its pixels.

    Args:
        image: an image of Pillow of any mode; or an array (h, w), (h, w, 1), (h, w, 3) RGB or (h, w, 4) RGBA, boolean,
            uint8, or of another number type for more than 8 bits per channel.
        preprocessing: its black and white scale more than 8 bits per channel.
        name: name of the image in errors.

    Raises:
        BenchError: the shape, the type or the mode is another one, the image is empty or has several pages, Pillow
            reduces its file to 8 bits, or it has more than 8 bits per channel while the range is unknown.
    """
    with file_errors(name, "An image"):
        pixels = _array_pixels(image) if isinstance(image, np.ndarray) else _pillow_pixels(image)
        return to_rgb(pixels) if isinstance(pixels, Image.Image) else to_8_bit(pixels, preprocessing)


def has_more_than_8_bits(path: Path, preprocessing: Preprocessing) -> bool:
    """Return whether a file has more than 8 bits per channel, from its header."""
    with file_errors(path, "An image"), open_page(path, preprocessing) as image:
        if image.format == "PPM" and raw_mode(image) in {"L", "RGB"}:
            return ppm_maximum(image) > 255
        return image.mode == "F" or image.mode.startswith("I") or _is_16_bit_color(image)


def has_floats(path: Path, preprocessing: Preprocessing) -> bool:
    """Return whether the values of a file are floats, from its header."""
    with file_errors(path, "An image"), open_page(path, preprocessing) as image:
        return image.mode == "F"


def image_size(path: Path, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return (width, height) of the upright page of a file, from its header."""
    with file_errors(path, "An image"), open_page(path, preprocessing) as image:
        width, height = stored_size(image)
        return (height, width) if is_turned(image) else (width, height)


def format_and_pages(path: Path) -> tuple[str, int]:
    """Return Pillow's name of the format of a file, and its number of pages."""
    with _open(path) as image, _without_pillow_limit():
        return image.format or "", len(_pages(image))


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) as stored. Pillow gives the upright size of a TIFF file, but of no other format."""
    tags = getattr(image, "tag_v2", None)
    return (int(tags[_WIDTH]), int(tags[_LENGTH])) if tags else image.size


def is_turned(image: Image.Image) -> bool:
    """Return whether the EXIF orientation of an opened image exchanges width and height."""
    return _orientation(image) >= 5


@contextmanager
def open_page(path: Path, preprocessing: Preprocessing) -> Iterator[Image.Image]:
    """Open a file at its page without decoding it. Raises ValueError for a wrong page and for too large a file."""
    with _open(path) as image:
        with _without_pillow_limit():
            _seek_page(image, preprocessing.page)
        width, height = stored_size(image)
        maximum = MAX_LARGE_PIXELS if preprocessing.allow_large else MAX_PIXELS
        if width * height > maximum:
            fix = "split it into tiles" if preprocessing.allow_large else "fit with --allow-large if it is trusted"
            raise ValueError(f"it declares {width} x {height} pixels, more than {maximum / 1e6:.0f} million; {fix}")
        yield image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB, through RGBA for a palette with transparent colors: Pillow warns without that step."""
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def to_8_bit(values: Values, preprocessing: Preprocessing) -> Image.Image:
    """Map values from black..white to 0..255, clip the rest, and return RGB. Raises ValueError without a range."""
    black, white = preprocessing.black, preprocessing.white
    if black is None or white is None:
        raise ValueError(
            "it has more than 8 bits per channel, and the training images have not, so its range is unknown; fit with "
            "--depth 16 if its values use all of 16 bits"
        )
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    scaled = (values.astype(np.float64) - black) * (255 / (white - black))
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8)).convert("RGB")


@contextmanager
def file_errors(path: Path | str, subject: str) -> Iterator[None]:
    """Convert any exception of the block to a BenchError that names the file; Pillow may raise any type."""
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        elif isinstance(error, UnidentifiedImageError):
            reason = "its content has no known image format"
        reason = " ".join(reason.split())  # one line
        raise BenchError(
            f"{subject} must be complete and readable; {path} is not: {reason}. Fix or remove it."
        ) from error


@cache
def _available_formats() -> tuple[str, ...]:
    """Return the formats that the installed Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Open a file through a file object: of a path, Pillow maps raw TIFF data and ignores its orientation."""
    with open_regular(path) as file:
        with _without_pillow_limit():
            try:
                image = Image.open(file, formats=_available_formats())
            except UnidentifiedImageError as error:
                file.seek(0)
                if file.read(4) in SIGNATURES:
                    raise ValueError(UNREADABLE) from error
                raise
        with image:
            yield image


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Suspend Pillow's warning about large files while headers are read; `open_page` checks the size itself."""
    with _limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


class _CompleteFilesOnly:
    """Let Pillow raise an error for a truncated file, although a user or a library has set that it fills it with gray.

    Threads may be inside the block at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_inside = 0
        self._setting = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._n_inside:
                self._setting, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
            self._n_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if not self._n_inside:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._setting


_complete_files_only = _CompleteFilesOnly()


def _seek_page(image: Image.Image, page: int) -> None:
    """Move to the stated page, from 1, or to the only one if `page` is 0. Raises ValueError if there is none."""
    pages = _pages(image)
    if not page and len(pages) > 1:
        raise ValueError(
            f"it has {len(pages)} pages or frames; fit with --page N to read one of them, or split the file"
        )
    if page > len(pages):
        raise ValueError(f"it has {len(pages)} page{'s' * (len(pages) > 1)}, so there is no page {page}")
    frame = pages[max(page, 1) - 1]
    if image.tell() != frame:
        image.seek(frame)


def _pages(image: Image.Image) -> list[int]:
    """Return the frames of a file that are pages: no reduced copies (TIFF), no previews and gain maps (MPO)."""
    count = getattr(image, "n_frames", 1)
    if count == 1:
        return [0]
    if image.format == "MPO":  # CIPA DC-007: the first picture is the one that a JPEG viewer shows
        entries = image.mpinfo[0xB002]  # type: ignore[attr-defined]
        types = [entry["Attribute"]["MPType"] for entry in entries]
        return [index for index, frame_type in enumerate(types) if index == 0 or frame_type in _MULTI_FRAME]
    if image.format != "TIFF":
        return list(range(count))
    pages = []
    for frame in range(count):
        image.seek(frame)
        if not int(image.tag_v2.get(_SUBFILE_TYPE, 0)) & _NOT_A_PAGE:  # type: ignore[attr-defined]
            pages.append(frame)
    return pages or [0]


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none or the EXIF data is damaged, as viewers do."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  a damaged EXIF block may raise anything
        return 1
    return orientation if orientation in _TURNS else 1


def _load_upright(image: Image.Image) -> Image.Image:
    """Decode and turn an image. Pillow turns TIFF files while it loads them, and then reports no orientation."""
    with _complete_files_only:
        image.load()
    orientation = _orientation(image)
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _upright_pixels(image: Image.Image) -> Image.Image | Values:
    """Return the values of an upright image if it has more than 8 bits per channel, else the image."""
    correct_byte_order(image)
    upright = _load_upright(image)
    if upright.mode == "F" or upright.mode.startswith("I"):
        return correct_values(np.asarray(upright), image)
    return upright


def _array_pixels(array: Values) -> Image.Image | Values:
    """Return an array as an image if it has 8 bits per channel, else its values without alpha."""
    is_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in {1, 3, 4})
    if not is_shape or not array.size or array.dtype.kind not in "buif":
        raise ValueError(
            f"it has the shape {array.shape} and the type {array.dtype}; an array must have numbers of the shape "
            f"(h, w), (h, w, 1), (h, w, 3) or (h, w, 4)"
        )
    values = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    return Image.fromarray(values) if values.dtype == np.uint8 else values[..., :3] if values.ndim == 3 else values


def _pillow_pixels(image: Image.Image) -> Image.Image | Values:
    """Return an image of Pillow upright if it has 8 bits per channel, else its values."""
    if not image.width or not image.height:
        raise ValueError("it has no pixels")
    n_pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else len(_pages(image))
    if n_pages > 1:
        raise ValueError(f"it has {n_pages} pages or frames; pass a copy of one of them: image.copy()")
    if _is_reduced(image):
        raise ValueError(
            "Pillow changes its values, which have more than 8 bits per channel; pass the path of its file"
        )
    return _upright_pixels(image)


def _is_reduced(image: Image.Image) -> bool:
    """Return whether Pillow scales the values of an opened file or keeps only 8 bits of each, for the formats below."""
    if image.format == "PPM":
        return image.mode.startswith("I") or (raw_mode(image) in {"L", "RGB"} and ppm_maximum(image) > 255)
    return has_deep_jpeg2000_channels(image) or _is_16_bit_color(image)


def _is_16_bit_color(image: Image.Image) -> bool:
    """Return whether an opened file has 16-bit colors or alpha, of which Pillow keeps 8 bits."""
    return (";16" in raw_mode(image) and not image.mode.startswith("I")) or has_16_bit_planes(image)


def _read_16_bit_color(image: Image.Image, stored: str, path: Path, preprocessing: Preprocessing) -> Values:
    """Return the values of a 16-bit color file, (h, w, 3), with alpha (h, w, 4); of grayscale with alpha, (h, w, 2).

    Pillow has no mode for them and keeps the high byte of each value. A second pass with the opposite byte order keeps
    the low byte.
    """
    if stored == "LA;16B":  # read as the four bytes of RGBA: high and low byte of the gray value, then of alpha
        set_raw_mode(image, "RGBA")
        bytes_ = np.asarray(_load_upright(image)).astype(np.uint16)  # (h, w, 4)
        return bytes_[..., ::2] * 256 + bytes_[..., 1::2]
    layout, _, order = stored.partition(";16")
    swapped = {"B": "L", "L": "B", "N": "B" if np.little_endian else "L"}.get(order)
    has_planes = has_16_bit_planes(image)
    if has_planes:
        set_plane_order(image, swapped=False)
    elif layout not in {"RGB", "RGBA", "RGBX"} or swapped is None:
        raise ValueError(f"its pixel layout {stored} is not supported; save it as 16-bit RGB or grayscale")
    high = np.asarray(_load_upright(image)).astype(np.uint16)  # (h, w, 3) or (h, w, 4)
    with open_page(path, preprocessing) as again:
        if has_planes:
            set_plane_order(again, swapped=True)
        else:
            set_raw_mode(again, f"{layout};16{swapped}")
        low = np.asarray(_load_upright(again)).astype(np.uint16)
    return high * 256 + low
