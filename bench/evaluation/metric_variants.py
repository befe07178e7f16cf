"""One run in the field's other dialects: its metrics as other code would have computed them from the same answers.

Two papers print different numbers for one model because their scripts round, sample, squash or pool differently. Each
dialect here is one such habit, applied alone to stored answers, beside the exact value by `metrics`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from bench.evaluation import metrics
from bench.evaluation.curves import EIGHT_NEIGHBOURS, Array, Bools, pixel_curve
from bench.record import Predictions

AUDITED = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro_30", "aupro_05")
"""The metrics that papers print, and dialects move."""

BINS = 50
THRESHOLDS = 200
LIMIT = 0.3

Values = dict[str, float]


@dataclass(frozen=True, slots=True)
class VariantResult:
    """One metric of one category in one dialect.

    Attributes:
        dialect: its name.
        where: who computes so.
        metric: by the names of `metrics.judge`.
        ours: the exact value, a fraction.
        theirs: the value in that dialect.
    """

    dialect: str
    where: str
    metric: str
    ours: float
    theirs: float


@dataclass(frozen=True, slots=True)
class MetricVariant:
    """A habit: its name, where it occurs, and its values for answers whose exact values are given.

    `needs` names what must exist for it to answer: "maps", "soft", or a metric that the category has.
    """

    name: str
    used_by: str
    requires: tuple[str, ...]
    values: Callable[[Predictions, Values], Values]

    @property
    def meaning(self) -> str:
        """What it does, in a line."""
        return (self.values.__doc__ or "").partition("\n")[0]


def exact(answers: Predictions) -> Values:
    """Our own values, as `bench run` records them; a metric that does not exist here is absent."""
    maps, masks = labeled_pixels(answers)
    image = metrics.evaluate(answers.scores, answers.is_anomalous, None, None).values
    found = image | _of_pixels(answers, maps, masks)
    return {name: found[name] for name in AUDITED if name in found}


def audit(answers: Predictions) -> list[VariantResult]:
    """Every dialect that these answers allow, in the order of DIALECTS.

    Raises: BenchError as `metrics.judge` does.
    """
    ours = exact(answers)
    there = {*ours, *(name for name in ("maps", "soft") if getattr(answers, name) is not None)}
    return [
        VariantResult(dialect.name, dialect.used_by, metric, ours[metric], theirs)
        for dialect in METRIC_VARIANTS
        if there.issuperset(dialect.requires)
        for metric, theirs in dialect.values(answers, ours).items()
        if metric in ours
    ]


# --- Habits of the last step: what is done to a number ---------------------------------------------------------------


def rounded(_: Predictions, ours: Values) -> Values:
    """Each category's value is rounded to 3 decimals, and only then averaged."""
    return {name: round(value, 3) for name, value in ours.items()}


def flipped(_: Predictions, ours: Values) -> Values:
    """An AUROC below 0.5 is replaced by 1 minus it, as if the sign of the score were free."""
    return {name: max(value, 1 - value) for name, value in ours.items() if name.endswith("auroc")}


# --- Habits before it: what is done to the scores --------------------------------------------------------------------


def sigmoid_first(answers: Predictions, _: Values) -> Values:
    """Where any score lies outside [0, 1], all go through a sigmoid in float32, which makes large ones equal."""
    return _again(answers, _squashed)


def min_max(answers: Predictions, _: Values) -> Values:
    """Scores and maps are scaled to [0, 1] by their extremes over the test set: harmless, ranks stay."""
    return _again(answers, _scaled)


def map_max(answers: Predictions, _: Values) -> Values:
    """The image score is the largest value of the map instead of the method's own score."""
    return _of_maps(answers, np.max)


def map_mean(answers: Predictions, _: Values) -> Values:
    """The image score is the mean of the map instead of the method's own score."""
    return _of_maps(answers, np.mean)


def map_std(answers: Predictions, _: Values) -> Values:
    """The image score is the standard deviation of the map instead of the method's own score."""
    return _of_maps(answers, np.std)


# --- Habits before it: what is done to the masks ---------------------------------------------------------------------


def cut_at_half(answers: Predictions, _: Values) -> Values:
    """Masks are resized by a bilinear filter, as images are, and cut at a half; ours take the nearest pixel."""
    return _of_masks(answers, 128)


def cut_above_zero(answers: Predictions, _: Values) -> Values:
    """Masks are resized by a bilinear filter, and every pixel that is touched by a defect counts as one."""
    return _of_masks(answers, 1)


def cut_at_one(answers: Predictions, _: Values) -> Values:
    """Masks are resized by a bilinear filter and cast to integers: only pixels that lie wholly in a defect are left."""
    return _of_masks(answers, 255)


