"""Counts for the metrics: for each score of an anomalous item, the number of normal items with a higher or equal score.

Pixels are counted without sorting all of them: a non-decreasing function assigns every score to a bucket. Buckets
without defect scores are only counted; the few pixels that share a bucket with a defect score are sorted. The counts
are exact.

Maps are read twice, first for the defect scores and then for counting, so they do not have to fit into memory. Only
the distinct defect scores are stored. If there are too many, a subset is stored, and pixels are counted at and between
its scores.
"""

from collections.abc import Callable, Sequence
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

BUCKETS = 1 << 18
"""Largest number of buckets; more buckets cost cache misses, fewer cost sorting."""

SORT_BUFFER = 1 << 22
"""Smallest number of pixels, of buckets with a defect score, that are collected before they are sorted."""

EIGHT_NEIGHBORS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, slots=True)
class Curve:
    """Counts of items (images or pixels) in u groups of anomalous items, by decreasing score.

    Attributes:
        tp: (..., u) anomalous items in the group.
        region_share: (..., u) share of the mean defect region in the group; of images, each one is a region.
        fp: (..., u) normal items with a higher score than the group.
        tied_negatives: (..., u) normal items in the group.
        approximate: (u,) False if all items of the group have one score, True if their order is unknown.
        n_negatives: (...) number of normal items.
    """

    tp: Array
    region_share: Floats
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
        region_share=tp[::-1] / tp.sum(),
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
        masks: n arrays (h, w), True on defect pixels. Without any defect pixel u is 0.
        max_scores: largest number of thresholds; 0 for `MAX_EXACT_SCORES`. A plotted curve needs few.

    Raises: BenchError if a value is not finite, or a map and its mask differ in size.
    """
    thresholds = _thresholds(maps, masks, max_scores or MAX_EXACT_SCORES)
    counter = _Counter(thresholds)
    tp = np.zeros(2 * thresholds.size + 1, dtype=np.int64)
    region_share, n_regions = np.zeros(tp.size), 0
    scores, shares, n_pending = [thresholds[:0]], [np.zeros(0)], 0
    for index, mask in enumerate(masks):
        score_map = np.asarray(maps[index], dtype=thresholds.dtype)
        counter.add(score_map.ravel())  # (h, w) -> (h*w,)
        defect_scores, pixel_shares, count = _regions(score_map, np.asarray(mask, dtype=bool))
        scores.append(defect_scores)
        shares.append(pixel_shares)
        n_regions, n_pending = n_regions + count, n_pending + defect_scores.size
        if index == len(masks) - 1 or n_pending > MAX_EXACT_SCORES:
            counts = _count_in_groups(np.concatenate(scores), np.concatenate(shares), thresholds)
            tp, region_share = tp + counts[0], region_share + counts[1]
            scores, shares, n_pending = scores[:1], shares[:1], 0
    above, equal = counter.counts()
    negatives = (_counts_per_group(counter.n_pixels - above - equal, equal, counter.n_pixels) - tp)[::-1]
    groups = np.flatnonzero(tp[::-1])
    return Curve(
        tp=tp[::-1][groups],
        region_share=region_share[::-1][groups] / n_regions,
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
        region_share: (n, g) share of a region in the group, summed over the regions of the image.
        negatives: (n, g) normal pixels in the group.
        n_regions: (n,) connected defect regions.
        approximate: (g,) True if the group contains defect pixels with several scores.
    """

    tp: Counts
    region_share: Floats
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
    region_share = np.zeros(shape)
    for index, mask in enumerate(masks):
        score_map = np.asarray(maps[index], dtype=thresholds.dtype)
        below, equal = _count_below_and_equal(thresholds, np.sort(score_map, axis=None))
        defect_scores, pixel_shares, n_regions[index] = _regions(score_map, np.asarray(mask, dtype=bool))
        tp[index], region_share[index] = _count_in_groups(defect_scores, pixel_shares, thresholds)
        negatives[index] = _counts_per_group(below, equal, score_map.size) - tp[index]
    approximate = (np.arange(shape[1]) % 2 == 0) & (tp.sum(axis=0)[::-1] > 0)
    return ImageCounts(tp[:, ::-1], region_share[:, ::-1], negatives[:, ::-1], n_regions, approximate)


def _regions(score_map: Array, mask: Bools) -> tuple[Array, Floats, int]:
    """Return scores (p,) of the defect pixels, 1 / pixels of their region (p,), and the number of regions."""
    box = _bounding_box(mask)
    labels, count = ndimage.label(mask[box], EIGHT_NEIGHBORS)
    region = labels[mask[box]]  # (h, w) -> (p,)
    return score_map[box][mask[box]], (1 / np.maximum(np.bincount(region), 1))[region], count


