"""Read the mask files of a sample: which pixels they mark, at full size and at the size of the input.

A mask file marks every pixel that is not zero, whatever its levels: 0 and 1, 100 and 200, class or instance numbers of
any bit depth, colors, a palette, an alpha channel. Only if its levels form a ramp between zero and the maximum, as the
soft edges of a resized or JPEG-compressed mask do, a pixel is marked if its value exceeds half of the maximum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from bench.data.content import check_unchanged
from bench.data.decoding import Values, file_errors, format_and_pages, image_size, load, open_page, stored_size, to_rgb
from bench.data.preprocessing import preprocess
from bench.dataset import Sample
from bench.preprocessing import Preprocessing

Bools = NDArray[np.bool_]
Encoding = Literal["two values", "levels", "soft edges"]

MAX_FRACTION = 0.95
"""A mask that marks a larger fraction of its image is reported as possibly inverted."""

MIN_SOFT_MAXIMUM = 64
"""A mask of integers below this contains class or instance numbers; soft edges need more levels."""

FEW_LEVELS = 8
"""Up to this number of levels above zero, only a ramp makes a mask soft; above, a mask without flat areas is soft."""

LOSSY_FLOOR = 25
"""Values up to this of 255, and as far below the maximum, are noise in a mask with lossy compression."""

_LOSSY, _MAYBE_LOSSY = {"JPEG", "MPO"}, {"WEBP", "AVIF", "JPEG2000"}
_EIGHT_NEIGHBORS = np.ones((3, 3), dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class MaskFile:
    """The pixels that one mask file marks.

    Attributes:
        defects: (h, w) at the size of the file, True for defect pixels.
        encoding: "two values", several "levels" of which each marks a defect, or "soft edges" that are thresholded at
            half of the maximum.
        levels: the smallest distinct values above zero, at most eight.
    """

    defects: Bools
    encoding: Encoding
    levels: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SampleMask:
    """The union of the masks of one sample, preprocessed as its image.

    Attributes:
        mask: (h, w) at the size of the input, True for defect pixels; resized by nearest neighbor.
        soft: (h, w) uint8 in 0..255, the same resized bilinearly.
        regions: number of connected defect regions (8 neighbors) at full size.
        input_regions: the same at the size of the input.
        fraction: marked fraction of the image at full size.
        border_fraction: marked fraction of the outermost rows and columns of the image.
        encodings: the encodings of its files.
        levels: the levels of its files with the encoding "levels".
        has_other_size: whether a file does not have the size of the image, to which it is then scaled.
    """

    mask: Bools
    soft: NDArray[np.uint8]
    regions: int = 0
    input_regions: int = 0
    fraction: float = 0.0
    border_fraction: float = 0.0
    encodings: frozenset[Encoding] = frozenset()
    levels: tuple[float, ...] = ()
    has_other_size: bool = False

    @property
    def may_be_inverted(self) -> bool:
        """Return whether it marks nearly everything, or most of the image and most of its border.

        A large defect inside the image leaves the border unmarked. An inverted mask marks most of it, even if its
        defect reaches the border.
        """
        return self.fraction > MAX_FRACTION or (self.fraction > 0.5 and self.border_fraction > 0.5)


def sample_mask(sample: Sample, preprocessing: Preprocessing) -> SampleMask:
    """Return the union of the masks of a sample; it marks nothing if the sample has none.

    The label of the image does not depend on the mask, because the resize may remove a thin defect.

    Raises:
        BenchError: a mask is unreadable or does not have the aspect ratio of its image.
    """
    empty = SampleMask(np.zeros(preprocessing.size, np.bool_), np.zeros(preprocessing.size, np.uint8))
    if not sample.masks:
        return empty
    mask, soft = empty.mask, empty.soft
    files: list[MaskFile] = []
    for path in sample.masks:
        with file_errors(path, "A mask"):
            files.append(read_mask(path, sample.image, preprocessing))
            picture = Image.fromarray(files[-1].defects)
            mask = mask | np.asarray(preprocess(picture, preprocessing, resample="nearest"))
            gray = Image.fromarray(files[-1].defects.astype(np.uint8) * 255)
            soft = np.maximum(soft, np.asarray(preprocess(gray, preprocessing, resample="bilinear")))
    check_unchanged(sample, *sample.masks)
    full = _union([file.defects for file in files])
    return SampleMask(
        mask,
        soft,
        regions=sum(count_regions(defects) for defects in full),
        input_regions=count_regions(mask),
        fraction=max(float(defects.mean()) for defects in full),
        border_fraction=max(_border_fraction(defects) for defects in full),
        encodings=frozenset(file.encoding for file in files),
        levels=tuple(sorted({level for file in files if file.encoding == "levels" for level in file.levels}))[
            :FEW_LEVELS
        ],
        has_other_size={file.defects.shape[::-1] for file in files} != {image_size(sample.image, preprocessing)},
    )


def read_mask(path: Path, image: Path, preprocessing: Preprocessing) -> MaskFile:
    """Return what a mask file marks. Raises ValueError if it does not fit its image, or has levels but no zero."""
    file_format, n_pages = format_and_pages(path)
    pixels = load(path, replace(preprocessing, page=preprocessing.page if n_pages > 1 else 0), with_alpha=True)
    if isinstance(pixels, Image.Image):
        values = _values(pixels)
        if file_format not in _LOSSY and _has_several_hues(pixels):
            levels = np.unique(values[values > 0])[:FEW_LEVELS]
            _check_size(pixels.size, image, preprocessing)
            return _with_background(MaskFile(values > 0, "levels", tuple(level.item() for level in levels)))
    else:
        values = _deep_values(pixels)
        if not np.isfinite(values).all():
            raise ValueError("it has values that are not finite")
    _check_size((values.shape[1], values.shape[0]), image, preprocessing)
    return _with_background(mark_defects(values, file_format))


def mark_defects(values: Values, file_format: str = "PNG") -> MaskFile:
    """Return which pixels of a mask are defects, by the rule of this module.

    Args:
        values: (h, w), >= 0.
        file_format: Pillow's name; small values of formats with lossy compression are noise.
    """
    if file_format in _LOSSY or (file_format in _MAYBE_LOSSY and len(np.unique(values)) > FEW_LEVELS + 1):
        maximum = int(values.max())
        values = np.where(values <= LOSSY_FLOOR, 0, values)
        values = np.where((values > 0) & (values >= maximum - LOSSY_FLOOR), maximum, values)
    defects: Bools = values > 0
    if not defects.any():
        return MaskFile(defects, "two values", ())
    rows, columns = (np.flatnonzero(defects.any(axis=axis)) for axis in (1, 0))
    box = slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2)
    levels = np.unique(values[box])
    levels = levels[levels > 0]
    lowest_levels = tuple(level.item() for level in levels[:FEW_LEVELS])
    if len(levels) == 1:
        return MaskFile(defects, "two values", lowest_levels)
    if _is_soft(values[box], len(levels)):
        return MaskFile(values > values.max() / 2, "soft edges", lowest_levels)
    return MaskFile(defects, "levels", lowest_levels)


def count_regions(defects: Bools) -> int:
    """Return the number of connected regions, 8 neighbors."""
    return int(ndimage.label(defects, structure=_EIGHT_NEIGHBORS)[1])


def _is_soft(values: Values, n_levels: int) -> bool:
    """Return whether the levels between zero and the maximum are edges and not separate areas."""
    maximum = values.max()
    if values.dtype.kind in "iu" and maximum < MIN_SOFT_MAXIMUM:
        return False
    between: Bools = (values > 0) & (values < maximum)
    lowest, highest = ndimage.minimum_filter(values, 3), ndimage.maximum_filter(values, 3)
    if n_levels <= FEW_LEVELS:
        ramp = between & (lowest < values) & (highest > values)
        return bool(ramp.sum() >= 0.8 * between.sum())
    if _flat(values)[between].mean() >= 0.5:
        return False
    # Noise of lossy compression makes areas of one level nearly flat; a ramp has few such pixels, or many levels.
    middle = (values >= 0.15 * maximum) & (values <= 0.85 * maximum)
    nearly_flat = values[middle & (highest - lowest <= 0.2 * maximum)]
    if nearly_flat.size < 0.5 * middle.sum() or not nearly_flat.size:
        return True
    counts, _ = np.histogram(nearly_flat, bins=20, range=(0, float(maximum)))
    concentrated = max(counts[index : index + 3].sum() for index in range(18)) >= 0.6 * nearly_flat.size
    return not concentrated


def _flat(values: Values) -> Bools:
    """Return which pixels lie in a block of 2 x 2 equal values."""
    flat = np.zeros(values.shape, dtype=np.bool_)
    first = values[:-1, :-1]
    equal = (first == values[1:, :-1]) & (first == values[:-1, 1:]) & (first == values[1:, 1:])
    for rows in (slice(None, -1), slice(1, None)):
        for columns in (slice(None, -1), slice(1, None)):
            flat[rows, columns] |= equal
    return flat


def _values(image: Image.Image) -> Values:
    """Return one value per pixel of an 8-bit mask, (h, w): the largest channel, 0 where it is transparent.

    A palette whose colors do not distinguish its entries, or have no black, is read as the numbers of its entries.
    """
    if image.mode in {"1", "L"} and "transparency" not in image.info:
        return np.asarray(image).astype(np.uint8) if image.mode == "1" else np.asarray(image)
    if image.mode == "P" and "transparency" not in image.info:
        colors = np.asarray(image.convert("RGB")).max(axis=2)
        entries = np.asarray(image)
        is_distinct = len(np.unique(colors)) > 1 or len(np.unique(entries)) == 1
        palette_values: Values = colors if is_distinct and not colors.all() else entries
        return palette_values
    has_alpha = "transparency" in image.info or "A" in image.getbands() or image.mode in {"La", "RGBa"}
    if not has_alpha:
        brightest: Values = np.asarray(to_rgb(image)).max(axis=2)
        return brightest
    return _visible_values(np.asarray(image.convert("RGBA")))


def _deep_values(pixels: Values) -> Values:
    """Return one value per pixel of a mask with more than 8 bits, (h, w), >= 0, by the rule of `_values`.

    Args:
        pixels: (h, w), of which negative numbers are labels too; or (h, w, c), with alpha if c is 2 or 4.
    """
    if pixels.ndim == 3:
        brightest: Values = pixels.max(axis=2)
        return _visible_values(pixels) if pixels.shape[2] in {2, 4} else brightest
    if pixels.dtype.kind == "i":
        pixels = pixels.astype(np.int64)  # the absolute value of the lowest int32 is not an int32
    magnitudes: Values = np.abs(pixels)
    return magnitudes


def _visible_values(channels: Values) -> Values:
    """Return the largest color of each pixel, 0 where it is transparent; of (h, w, c), whose last channel is alpha.

    The opacity is the value if it varies and the color of all visible pixels is the same.
    """
    color, alpha = channels[..., :-1].max(axis=2), channels[..., -1]
    if alpha.min() != alpha.max():
        visible = color[alpha > 0]
        color = alpha if visible.min() == visible.max() else np.where(alpha > 0, color, 0)
    values: Values = color
    return values


def _has_several_hues(image: Image.Image) -> bool:
    """Return whether visible colors differ by more than their brightness, as the colors of classes do.

    The colors of edges do not. The entries of a palette with any color except gray are always classes.
    """
    if image.mode in {"1", "L", "LA"}:
        return False
    channels = np.asarray(image.convert("RGBA")).reshape(-1, 4)  # (n, 4)
    colors = channels[channels[:, 3] > 0, :3].astype(np.float64)
    brightness = colors.max(axis=1, initial=0)
    colors, brightness = colors[brightness >= 32], brightness[brightness >= 32]  # darker ones are rounded too much
    if not len(colors):
        return False
    hues = colors / brightness[:, None]
    if image.mode == "P" and hues.min() < 0.9:
        return True
    return bool(np.abs(hues - hues[brightness.argmax()]).max() > 0.1)


def _with_background(mask: MaskFile) -> MaskFile:
    """Return the mask. Raises ValueError if it has several levels and none of them is zero, which is good."""
    if mask.encoding == "levels" and mask.defects.all():
        levels = ", ".join(f"{level:g}" for level in mask.levels)
        raise ValueError(f"it has the levels {levels} and no zero, but zero must be the level of the good pixels")
    return mask


def _union(masks: Sequence[Bools]) -> list[Bools]:
    """Return the union of masks of one size; masks of several sizes as they are."""
    if len({mask.shape for mask in masks}) == 1:
        return [np.logical_or.reduce(masks)]
    return list(masks)


def _border_fraction(defects: Bools) -> float:
    """Return the marked fraction of the outermost pixels, each counted once."""
    is_border = np.ones(defects.shape, dtype=np.bool_)
    is_border[1:-1, 1:-1] = False
    return float(defects[is_border].mean())


def _check_size(size: tuple[int, int], image: Path, preprocessing: Preprocessing) -> None:
    """Raise ValueError if a mask of `size` (width, height) and its image differ in aspect ratio by over one pixel."""
    width, height = image_size(image, preprocessing)
    if abs(size[0] * height - size[1] * width) <= max(width, height):
        return
    sizes = f"it has {size[0]} x {size[1]} pixels, its image {width} x {height}"
    with open_page(image, preprocessing) as opened:
        stored = stored_size(opened)
    if stored != (width, height) and abs(size[0] * stored[1] - size[1] * stored[0]) <= max(stored):
        raise ValueError(
            f"{sizes} after its EXIF orientation; the mask fits the image as stored, {stored[0]} x {stored[1]}. Rotate "
            f"the mask, or remove the orientation of the image"
        )
    raise ValueError(sizes)
