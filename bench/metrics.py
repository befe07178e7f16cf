"""Exact AUROC, AP, F1-max and AUPRO from raw scores: no threshold grid, no sigmoid, no rounding.

All of them are sums over the distinct scores v of anomalous items (images or pixels), and need of the normal items
only how many lie above v and how many at it. Pixels are therefore counted and never sorted as a whole: a rising map
sends every score to a bucket, a bucket that holds no defect score is only counted, and the few pixels that share a
bucket with a defect score are sorted. AUROC and AUPRO are one sum with two weights: each defect pixel counts
1 / pixels in the first, 1 / (pixels of its region x regions) in the second.

Maps are walked twice, first for the defect scores and then to count, so they need not fit into memory. Only the
distinct defect scores are held; where even these are too many, some are, exact counts are taken at and between them,
and what their order in between could change at most is told.
"""

import math
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

BUCKETS = 1 << 19
"""Into how many the range of the defect scores is cut, at most; more cost cache misses, fewer cost sorting."""

HELD = 1 << 22
"""How many pixels that share a bucket with a defect score wait until they are sorted, at least."""

EXACT = 1 << 21
"""Up to how many defect pixels the answer is exact, however many pixels there are; beyond, its error is told."""

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one category scored.

    Attributes:
        values: fractions in [0, 1] by name: image_auroc, image_ap, image_f1max, pixel_auroc, pixel_ap, pixel_f1max,
            and an aupro_30 for the limit 0.3 of the false positive rate.
        missing: why a metric does not exist, by the same names.
        error: how far any of the values can lie from the exact one; 0 unless there are more than EXACT defect pixels.
    """

    values: dict[str, float]
    missing: dict[str, str]
    error: float = 0.0


def auroc(scores: Array, anomalous: Bools) -> float:
    """Area under the ROC curve of (n,) scores, higher is more anomalous; a tie counts half.

    Raises: BenchError where a score is not finite, or where either class is empty.
    """
    curve = _curve(scores, anomalous)
    return _area(curve, curve.found / curve.found.sum(), 1.0)


def average_precision(scores: Array, anomalous: Bools) -> float:
    """Sum over rising recall of (step of recall) x (precision there), without interpolation.

    Raises: BenchError where a score is not finite, or where either class is empty.
    """
    return _average_precision(_curve(scores, anomalous))


def f1_max(scores: Array, anomalous: Bools) -> float:
    """The best harmonic mean of precision and recall over all thresholds, chosen with the labels in view.

    Raises: BenchError where a score is not finite, or where either class is empty.
    """
    return _f1_max(_curve(scores, anomalous))


def judge(
    scores: Array,
    anomalous: Bools,
    maps: Sequence[Array] | None,
    masks: Sequence[Bools] | None,
    *,
    fpr_limits: Sequence[float] = (0.3,),
) -> Judgement:
    """All metrics of one category, on raw scores.

    Pixel metrics pool all pixels of all images; those outside the masks are normal, in defective images as well.
    AUPRO is the mean over defect regions (8 neighbours) of the area under (false positive rate, share of the region
    found), up to each limit and divided by it. Source: Bergmann et al., IJCV 2021, section 5.

    Args:
        scores: (n,), higher is more anomalous.
        anomalous: (n,), by the data set and not by the masks.
        maps: n of (h, w), sizes may differ; walked twice, so they may be loaded as they are asked for. None: no maps.
        masks: n of (h, w), True on defect pixels, each of its map's size. None: the data set has no masks.
        fpr_limits: in (0, 1]; 0.3 is named aupro_30.

    Raises: BenchError where a value is not finite or where lengths and shapes disagree.
    """
    names = ["image_auroc", "image_ap", "image_f1max"]
    pixel_names = ["pixel_auroc", "pixel_ap", "pixel_f1max", *map(_aupro_name, fpr_limits)]
    anomalous = np.asarray(anomalous, dtype=bool)
    scores = _checked(scores, anomalous)
    reason = "no good images" if anomalous.all() else "" if anomalous.any() else "no defective images"
    values, missing = {}, dict.fromkeys(names, reason) if reason else {}
    if not reason:
        values = dict(zip(names, _summary(_curve(scores, anomalous)), strict=True))
    if maps is None or masks is None:
        return Judgement(values, missing | dict.fromkeys(pixel_names, "no maps" if maps is None else "no masks"))
    if not len(scores) == len(maps) == len(masks):
        raise BenchError(
            f"Every image needs a score, a map and a mask; there are {len(scores)}, {len(maps)} and {len(masks)}."
        )
    thresholds = _thresholds(maps, masks)
    if not thresholds.size or all(np.all(mask) for mask in masks):
        reason = "no normal pixels" if thresholds.size else "no defect pixels"
        return Judgement(values, missing | dict.fromkeys(pixel_names, reason))
    curve, overlap = _pixel_curve(maps, masks, thresholds)
    areas = [_area(curve, overlap, limit) for limit in fpr_limits]
    values |= dict(zip(pixel_names, [*_summary(curve), *areas], strict=True))
    return Judgement(values, missing, _error(curve, overlap, fpr_limits))


def threshold_at(normals: Array, rate: float) -> float:
    """The decision threshold that a good image's score exceeds with a probability of `rate` at most.

    `normals` (n,) are scores of good images that were held out of training; never of test images. It is the
    ceil((n + 1)(1 - rate))-th lowest of them, which holds for any distribution of scores as long as later good images
    come from the same one (split conformal prediction: Lei et al., JASA 2018).

    Raises: BenchError where a score is not finite, or where n < 1 / rate - 1, so that no score would do.
    """
    normals = _checked(normals, np.zeros(np.shape(normals), dtype=bool))
    if not 0 < rate < 1:
        raise BenchError(f"A false positive rate lies between 0 and 1; this is {rate}. Give 0.1.")
    rank = math.ceil((normals.size + 1) * (1 - rate) - 1e-9)  # else 1 - 0.9 rounds up to one image more
    if rank > normals.size:
        needed = math.ceil(1 / rate - 1 - 1e-9)
        raise BenchError(
            f"A false positive rate of {rate:g} needs {needed} good images held out of training, there are "
            f"{normals.size}. Hold out more or allow a rate of {1 / (normals.size + 1):.2g}."
        )
    return float(np.sort(normals)[rank - 1])


def at_threshold(scores: Array, anomalous: Bools, threshold: float) -> dict[str, float]:
    """precision, recall and f1 of calling (n,) images defective where their score lies above the threshold.

    Precision and F1 are 0 where nothing is called defective. Raises: BenchError as `auroc` does.
    """
    scores, anomalous = _both_classes(scores, anomalous)
    called = scores > threshold
    hits, calls, defects = (int(np.count_nonzero(chosen)) for chosen in (called & anomalous, called, anomalous))
    return {"precision": hits / max(calls, 1), "recall": hits / defects, "f1": 2 * hits / (calls + defects)}


# --- From counts to metrics -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Curve:
    """What every metric needs, at the u distinct scores of anomalous items, from the highest down.

    Attributes:
        found: (u,) anomalous items that have exactly this score.
        above: (u,) normal items above it.
        level: (u,) normal items at it.
        normals: how many normal items there are.
        mixed: (u,) True where this is not one score but all between two thresholds, so that their order is unknown.
    """

    found: Counts
    above: Counts
    level: Counts
    normals: int
    mixed: Bools


def _curve(scores: Array, anomalous: Bools) -> _Curve:
    scores, anomalous = _both_classes(scores, anomalous)
    values, found = np.unique(scores[anomalous], return_counts=True)
    normals = np.sort(scores[~anomalous])
    lower, level = _rank(values, normals)
    above = normals.size - lower - level
    return _Curve(found[::-1], above[::-1], level[::-1], normals.size, np.zeros(values.size, dtype=bool))


def _summary(curve: _Curve) -> tuple[float, float, float]:
    """AUROC, AP and F1-max."""
    return _area(curve, curve.found / curve.found.sum(), 1.0), _average_precision(curve), _f1_max(curve)


def _area(curve: _Curve, weights: Floats, limit: float) -> float:
    """Area under the weighted share found, over the false positive rate from 0 to `limit`, divided by it.

    A score's share rises in a straight line while its ties pass, from `start` to `stop`. `weights` (u,) sum to 1.
    """
    start = curve.above / curve.normals
    stop = (curve.above + curve.level) / curve.normals
    ramp = np.clip(limit, start, stop) - start  # how much of the ramp lies below the limit
    width = np.where(curve.level > 0, stop - start, 1.0)
    covered = ramp**2 / (2 * width) + np.maximum(limit - stop, 0.0)
    return float(weights @ covered) / limit


def _average_precision(curve: _Curve) -> float:
    hits = np.cumsum(curve.found)
    precision = hits / (hits + curve.above + curve.level)
    return float(curve.found @ precision) / float(hits[-1])


def _f1_max(curve: _Curve) -> float:
    hits = np.cumsum(curve.found)
    return float(np.max(2 * hits / (hits + curve.above + curve.level + hits[-1])))


def _error(curve: _Curve, overlap: Floats, limits: Sequence[float]) -> float:
    """How much any order of the items inside the mixed groups could move any of the metrics."""
    if not curve.mixed.any():
        return 0.0
    hits, stop = np.cumsum(curve.found), curve.above + curve.level
    best = hits / (hits + curve.above)  # all defects of a group before its normal items
    worst = (hits - curve.found + 1) / (hits - curve.found + 1 + stop)
    shares = curve.found / hits[-1]
    f1 = np.max((2 * hits / (hits + curve.above + hits[-1]))[curve.mixed]) - _f1_max(curve)
    moves = [float(shares[curve.mixed] @ (best - worst)[curve.mixed]), float(f1)]
    for weights, limit in [(shares, 1.0), *((overlap, limit) for limit in limits)]:
        ends = np.minimum(np.stack((curve.above, stop)) / curve.normals, limit)[:, curve.mixed]
        moves.append(float(weights[curve.mixed] @ (ends[1] - ends[0])) / limit)
    return max(moves)


# --- From pixels to counts ------------------------------------------------------------------------------------------


def _thresholds(maps: Sequence[Array], masks: Sequence[Bools]) -> Array:
    """(u,) the distinct scores of defect pixels, rising, in a type that holds all maps; of too many, a fair part."""
    held, size, stride = [np.zeros(0, np.float16)], 0, 1
    for number, mask in enumerate(masks):
        scored, marked = np.asarray(maps[number]), np.asarray(mask, dtype=bool)
        if scored.ndim != 2 or scored.shape != marked.shape:
            raise BenchError(f"A map and its mask have one size; image {number} has {scored.shape}, {marked.shape}.")
        if not np.isfinite(scored).all():
            raise BenchError(f"A map holds finite values; the map of image {number} does not. Mend the method.")
        box = _box(marked)
        found = scored[box][marked[box]]
        held.append(found if stride == 1 else np.sort(found)[::stride])  # empty: a good image's type counts as well
        size += held[-1].size
        if size > EXACT:
            joined = np.sort(np.concatenate(held))
            distinct = np.unique(joined)
            few = 4 * distinct.size <= joined.size
            stride *= 1 if few else 2
            held = [distinct if few else joined[::2]]  # ties stay in, so that a score that many pixels have survives
            size = held[0].size
    values = np.unique(np.concatenate(held))
    return values if values.dtype in (np.float16, np.float32) else values.astype(np.float64)


def _pixel_curve(maps: Sequence[Array], masks: Sequence[Bools], thresholds: Array) -> tuple[_Curve, Floats]:
    """The curve of all pixels, and (u,) the share of the mean region that each of its groups holds.

    For t thresholds there are 2t + 1 groups, rising: below the first, at it, between it and the second, at that, ...
    Where the thresholds are all scores that defect pixels have, the groups in between hold none and fall out.
    """
    counter = _Counter(thresholds)
    found = np.zeros(2 * thresholds.size + 1, dtype=np.int64)
    overlap, regions = np.zeros(found.size), 0
    for number, mask in enumerate(masks):
        scored, marked = np.asarray(maps[number], dtype=thresholds.dtype), np.asarray(mask, dtype=bool)
        counter.add(scored.ravel())  # (h, w) -> (h*w,)
        box = _box(marked)
        labels, count = ndimage.label(marked[box], EIGHT_NEIGHBOURS)
        belongs, scores = labels[marked[box]], scored[box][marked[box]]  # (p,), (p,)
        group = 2 * np.searchsorted(thresholds, scores)
        group += thresholds.take(group // 2, mode="clip") == scores
        np.add.at(found, group, 1)
        np.add.at(overlap, group, (1.0 / np.maximum(np.bincount(belongs), 1))[belongs])
        regions += count
    above, level = counter.counts()
    everything = np.zeros(found.size, dtype=np.int64)
    everything[1::2] = level
    everything[::2] = np.append(counter.pixels, above) - np.append(above + level, 0)
    normals = (everything - found)[::-1]
    some = np.flatnonzero(found[::-1])
    curve = _Curve(
        found[::-1][some],
        (np.cumsum(normals) - normals)[some],
        normals[some],
        int(normals.sum()),
        some % 2 == 0,
    )
    return curve, overlap[::-1][some] / regions


def _box(marked: Bools) -> tuple[slice, slice]:
    """The smallest part of a mask that holds all of its defects: they are small, and only they need a look."""
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    return np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if rows.size else np.s_[:0, :0]


class _Counter:
    """Counts how many pixels lie above each of some values and how many at it; (u,), distinct and rising."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.pixels = 0
        self.place, buckets, self.fine = _buckets(values)
        self.tally = np.zeros(buckets, dtype=np.int64)
        self.places = self.place(values)
        self.shared = np.zeros(buckets, dtype=bool)
        self.shared[self.places] = not self.fine
        self.above, self.level = np.zeros(values.size, dtype=np.int64), np.zeros(values.size, dtype=np.int64)
        self.held: list[Array] = []

    def add(self, scores: Array) -> None:
        """Takes in (m,) pixels."""
        index = self.place(scores)
        np.add.at(self.tally, index, 1)
        self.held.append(scores.compress(self.shared[index]))
        self.pixels += scores.size
        if sum(map(len, self.held)) > max(HELD, 4 * self.values.size):
            self._sort()

    def counts(self) -> tuple[Counts, Counts]:
        """Above and level, of all pixels taken in."""
        self._sort()
        alone = np.where(self.shared, 0, self.tally)
        above = self.above + alone.sum() - np.cumsum(alone)[self.places]
        return above, self.level + alone[self.places]

    def _sort(self) -> None:
        if self.held:
            ranked = np.concatenate(self.held)
            self.held = []
            ranked.sort()
            lower, level = _rank(self.values, ranked)
            self.above += ranked.size - lower - level
            self.level += level