def _count_in_groups(scores: Array, shares: Floats, thresholds: Array) -> tuple[Counts, Floats]:
    """Return the number of (p,) defect pixels in each of the 2t + 1 groups, and the sum of their shares."""
    order = np.argsort(scores)  # searchsorted is several times faster on sorted values
    ordered = scores[order]
    index = np.searchsorted(thresholds, ordered)
    group = 2 * index + (thresholds.take(index, mode="clip") == ordered if thresholds.size else 0)
    counts = np.bincount(group, minlength=2 * thresholds.size + 1)
    return counts, np.bincount(group, weights=shares[order], minlength=counts.size).astype(np.float64)


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
        self._bucket_of, n_buckets, self._one_score_per_bucket = _buckets(values)
        self._value_buckets = self._bucket_of(values)
        self._bucket_counts = np.zeros(n_buckets, dtype=np.int64)
        self._needs_sorting = np.zeros(n_buckets, dtype=bool)
        self._needs_sorting[self._value_buckets] = not self._one_score_per_bucket
        self._above, self._equal = np.zeros(values.size, dtype=np.int64), np.zeros(values.size, dtype=np.int64)
        self._unsorted: list[Array] = []
        self._n_unsorted = 0

    def add(self, scores: Array) -> None:
        """Count (m,) pixels."""
        buckets = self._bucket_of(scores)
        np.add.at(self._bucket_counts, buckets, 1)
        self.n_pixels += scores.size
        if self._one_score_per_bucket:
            return
        self._unsorted.append(scores.compress(self._needs_sorting[buckets]))
        self._n_unsorted += self._unsorted[-1].size
        if self._n_unsorted > max(SORT_BUFFER, 4 * self.values.size):
            self._sort()

    def counts(self) -> tuple[Counts, Counts]:
        """Return (t,) pixels above and (t,) pixels equal to each value."""
        self._sort()
        counts = np.where(self._needs_sorting, 0, self._bucket_counts)
        above = counts.sum() - np.cumsum(counts)[self._value_buckets]
        return self._above + above, self._equal + counts[self._value_buckets]

    def _sort(self) -> None:
        ordered = np.concatenate([self.values[:0], *self._unsorted])
        ordered.sort()
        self._unsorted, self._n_unsorted = [], 0
        below, equal = _count_below_and_equal(self.values, ordered)
        self._above += ordered.size - below - equal
        self._equal += equal


def _count_below_and_equal(values: Array, ordered: Array) -> tuple[Counts, Counts]:
    """Return how many of `ordered` (increasing) lie below each of `values`, and how many are equal to it."""
    up_to = np.searchsorted(ordered, values, side="right")
    equal = np.zeros(values.size, dtype=np.int64)
    if ordered.size:
        equal[:] = ordered.take(up_to - 1, mode="wrap") == values  # up_to = 0 wraps to the largest, which differs
        several = np.flatnonzero(ordered.take(up_to - 2, mode="wrap") == values)
        equal[several] = up_to[several] - np.searchsorted(ordered, values[several])
    return up_to - equal, equal


def _buckets(values: Array) -> tuple[Callable[[Array], Indices], int, bool]:
    """Return a non-decreasing function from scores to buckets, the number of buckets, and if each has one score only.

    float16 has one bucket per representable value. Otherwise the range of most `values` (increasing) is divided
    evenly: multiplication, subtraction and clipping are monotone after rounding, so equal scores share a bucket and a
    higher score never has a lower bucket, which keeps the counts exact. An outlier must not push all other scores into
    one bucket, so scores farther out than the width of the middle 98 % share the first or last bucket.
    """
    if values.dtype == np.float16:
        return lambda scores: _FLOAT16_RANKS[scores.view(np.uint16)], 1 << 16, True
    n_buckets = min(BUCKETS, 8 * values.size + 8)
    n_tail = values.size // 100
    lowest, low, high, highest = values[[0, n_tail, -1 - n_tail, -1]] if values.size else np.zeros(4, values.dtype)
    with np.errstate(over="ignore"):  # an overflowing range gives scale 0 and one bucket: slow, but still exact
        start, stop = max(lowest, low - (high - low)), min(highest, high + (high - low))
        minimum = np.finfo(values.dtype).tiny * n_buckets
        width = max(stop - start, minimum) if stop > start else values.dtype.type(n_buckets)
    scale = (n_buckets - 3) / width
    offset = start * scale - 1
    ends = values.dtype.type(0), values.dtype.type(n_buckets - 1)

    def bucket_of(scores: Array) -> Indices:
        with np.errstate(over="ignore"):  # infinity is clipped as well
            index = scores * scale
            index -= offset
        buckets: Indices = np.clip(index, *ends, out=index).astype(np.intp)
        return buckets

    return bucket_of, n_buckets, False


_FLOAT16_RANKS: Indices = np.unique(np.arange(1 << 16, dtype=np.uint16).view(np.float16), return_inverse=True)[1]
"""(65536,) rank of each float16 value by its bit pattern; both zeros have the same rank."""
