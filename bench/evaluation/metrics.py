"""Exact AUROC, AP, F1-max and AUPRO from raw scores: no threshold grid, no sigmoid, no rounding.

Every metric is a sum over the distinct scores v of anomalous items (images or pixels). Of the normal items only two
counts are needed per v: how many score above v, and how many score exactly v. AUROC and AUPRO are the same sum with
different weights: a defect pixel has weight 1 / pixels in AUROC and 1 / (pixels of its region x regions) in AUPRO.
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
"""Default upper limits of the false positive rate for AUPRO: aupro_05 and aupro_30."""

MIN_RATE = 1e-9
"""Smallest false positive rate of a threshold; it needs a billion good images."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of one category.

    Attributes:
        values: fractions in [0, 1] by name: image_auroc, image_ap, image_f1max, pixel_auroc, pixel_ap, pixel_f1max,
            and one aupro_<percent> per limit of the false positive rate.
        undefined: the reason why a metric does not exist, by name.
        error_bound: largest possible deviation of a pixel metric from its exact value; 0 for up to
            `curves.MAX_EXACT_SCORES` defect pixels.
    """

    values: dict[str, float]
    undefined: dict[str, str]
    error_bound: float = 0.0


def auroc(scores: Array, anomalous: Bools) -> float:
    """Compute the area under the ROC curve of (n,) scores; higher is more anomalous, a tie counts half.

    Raises: BenchError if a score is not finite or a class is empty.
    """
    return float(curve_auroc(image_curve(*require_both_classes(scores, anomalous))))


def evaluate(
    scores: Array,
    anomalous: Bools,
    maps: Sequence[Array] | None,
    masks: Sequence[Bools] | None,
    *,
    fpr_limits: Sequence[float] = LIMITS,
    mask_threshold: float | None = None,
) -> Evaluation:
    """Compute all metrics of one category from raw scores.

    Pixel metrics pool the pixels of all images; pixels outside the masks are normal, in defective images as well.
    AUPRO is the mean over defect regions (8-connected) of the area under (false positive rate, detected fraction of the
    region) from 0 to the limit, divided by the limit. Source: Bergmann et al., IJCV 2021 (paper).

    Args:
        scores: (n,), higher is more anomalous.
        anomalous: (n,), from the labels of the dataset, not from the masks.
        maps: n arrays (h, w), sizes may differ; read twice, so a lazy sequence works. None: no maps.
        masks: n arrays (h, w), True for defect pixels, same size as the map. None: the dataset has no masks.
        fpr_limits: limits in (0, 1], whole percents; 0.3 is named aupro_30.
        mask_threshold: mask pixels above it are defects; None accepts only masks of two values.

    Raises: BenchError if a value is not finite, or lengths or shapes differ.
    """
    pixel_names = (*PIXEL_NAMES, *map(aupro_name, fpr_limits))
    anomalous = as_labels(anomalous)
    scores = _checked(scores, anomalous)
    values: dict[str, float] = {}
    undefined: dict[str, str] = {}
    if anomalous.any() and not anomalous.all():
        values |= zip(IMAGE_NAMES, _auroc_ap_f1(image_curve(scores, anomalous)), strict=True)
    else:
        undefined |= dict.fromkeys(IMAGE_NAMES, "no good images" if anomalous.any() else "no defective images")
    if maps is None or masks is None:
        return Evaluation(values, undefined | dict.fromkeys(pixel_names, "no maps" if maps is None else "no masks"))
    check_lengths(scores, maps, masks)
    curve = pixel_curve(maps, BinaryMasks(masks, mask_threshold))
    if not curve.tp.size or not curve.n_negatives:
        reason = "no normal pixels" if curve.tp.size else "no defect pixels"
        return Evaluation(values, undefined | dict.fromkeys(pixel_names, reason))
    areas = [float(curve_area(curve, curve.region_fraction, limit)) for limit in fpr_limits]
    values |= zip(pixel_names, [*_auroc_ap_f1(curve), *areas], strict=True)
    return Evaluation(values, undefined, curve_error_bound(curve, fpr_limits))


def threshold_at(normals: Array, rate: float) -> float:
    """Return the decision threshold that a good image exceeds with probability `rate` at most.

    The threshold is the ceil((n + 1)(1 - rate))-th lowest score of n calibration images (split conformal prediction:
    Lei et al., JASA 2018, paper). The bound holds for any distribution of scores, on average over draws of the
    calibration images, if later good images come from the same distribution.

    Args:
        normals: (n,) scores of good images that were excluded from training; never scores of test images.
        rate: false positive rate in (0, 1).

    Raises: BenchError if a score is not finite or n < 1 / rate - 1.
    """
    normals = _checked(normals, np.zeros(np.shape(normals), dtype=bool))
    needed = min_calibration_images(rate)
    if normals.size < needed:
        raise BenchError(
            f"A false positive rate of {rate:g} needs {needed} good images excluded from training, got "
            f"{normals.size}. Use more images or a rate of {math.ceil(1000 / (normals.size + 1)) / 1000:g}."
        )
    rank = math.ceil((normals.size + 1) * (1 - rate) - 1e-9)  # 1e-9: (9 + 1)(1 - 0.1) rounds to slightly above 9
    return float(np.sort(normals)[rank - 1])


def min_calibration_images(rate: float) -> int:
    """Return the number of good images that `threshold_at` needs. Raises BenchError if `rate` is out of range."""
    if not MIN_RATE <= rate < 1:
        raise BenchError(f"A false positive rate must be >= {MIN_RATE:g} and < 1, got {rate}. Use for example 0.1.")
    return math.ceil(1 / rate - 1 - 1e-9)


def at_threshold(scores: Array, anomalous: Bools, threshold: float) -> dict[str, float]:
    """Compute precision, recall, F1 and false positive rate if scores above the threshold are predicted as anomalous.

    Precision and F1 are 0 if no score lies above the threshold.
    Raises: BenchError if a score is not finite or a class is empty.
    """
    scores, anomalous = require_both_classes(scores, anomalous)
    values = binary_metrics(scores > threshold, anomalous, np.ones(scores.size))
    return {name: float(value) for name, value in values.items()}


def binary_metrics(predicted: Bools, anomalous: Bools, weights: Floats) -> dict[str, Floats]:
    """Compute `THRESHOLD_NAMES` (...) from (n,) binary predictions; image i counts `weights[..., i]` times."""
    tp, p, defective, good = (
        weights @ selected for selected in (predicted & anomalous, predicted, anomalous, ~anomalous)
    )
    values = tp / np.maximum(p, 1), tp / defective, 2 * tp / (p + defective), (p - tp) / good
    return dict(zip(THRESHOLD_NAMES, values, strict=True))


# --- From counts to metrics; the arrays of a curve may have leading axes, for example one for bootstrap samples ------


def curve_auroc(curve: Curve) -> Floats:
    """Compute the AUROC of each curve."""
    return curve_area(curve, curve.tp / curve.tp.sum(axis=-1, keepdims=True), 1.0)


def curve_area(curve: Curve, weights: Floats, limit: float) -> Floats:
    """Integrate the detected fraction over the false positive rate from 0 to `limit`, and divide by `limit`.

    Ties are straight line segments. `weights` (..., u) sum to 1; the `region_fraction` of the curve gives AUPRO.
    """
    normals = curve.n_negatives[..., None]
    start, stop = curve.fp / normals, (curve.fp + curve.tied_negatives) / normals
    ramp = np.clip(limit, start, stop) - start  # (..., u) the part of the segment below the limit
    width = np.where(curve.tied_negatives > 0, stop - start, 1.0)
    covered = ramp**2 / (2 * width) + np.maximum(limit - stop, 0.0)
    area: Floats = np.sum(weights * covered, axis=-1) / limit
    return area


def curve_average_precision(curve: Curve) -> Floats:
    """Compute the sum of (increase in recall) x precision over all thresholds of each curve, without interpolation."""
    tp = np.cumsum(curve.tp, axis=-1)
    precision = tp / np.maximum(tp + curve.fp + curve.tied_negatives, 1)
    average: Floats = np.sum(curve.tp * precision, axis=-1) / tp[..., -1]
    return average


def curve_f1(curve: Curve) -> Floats:
    """Compute the largest F1 over all thresholds of each curve. The threshold is chosen on the test labels."""
    tp = np.cumsum(curve.tp, axis=-1)
    f1_max: Floats = np.max(2 * tp / (tp + curve.fp + curve.tied_negatives + tp[..., -1:]), axis=-1)
    return f1_max


def curve_error_bound(curve: Curve, limits: Sequence[float]) -> float:
    """Return how much any order of the items inside approximate groups could change any metric of any curve."""
    if not curve.approximate.any():
        return 0.0
    approximate = np.flatnonzero(curve.approximate)
    tp, stop = np.cumsum(curve.tp, axis=-1), curve.fp + curve.tied_negatives
    fractions = curve.tp / tp[..., -1:]
    upper_bound = tp / np.maximum(tp + curve.fp, 1)  # precision if the defects of a group rank first
    lower_bound = (tp - curve.tp + 1) / (tp - curve.tp + 1 + stop)
    f1 = np.max((2 * tp / (tp + curve.fp + tp[..., -1:]))[..., approximate], axis=-1)
    changes = [
        np.max(np.sum((fractions * (upper_bound - lower_bound))[..., approximate], axis=-1)),
        np.max(f1 - curve_f1(curve)),
    ]
    for weights, limit in [(fractions, 1.0), *((curve.region_fraction, limit) for limit in limits)]:
        start, end = (ends[..., approximate] / curve.n_negatives[..., None] for ends in (curve.fp, stop))
        area = np.where(end > limit, np.maximum(limit - start, 0), (end - start) / 2)  # compared with the straight line
        changes.append(np.max(np.sum(weights[..., approximate] * area, axis=-1)) / limit)
    return float(max(changes))


def _auroc_ap_f1(curve: Curve) -> tuple[float, float, float]:
    return float(curve_auroc(curve)), float(curve_average_precision(curve)), float(curve_f1(curve))


# --- Checks ---------------------------------------------------------------------------------------------------------


def _checked(scores: Array, anomalous: Bools) -> Array:
    scores = np.asarray(scores)
    if scores.ndim != 1 or scores.shape != anomalous.shape or not scores.size:
        raise BenchError(
            f"Scores and labels must have one shape (n,), got {scores.shape} and {anomalous.shape}. Pass n of each."
        )
    if not np.isfinite(scores).all():
        index = np.isfinite(scores).argmin()
        raise BenchError(f"Scores must be finite; the score of image {index} is {scores[index]}. Fix the method.")
    return scores


def require_both_classes(scores: Array, anomalous: Bools) -> tuple[Array, Bools]:
    """Return both as arrays. Raises BenchError unless these are (n,) finite scores of images of both classes."""
    anomalous = as_labels(anomalous)
    scores = _checked(scores, anomalous)
    if anomalous.all() or not anomalous.any():
        raise BenchError("This metric needs good and defective images, got one class only. Add images of the other.")
    return scores, anomalous


def check_lengths(scores: Array, maps: Sequence[Array], masks: Sequence[Bools]) -> None:
    """Raise BenchError if the numbers of scores, maps and masks differ."""
    if not len(scores) == len(maps) == len(masks):
        raise BenchError(
            f"Every image needs one score, one map and one mask, got {len(scores)}, {len(maps)} and {len(masks)}. "
            "Pass as many of each."
        )


def aupro_name(limit: float) -> str:
    """Return the name of AUPRO for a limit: aupro_30 for 0.3. Raises BenchError unless it is whole percents."""
    if not 0 < limit <= 1 or abs(limit * 100 - round(limit * 100)) > 1e-9:
        raise BenchError(f"A limit of the false positive rate must be whole percents in (0, 1], got {limit}. Use 0.3.")
    return f"aupro_{round(limit * 100):02d}"
