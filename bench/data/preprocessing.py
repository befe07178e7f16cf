"""Resize and crop a decoded image as a `Preprocessing` specifies, and compute the part of the original that remains."""

from PIL import Image

from bench.preprocessing import Preprocessing, Resample

MAX_PIXELS = 100_000_000
"""Largest number of pixels after the resize. A long, narrow image exceeds it if its aspect ratio is kept."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def preprocess(image: Image.Image, preprocessing: Preprocessing, resample: Resample | None = None) -> Image.Image:
    """Resize an image and crop its center; `resample` replaces the filter (masks: "nearest").

    Raises:
        ValueError: the resized image would have more than `MAX_PIXELS` pixels.
    """
    width, height = _resized_size(image.size, preprocessing)
    if image.size != (width, height):
        image = image.resize((width, height), _FILTERS[resample or preprocessing.resample])
    rows, columns = preprocessing.size
    if image.size != (columns, rows):
        left, top = (image.width - columns) // 2, (image.height - rows) // 2
        image = image.crop((left, top, left + columns, top + rows))
    return image


def visible_box(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom): the part of an image of `size` (width, height) that the input shows."""
    width, height = _resized_size(size, preprocessing)
    rows, columns = preprocessing.size
    ranges = []
    for original, resized, cropped in ((size[0], width, columns), (size[1], height, rows)):
        first = (resized - cropped) // 2
        start = min(round(first * original / resized), original - 1)
        ranges.append((start, max(round((first + cropped) * original / resized), start + 1)))
    (left, right), (top, bottom) = ranges
    return left, top, right, bottom


def _resized_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Return (width, height) before the crop. Raises ValueError as `preprocess` does."""
    width, height = preprocessing.width, preprocessing.height
    if preprocessing.keep_aspect:
        scale = max(width / size[0], height / size[1])
        width, height = max(width, round(size[0] * scale)), max(height, round(size[1] * scale))
        if width * height > MAX_PIXELS:
            raise ValueError(f"{size[0]} x {size[1]} would become {width} x {height}; set keep_aspect = false")
    return width, height
