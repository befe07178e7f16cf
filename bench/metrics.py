"""Exact AUROC, AP, F1-max and AUPRO from raw scores: no threshold grid, no sigmoid, no rounding.

All of them are sums over the distinct scores v of anomalous items (images or pixels), and need of the normal items
only how many lie above v and how many at it. Pixels are therefore counted and never sorted as a whole: a rising map
sends every score to a bucket, a bucket that holds no defect score is only counted, and the few pixels that share a
bucket with a defect score are sorted. AUROC and AUPRO are one sum with two weights: each defect pixel counts
1 / pixels in the first, 1 / (pixels of its region x regions) in the second.
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

BUCKETS = 1 << 20
"""Into how many the range of the defect scores is cut; more of them cost cache misses, fewer cost sorting."""

HELD = 1 << 22
"""How many pixels that share a bucket with a defect score wait until they are sorted, at least."""

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one category scored.

    Attributes:
        values: fractions in [0, 1] by name: image_auroc, image_ap, image_f1max, pixel_auroc, pixel_ap, pixel_f1max,
            and an aupro_30 for the limit 0.3 of the false positive rate.
        missing: why a metric does not exist, by the same names.
    """

    values: dict[str, float]
    missing: dict[str, str]


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
    defects = _defects(maps, masks)
    if not defects.regions or defects.pixels == len(defects.scores):
        reason = "no normal pixels" if defects.regions else "no defect pixels"
        return Judgement(values, missing | dict.fromkeys(pixel_names, reason))
    curve, overlap = _pixel_curve(maps, defects)
    areas = [_area(curve, overlap, limit) for limit in fpr_limits]
    return Judgement(values | dict(zip(pixel_names, [*_summary(curve), *areas], strict=True)), missing)


# --- From counts to metrics -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Curve:
    """What every metric needs, at the u distinct scores of anomalous items, from the highest down.

    Attributes:
        found: (u,) anomalous items that have exactly this score.
        above: (u,) normal items above it.
        level: (u,) normal items at it.
        normals: how many normal items there are.
    """

    found: Counts
    above: Counts
    level: Counts
    normals: int


def _curve(scores: Array, anomalous: Bools) -> _Curve:
    anomalous = np.asarray(anomalous, dtype=bool)
    scores = _checked(scores, anomalous)
    if anomalous.all() or not anomalous.any():
        raise BenchError("This metric compares good with defective; only one of the two is here. Give both.")
    values, found = np.unique(scores[anomalous], return_counts=True)
    normals = np.sort(scores[~anomalous])
    right = np.searchsorted(normals, values, side="right")
    level = right - np.searchsorted(normals, values)
    return _Curve(found[::-1], (normals.size - right)[::-1], level[::-1], normals.size)


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


# --- From pixels to counts ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Defects:
    """The p pixels inside the masks of a category.

    Attributes:
        scores: (p,) in the type that holds all maps.
        shares: (p,) 1 / pixels of the region.
        regions: how many connected defects there are.
        pixels: how many there are in all images, defective or not.
    """

    scores: Array
    shares: Floats
    regions: int
    pixels: int


def _defects(maps: Sequence[Array], masks: Sequence[Bools]) -> _Defects:
    scores, shares, regions, pixels = [np.zeros(0, np.float16)], [np.zeros(0)], 0, 0
    for number, mask in enumerate(masks):
        scored, marked = np.asarray(maps[number]), np.asarray(mask, dtype=bool)
        if scored.ndim != 2 or scored.shape != marked.shape:
            raise BenchError(f"A map and its mask have one size; image {number} has {scored.shape}, {marked.shape}.")
        if not np.isfinite(scored).all():
            raise BenchError(f"A map holds finite values; the map of image {number} does not. Mend the method.")
        pixels += scored.size
        scores.append(np.zeros(0, scored.dtype))  # so that a good image's type is known as well
        rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
        if rows.size:
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            labels, count = ndimage.label(marked[box], EIGHT_NEIGHBOURS)
            belongs = labels[marked[box]]
            scores.append(scored[box][marked[box]])
            shares.append((1.0 / np.maximum(np.bincount(belongs), 1))[belongs])
            regions += count
    joined = np.concatenate(scores)
    return _Defects(joined.astype(_working_type(joined.dtype)), np.concatenate(shares), regions, pixels)