# --- Habits in between: how the curve is made ------------------------------------------------------------------------


def histogram(answers: Predictions, ours: Values) -> Values:
    """The AUROC of scores sorted into 50 equal bins between their extremes; what shares a bin is a tie."""
    found = {"image_auroc": _binned_auroc(answers.scores, answers.is_anomalous)} if "image_auroc" in ours else {}
    maps, masks = labeled_pixels(answers)
    if maps is not None and "pixel_auroc" in ours:
        found["pixel_auroc"] = _binned_auroc(maps, masks)
    return found


def image_by_image(answers: Predictions, _: Values) -> Values:
    """The pixel AUROC of each defect image alone, then their mean: no map need be comparable to another's."""
    maps, masks = labeled_pixels(answers)
    assert maps is not None  # a pixel AUROC exists
    mixed = [i for i, mask in enumerate(masks) if mask.any() and not mask.all()]
    if not mixed:
        return {}
    return {"pixel_auroc": float(np.mean([_pixel_auroc(maps[i : i + 1], masks[i : i + 1]) for i in mixed]))}


def defective_images_only(answers: Predictions, _: Values) -> Values:
    """The pixel AUROC of the defect images alone: the pixels of good images don't count."""
    maps, masks = labeled_pixels(answers)
    assert maps is not None  # a pixel AUROC exists
    defective = masks.any(axis=(1, 2))
    if masks[defective].all():
        return {}
    return {"pixel_auroc": _pixel_auroc(maps[defective], masks[defective])}


def linear_thresholds(answers: Predictions, _: Values) -> Values:
    """AUPRO at 200 evenly spaced thresholds; the false positive rates met below 0.3 are stretched to [0, 1]."""
    maps, masks = labeled_pixels(answers)
    assert maps is not None  # a pixel AUROC exists
    scores = maps.astype(np.float64)
    step = (scores.max() - scores.min()) / THRESHOLDS
    if not step:
        return {}
    thresholds = scores.min() + step * np.arange(THRESHOLDS)
    passed = np.searchsorted(thresholds, scores)  # (m, h, w) how many thresholds each pixel lies above
    shares = np.zeros(masks.shape)
    regions = 0
    for share, mask in zip(shares, masks, strict=True):
        labels, count = ndimage.label(mask, EIGHT_NEIGHBOURS)
        share[mask] = 1 / np.bincount(labels[mask])[labels[mask]] if count else 0
        regions += count
    overlap = _above(passed[masks], shares[masks] / regions)  # (THRESHOLDS,)
    rate = _above(passed[~masks], np.full(np.count_nonzero(~masks), 1 / np.count_nonzero(~masks)))
    low = rate < LIMIT - 1e-12  # a sum may end a hair below the limit
    rate, overlap = rate[low], overlap[low]
    if not low.any() or rate.max() == rate.min():
        return {}
    stretched = (rate - rate.min()) / (rate.max() - rate.min())
    return {"aupro_30": float(-np.trapezoid(overlap, stretched))}  # the rates fall as thresholds rise


def scikit_learn(answers: Predictions, ours: Values) -> Values:
    """The same definitions by scikit-learn: the reference, to which nothing may differ."""
    from sklearn.metrics import average_precision_score, roc_auc_score  # slow to import, and only the audit needs it

    found: Values = {}
    maps, masks = labeled_pixels(answers)
    pairs: list[tuple[str, Array, Bools]] = [("image", answers.scores, answers.is_anomalous)]
    if maps is not None:
        pairs.append(("pixel", maps.ravel(), masks.ravel()))
    for kind, scores, truth in pairs:
        if f"{kind}_auroc" in ours:
            found[f"{kind}_auroc"] = float(roc_auc_score(truth, scores))
            found[f"{kind}_ap"] = float(average_precision_score(truth, scores))
    return found


