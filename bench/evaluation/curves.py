"""What metrics need of many pixels: how many normal ones lie above each defect score, and how many at it.

Pixels are counted and never sorted as a whole: a rising map sends every score to a bucket, a bucket that holds no
defect score is only counted, and the few pixels that share a bucket with a defect score are sorted. That is exact.

Maps are walked twice, first for the defect scores and then to count, so they need not fit into memory. Only the
distinct defect scores are held; where even these are too many, some are, and counts are taken at and between them.
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
Places = NDArray[np.intp]

MAX_EXACT_SCORES = 1 << 21
"""Up to how many defect pixels all their scores are held, however many normal pixels there are."""

BUCKETS = 1 << 18
"""Into how many the range of the defect scores is cut, at most; more cost cache misses, fewer cost sorting."""

SORT_BUFFER = 1 << 22
"""How many pixels that share a bucket with a defect score wait until they are sorted, at least."""

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, slots=True)
class Curve:
    """All that the metrics need of items (images or pixels): u groups of anomalous ones, from the highest score down.

    Attributes:
        found: (..., u) anomalous items in the group.
        overlap: (..., u) the share of the mean defect region that the group holds; of images, each is a region.
        above: (..., u) normal items above the group.
        level: (..., u) normal items in the group.
        mixed: (u,) False where all in the group have one score, True where it spans several in an unknown order.
        normals: (...) how many normal items there are.
    """

    tp: Array
    region_share: Floats
    fp: Array
    tied_negatives: Array
    approximate: Bools
    n_negatives: Array


def image_curve(scores: Array, anomalous: Bools) -> Curve:
    """The curve of (n,) images, of which some are anomalous."""
    values, found = np.unique(scores[anomalous], return_counts=True)
    normals = np.sort(scores[~anomalous])
    lower, level = _rank(values, normals)
    above = normals.size - lower - level
    mixed = np.zeros(values.size, dtype=bool)
    return Curve(found[::-1], found[::-1] / found.sum(), above[::-1], level[::-1], mixed, np.array(normals.size))


def pixel_curve(maps: Sequence[Array], masks: Sequence[Bools], hold: int = 0) -> Curve:
    """The curve of all pixels of n maps (h, w) whose masks are True on defects; u = 0 where there are no defects.

    For t thresholds there are 2t + 1 groups, rising: below the first, at it, between it and the second, at that, ...
    Where the thresholds are all scores that defect pixels have, the groups in between hold none and fall out.
    hold: how many defect scores are thresholds at most, 0 for EXACT: a line that is only drawn needs few.
    Raises: BenchError where a value is not finite or a map and its mask differ in size.
    """
    thresholds = _thresholds(maps, masks, hold or MAX_EXACT_SCORES)
    counter = _Counter(thresholds)
    found = np.zeros(2 * thresholds.size + 1, dtype=np.int64)
    overlap, regions = np.zeros(found.size), 0
    scores, shares, waiting = [thresholds[:0]], [np.zeros(0)], 0
    for number, mask in enumerate(masks):
        scored = np.asarray(maps[number], dtype=thresholds.dtype)
        counter.add(scored.ravel())  # (h, w) -> (h*w,)
        inside, share, count = _regions(scored, np.asarray(mask, dtype=bool))
        scores.append(inside)
        shares.append(share)
        regions, waiting = regions + count, waiting + inside.size
        if number == len(masks) - 1 or waiting > MAX_EXACT_SCORES:
            part = _group(np.concatenate(scores), np.concatenate(shares), thresholds)
            found, overlap = found + part[0], overlap + part[1]
            scores, shares, waiting = scores[:1], shares[:1], 0
    above, level = counter.counts()
    normals = (_spans(counter.pixels - above - level, level, counter.pixels) - found)[::-1]
    kept = np.flatnonzero(found[::-1])
    return Curve(
        tp=found[::-1][kept],
        region_share=overlap[::-1][kept] / regions,
        fp=(np.cumsum(normals) - normals)[kept],
        tied_negatives=normals[kept],
        approximate=kept % 2 == 0,
        n_negatives=np.asarray(normals.sum()),
    )


@dataclass(frozen=True, slots=True)
class ImageCounts:
    """The pixels of n images in g groups of scores that all images share, from the highest down.

    Attributes:
        found: (n, g) defect pixels.
        overlap: (n, g) sum over the image's regions of the share of the region that lies in the group.
        normals: (n, g) normal pixels.
        regions: (n,) connected defects.
        mixed: (g,) True where a group spans several scores of defect pixels.
    """

    found: Counts
    overlap: Floats
    normals: Counts
    regions: Counts
    mixed: Bools


def image_counts(maps: Sequence[Array], masks: Sequence[Bools], hold: int) -> ImageCounts:
    """The counts of each image alone, at and between `hold` defect scores at most.

    A weighted sum over the images is what `pixel_curve` would count in a set that has each image that often.
    Raises: BenchError as `pixel_curve` does.
    """
    thresholds = _thresholds(maps, masks, hold)
    shape = len(masks), 2 * thresholds.size + 1
    found, normals, regions = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(len(masks), np.int64)
    overlap = np.zeros(shape)
    for number, mask in enumerate(masks):
        scored = np.asarray(maps[number], dtype=thresholds.dtype)
        lower, level = _rank(thresholds, np.sort(scored, axis=None))
        inside, share, regions[number] = _regions(scored, np.asarray(mask, dtype=bool))
        found[number], overlap[number] = _group(inside, share, thresholds)
        normals[number] = _spans(lower, level, scored.size) - found[number]
    mixed = (np.arange(shape[1]) % 2 == 0) & (found.sum(axis=0)[::-1] > 0)
    return ImageCounts(found[:, ::-1], overlap[:, ::-1], normals[:, ::-1], regions, mixed)


def _regions(scored: Array, marked: Bools) -> tuple[Array, Floats, int]:
    """An image's defect pixels: (p,) scores, (p,) 1 / pixels of the region that each lies in, and how many regions."""
    box = _box(marked)
    labels, count = ndimage.label(marked[box], EIGHT_NEIGHBOURS)
    belongs = labels[marked[box]]
    return scored[box][marked[box]], (1 / np.maximum(np.bincount(belongs), 1))[belongs], count


