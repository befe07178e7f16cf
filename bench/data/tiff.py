"""Correct what Pillow reads wrongly from TIFF files with more than 8 bits per channel, or refuse it.

The functions take an opened image of any format, and change nothing if it is not a TIFF file. Tags: TIFF 6.0.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.data.raw_modes import raw_mode, set_raw_mode, with_raw_mode

SIGNATURES = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0")
"""First bytes of the files that Pillow opens as TIFF."""

UNREADABLE = (
    "it is a TIFF file with a damaged header or a pixel layout that cannot be read; save it as grayscale of 8-bit or "
    "16-bit integers or 32-bit floats, or as RGB of 8-bit or 16-bit integers"
)
"""Reason of the error about a file that has one of `SIGNATURES` and that Pillow cannot open."""

_BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 262, 284, 339
_WHITE_IS_ZERO, _SEPARATE_PLANES, _UNSIGNED = 0, 2, 1
_NATIVE_RAW_MODES = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
"""Pillow's big-endian layout -> the same in the byte order of this machine, in which libtiff returns values."""


def has_16_bit_planes(image: Image.Image) -> bool:
    """Return whether a TIFF file of several channels stores each of them apart, with more than 8 bits per value."""
    tags = getattr(image, "tag_v2", None)
    if not tags or image.mode.startswith(("I", "F")):
        return False
    return bool(tags.get(_PLANAR) == _SEPARATE_PLANES and max(tags.get(_BITS, (1,))) > 8)


def set_plane_order(image: Image.Image, *, swapped: bool) -> None:
    """Let Pillow keep the high byte of each value in 16-bit planes, or with `swapped` the low byte.

    Raises:
        ValueError: the planes are compressed, so that Pillow can read only the high bytes, or are not those of RGB and
            alpha.
    """
    layout = image.mode
    if layout not in {"RGB", "RGBA"} or image.tile[0][0] != "raw" or "a" in {_name(tile) for tile in image.tile}:  # type: ignore[attr-defined]
        raise ValueError(
            f"it stores the channels of its 16-bit {layout} pixels in separate planes that cannot be read; save it as "
            f"16-bit RGB with contiguous planes (PlanarConfiguration 1)"
        )
    is_big = (image.tag_v2.prefix == b"MM") != swapped  # type: ignore[attr-defined]
    # A plane that is not a color or alpha, which Pillow names after a later character of the layout, is left out.
    planes = [tile for tile in image.tile if _name(tile) in layout]  # type: ignore[attr-defined]
    image.tile = [with_raw_mode(tile, f"{_name(tile)};16{'B' if is_big else 'L'}") for tile in planes]  # type: ignore[attr-defined]


def correct_byte_order(image: Image.Image) -> None:
    """Let Pillow read a compressed file in the byte order of this machine, to which libtiff has converted the values.

    Without this, Pillow swaps the bytes of big-endian signed integers and floats a second time. Raises ValueError for
    one uncompressed channel that is stated to be a plane, of whose layout Pillow takes only the first character.
    """
    name = raw_mode(image)
    if not getattr(image, "tag_v2", None) or not name:
        return
    codec = image.tile[0][0]  # type: ignore[attr-defined]
    if codec == "libtiff" and name in _NATIVE_RAW_MODES:
        set_raw_mode(image, _NATIVE_RAW_MODES[name])
    elif codec == "raw" and image.mode.startswith(("I", "F")) and len(name) == 1:
        raise ValueError(
            "it stores one channel of more than 8 bits as a separate plane, which cannot be read; save it with "
            "contiguous planes (PlanarConfiguration 1)"
        )


def correct_values(values: NDArray[Any], image: Image.Image) -> NDArray[Any]:
    """Return the values of a loaded grayscale image as its tags define them: unsigned, and with zero as black.

    Raises:
        ValueError: zero is white and the values are floats, for which no value is defined as black.
    """
    tags = getattr(image, "tag_v2", None)
    if not tags:
        return values
    if values.dtype == np.int32 and max(tags.get(_BITS, (1,))) == 32 and tags.get(_SAMPLE_FORMAT, (1,))[0] == _UNSIGNED:
        values = values.view(np.uint32)
    if tags.get(_PHOTOMETRIC) != _WHITE_IS_ZERO:
        return values
    if values.dtype.kind == "f":
        raise ValueError(
            "it has floats of which zero is white (PhotometricInterpretation 0), so black is unknown; save it with "
            "zero as black (PhotometricInterpretation 1)"
        )
    inverted: NDArray[Any] = np.iinfo(values.dtype).max - values
    return inverted


def _name(tile: Any) -> str:
    """Return Pillow's name of the layout of one tile."""
    return str(tile[3][0] if isinstance(tile[3], tuple) else tile[3])
