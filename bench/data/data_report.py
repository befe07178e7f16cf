"""What a record states about the images and masks behind its metrics, and the warnings about them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.data.decoding import image_size
from bench.data.masks import SampleMask
from bench.dataset import Sample
from bench.preprocessing import Preprocessing

MAX_NAMES = 6
"""Number of images that a warning names."""

MAX_SCALE = 2
"""An image whose side is longer than this times the longest of training, or shorter in this ratio, is far from them."""

MAX_STRETCH = 1.2
"""The same for the aspect ratio."""


def image_sizes(samples: Sequence[Sample], preprocessing: Preprocessing) -> dict[str, list[float]]:
    """Return the smallest and the largest "width" and "height" in pixels, and "aspect" (width / height), of images."""
    sizes = [image_size(sample.image, preprocessing) for sample in samples]
    if not sizes:
        return {}
    values: dict[str, list[float]] = {
        "width": [width for width, _ in sizes],
        "height": [height for _, height in sizes],
        "aspect": [width / height for width, height in sizes],
    }
    return {name: [min(per_image), max(per_image)] for name, per_image in values.items()}


def size_warning(size: tuple[int, int], sizes: Mapping[str, Sequence[float]]) -> str:
    """Return how an image of `size` (width, height) differs from the training images, or "" if it is close to them.

    Args:
        size: size in pixels.
        sizes: sizes of the training images, as `image_sizes` returns them; empty if unknown.
    """
    if not sizes:
        return ""
    width, height = size
    (low_width, high_width), (low_height, high_height) = sizes["width"], sizes["height"]
    is_far = not (
        low_width / MAX_SCALE <= width <= high_width * MAX_SCALE
        and low_height / MAX_SCALE <= height <= high_height * MAX_SCALE
        and sizes["aspect"][0] / MAX_STRETCH <= width / height <= sizes["aspect"][1] * MAX_STRETCH
    )
    trained = f"{low_width:g}-{high_width:g} x {low_height:g}-{high_height:g}"
    if low_width == high_width and low_height == high_height:
        trained = f"{low_width:g} x {low_height:g}"
    return f"it has {width} x {height} pixels, the training images {trained}" if is_far else ""


def size_warnings(
    name: str, samples: Sequence[Sample], sizes: Mapping[str, Sequence[float]], preprocessing: Preprocessing
) -> Iterator[str]:
    """Yield the warnings about images that the resize changes differently from others.

    Args:
        name: name of the category or task.
        samples: the test samples.
        sizes: sizes of the training images, as `image_sizes` returns them.
        preprocessing: the preprocessing.
    """
    if not sizes:
        return
    narrowest, widest = sizes["aspect"]
    if widest > narrowest * MAX_STRETCH**2 and not preprocessing.keep_aspect:
        yield (
            f"{name}: the training images have aspect ratios (width / height) from {narrowest:.3g} to {widest:.3g} and "
            f"all become {preprocessing.width} x {preprocessing.height} pixels."
        )
    texts = [(sample.id, size_warning(image_size(sample.image, preprocessing), sizes)) for sample in samples]
    far = [(image, text) for image, text in texts if text]
    if far:
        yield (
            f"{name}: {len(far)} of {len(texts)} test images have another size than the training images, for example "
            f"{far[0][0]}: {far[0][1]}. The resize changes them differently, which their scores may show."
        )


def mask_report(samples: Sequence[Sample], masks: Sequence[SampleMask]) -> dict[str, Any]:
    """Return the unusual properties of the masks of a category's defective test images; empty if there are none.

    Returns:
        "images": defective images with mask files. "regions", "input_regions": their defect regions at full size and
        at the size of the input. "black", "vanished": ids of the images whose masks mark nothing at full size, or only
        at the size of the input; their pixels are unknown. "changed": ids of the images whose number of regions
        changes. "levels": levels above zero of masks with several. "soft_edges": ids of the images whose masks are
        thresholded at half of the maximum. "inverted": ids of the images whose masks mark most of the image.
        "other_size": ids of the images whose masks have another size.
    """
    masked = [(sample.id, mask) for sample, mask in zip(samples, masks, strict=True) if sample.masks]
    if not masked:
        return {}
    return {
        "images": len(masked),
        "regions": sum(mask.regions for _, mask in masked),
        "input_regions": sum(mask.input_regions for _, mask in masked),
        "black": [name for name, mask in masked if not mask.regions],
        "vanished": [name for name, mask in masked if mask.regions and not mask.input_regions],
        "changed": [name for name, mask in masked if mask.regions != mask.input_regions],
        "levels": sorted({level for _, mask in masked for level in mask.levels}),
        "soft_edges": [name for name, mask in masked if "soft edges" in mask.encodings],
        "inverted": [name for name, mask in masked if mask.may_be_inverted],
        "other_size": [name for name, mask in masked if mask.has_other_size],
    }


def mask_warnings(category: str, report: Mapping[str, Any], *, at_original: bool) -> Iterator[str]:
    """Yield the warnings that follow from a report of `mask_report`.

    Args:
        category: name of the category.
        report: report on its masks.
        at_original: whether pixel metrics are computed at the original size, where no mask is resized.
    """
    if not report:
        return
    empty, vanished, modified, soft, inverted, scaled = (
        _count_and_names(report, key)
        for key in ("black", "vanished", "changed", "soft_edges", "inverted", "other_size")
    )
    if empty:
        yield f"{category}: {empty[0]} mark nothing; the pixels of these defective images are unknown: {empty[1]}."
    if vanished and not at_original:
        yield (
            f"{category}: {vanished[0]} mark nothing at the size of the input; the pixels of these images are "
            f"unknown: {vanished[1]}. --resolution original evaluates them."
        )
    if modified and not at_original:
        yield (
            f"{category}: the resize changes the number of defect regions of {modified[0]}, from {report['regions']} "
            f"to {report['input_regions']} in total: {modified[1]}. Pixel metrics differ with --resolution original."
        )
    if report["levels"]:
        levels = ", ".join(f"{level:g}" for level in report["levels"])
        yield f"{category}: masks have several levels ({levels}); every pixel above zero is a defect."
    if soft:
        yield f"{category}: {soft[0]} have soft edges; pixels above half of the maximum are defects: {soft[1]}."
    if inverted:
        yield (
            f"{category}: {inverted[0]} mark most of the image and may be inverted: {inverted[1]}. Pixels above zero "
            f"must be the defects."
        )
    if scaled:
        yield f"{category}: {scaled[0]} do not have the size of their image and are scaled to it: {scaled[1]}."


def _count_and_names(report: Mapping[str, Any], key: str) -> tuple[str, str] | None:
    """Return "2 of 6 masks" and the names of the images, or None if there are none."""
    names = report[key]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return (f"{len(names)} of {report['images']} masks", ", ".join(names[:MAX_NAMES]) + more) if names else None
