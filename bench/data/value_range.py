"""The range of values that images with more than 8 bits per channel use, and the scale to 8 bits that follows from it.

A file does not state how many bits its camera has: 12-bit values are stored in 16-bit files, temperatures as floats. So
the scale is computed from the training images of a fit, stored in its record, and applied to test images and by
`bench predict` as well. Images with 8 bits are never scaled.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.data.content import check_unchanged
from bench.data.data_report import MAX_NAMES
from bench.data.decoding import file_errors, has_floats, has_more_than_8_bits, load
from bench.dataset import Sample
from bench.errors import BenchError
from bench.preprocessing import Preprocessing

DEPTHS = (8, 10, 12, 14, 16)
"""Bits per channel that cameras have. The scale is that of the smallest depth that contains all training values."""

NARROW = 1 / 8
"""Fraction of a range below which it is narrow: of the type of the files, a warning; of the depth, a stretch."""

MARGIN = 0.5
"""A stretch adds this times the used range on both sides, so that defects may be darker or brighter than training."""


@dataclass(frozen=True, slots=True)
class ValueRange:
    """The values of training images with more than 8 bits per channel, and their scale.

    Attributes:
        n_images: number of these images.
        low, high: the smallest and the largest value.
        type_low, type_high: the range of the type of the files; of floats, 0 to 1.
        black, white: the values that become 0 and 255.
        mixed_types: if some are floats and others integers, both types, each with the id of an image; else "".
    """

    n_images: int
    low: float
    high: float
    type_low: float
    type_high: float
    black: float
    white: float
    mixed_types: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return asdict(self)

    @property
    def used_fraction(self) -> float:
        """Return the fraction of the type's range that the values span."""
        return (self.high - self.low) / (self.type_high - self.type_low)

    @property
    def is_stretched(self) -> bool:
        """Return whether the scale is not that of a whole bit depth, or of 0 to 1."""
        return self.black != 0 or self.white not in {1.0, *(float(2**depth - 1) for depth in range(8, 33))}


def find_value_range(samples: Sequence[Sample], preprocessing: Preprocessing) -> ValueRange | None:
    """Return the range over the samples, or None if all have 8 bits or less per channel.

    Decodes the samples with more than 8 bits once. `black` and `white` of the preprocessing override the computed ones.

    Raises:
        BenchError: a sample is unreadable, or has values that are not finite.
    """
    extremes: list[tuple[float, float]] = []
    examples: dict[np.dtype[Any], str] = {}  # type -> id of the first image that has it
    for sample in samples:
        if has_more_than_8_bits(sample.image, preprocessing):
            with file_errors(sample.image, "An image"):
                values = load(sample.image, preprocessing)
                assert not isinstance(values, Image.Image)
                low, high = float(values.min()), float(values.max())
                if not np.isfinite([low, high]).all():
                    raise ValueError("it has values that are not finite")
            check_unchanged(sample, sample.image)
            extremes.append((low, high))
            examples.setdefault(values.dtype, sample.id)
    if not extremes:
        return None
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    type_low, type_high = _type_range(set(examples), low, high)
    black, white = _scale(low, high, is_float=any(dtype.kind == "f" for dtype in examples))
    if preprocessing.black is not None and preprocessing.white is not None:
        black, white = preprocessing.black, preprocessing.white
    return ValueRange(len(extremes), low, high, type_low, type_high, black, white, _mixed_types(examples))


def with_value_range(
    preprocessing: Preprocessing, samples: Sequence[Sample]
) -> tuple[Preprocessing, ValueRange | None]:
    """Return the preprocessing with black and white from the training samples, and the range if there is one."""
    values = find_value_range(samples, preprocessing)
    return (replace(preprocessing, black=values.black, white=values.white) if values else preprocessing), values


def value_range_warnings(name: str, values: ValueRange | None, n_samples: int, *, is_given: bool) -> Iterator[str]:
    """Yield the warnings about a range.

    Args:
        name: name of the fit: "bolt".
        values: the range, None if all training images have 8 bits per channel.
        n_samples: number of training samples, with any number of bits.
        is_given: whether black and white were set by the user and not computed.
    """
    if values is None:
        if is_given:
            yield f"{name}: all training images have 8 bits per channel; --depth scales only others."
        return
    used = (
        f"{name}: the values of {values.n_images} training images with more than 8 bits per channel run from "
        f"{_text(values.low)} to {_text(values.high)}"
    )
    scale = f"{_text(values.black)} becomes black and {_text(values.white)} white"
    if is_given and (values.low < values.black or values.high > values.white):
        yield f"{used}; {scale}, and values outside are clipped. Pass a larger --depth."
    elif values.used_fraction < NARROW or (values.is_stretched and not is_given):
        of_type = (
            f"{100 * values.used_fraction:.2g} % of the range {_text(values.type_low)} to {_text(values.type_high)}"
        )
        fix = "" if is_given else " Pass --depth to set the scale."
        yield f"{used}, {of_type} of their type; {scale}.{fix}"
    if values.mixed_types:
        yield (
            f"{name}: training images of one category must have one type, got {values.mixed_types}; all have one "
            f"scale, so those of the smaller range become nearly uniform. Save all of them with one type."
        )
    if values.n_images < n_samples:
        yield (
            f"{name}: {values.n_images} of {n_samples} training images have more than 8 bits per channel; the others "
            f"are not scaled. Save all of them with one depth."
        )


