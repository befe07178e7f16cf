"""Bootstrap over test images: how much the metrics of a category vary with the choice of its test images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from bench.evaluation.curves import Array, Bools, Curve, Floats, ImageCounts, image_counts
from bench.evaluation.metrics import (
    IMAGE_NAMES,
    LIMITS,
    PIXEL_NAMES,
    aupro_name,
    binary_metrics,
    check_lengths,
    curve_area,
    curve_auroc,
    curve_average_precision,
    curve_error_bound,
    curve_f1,
    require_both_classes,
)

N_THRESHOLDS = 2048
"""Number of defect scores at which pixels are counted; `BootstrapSamples.error_bound` is the resulting error."""

MAX_COUNTS = 1 << 21
"""Limit on thresholds times images, which bounds memory: with over 1000 images, fewer than `N_THRESHOLDS` are used."""

BLOCK = 64
"""Number of bootstrap samples evaluated at once, which bounds memory."""


@dataclass(frozen=True, slots=True)
class BootstrapSamples:
    """The metrics of one category on bootstrap samples of its test images.

    Attributes:
        values: (n_samples,) values of each metric, by name. Sample i of two methods contains the same images.
        error_bound: largest possible deviation of a pixel metric from its exact value, because scores are grouped.
        n_good: number of good test images.
        n_defective: number of defective test images.
    """

    values: dict[str, Floats]
    error_bound: float
    n_good: int
    n_defective: int


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval: percentiles of the bootstrap, or Student's t."""

    estimate: float
    low: float
    high: float
    confidence: float


