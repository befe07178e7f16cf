"""Metric variants: the metrics of a run as other implementations compute them from the same predictions.

Papers report different values for the same model because their code rounds, samples, rescales or pools differently.
Each variant applies one such difference alone to stored predictions, for comparison with the exact value.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from bench.evaluation import metrics
from bench.evaluation.curves import EIGHT_NEIGHBORS, Array, Bools, pixel_curve
from bench.record import Predictions

AUDITED = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro_30", "aupro_05")
"""The metrics that papers report."""

BINS = 50
THRESHOLDS = 200
LIMIT = 0.3

Values = dict[str, float]


@dataclass(frozen=True, slots=True)
class VariantResult:
    """One metric of one category by one variant.

    Attributes:
        variant: name of the variant.
        used_by: implementations that compute the metric like this.
        metric: name, as in `metrics.evaluate`.
        exact: the exact value, a fraction.
        value: the value of the variant, a fraction.
    """

    variant: str
    used_by: str
    metric: str
    exact: float
    value: float


@dataclass(frozen=True, slots=True)
class MetricVariant:
    """A different way to compute the metrics.

    Attributes:
        name: name in tables.
        used_by: implementations that compute the metrics like this.
        requires: "maps", "soft_masks" or metrics that must exist.
        values: function of (predictions, exact values) that returns the metrics it changes.
    """

    name: str
    used_by: str
    requires: tuple[str, ...]
    values: Callable[[Predictions, Values], Values]

    @property
    def meaning(self) -> str:
        """One line: the summary of the docstring."""
        return (self.values.__doc__ or "").partition("\n")[0]


def exact_metrics(predictions: Predictions) -> Values:
    """Compute the exact values as `bench run` records them; undefined metrics are omitted."""
    maps, masks = labeled_pixels(predictions)
    image = metrics.evaluate(predictions.scores, predictions.is_anomalous, None, None).values
    values = image | _pixel_metrics(predictions, maps, masks)
    return {name: values[name] for name in AUDITED if name in values}


def audit(predictions: Predictions) -> list[VariantResult]:
    """Compute every variant that these predictions allow, in the order of `METRIC_VARIANTS`.

    Raises: BenchError as `metrics.evaluate`.
    """
    exact_values = exact_metrics(predictions)
    available = {*exact_values, *(name for name in ("maps", "soft_masks") if getattr(predictions, name) is not None)}
    return [
        VariantResult(variant.name, variant.used_by, metric, exact_values[metric], value)
        for variant in METRIC_VARIANTS
        if available.issuperset(variant.requires)
        for metric, value in variant.values(predictions, exact_values).items()
        if metric in exact_values
    ]


# --- Variants of the final value -------------------------------------------------------------------------------------


def rounded(_: Predictions, exact_values: Values) -> Values:
    """Round the value of each category to 3 decimals before averaging."""
    return {name: round(value, 3) for name, value in exact_values.items()}


def flipped(_: Predictions, exact_values: Values) -> Values:
    """Replace an AUROC below 0.5 by 1 minus its value, as if the sign of the score were arbitrary."""
    return {name: max(value, 1 - value) for name, value in exact_values.items() if name.endswith("auroc")}


# --- Variants of the scores ------------------------------------------------------------------------------------------


def sigmoid_first(predictions: Predictions, _: Values) -> Values:
    """Apply a float32 sigmoid to all scores if any lies outside [0, 1]; large scores become equal."""
    return _transformed(predictions, _sigmoid_if_needed)


def min_max(predictions: Predictions, _: Values) -> Values:
    """Scale scores and maps to [0, 1] by their minimum and maximum over the test set; this keeps the ranks."""
    return _transformed(predictions, _min_max_scaled)


def map_max(predictions: Predictions, _: Values) -> Values:
    """Use the maximum of the map as image score instead of the score of the method."""
    return _with_map_scores(predictions, np.max)


def map_mean(predictions: Predictions, _: Values) -> Values:
    """Use the mean of the map as image score instead of the score of the method."""
    return _with_map_scores(predictions, np.mean)


def map_std(predictions: Predictions, _: Values) -> Values:
    """Use the standard deviation of the map as image score instead of the score of the method."""
    return _with_map_scores(predictions, np.std)


# --- Variants of the masks -------------------------------------------------------------------------------------------


def bilinear_half(predictions: Predictions, _: Values) -> Values:
    """Resize masks bilinearly and threshold them at 0.5; the exact values use nearest-neighbor resizing."""
    return _with_soft_masks(predictions, 128)


def bilinear_any(predictions: Predictions, _: Values) -> Values:
    """Resize masks bilinearly and count every non-zero pixel as a defect."""
    return _with_soft_masks(predictions, 1)


def bilinear_full(predictions: Predictions, _: Values) -> Values:
    """Resize masks bilinearly and cast them to integers: only pixels that are entirely defective remain."""
    return _with_soft_masks(predictions, 255)


# --- Variants of the curve -------------------------------------------------------------------------------------------


def histogram(predictions: Predictions, exact_values: Values) -> Values:
    """Compute AUROC from a histogram with 50 equal bins from minimum to maximum; scores in one bin are ties."""
    values: Values = {}
    if "image_auroc" in exact_values:
        values["image_auroc"] = _binned_auroc(predictions.scores, predictions.is_anomalous)
    maps, masks = labeled_pixels(predictions)
    if maps is not None and "pixel_auroc" in exact_values:
        values["pixel_auroc"] = _binned_auroc(maps, masks)
    return values


def image_by_image(predictions: Predictions, _: Values) -> Values:
    """Average the pixel AUROC of single defective images; the scales of their maps may differ."""
    maps, masks = labeled_pixels(predictions)
    assert maps is not None  # `requires` of the variant
    mixed = [i for i, mask in enumerate(masks) if mask.any() and not mask.all()]
    if not mixed:
        return {}
    return {"pixel_auroc": float(np.mean([_pixel_auroc(maps[i : i + 1], masks[i : i + 1]) for i in mixed]))}


def defective_images_only(predictions: Predictions, _: Values) -> Values:
    """Compute pixel AUROC from the defective images only, without the pixels of good images."""
    maps, masks = labeled_pixels(predictions)
    assert maps is not None  # `requires` of the variant
    defective = masks.any(axis=(1, 2))
    if masks[defective].all():
        return {}
    return {"pixel_auroc": _pixel_auroc(maps[defective], masks[defective])}


def linear_thresholds(predictions: Predictions, _: Values) -> Values:
    """Compute AUPRO at 200 evenly spaced thresholds, and rescale the false positive rates below 0.3 to [0, 1]."""
    maps, masks = labeled_pixels(predictions)
    assert maps is not None  # `requires` of the variant
    scores = maps.astype(np.float64)
    step = (scores.max() - scores.min()) / THRESHOLDS
    if not step:
        return {}
    thresholds = scores.min() + step * np.arange(THRESHOLDS)
    n_below = np.searchsorted(thresholds, scores)  # (m, h, w) number of thresholds below each pixel
    fractions = np.zeros(masks.shape)
    regions = 0
    for fraction, mask in zip(fractions, masks, strict=True):
        labels, count = ndimage.label(mask, EIGHT_NEIGHBORS)
        fraction[mask] = 1 / np.bincount(labels[mask])[labels[mask]] if count else 0
        regions += count
    overlap = _weight_above(n_below[masks], fractions[masks] / regions)  # (THRESHOLDS,)
    rate = _weight_above(n_below[~masks], np.full(np.count_nonzero(~masks), 1 / np.count_nonzero(~masks)))
    low = rate < LIMIT - 1e-12  # tolerance for rounding in the sum
    rate, overlap = rate[low], overlap[low]
    if not low.any() or rate.max() == rate.min():
        return {}
    stretched = (rate - rate.min()) / (rate.max() - rate.min())
    return {"aupro_30": float(-np.trapezoid(overlap, stretched))}  # rates decrease with the threshold


def scikit_learn(predictions: Predictions, exact_values: Values) -> Values:
    """Compute the same metrics with scikit-learn: the reference, which must agree."""
    from sklearn.metrics import average_precision_score, roc_auc_score  # slow to import

    values: Values = {}
    maps, masks = labeled_pixels(predictions)
    pairs: list[tuple[str, Array, Bools]] = [("image", predictions.scores, predictions.is_anomalous)]
    if maps is not None:
        pairs.append(("pixel", maps.ravel(), masks.ravel()))
    for level, scores, truth in pairs:
        if f"{level}_auroc" in exact_values:
            values[f"{level}_auroc"] = float(roc_auc_score(truth, scores))
            values[f"{level}_ap"] = float(average_precision_score(truth, scores))
    return values


METRIC_VARIANTS = (
    MetricVariant("rounded before averaging", "AMI-Net's code, also before it selects the epoch", (), rounded),
    MetricVariant(
        "200 linear thresholds",
        "ADer's AUPRO and its many copies; AMI-Net's code uses 2000 thresholds and the same rescaling",
        ("aupro_30",),
        linear_thresholds,
    ),
    MetricVariant(
        "50-bin histogram", "evaluation code that uses histograms; the default of adeval is 1000 bins", (), histogram
    ),
    MetricVariant("mean over images", "scripts that evaluate image by image", ("pixel_auroc",), image_by_image),
    MetricVariant(
        "defective images only", "PatchCore's code, as an additional value", ("pixel_auroc",), defective_images_only
    ),
    MetricVariant(
        "sigmoid applied first",
        "torchmetrics if a score lies outside [0, 1], and therefore anomalib",
        (),
        sigmoid_first,
    ),
    MetricVariant("AUROC flipped below 0.5", "evaluation scripts; we know of no authors' code", (), flipped),
    MetricVariant("image score max", "CFA, STFPM and most others", ("image_auroc", "maps"), map_max),
    MetricVariant("image score mean", "option of UniAD's evaluation", ("image_auroc", "maps"), map_mean),
    MetricVariant("image score std", "AMI-Net's code; option of UniAD's evaluation", ("image_auroc", "maps"), map_std),
    MetricVariant(
        "bilinear masks, threshold 0.5",
        "RD4AD's test script and many based on it",
        ("maps", "soft_masks"),
        bilinear_half,
    ),
    MetricVariant(
        "bilinear masks, threshold 0",
        "loaders that count any non-zero value; we know of no authors' code",
        ("maps", "soft_masks"),
        bilinear_any,
    ),
    MetricVariant(
        "bilinear masks, threshold 1", "PatchCore's code, which casts to int", ("maps", "soft_masks"), bilinear_full
    ),
    MetricVariant("min-max over the test set", "PatchCore and CFA; changes nothing", (), min_max),
    MetricVariant("scikit-learn", "the reference: must agree", (), scikit_learn),
)


# --- Shared steps ----------------------------------------------------------------------------------------------------


def labeled_pixels(predictions: Predictions) -> tuple[NDArray[np.float32] | None, Bools]:
    """Return maps and masks (m, h, w) of the images with pixel labels; None for maps that were not stored."""
    maps = None if predictions.maps is None else predictions.maps[predictions.has_pixel_labels]
    return maps, predictions.masks[predictions.has_pixel_labels]


def _transformed(predictions: Predictions, change: Callable[[Array], Array]) -> Values:
    """Compute AUROC and AP from transformed scores and maps."""
    maps, masks = labeled_pixels(predictions)
    values = metrics.evaluate(change(predictions.scores), predictions.is_anomalous, None, None).values
    values |= _pixel_metrics(predictions, None if maps is None else change(maps), masks)
    return {name: value for name, value in values.items() if name.endswith(("_auroc", "_ap"))}


def _pixel_metrics(predictions: Predictions, maps: Array | None, masks: Bools) -> Values:
    """Compute the pixel metrics from maps and masks of the images with pixel labels."""
    scores, anomalous = (
        predictions.scores[predictions.has_pixel_labels],
        predictions.is_anomalous[predictions.has_pixel_labels],
    )
    values = metrics.evaluate(scores, anomalous, None if maps is None else list(maps), list(masks)).values
    return {name: value for name, value in values.items() if not name.startswith("image_")}


def _with_soft_masks(predictions: Predictions, threshold: int) -> Values:
    """Compute the pixel metrics with masks that are True from the value `threshold` of 0..255 on."""
    assert predictions.soft_masks is not None  # `requires` of the variant
    return _pixel_metrics(
        predictions, labeled_pixels(predictions)[0], predictions.soft_masks[predictions.has_pixel_labels] >= threshold
    )


def _with_map_scores(predictions: Predictions, reduce: Callable[..., Any]) -> Values:
    assert predictions.maps is not None  # `requires` of the variant
    scores = reduce(predictions.maps.astype(np.float64), axis=(1, 2))  # (n,)
    values = metrics.evaluate(scores, predictions.is_anomalous, None, None).values
    return {name: values[name] for name in ("image_auroc", "image_ap")}


def _sigmoid_if_needed(scores: Array) -> Array:
    single = scores.astype(np.float32)
    in_unit_range = single.min() >= 0 and single.max() <= 1
    probabilities: Array = single if in_unit_range else special.expit(single)
    return probabilities


def _min_max_scaled(scores: Array) -> Array:
    double = scores.astype(np.float64)
    low, high = double.min(), double.max()
    return (double - low) / (high - low) if high > low else double


def _pixel_auroc(maps: NDArray[np.float32], masks: Bools) -> float:
    return float(metrics.curve_auroc(pixel_curve(list(maps), list(masks))))


def _binned_auroc(scores: Array, truth: Bools) -> float:
    low, high = float(scores.min()), float(scores.max())
    bins = np.minimum((scores.astype(np.float64) - low) / ((high - low) or 1.0) * BINS, BINS - 1).astype(np.intp)
    defective, normal = np.bincount(bins[truth], minlength=BINS), np.bincount(bins[~truth], minlength=BINS)
    below = np.cumsum(normal) - normal / 2  # a tie counts half
    return float(np.sum(defective * below) / (defective.sum() * normal.sum()))


def _weight_above(n_below: NDArray[np.intp], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (THRESHOLDS,) the sum of the weights above each threshold."""
    sums = np.bincount(n_below, weights=weights, minlength=THRESHOLDS + 1).astype(np.float64)
    return np.cumsum(sums[::-1])[::-1][1:]
