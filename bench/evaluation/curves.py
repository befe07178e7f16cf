"""Counts for the metrics: for each score of an anomalous item, the number of normal items with a higher or equal score.

Scores in float16 are counted by value, of which there are 65,536. Other scores are sorted in parts of many images, and
the defect scores are looked up in each part: NumPy sorts with vector instructions, which is faster than to assign the
scores to buckets first. The counts are exact.

Maps are read twice, first for the defect scores and then for counting, so they do not have to fit into memory. Only
the distinct defect scores are stored. If there are too many, a subset is stored, and pixels are counted at and between
its scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bench.errors import BenchError

Array = NDArray[Any]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]

MAX_EXACT_SCORES = 1 << 21
"""Largest number of defect pixels for which the metrics are exact, with any number of normal pixels."""

SORT_BUFFER = 1 << 22
"""Smallest number of pixels that are collected before they are sorted."""

PIXELS_PER_SCORE = 16
"""Pixels that are collected per defect score: more need memory, fewer more lookups of the defect scores."""

EIGHT_NEIGHBORS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, slots=True)
class Curve:
    """Counts of items (images or pixels) in u groups of anomalous items, by decreasing score.

    Attributes:
        tp: (..., u) anomalous items in the group.
        region_fraction: (..., u) fraction of the mean defect region in the group; for images, each one is a region.
        fp: (..., u) normal items with a higher score than the group.
        tied_negatives: (..., u) normal items in the group.
        approximate: (u,) False if all items of the group have one score, True if their order is unknown.
        n_negatives: (...) number of normal items.
    """

    tp: Array
    region_fraction: Floats
    fp: Array
    tied_negatives: Array
    approximate: Bools
    n_negatives: Array


def image_curve(scores: Array, anomalous: Bools) -> Curve:
    """Count (n,) images by their scores and labels."""
    values, tp = np.unique(scores[anomalous], return_counts=True)
    normals = np.sort(scores[~anomalous])
    below, equal = _count_below_and_equal(values, normals)
    return Curve(
        tp=tp[::-1],
        region_fraction=tp[::-1] / tp.sum(),
        fp=(normals.size - below - equal)[::-1],
        tied_negatives=equal[::-1],
        approximate=np.zeros(values.size, dtype=bool),
        n_negatives=np.array(normals.size),
    )


def pixel_curve(maps: Sequence[Array], masks: Sequence[Bools], max_scores: int = 0) -> Curve:
    """Count all pixels of n maps (h, w) by their scores and masks.

    For t thresholds there are 2t + 1 groups by increasing score: below the first threshold, at it, between it and the
    second, at the second, and so on. If every score of a defect pixel is a threshold, the groups in between contain
    no defect pixel and are removed.

    Args:
        maps: n arrays (h, w); sizes may differ.
        masks: n arrays (h, w), True for defect pixels. Without any defect pixel u is 0.
        max_scores: largest number of thresholds; 0 for `MAX_EXACT_SCORES`. A plotted curve needs few.

    Raises: BenchError if a value is not finite, or a map and its mask differ in size.
    """
    thresholds = _thresholds(maps, masks, max_scores or MAX_EXACT_SCORES)
    counter = _Float16Counter(thresholds) if thresholds.dtype == np.float16 else _Counter(thresholds)
    tp = np.zeros(2 * thresholds.size + 1, dtype=np.int64)
    region_fraction, n_regions = np.zeros(tp.size), 0
    scores, fractions, n_pending = [thresholds[:0]], [np.zeros(0)], 0
    for index, mask in enumerate(masks):
        score_map = np.asarray(maps[index], dtype=thresholds.dtype)
        counter.add(score_map.ravel())  # (h, w) -> (h*w,)
        defect_scores, pixel_fractions, count = _regions(score_map, np.asarray(mask, dtype=bool))
        scores.append(defect_scores)
        fractions.append(pixel_fractions)
        n_regions, n_pending = n_regions + count, n_pending + defect_scores.size
        if index == len(masks) - 1 or n_pending > MAX_EXACT_SCORES:
            counts = _count_in_groups(np.concatenate(scores), np.concatenate(fractions), thresholds)
            tp, region_fraction = tp + counts[0], region_fraction + counts[1]
            scores, fractions, n_pending = scores[:1], fractions[:1], 0
    above, equal = counter.counts()
    negatives = (_counts_per_group(counter.n_pixels - above - equal, equal, counter.n_pixels) - tp)[::-1]
    groups = np.flatnonzero(tp[::-1])
    return Curve(
        tp=tp[::-1][groups],
        region_fraction=region_fraction[::-1][groups] / n_regions,
        fp=(np.cumsum(negatives) - negatives)[groups],
        tied_negatives=negatives[groups],
        approximate=groups % 2 == 0,
        n_negatives=np.asarray(negatives.sum()),
    )


@dataclass(frozen=True, slots=True)
class ImageCounts:
    """The pixels of n images in g groups of scores that all images share, by decreasing score.

    Attributes:
        tp: (n, g) defect pixels in the group.
        region_fraction: (n, g) fraction of a region in the group, summed over the regions of the image.
        negatives: (n, g) normal pixels in the group.
        n_regions: (n,) connected defect regions.
        approximate: (g,) True if the group contains defect pixels with several scores.
    """

    tp: Counts
    region_fraction: Floats
    negatives: Counts
    n_regions: Counts
    approximate: Bools


def image_counts(maps: Sequence[Array], masks: Sequence[Bools], max_scores: int) -> ImageCounts:
    """Count the pixels of each image, at and between `max_scores` defect scores at most.

    Their weighted sum equals the counts of `pixel_curve` on a set that contains each image with
    multiplicity equal to its weight.
    Raises: BenchError if a value is not finite, or a map and its mask differ in size.
    """
    thresholds = _thresholds(maps, masks, max_scores)
    shape = len(masks), 2 * thresholds.size + 1
    tp, negatives, n_regions = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(len(masks), np.int64)
    region_fraction = np.zeros(shape)
    for index, mask in enumerate(masks):
        score_map = np.asarray(maps[index], dtype=thresholds.dtype)
        below, equal = _count_below_and_equal(thresholds, np.sort(score_map, axis=None))
        defect_scores, pixel_fractions, n_regions[index] = _regions(score_map, np.asarray(mask, dtype=bool))
        tp[index], region_fraction[index] = _count_in_groups(defect_scores, pixel_fractions, thresholds)
        negatives[index] = _counts_per_group(below, equal, score_map.size) - tp[index]
    approximate = (np.arange(shape[1]) % 2 == 0) & (tp.sum(axis=0)[::-1] > 0)
    return ImageCounts(tp[:, ::-1], region_fraction[:, ::-1], negatives[:, ::-1], n_regions, approximate)


def _regions(score_map: Array, mask: Bools) -> tuple[Array, Floats, int]:
    """Return scores (p,) of the defect pixels, 1 / pixels of their region (p,), and the number of regions."""
    box = _bounding_box(mask)
    labels, count = ndimage.label(mask[box], EIGHT_NEIGHBORS)
    region = labels[mask[box]]  # (h, w) -> (p,)
    return score_map[box][mask[box]], (1 / np.maximum(np.bincount(region), 1))[region], count


def _count_in_groups(scores: Array, fractions: Floats, thresholds: Array) -> tuple[Counts, Floats]:
    """Return the number of (p,) defect pixels in each of the 2t + 1 groups, and the sum of their fractions."""
    order = np.argsort(scores)  # searchsorted is several times faster on sorted values
    ordered = scores[order]
    index = np.searchsorted(thresholds, ordered)
    group = 2 * index + (thresholds.take(index, mode="clip") == ordered if thresholds.size else 0)
    counts = np.bincount(group, minlength=2 * thresholds.size + 1)
    return counts, np.bincount(group, weights=fractions[order], minlength=counts.size).astype(np.float64)


def _counts_per_group(below: Counts, equal: Counts, n_pixels: int) -> Counts:
    """Return the pixels in each of the 2t + 1 groups from the counts (t,) below and equal to each threshold."""
    counts = np.zeros(2 * equal.size + 1, dtype=np.int64)
    counts[1::2] = equal
    counts[::2] = np.append(below, n_pixels) - np.append(0, below + equal)
    return counts


def _thresholds(maps: Sequence[Array], masks: Sequence[Bools], max_scores: int) -> Array:
    """Return (t,) distinct scores of defect pixels, increasing, in the dtype of the maps; a subset if too many."""
    samples, size, stride = [np.zeros(0, np.float16)], 0, 1
    for index, mask_array in enumerate(masks):
        score_map, mask = np.asarray(maps[index]), np.asarray(mask_array, dtype=bool)
        if score_map.ndim != 2 or score_map.shape != mask.shape:
            raise BenchError(
                f"A map and its mask must have one size, got {score_map.shape} and {mask.shape} for image {index}. "
                "Fix the method or the mask."
            )
        if not np.isfinite(score_map).all():
            raise BenchError(f"Maps must be finite; the map of image {index} is not. Fix the method.")
        box = _bounding_box(mask)
        scores = score_map[box][mask[box]]  # (p,); empty for a good image, which still contributes its dtype
        samples.append(scores if stride == 1 else np.sort(scores)[::stride])
        size += samples[-1].size
        if size > max_scores:
            subset = np.sort(np.concatenate(samples))
            distinct = np.unique(subset)
            subset = distinct if 4 * distinct.size <= subset.size else subset
            while subset.size > max_scores:  # ties are stored, so a score of many pixels stays in the subset
                subset, stride = subset[::2], 2 * stride
            samples, size = [subset], subset.size
    values = np.unique(np.concatenate(samples))
    return values if values.dtype in (np.float16, np.float32) else values.astype(np.float64)


def _bounding_box(mask: Bools) -> tuple[slice, slice]:
    """Return the smallest box around all defects; defects are small, so this saves most of the work."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if rows.size else np.s_[:0, :0]


