"""Pixel layouts of opened files as Pillow names them ("raw modes"), and formats of which Pillow scales deep values."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def raw_mode(image: Image.Image) -> str:
    """Return Pillow's name of the stored pixel layout: "RGB;16B"; "" if the format has none."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def set_raw_mode(image: Image.Image, name: str) -> None:
    """Let Pillow read the stored pixels in another layout."""
    image.tile = [with_raw_mode(tile, name) for tile in image.tile]  # type: ignore[attr-defined]


def with_raw_mode(tile: Any, name: str) -> Any:
    """Return a tile of Pillow, the place of stored pixels in a file, with another layout."""
    arguments = (name, *tile[3][1:]) if isinstance(tile[3], tuple) else name
    # Pillow's tiles are named tuples since version 11.
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)


def ppm_maximum(image: Image.Image) -> int:
    """Return the maximum of an opened PGM or PPM file, 255 if it does not state one."""
    arguments = image.tile[0][3]  # type: ignore[attr-defined]
    return int(arguments[-1]) if isinstance(arguments, tuple) and isinstance(arguments[-1], int) else 255


def read_netpbm(image: Image.Image) -> NDArray[Any]:
    """Return the values of a binary PGM or PPM file with two bytes per value; Pillow scales them by its maximum."""
    codec, _, offset, (layout, _) = image.tile[0]  # type: ignore[attr-defined]
    if codec != "ppm":
        raise ValueError("it is a text PGM or PPM file with more than 8 bits; save it as binary PGM, PNG or TIFF")
    width, height = image.size
    shape = (height, width, 3) if layout == "RGB" else (height, width)
    assert image.fp is not None  # type: ignore[attr-defined]
    image.fp.seek(offset)  # type: ignore[attr-defined]
    data = image.fp.read(2 * int(np.prod(shape)))  # type: ignore[attr-defined]
    return np.frombuffer(data, ">u2").reshape(shape)


def has_deep_jpeg2000_channels(image: Image.Image) -> bool:
    """Return whether an opened JPEG 2000 file has several channels with more than 8 bits, of which Pillow keeps 8."""
    file = getattr(image, "fp", None)
    if image.format != "JPEG2000" or image.mode in {"I;16", "I"} or file is None:
        return False
    position = file.tell()
    file.seek(0)
    head = file.read(1 << 16)
    file.seek(position)
    start = head.find(b"\xff\x4f\xff\x51")  # start of codestream, image and tile size (ISO 15444-1, A.5.1)
    precision = head[start + 42 : start + 43] if start >= 0 else b""
    return bool(precision) and (precision[0] & 0x7F) + 1 > 8