def clipped_fraction(image: Path, preprocessing: Preprocessing) -> float:
    """Return the fraction of an image's values outside black..white; 0 if it has 8 bits per channel.

    Raises:
        BenchError: the image is unreadable.
    """
    if preprocessing.black is None or not has_more_than_8_bits(image, preprocessing):
        return 0.0
    with file_errors(image, "An image"):
        values = load(image, preprocessing)
        assert not isinstance(values, Image.Image)
    return float(((values < preprocessing.black) | (values > preprocessing.white)).mean())


def clipping_warning(name: str, fractions: Mapping[str, float], preprocessing: Preprocessing) -> str:
    """Return the warning about test images with values outside black..white, or "" if there are none.

    Args:
        name: name of the category.
        fractions: clipped fraction of each image, by its id.
        preprocessing: preprocessing of the images.
    """
    clipped = {image: fraction for image, fraction in fractions.items() if fraction > 0}
    if not clipped or preprocessing.black is None or preprocessing.white is None:
        return ""
    names = _first_names(sorted(clipped, key=lambda image: -clipped[image]))
    return (
        f"{name}: {len(clipped)} of {len(fractions)} test images have values outside {_text(preprocessing.black)} to "
        f"{_text(preprocessing.white)}, which are clipped, up to {100 * max(clipped.values()):.2g} % of an image: "
        f"{names}. Pass a larger --depth."
    )


def unscaled_warning(name: str, train: Sequence[Sample], test: Sequence[Sample], preprocessing: Preprocessing) -> str:
    """Return the warning about test images of 8 bits or another type than training images of more, "" if none are.

    Args:
        name: name of the category.
        train: training images.
        test: test images.
        preprocessing: preprocessing of the images.
    """
    if preprocessing.black is None:
        return ""
    deep_train = [each for each in train if has_more_than_8_bits(each.image, preprocessing)]
    if not deep_train:
        return ""
    warnings = []
    unscaled = [each.id for each in test if not has_more_than_8_bits(each.image, preprocessing)]
    if unscaled:
        warnings.append(
            f"{name}: {len(unscaled)} of {len(test)} test images have 8 bits per channel, training images more; only "
            f"these are scaled, so scores are not comparable: {_first_names(unscaled)}. Save all of them with one "
            f"depth."
        )
    types = {has_floats(each.image, preprocessing) for each in deep_train}
    unscaled_ids = set(unscaled)
    deep_test = [each for each in test if each.id not in unscaled_ids]
    other = [each.id for each in deep_test if has_floats(each.image, preprocessing) not in types]
    if other:
        test_type, train_type = ("integers", "floats") if True in types else ("floats", "integers")
        warnings.append(
            f"{name}: {len(other)} of {len(test)} test images have {test_type}, training images {train_type}, as "
            f"{deep_train[0].id}; all have one scale, so scores are not comparable: {_first_names(other)}. Save all of "
            f"them with one type."
        )
    return " ".join(warnings)


def _first_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def stored_value_range(preprocessing: Preprocessing, data_report: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing with the black and white that a record's `data_report` has, if it has any.

    Raises BenchError if they are not numbers.
    """
    values = data_report.get("value_range")
    if not values:
        return preprocessing
    limits = [values.get(name) for name in ("black", "white")] if isinstance(values, dict) else [None]
    if not all(isinstance(limit, int | float) for limit in limits):
        raise BenchError(f"value_range of a record must have numbers black and white, got {values!r:.80}.")
    return replace(preprocessing, black=values["black"], white=values["white"])


def depth_range(depth: int) -> tuple[float, float]:
    """Return the values of black and white of a bit depth, as --depth sets them."""
    if not 8 <= depth <= 32:
        raise BenchError(f"depth must be from 8 to 32 bits per channel, or 0 to find it, got {depth}. Pass --depth 12.")
    return 0.0, float(2**depth - 1)


def _mixed_types(examples: Mapping[np.dtype[Any], str]) -> str:
    """Return "float32 (image) and uint16 (image)" if there are floats and integers, else "".

    Integers of several types are not reported: their type follows from the format of the file.
    """
    by_kind = {dtype.kind == "f": f"{dtype.name} ({image})" for dtype, image in reversed(list(examples.items()))}
    return f"{by_kind[True]} and {by_kind[False]}" if len(by_kind) == 2 else ""


def _type_range(types: set[np.dtype[Any]], low: float, high: float) -> tuple[float, float]:
    """Return the range of the type of the files; Pillow reads signed and unsigned 16-bit files as 32-bit integers."""
    if any(dtype.kind == "f" for dtype in types):
        return min(low, 0.0), max(high, 1.0)
    if low >= 0 and (high <= 65535 or high >= 2**31):
        return 0.0, 65535.0 if high <= 65535 else 2.0**32 - 1
    return (-32768.0, 32767.0) if low >= -32768 and high <= 32767 else (-(2.0**31), 2.0**31 - 1)


def _scale(low: float, high: float, *, is_float: bool) -> tuple[float, float]:
    """Return the values of black and white: a whole bit depth, or a stretch if the values use little of it."""
    if low >= 0:
        maxima = (1.0,) if is_float else tuple(float(2**depth - 1) for depth in DEPTHS)
        maximum = next((maximum for maximum in maxima if high <= maximum), 0.0)
        if maximum and high - low >= NARROW * maximum:
            return 0.0, maximum
    span = (high - low) or (abs(high) * 0.01 or 1.0)
    return low - MARGIN * span, high + MARGIN * span


def _text(value: float) -> str:
    return f"{value:.6g}"