class _Counter:
    """Count the pixels above and equal to each of `values` (t,), which are distinct and increasing."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.n_pixels = 0
        self._above, self._equal = np.zeros(values.size, dtype=np.int64), np.zeros(values.size, dtype=np.int64)
        self._unsorted: list[Array] = []
        self._n_unsorted = 0

    def add(self, scores: Array) -> None:
        """Count (m,) pixels."""
        self.n_pixels += scores.size
        self._unsorted.append(scores)
        self._n_unsorted += scores.size
        if self._n_unsorted > max(SORT_BUFFER, PIXELS_PER_SCORE * self.values.size):
            self._sort()

    def counts(self) -> tuple[Counts, Counts]:
        """Return (t,) pixels above and (t,) pixels equal to each value."""
        self._sort()
        return self._above, self._equal

    def _sort(self) -> None:
        ordered = np.concatenate([self.values[:0], *self._unsorted])
        ordered.sort()
        self._unsorted, self._n_unsorted = [], 0
        below, equal = _count_below_and_equal(self.values, ordered)
        self._above += ordered.size - below - equal
        self._equal += equal


class _Float16Counter:
    """The same for scores in float16: one count per value that float16 can represent."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.n_pixels = 0
        self._counts = np.zeros(1 << 16, dtype=np.int64)

    def add(self, scores: Array) -> None:
        """Count (m,) pixels."""
        self.n_pixels += scores.size
        np.add.at(self._counts, _FLOAT16_RANKS[scores.view(np.uint16)], 1)

    def counts(self) -> tuple[Counts, Counts]:
        """Return (t,) pixels above and (t,) pixels equal to each value."""
        ranks = _FLOAT16_RANKS[self.values.view(np.uint16)]
        return self.n_pixels - np.cumsum(self._counts)[ranks], self._counts[ranks]


def _count_below_and_equal(values: Array, ordered: Array) -> tuple[Counts, Counts]:
    """Return how many of `ordered` (increasing) lie below each of `values`, and how many are equal to it."""
    up_to = np.searchsorted(ordered, values, side="right")
    equal = np.zeros(values.size, dtype=np.int64)
    if ordered.size:
        equal[:] = ordered.take(up_to - 1, mode="wrap") == values  # up_to = 0 wraps to the largest, which differs
        several = np.flatnonzero(ordered.take(up_to - 2, mode="wrap") == values)
        equal[several] = up_to[several] - np.searchsorted(ordered, values[several])
    return up_to - equal, equal


_FLOAT16_RANKS: Indices = np.unique(np.arange(1 << 16, dtype=np.uint16).view(np.float16), return_inverse=True)[1]
"""(65536,) rank of each float16 value by its bit pattern; both zeros have the same rank."""