def _group(scores: Array, shares: Floats, thresholds: Array) -> tuple[Counts, Floats]:
    """How many of (p,) defect pixels each of the 2t + 1 groups holds, rising, and the sum of their shares."""
    order = np.argsort(scores)  # rising, they are looked up in a fraction of the time
    ranked = scores[order]
    place = np.searchsorted(thresholds, ranked)
    group = 2 * place + (thresholds.take(place, mode="clip") == ranked if thresholds.size else 0)
    found = np.bincount(group, minlength=2 * thresholds.size + 1)
    return found, np.bincount(group, weights=shares[order], minlength=found.size).astype(np.float64)


def _spans(lower: Counts, level: Counts, pixels: int) -> Counts:
    """How many pixels each of the 2t + 1 groups holds, rising, from how many lie below each threshold and at it."""
    counts = np.zeros(2 * level.size + 1, dtype=np.int64)
    counts[1::2] = level
    counts[::2] = np.append(lower, pixels) - np.append(0, lower + level)
    return counts


def _thresholds(maps: Sequence[Array], masks: Sequence[Bools], hold: int) -> Array:
    """(t,) the distinct scores of defect pixels, rising, in a type that holds all maps; of too many, a fair part."""
    held, size, stride = [np.zeros(0, np.float16)], 0, 1
    for number, mask in enumerate(masks):
        scored, marked = np.asarray(maps[number]), np.asarray(mask, dtype=bool)
        if scored.ndim != 2 or scored.shape != marked.shape:
            raise BenchError(f"A map and its mask have one size; image {number} has {scored.shape}, {marked.shape}.")
        if not np.isfinite(scored).all():
            raise BenchError(f"A map holds finite values; the map of image {number} does not. Mend the method.")
        box = _box(marked)
        scores = scored[box][marked[box]]  # (p,); of a good image none, but their type counts
        held.append(scores if stride == 1 else np.sort(scores)[::stride])
        size += held[-1].size
        if size > hold:
            kept = np.sort(np.concatenate(held))
            distinct = np.unique(kept)
            kept = distinct if 4 * distinct.size <= kept.size else kept
            while kept.size > hold:  # with ties, so that a score which many pixels share survives
                kept, stride = kept[::2], 2 * stride
            held, size = [kept], kept.size
    values = np.unique(np.concatenate(held))
    return values if values.dtype in (np.float16, np.float32) else values.astype(np.float64)