def bootstrap(
    scores: Array,
    anomalous: Bools,
    maps: Sequence[Array] | None,
    masks: Sequence[Bools] | None,
    *,
    has_pixel_labels: Bools | None = None,
    threshold: float | None = None,
    fpr_limits: Sequence[float] = LIMITS,
    n_samples: int = 1000,
    seed: int | Sequence[int] = 0,
) -> BootstrapSamples:
    """Compute the metrics of one category on test sets drawn with replacement from its images.

    Whole images are drawn, since the pixels of an image are not independent; good and defective images are drawn
    separately, as many as there are. The samples depend on `seed` and the labels only, so two methods are compared
    on the same samples. Use a different seed per category, otherwise their sampling errors are correlated and do not
    average out. The pixels of each image are counted once, in groups between at most `N_THRESHOLDS` defect scores; a
    test set is a weighted sum of these counts.

    Args:
        scores: (n,), higher is more anomalous.
        anomalous: (n,), True for defective images; both classes are required.
        maps: n arrays (h, w), or None.
        masks: n arrays (h, w), True for defect pixels, or None.
        has_pixel_labels: (n,) images whose pixels are evaluated; None for all.
        threshold: decision threshold of the scores, for the metrics of `metrics.at_threshold`.
        fpr_limits: limits of AUPRO, as in `metrics.evaluate`.
        n_samples: number of bootstrap samples.
        seed: seed of the samples.

    Raises: BenchError as `metrics.evaluate`, and if a class is empty.
    """
    scores, anomalous = require_both_classes(scores, anomalous)
    start = seed if isinstance(seed, int) else tuple(seed)
    weights = _weights(anomalous.tobytes(), n_samples, start).astype(float)  # (n_samples, n)
    n_good, n_defective = int(np.count_nonzero(~anomalous)), int(np.count_nonzero(anomalous))
    values, _ = _evaluate_samples(_image_level_counts(scores, anomalous), weights, IMAGE_NAMES, ())
    if threshold is not None:
        values |= binary_metrics(scores > threshold, anomalous, weights)
    if maps is None or masks is None:
        return BootstrapSamples(values, 0.0, n_good, n_defective)
    check_lengths(scores, maps, masks)
    n_thresholds = min(N_THRESHOLDS, max(MAX_COUNTS // scores.size, 64))
    labeled = [index for index in range(scores.size) if has_pixel_labels is None or has_pixel_labels[index]]
    counts = image_counts([maps[i] for i in labeled], [masks[i] for i in labeled], n_thresholds)
    if not counts.n_regions.any() or not counts.negatives.any():
        return BootstrapSamples(values, 0.0, n_good, n_defective)
    names = (*PIXEL_NAMES, *map(aupro_name, fpr_limits))
    pixel_values, error_bound = _evaluate_samples(counts, weights[:, labeled], names, fpr_limits)
    return BootstrapSamples(values | pixel_values, error_bound, n_good, n_defective)


def mean_over_categories(categories: Sequence[BootstrapSamples]) -> BootstrapSamples:
    """Return samples of the mean over categories, for the metrics that all categories have."""
    names = [name for name in categories[0].values if all(name in samples.values for samples in categories)]
    return BootstrapSamples(
        {name: np.mean([samples.values[name] for samples in categories], axis=0) for name in names},
        max(samples.error_bound for samples in categories),
        sum(samples.n_good for samples in categories),
        sum(samples.n_defective for samples in categories),
    )


def intervals(samples: BootstrapSamples, *, confidence: float = 0.95) -> dict[str, Interval]:
    """Return the median and the central percentile interval of each metric.

    Samples without a defect pixel have no pixel metrics and are ignored; a metric without any sample is omitted.
    """
    return _percentiles(samples.values, confidence)


def differences(first: BootstrapSamples, second: BootstrapSamples, *, confidence: float = 0.95) -> dict[str, Interval]:
    """Return the interval of the paired difference first - second of each metric that both have.

    Raises: BenchError if the numbers of test images or of samples differ.
    """
    if (first.n_good, first.n_defective) != (second.n_good, second.n_defective):
        raise BenchError(
            f"Paired methods must be evaluated on the same test images, got {first.n_good} good and "
            f"{first.n_defective} defective against {second.n_good} and {second.n_defective}. Evaluate both on one set."
        )
    common_metrics = [name for name in first.values if name in second.values]
    if any(first.values[name].shape != second.values[name].shape for name in common_metrics):
        raise BenchError("Paired methods must have equally many bootstrap samples. Use the same n_samples for both.")
    return _percentiles({name: first.values[name] - second.values[name] for name in common_metrics}, confidence)


def _percentiles(samples: Mapping[str, Floats], confidence: float) -> dict[str, Interval]:
    tail, by_name = (1 - confidence) / 2, {}
    for name, values in samples.items():
        if np.isfinite(values).any():
            low, median, high = np.quantile(values[np.isfinite(values)], (tail, 0.5, 1 - tail)).tolist()
            by_name[name] = Interval(median, low, high, confidence)
    return by_name


@lru_cache(maxsize=32)
def _weights(labels: bytes, n_samples: int, seed: int | tuple[int, ...]) -> NDArray[np.uint16]:
    """Return how often each sample contains each image (n_samples, n); cached because all methods share it."""
    anomalous = np.frombuffer(labels, dtype=np.bool_)
    random = np.random.default_rng(seed)
    weights = np.zeros((n_samples, anomalous.size), dtype=np.uint16)
    for images in (np.flatnonzero(~anomalous), np.flatnonzero(anomalous)):
        weights[:, images] = random.multinomial(images.size, np.full(images.size, 1 / images.size), size=n_samples)
    return weights


def _image_level_counts(scores: Array, anomalous: Bools) -> ImageCounts:
    """Return counts in which each image is one pixel and each defective image one region."""
    values, group = np.unique(-scores, return_inverse=True)
    ones = np.zeros((scores.size, values.size), dtype=np.int64)
    ones[np.arange(scores.size), group] = 1
    tp, negatives = ones * anomalous[:, None], ones * ~anomalous[:, None]
    return ImageCounts(tp, tp / 1, negatives, anomalous.astype(np.int64), np.zeros(values.size, dtype=bool))


def _evaluate_samples(
    counts: ImageCounts, weights: Floats, names: Sequence[str], limits: Sequence[float]
) -> tuple[dict[str, Floats], float]:
    """Return each metric (n_samples,) by name, nan for samples with one class only, and the largest error bound."""
    groups = np.flatnonzero(counts.tp.any(axis=0))
    tp, region_fraction, negatives = (
        array.astype(float) for array in (counts.tp, counts.region_fraction, counts.negatives)
    )
    values, error_bound = np.full((len(names), len(weights)), np.nan), 0.0
    valid = np.flatnonzero((weights @ counts.n_regions > 0) & (weights @ negatives.sum(axis=1) > 0))
    for start in range(0, valid.size, BLOCK):
        block = valid[start : start + BLOCK]
        weight = weights[block]  # (b, n)
        sampled = weight @ negatives  # (b, g)
        curve = Curve(
            tp=weight @ tp[:, groups],
            region_fraction=weight @ region_fraction[:, groups] / (weight @ counts.n_regions)[:, None],
            fp=(np.cumsum(sampled, axis=1) - sampled)[:, groups],
            tied_negatives=sampled[:, groups],
            approximate=counts.approximate[groups],
            n_negatives=sampled.sum(axis=1),
        )
        areas = [curve_area(curve, curve.region_fraction, limit) for limit in limits]
        values[:, block] = [curve_auroc(curve), curve_average_precision(curve), curve_f1(curve), *areas]
        error_bound = max(error_bound, curve_error_bound(curve, limits))
    return dict(zip(names, values, strict=True)), error_bound
