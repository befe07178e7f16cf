"""What a record says about the images and masks behind its numbers, and the warnings about them."""

import logging
from collections.abc import Sequence
from typing import Any

from bench.data.decoding import image_size
from bench.data.masks import SampleMask
from bench.dataset import Sample
from bench.method import Preprocessing

MAX_NAMES = 6
"""Number of images that a warning names."""

_log = logging.getLogger(__name__)


def image_sizes(samples: Sequence[Sample], preprocessing: Preprocessing) -> dict[str, list[int]]:
    """Return the smallest and the largest width and height of some images in pixels: {"width": [900, 1000], ...}."""
    sizes = [image_size(sample.image, preprocessing) for sample in samples]
    widths, heights = [width for width, _ in sizes], [height for _, height in sizes]
    return {"width": [min(widths), max(widths)], "height": [min(heights), max(heights)]} if sizes else {}


def mask_report(
    category: str, samples: Sequence[Sample], masks: Sequence[SampleMask], *, at_original: bool
) -> dict[str, Any]:
    """Return counts of the masks of a category's defective test images, and log warnings about them.

    Args:
        category: its name.
        samples: the test images.
        masks: the mask of each.
        at_original: whether pixel metrics are computed at the original size, where no mask is resized.

    Returns:
        "images": defective images with mask files. "regions", "input_regions": defect regions at full size and at the
        size of the input. "black", "vanished": ids of the images whose mask marks nothing at full size, or only at the
        size of the input; their pixels are unknown. "changed": ids of the images whose number of regions changes.
        "levels": levels above zero of masks with several. "soft_edges": ids of the images whose mask is cut at half.
    """
    masked = [(sample.id, mask) for sample, mask in zip(samples, masks, strict=True) if sample.masks]
    if not masked:
        return {}
    black = [name for name, mask in masked if not mask.regions]
    vanished = [name for name, mask in masked if mask.regions and not mask.input_regions]
    changed = [name for name, mask in masked if mask.regions != mask.input_regions]
    with_levels = [name for name, mask in masked if "levels" in mask.kinds]
    soft = [name for name, mask in masked if "soft edges" in mask.kinds]
    inverted = [name for name, mask in masked if mask.may_be_inverted]
    report: dict[str, Any] = {
        "images": len(masked),
        "regions": sum(mask.regions for _, mask in masked),
        "input_regions": sum(mask.input_regions for _, mask in masked),
        "black": black,
        "vanished": vanished,
        "changed": changed,
        "levels": sorted({level for _, mask in masked for level in mask.levels}),
        "soft_edges": soft,
    }
    total = len(masked)
    if black:
        _log.warning("%s: %d of %d masks mark nothing; the pixels of these defective images are unknown: %s.",
                     category, len(black), total, _names(black))  # fmt: skip
    if vanished and not at_original:
        _log.warning("%s: %d of %d masks mark nothing at the size of the input; the pixels of these defective images "
                     "are unknown: %s. --resolution original evaluates them.",
                     category, len(vanished), total, _names(vanished))  # fmt: skip
    if changed and not at_original:
        _log.warning("%s: the resize changes the number of defect regions of %d of %d masks, from %d to %d in total: "
                     "%s. Pixel metrics differ with --resolution original.", category, len(changed), total,
                     report["regions"], report["input_regions"], _names(changed))  # fmt: skip
    if with_levels:
        levels = ", ".join(f"{level:g}" for level in report["levels"])
        _log.warning("%s: %d of %d masks have several levels (%s); every pixel above zero is a defect.",
                     category, len(with_levels), total, levels)  # fmt: skip
    if soft:
        _log.warning("%s: %d of %d masks have soft edges; pixels above half of the maximum are defects: %s.",
                     category, len(soft), total, _names(soft))  # fmt: skip
    if inverted:
        _log.warning("%s: %d of %d masks mark most of the image and may be inverted; defects must be above zero: %s.",
                     category, len(inverted), total, _names(inverted))  # fmt: skip
    return report


def _names(names: Sequence[str]) -> str:
    rest = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + rest