def _box(marked: Bools) -> tuple[slice, slice]:
    """The part of a mask that holds all its defects: they are small, and only they need a look."""
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    return np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if rows.size else np.s_[:0, :0]


class _Counter:
    """Counts how many pixels lie above each of `values` and how many at it; (t,), distinct and rising."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.pixels = 0
        self._place, buckets, self._fine = _buckets(values)
        self._places = self._place(values)
        self._tally = np.zeros(buckets, dtype=np.int64)
        self._shared = np.zeros(buckets, dtype=bool)
        self._shared[self._places] = not self._fine
        self._above, self._level = np.zeros(values.size, dtype=np.int64), np.zeros(values.size, dtype=np.int64)
        self._held: list[Array] = []
        self._waiting = 0

    def add(self, scores: Array) -> None:
        """Takes in (m,) pixels."""
        index = self._place(scores)
        np.add.at(self._tally, index, 1)
        self.pixels += scores.size
        if self._fine:
            return
        self._held.append(scores.compress(self._shared[index]))
        self._waiting += self._held[-1].size
        if self._waiting > max(SORT_BUFFER, 4 * self.values.size):
            self._sort()

    def counts(self) -> tuple[Counts, Counts]:
        """(t,) above and (t,) level, of all pixels taken in."""
        self._sort()
        alone = np.where(self._shared, 0, self._tally)
        above = alone.sum() - np.cumsum(alone)[self._places]
        return self._above + above, self._level + alone[self._places]

    def _sort(self) -> None:
        ranked = np.concatenate([self.values[:0], *self._held])
        ranked.sort()
        self._held, self._waiting = [], 0
        lower, level = _rank(self.values, ranked)
        self._above += ranked.size - lower - level
        self._level += level


def _rank(values: Array, ranked: Array) -> tuple[Counts, Counts]:
    """How many of `ranked` (rising) lie below each of `values`, and how many at it."""
    upto = np.searchsorted(ranked, values, side="right")
    level = np.zeros(values.size, dtype=np.int64)
    if ranked.size:
        level[:] = ranked.take(upto - 1, mode="wrap") == values  # where none is lower, this looks at a higher one
        several = np.flatnonzero(ranked.take(upto - 2, mode="wrap") == values)
        level[several] = upto[several] - np.searchsorted(ranked, values[several])
    return upto - level, level


def _buckets(values: Array) -> tuple[Callable[[Array], Places], int, bool]:
    """A map from scores to buckets that never falls, how many there are, and whether each is a single score.

    A float16 has a bucket for each value that it can take. Else the range in which most of `values` (rising) lie is
    cut evenly: a product, a difference and a cut are each monotone after rounding, so equal scores share a bucket and
    a higher score never has a lower one, which keeps the counting exact. One far outlier must not squeeze all others
    into one bucket: what lies further out than the middle 98 % are wide shares the first or last.
    """
    if values.dtype == np.float16:
        return lambda scores: _HALVES[scores.view(np.uint16)], 1 << 16, True
    buckets = min(BUCKETS, 8 * values.size + 8)
    aside = values.size // 100
    lowest, low, high, highest = values[[0, aside, -1 - aside, -1]] if values.size else np.zeros(4, values.dtype)
    with np.errstate(over="ignore"):  # a range beyond the type's makes a scale of 0 and one bucket: slow, still exact
        start, stop = max(lowest, low - (high - low)), min(highest, high + (high - low))
        width = max(stop - start, np.finfo(values.dtype).tiny * buckets) if stop > start else values.dtype.type(buckets)
    scale = (buckets - 3) / width
    offset = start * scale - 1
    ends = values.dtype.type(0), values.dtype.type(buckets - 1)

    def place(scores: Array) -> Places:
        with np.errstate(over="ignore"):  # infinity is cut off as well
            index = scores * scale
            index -= offset
        places: Places = np.clip(index, *ends, out=index).astype(np.intp)
        return places

    return place, buckets, False


_HALVES: Places = np.unique(np.arange(1 << 16, dtype=np.uint16).view(np.float16), return_inverse=True)[1]
"""(65536,) the rank of each float16 by its bits; both zeros share one."""
