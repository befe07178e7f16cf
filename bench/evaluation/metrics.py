"""Exact AUROC, AP, F1-max and AUPRO from raw scores: no threshold grid, no sigmoid, no rounding.

All of them are sums over the distinct scores v of anomalous items (images or pixels), and need of the normal items
only how many lie above v and how many at it. AUROC and AUPRO are one sum with two weights: each defect pixel counts
1 / pixels in the first, 1 / (pixels of its region x regions) in the second.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.errors import BenchError
from bench.evaluation.curves import Array, Bools, Curve, Floats, image_curve, pixel_curve
from bench.evaluation.ground_truth import BinaryMasks, as_labels

IMAGE_NAMES = ("image_auroc", "image_ap", "image_f1max")
PIXEL_NAMES = ("pixel_auroc", "pixel_ap", "pixel_f1max")
THRESHOLD_NAMES = ("image_precision", "image_recall", "image_f1", "image_fpr")

LIMITS = (0.05, 0.3)
"""Of the false positive rate, up to which AUPRO goes unless told otherwise: aupro_05 and aupro_30."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one category scored.

    Attributes:
        values: fractions in [0, 1] by name: image_auroc, image_ap, image_f1max, pixel_auroc, pixel_ap, pixel_f1max,
            and an aupro_30 for the limit 0.3 of the false positive rate. `at_threshold` names its own.
        missing: why a metric does not exist, by the same names.
        error: how far any of the values can lie from the exact one; 0 up to counting.EXACT defect pixels.
    """

    values: dict[str, float]
    undefined: dict[str, str]
    error_bound: float = 0.0


def auroc(scores: Array, anomalous: Bools) -> float:
    """Area under the ROC curve of (n,) scores, higher is more anomalous; a tie counts half.

    Raises: BenchError where a score is not finite, or where either class is empty.
    """
    return float(curve_auroc(image_curve(*require_both_classes(scores, anomalous))))


def average_precision(scores: Array, anomalous: Bools) -> float:
    """Sum over rising recall of (step of recall) x (precision there), without interpolation.

    Raises: BenchError where a score is not finite, or where either class is empty.
    """
    return float(curve_precision(image_curve(*require_both_classes(scores, anomalous))))


def f1_max(scores: Array, anomalous: Bools) -> float:
    """The best harmonic mean of precision and recall over all thresholds, chosen with the labels in view.

    Raises: BenchError where a score is not finite, or where either class is empty.
    """
    return float(curve_f1(image_curve(*require_both_classes(scores, anomalous))))


def evaluate(
    scores: Array,
    anomalous: Bools,
    maps: Sequence[Array] | None,
    masks: Sequence[Bools] | None,
    *,
    fpr_limits: Sequence[float] = LIMITS,
    mask_threshold: float | None = None,
) -> Evaluation:
    """All metrics of one category, on raw scores.

    Pixel metrics pool all pixels of all images; those outside the masks are normal, in defective images as well.
    AUPRO is the mean over defect regions (8 neighbours) of the area under (false positive rate, share of the region
    found), up to each limit and divided by it. Source: Bergmann et al., IJCV 2021.

    Args:
        scores: (n,), higher is more anomalous.
        anomalous: (n,), by the data set and not by the masks.
        maps: n of (h, w), sizes may differ; walked twice, so they may be loaded as they are asked for. None: no maps.
        masks: n of (h, w), True on defect pixels, each of its map's size. None: the data set has no masks.
        fpr_limits: in (0, 1]; 0.3 is named aupro_30.
        mask_threshold: mask pixels above it are defects; None accepts only masks of two values.

    Raises: BenchError where a value is not finite or where lengths and shapes disagree.
    """
    pixel_names = (*PIXEL_NAMES, *map(aupro_name, fpr_limits))
    anomalous = as_labels(anomalous)
    scores = _checked(scores, anomalous)
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    if anomalous.any() and not anomalous.all():
        values |= zip(IMAGE_NAMES, _three(image_curve(scores, anomalous)), strict=True)
    else:
        missing |= dict.fromkeys(IMAGE_NAMES, "no good images" if anomalous.any() else "no defective images")
    if maps is None or masks is None:
        return Evaluation(values, missing | dict.fromkeys(pixel_names, "no maps" if maps is None else "no masks"))
    check_lengths(scores, maps, masks)
    curve = pixel_curve(maps, BinaryMasks(masks, mask_threshold))
    if not curve.tp.size or not curve.n_negatives:
        reason = "no normal pixels" if curve.tp.size else "no defect pixels"
        return Evaluation(values, missing | dict.fromkeys(pixel_names, reason))
    areas = [float(curve_area(curve, curve.region_share, limit)) for limit in fpr_limits]
    values |= zip(pixel_names, [*_three(curve), *areas], strict=True)
    return Evaluation(values, missing, curve_error(curve, fpr_limits))


def threshold_at(normals: Array, rate: float) -> float:
    """The decision threshold that a good image's score exceeds with a probability of `rate` at most.

    `normals` (n,) are scores of good images that were held out of training; never of test images. The threshold is
    the ceil((n + 1)(1 - rate))-th lowest of them, which holds for any distribution of scores, averaged over draws of
    the held-out images, as long as later good images come from where they came from (split conformal prediction:
    Lei et al., JASA 2018).

    Raises: BenchError where a score is not finite, or where n < 1 / rate - 1, so that no score would do.
    """
    normals = _checked(normals, np.zeros(np.shape(normals), dtype=bool))
    needed = min_calibration_images(rate)
    if normals.size < needed:
        raise BenchError(
            f"A false positive rate of {rate:g} needs {needed} good images held out of training, there are "
            f"{normals.size}. Hold out more, or allow a rate of {1 / (normals.size + 1):.2g}."
        )
    rank = math.ceil((normals.size + 1) * (1 - rate) - 1e-9)  # 1e-9: (9 + 1)(1 - 0.1) is 9 and not a hair more
    return float(np.sort(normals)[rank - 1])


def min_calibration_images(rate: float) -> int:
    """How many good images `threshold_at` needs for a rate. Raises: BenchError where it is not between 0 and 1."""
    if not 0 < rate < 1:
        raise BenchError(f"A false positive rate lies between 0 and 1; this is {rate}. Give 0.1.")
    return math.ceil(1 / rate - 1 - 1e-9)


def at_threshold(scores: Array, anomalous: Bools, threshold: float) -> dict[str, float]:
    """THRESHOLD_NAMES: what it means to call (n,) images defective where their score lies above the threshold.

    The last is the share of good images that are called defective: what the chosen rate became on these images.
    Precision and F1 are 0 where nothing is called defective.
    Raises: BenchError where a score is not finite, or where either class is empty.
    """
    scores, anomalous = require_both_classes(scores, anomalous)
    found = binary_metrics(scores > threshold, anomalous, np.ones(scores.size))
    return {name: float(value) for name, value in found.items()}


def binary_metrics(called: Bools, anomalous: Bools, weights: Floats) -> dict[str, Floats]:
    """THRESHOLD_NAMES (...) of (n,) decisions about images that count as often as `weights` (..., n) say."""
    hits, calls, defects, goods = (weights @ chosen for chosen in (called & anomalous, called, anomalous, ~anomalous))
    values = hits / np.maximum(calls, 1), hits / defects, 2 * hits / (calls + defects), (calls - hits) / goods
    return dict(zip(THRESHOLD_NAMES, values, strict=True))


# --- From counts to metrics; a curve's arrays may have leading axes, as one for draws -------------------------------


def curve_auroc(curve: Curve) -> Floats:
    """AUROC of each curve."""
    return curve_area(curve, curve.tp / curve.tp.sum(axis=-1, keepdims=True), 1.0)


def curve_area(curve: Curve, weights: Floats, limit: float) -> Floats:
    """Area under the weighted share found, over the false positive rate from 0 to `limit`, divided by it.

    The share rises in a straight line from `start` to `stop`, while ties pass. `weights` (..., u) sum to 1: the
    curve's overlap gives AUPRO.
    """
    normals = curve.n_negatives[..., None]
    start, stop = curve.fp / normals, (curve.fp + curve.tied_negatives) / normals
    ramp = np.clip(limit, start, stop) - start  # how much of it lies below the limit
    width = np.where(curve.tied_negatives > 0, stop - start, 1.0)
    covered = ramp**2 / (2 * width) + np.maximum(limit - stop, 0.0)
    area: Floats = np.sum(weights * covered, axis=-1) / limit
    return area


def curve_precision(curve: Curve) -> Floats:
    """Average precision of each curve."""
    hits = np.cumsum(curve.tp, axis=-1)
    precision = hits / np.maximum(hits + curve.fp + curve.tied_negatives, 1)
    average: Floats = np.sum(curve.tp * precision, axis=-1) / hits[..., -1]
    return average


def curve_f1(curve: Curve) -> Floats:
    """F1-max of each curve."""
    hits = np.cumsum(curve.tp, axis=-1)
    best: Floats = np.max(2 * hits / (hits + curve.fp + curve.tied_negatives + hits[..., -1:]), axis=-1)
    return best


def curve_error(curve: Curve, limits: Sequence[float]) -> float:
    """How far any order of the items inside the mixed groups could move any metric of any curve."""
    if not curve.approximate.any():
        return 0.0
    mixed = np.flatnonzero(curve.approximate)
    hits, stop = np.cumsum(curve.tp, axis=-1), curve.fp + curve.tied_negatives
    shares = curve.tp / hits[..., -1:]
    best = hits / np.maximum(hits + curve.fp, 1)  # the precision with all defects of a group before its normal items
    worst = (hits - curve.tp + 1) / (hits - curve.tp + 1 + stop)
    f1 = np.max((2 * hits / (hits + curve.fp + hits[..., -1:]))[..., mixed], axis=-1)
    moves = [np.max(np.sum((shares * (best - worst))[..., mixed], axis=-1)), np.max(f1 - curve_f1(curve))]
    for weights, limit in [(shares, 1.0), *((curve.region_share, limit) for limit in limits)]:
        start, end = (ends[..., mixed] / curve.n_negatives[..., None] for ends in (curve.fp, stop))
        lost = np.where(end > limit, np.maximum(limit - start, 0), (end - start) / 2)  # against the straight line
        moves.append(np.max(np.sum(weights[..., mixed] * lost, axis=-1)) / limit)
    return float(max(moves))


def _three(curve: Curve) -> tuple[float, float, float]:
    return float(curve_auroc(curve)), float(curve_precision(curve)), float(curve_f1(curve))


# --- Checks ---------------------------------------------------------------------------------------------------------


def _checked(scores: Array, anomalous: Bools) -> Array:
    scores = np.asarray(scores)
    if scores.ndim != 1 or scores.shape != anomalous.shape or not scores.size:
        raise BenchError(f"Scores and labels are two lists of one length; these are {scores.shape}, {anomalous.shape}.")
    if not np.isfinite(scores).all():
        raise BenchError(f"A score is a finite number; that of image {np.isfinite(scores).argmin()} is not.")
    return scores


def require_both_classes(scores: Array, anomalous: Bools) -> tuple[Array, Bools]:
    """The arguments as arrays. Raises: BenchError where they are not (n,) finite scores of good and defective ones."""
    anomalous = as_labels(anomalous)
    scores = _checked(scores, anomalous)
    if anomalous.all() or not anomalous.any():
        raise BenchError("This metric compares good with defective; only one of the two is here. Give both.")
    return scores, anomalous


def check_lengths(scores: Array, maps: Sequence[Array], masks: Sequence[Bools]) -> None:
    """Raises: BenchError where there are not as many scores as maps and masks."""
    if not len(scores) == len(maps) == len(masks):
        raise BenchError(
            f"Every image needs a score, a map and a mask; there are {len(scores)}, {len(maps)} and {len(masks)}."
        )


def aupro_name(limit: float) -> str:
    """The limit 0.3 is named aupro_30. Raises: BenchError where it is not whole percents in (0, 1]."""
    if not 0 < limit <= 1 or abs(limit * 100 - round(limit * 100)) > 1e-9:
        raise BenchError(f"A limit of the false positive rate is whole percents in (0, 1]; this is {limit}. Give 0.3.")
    return f"aupro_{round(limit * 100):02d}"