def _rank(values: Array, ranked: Array) -> tuple[Counts, Counts]:
    """How many of `ranked` (rising) lie below each of `values`, and how many at it."""
    upto = np.searchsorted(ranked, values, side="right")
    met = np.flatnonzero(ranked[upto - 1] == values) if ranked.size else upto[:0]
    tied = np.zeros(values.size, dtype=np.int64)
    tied[met] = upto[met] - np.searchsorted(ranked, values[met])
    return upto - tied, tied


def _buckets(values: Array) -> tuple[Callable[[Array], Places], int, bool]:
    """A map from scores to buckets that never falls, how many there are, and whether each is a single value.

    A float16 has a bucket for each value that it can take. Else the range in which most of `values` (rising) lie is
    cut evenly: a product, a difference and a cut are each monotone after rounding, so equal scores share a bucket and
    a higher score never has a lower one, which keeps the counting exact. One far outlier must not squeeze all others
    into one bucket; what lies further out than the middle 98 % are wide shares the first or last.
    """
    if values.dtype == np.float16:
        return lambda scores: _HALVES[scores.view(np.uint16)], 1 << 16, True
    buckets = min(BUCKETS, 8 * values.size + 8)
    lowest, low, high, highest = values[[0, values.size // 100, -1 - values.size // 100, -1]]
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


_HALVES = np.unique(np.arange(1 << 16, dtype=np.uint16).view(np.float16), return_inverse=True)[1]
"""(65536,) the rank of each float16 by its bits; both zeros share one."""


# --- Checks ---------------------------------------------------------------------------------------------------------


def _checked(scores: Array, anomalous: Bools) -> Array:
    scores = np.asarray(scores)
    if scores.ndim != 1 or scores.shape != anomalous.shape or not scores.size:
        raise BenchError(f"Scores and labels are two lists of one length; these are {scores.shape}, {anomalous.shape}.")
    if not np.isfinite(scores).all():
        raise BenchError(f"A score is a finite number; that of image {np.isfinite(scores).argmin()} is not.")
    return scores


def _both_classes(scores: Array, anomalous: Bools) -> tuple[Array, Bools]:
    anomalous = np.asarray(anomalous, dtype=bool)
    scores = _checked(scores, anomalous)
    if anomalous.all() or not anomalous.any():
        raise BenchError("This metric compares good with defective; only one of the two is here. Give both.")
    return scores, anomalous


def _aupro_name(limit: float) -> str:
    if not 0 < limit <= 1 or abs(limit * 100 - round(limit * 100)) > 1e-9:
        raise BenchError(f"A limit of the false positive rate is whole percents in (0, 1]; this is {limit}. Give 0.3.")
    return f"aupro_{round(limit * 100):02d}"