def _pixel_curve(maps: Sequence[Array], defects: _Defects) -> tuple[_Curve, Floats]:
    """The curve of all pixels, and (u,) the share of the mean region that has each score."""
    order = np.argsort(defects.scores)
    ranked = defects.scores[order]
    first = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    values, found = ranked[first], np.diff(first, append=ranked.size)
    overlap = np.add.reduceat(defects.shares[order], first) / defects.regions
    above, level = _count(maps, values)
    above -= ranked.size - first - found  # the defect pixels were counted too
    level -= found
    curve = _Curve(found[::-1], above[::-1], level[::-1], defects.pixels - ranked.size)
    return curve, overlap[::-1]


def _count(maps: Sequence[Array], values: Array) -> tuple[Counts, Counts]:
    """How many pixels of all maps lie above each of `values`, and how many at it; (u,), distinct and rising."""
    place, buckets, fine = _buckets(values)
    places = place(values)
    counts = np.zeros(buckets, dtype=np.int64)
    shared = np.zeros(buckets, dtype=bool)
    shared[places] = not fine
    above, level = np.zeros(values.size, dtype=np.int64), np.zeros(values.size, dtype=np.int64)
    held: list[Array] = []
    for number in range(len(maps)):
        scores = np.asarray(maps[number], dtype=values.dtype).ravel()  # (h, w) -> (h*w,)
        index = place(scores)
        np.add.at(counts, index, 1)
        held.append(scores[np.flatnonzero(shared[index])])
        if number == len(maps) - 1 or sum(map(len, held)) > max(HELD, 4 * values.size):
            waiting = np.sort(np.concatenate(held))
            right = np.searchsorted(waiting, values, side="right")
            above += waiting.size - right
            level += right - np.searchsorted(waiting, values)
            held = []
    counts[shared] = 0
    if fine:
        level += counts[places]
    return above + counts.sum() - np.cumsum(counts)[places], level


def _buckets(values: Array) -> tuple[Callable[[Array], NDArray[np.intp]], int, bool]:
    """A map from scores to buckets that never falls, how many there are, and whether each is a single value.

    A float16 has a bucket for each value that it can take. Else the range in which most of `values` (rising) lie is
    cut evenly: a difference, a product and a cut are each monotone after rounding, so equal scores share a bucket and
    a higher score never has a lower one, which keeps the counting exact. One far outlier must not squeeze all others
    into one bucket; what lies further out than the middle 98 % are wide shares the first or last.
    """
    if values.dtype == np.float16:
        return lambda scores: _HALVES[scores.view(np.uint16)], 1 << 16, True
    buckets = min(BUCKETS, 8 * values.size + 8)
    halves = values[[0, values.size // 100, -1 - values.size // 100, -1]] / 2  # a difference of halves is finite
    width = halves[2] - halves[1]
    with np.errstate(over="ignore"):
        start, stop = max(halves[0], halves[1] - width), min(halves[3], halves[2] + width)
    scale = (buckets - 3) / max(stop - start, np.finfo(values.dtype).tiny * buckets)

    def place(scores: Array) -> NDArray[np.intp]:
        with np.errstate(over="ignore"):  # infinity is cut off as well
            index = scores / 2 - start
            index *= scale
            index += 1
        return np.clip(index, 0, buckets - 1, out=index).astype(np.intp)

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


def _working_type(kind: np.dtype[Any]) -> np.dtype[Any]:
    return kind if kind in (np.float16, np.float32) else np.dtype(np.float64)


def _aupro_name(limit: float) -> str:
    if not 0 < limit <= 1 or abs(limit * 100 - round(limit * 100)) > 1e-9:
        raise BenchError(f"A limit of the false positive rate is whole percents in (0, 1]; this is {limit}. Give 0.3.")
    return f"aupro_{round(limit * 100):02d}"