METRIC_VARIANTS = (
    MetricVariant("rounded before averaging", "AMI-Net's code, also before it selects an epoch", (), rounded),
    MetricVariant(
        "200 linear thresholds",
        "ADer's AUPRO and many that share it; AMI-Net's takes 2000, stretched alike",
        ("aupro_30",),
        linear_thresholds,
    ),
    MetricVariant("50-bin histogram", "evaluators that count in bins; adeval's default is 1000", (), histogram),
    MetricVariant("mean over images", "scripts that judge one image after the other", ("pixel_auroc",), image_by_image),
    MetricVariant("defect images only", "PatchCore's code prints it beside", ("pixel_auroc",), defective_images_only),
    MetricVariant(
        "sigmoid first", "torchmetrics, whenever a score lies outside [0, 1]; so anomalib", (), sigmoid_first
    ),
    MetricVariant("flipped below 0.5", "evaluation scripts; no author's code is known to us", (), flipped),
    MetricVariant("image score max", "CFA, STFPM and most others", ("image_auroc", "maps"), map_max),
    MetricVariant("image score mean", "offered by UniAD's evaluator", ("image_auroc", "maps"), map_mean),
    MetricVariant("image score std", "AMI-Net's code; offered by UniAD's evaluator", ("image_auroc", "maps"), map_std),
    MetricVariant("bilinear masks, cut at 0.5", "RD4AD's test script and many after it", ("maps", "soft"), cut_at_half),
    MetricVariant(
        "bilinear masks, cut above 0",
        "loaders that take any value for a defect; no author's code is known to us",
        ("maps", "soft"),
        cut_above_zero,
    ),
    MetricVariant("bilinear masks, cut at 1", "PatchCore's code, by its cast to int", ("maps", "soft"), cut_at_one),
    MetricVariant("min-max over the test set", "PatchCore and CFA; harmless", (), min_max),
    MetricVariant("scikit-learn", "the reference: must not differ", (), scikit_learn),
)


# --- Shared steps ----------------------------------------------------------------------------------------------------


def labeled_pixels(answers: Predictions) -> tuple[NDArray[np.float32] | None, Bools]:
    """(m, h, w) the maps and the masks of the images whose pixel truth is known; None where no maps were kept."""
    maps = None if answers.maps is None else answers.maps[answers.has_pixel_labels]
    return maps, answers.masks[answers.has_pixel_labels]


def _again(answers: Predictions, change: Callable[[Array], Array]) -> Values:
    """AUROC and AP of changed scores and changed maps."""
    maps, masks = labeled_pixels(answers)
    found = metrics.evaluate(change(answers.scores), answers.is_anomalous, None, None).values
    found |= _of_pixels(answers, None if maps is None else change(maps), masks)
    return {name: value for name, value in found.items() if name.endswith(("_auroc", "_ap"))}


def _of_pixels(answers: Predictions, maps: Array | None, masks: Bools) -> Values:
    """The pixel metrics of maps and masks of the images whose pixel truth is known."""
    scores, anomalous = answers.scores[answers.has_pixel_labels], answers.is_anomalous[answers.has_pixel_labels]
    found = metrics.evaluate(scores, anomalous, None if maps is None else list(maps), list(masks)).values
    return {name: value for name, value in found.items() if not name.startswith("image_")}


def _of_masks(answers: Predictions, least: int) -> Values:
    """The pixel metrics with the softened masks cut at `least` of 255."""
    assert answers.soft_masks is not None  # the dialect needs them
    return _of_pixels(answers, labeled_pixels(answers)[0], answers.soft_masks[answers.has_pixel_labels] >= least)


def _of_maps(answers: Predictions, reduce: Callable[..., Any]) -> Values:
    assert answers.maps is not None  # the dialect needs maps
    scores = reduce(answers.maps.astype(np.float64), axis=(1, 2))  # (n,)
    found = metrics.evaluate(scores, answers.is_anomalous, None, None).values
    return {name: found[name] for name in ("image_auroc", "image_ap")}


def _squashed(scores: Array) -> Array:
    single = scores.astype(np.float32)
    inside = single.min() >= 0 and single.max() <= 1
    squashed: Array = single if inside else special.expit(single)
    return squashed


def _scaled(scores: Array) -> Array:
    double = scores.astype(np.float64)
    low, high = double.min(), double.max()
    return (double - low) / (high - low) if high > low else double


def _pixel_auroc(maps: NDArray[np.float32], masks: Bools) -> float:
    return float(metrics.curve_auroc(pixel_curve(list(maps), list(masks))))


def _binned_auroc(scores: Array, truth: Bools) -> float:
    low, high = float(scores.min()), float(scores.max())
    place = np.minimum((scores.astype(np.float64) - low) / ((high - low) or 1.0) * BINS, BINS - 1).astype(np.intp)
    found, normal = np.bincount(place[truth], minlength=BINS), np.bincount(place[~truth], minlength=BINS)
    below = np.cumsum(normal) - normal / 2  # a tie counts half
    return float(np.sum(found * below) / (found.sum() * normal.sum()))


def _above(passed: NDArray[np.intp], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(THRESHOLDS,) the summed weights of what lies above each threshold."""
    held = np.bincount(passed, weights=weights, minlength=THRESHOLDS + 1).astype(np.float64)
    return np.cumsum(held[::-1])[::-1][1:]
