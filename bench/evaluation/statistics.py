"""Whether a difference is real: how far numbers move with other test images, other seeds, other categories.

Three sources of chance are kept apart. Which images were tested: the bootstrap (`resample`, `intervals`, `differences`)
within a category. Which seed and which k-shot draw: `spread`. Which categories: signed ranks (`compare`) and mean ranks
(`rank`), as Demsar (JMLR 2006) recommends for several methods on several data sets. `conclude` puts it into words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

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
    curve_error,
    curve_f1,
    curve_precision,
    require_both_classes,
)

N_THRESHOLDS = 2048
"""How many defect scores the resampled pixel metrics are counted at; `Draws.error` tells what that costs."""

CELLS = 1 << 21
"""How many defect scores times images are counted at, at most: with over a thousand images HOLD gives way to memory."""

BLOCK = 64
"""How many resamples are judged at once: it bounds memory."""


# --- Which images were tested ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BootstrapSamples:
    """What the metrics of one category would have been with other test images.

    Attributes:
        values: (draws,) a metric, by the names of `metrics.judge`. Equal draws of two methods used the same images.
        error: how far any pixel value can lie from the exact one, since its scores are counted in groups.
        good: how many good images were drawn from.
        defective: how many defective ones.
    """

    values: dict[str, Floats]
    error: float
    good: int
    defective: int


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and where the middle `confidence` of its draws lie: percentiles of the bootstrap, or Student's t."""

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
    known: Bools | None = None,
    threshold: float | None = None,
    fpr_limits: Sequence[float] = LIMITS,
    draws: int = 1000,
    seed: int | Sequence[int] = 0,
) -> BootstrapSamples:
    """The metrics of `draws` test sets, drawn with replacement from the images of one category.

    Whole images are drawn, since the pixels of one are not independent; as many good and as many defective ones as
    there are. The draws hang on `seed` and on the labels only, so that two methods are compared on the same ones;
    give each category a seed of its own, or all would be lucky at once in their mean.
    Pixels are counted once for each image, in groups between HOLD of the defect scores or fewer; a test set is a
    weighted sum of these counts. Arguments and errors as in `metrics.judge`, but that both classes must be there.

    known: (n,) the images whose pixels count; None: all.  threshold: of the scores, for `metrics.at_threshold`.
    """
    scores, anomalous = require_both_classes(scores, anomalous)
    start = seed if isinstance(seed, int) else tuple(seed)
    weights = _weights(anomalous.tobytes(), draws, start).astype(float)  # (draws, n)
    good, defective = int(np.count_nonzero(~anomalous)), int(np.count_nonzero(anomalous))
    values, _ = _judged(_of_images(scores, anomalous), weights, IMAGE_NAMES, ())
    if threshold is not None:
        values |= binary_metrics(scores > threshold, anomalous, weights)
    if maps is None or masks is None:
        return BootstrapSamples(values, 0.0, good, defective)
    check_lengths(scores, maps, masks)
    hold = min(N_THRESHOLDS, max(CELLS // scores.size, 64))
    counted = [index for index in range(scores.size) if known is None or known[index]]
    counts = image_counts([maps[i] for i in counted], [masks[i] for i in counted], hold)
    if not counts.regions.any() or not counts.normals.any():
        return BootstrapSamples(values, 0.0, good, defective)
    names = (*PIXEL_NAMES, *map(aupro_name, fpr_limits))
    pixels, error = _judged(counts, weights[:, counted], names, fpr_limits)
    return BootstrapSamples(values | pixels, error, good, defective)


def mean_over_categories(categories: Sequence[BootstrapSamples]) -> BootstrapSamples:
    """The draws of the plain mean over categories, each drawn from its own seed; of the metrics that all have."""
    names = [name for name in categories[0].values if all(name in draws.values for draws in categories)]
    return BootstrapSamples(
        {name: np.mean([draws.values[name] for draws in categories], axis=0) for name in names},
        max(draws.error for draws in categories),
        sum(draws.good for draws in categories),
        sum(draws.defective for draws in categories),
    )


def intervals(draws: BootstrapSamples, *, confidence: float = 0.95) -> dict[str, Interval]:
    """For each metric the median of its draws and the percentiles that leave out the same share on either side.

    A draw without any defect pixel has no pixel metrics and is left out; so is a metric that no draw has.
    """
    return _percentiles(draws.values, confidence)


def differences(first: BootstrapSamples, second: BootstrapSamples, *, confidence: float = 0.95) -> dict[str, Interval]:
    """The paired difference first - second of each metric that both have, on the same drawn images.

    Raises: BenchError where the two were not drawn from sets of the same sizes, equally often.
    """
    if (first.good, first.defective) != (second.good, second.defective):
        raise BenchError(
            f"Two methods are paired on the same test images; one was judged on {first.good} good and "
            f"{first.defective} defective, the other on {second.good} and {second.defective}. Judge both on one set."
        )
    shared = [name for name in first.values if name in second.values]
    if any(first.values[name].shape != second.values[name].shape for name in shared):
        raise BenchError("Two methods are paired draw by draw; their numbers of draws differ. Draw both equally often.")
    return _percentiles({name: first.values[name] - second.values[name] for name in shared}, confidence)


def _percentiles(draws: Mapping[str, Floats], confidence: float) -> dict[str, Interval]:
    aside, found = (1 - confidence) / 2, {}
    for name, values in draws.items():
        if np.isfinite(values).any():
            low, middle, high = np.quantile(values[np.isfinite(values)], (aside, 0.5, 1 - aside)).tolist()
            found[name] = Interval(middle, low, high, confidence)
    return found


@lru_cache(maxsize=32)
def _weights(labels: bytes, draws: int, seed: int | tuple[int, ...]) -> NDArray[np.uint16]:
    """(draws, n) how often each image is drawn; good and defective ones apart. All methods on a category share it."""
    anomalous = np.frombuffer(labels, dtype=np.bool_)
    random = np.random.default_rng(seed)
    weights = np.zeros((draws, anomalous.size), dtype=np.uint16)
    for chosen in (np.flatnonzero(~anomalous), np.flatnonzero(anomalous)):
        weights[:, chosen] = random.multinomial(chosen.size, np.full(chosen.size, 1 / chosen.size), size=draws)
    return weights


def _of_images(scores: Array, anomalous: Bools) -> ImageCounts:
    """Images as if each were one pixel, and each defective one a region."""
    values, group = np.unique(-scores, return_inverse=True)
    ones = np.zeros((scores.size, values.size), dtype=np.int64)
    ones[np.arange(scores.size), group] = 1
    found, normals = ones * anomalous[:, None], ones * ~anomalous[:, None]
    return ImageCounts(found, found / 1, normals, anomalous.astype(np.int64), np.zeros(values.size, dtype=bool))


def _judged(
    counts: ImageCounts, weights: Floats, names: Sequence[str], limits: Sequence[float]
) -> tuple[dict[str, Floats], float]:
    """(draws,) each metric by its name, nan where a draw has only one class; and the largest error of any."""
    kept = np.flatnonzero(counts.found.any(axis=0))
    found, overlap, normals = (part.astype(float) for part in (counts.found, counts.overlap, counts.normals))
    values, error = np.full((len(names), len(weights)), np.nan), 0.0
    some = np.flatnonzero((weights @ counts.regions > 0) & (weights @ normals.sum(axis=1) > 0))
    for start in range(0, some.size, BLOCK):
        block = some[start : start + BLOCK]
        weight = weights[block]  # (b, n)
        passed = weight @ normals  # (b, g)
        curve = Curve(
            tp=weight @ found[:, kept],
            region_share=weight @ overlap[:, kept] / (weight @ counts.regions)[:, None],
            fp=(np.cumsum(passed, axis=1) - passed)[:, kept],
            tied_negatives=passed[:, kept],
            approximate=counts.mixed[kept],
            n_negatives=passed.sum(axis=1),
        )
        areas = [curve_area(curve, curve.region_share, limit) for limit in limits]
        values[:, block] = [curve_auroc(curve), curve_precision(curve), curve_f1(curve), *areas]
        error = max(error, curve_error(curve, limits))
    return dict(zip(names, values, strict=True)), error


# --- Which seed -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SeedSummary:
    """How a number varies over seeds or draws.

    Attributes:
        mean: of all runs.
        std: with n - 1; None of a single run, from which nothing is known of the spread.
        interval: of the mean, by Student's t; None as well.
        runs: how many.
    """

    mean: float
    std: float | None
    interval: Interval | None
    runs: int


def summarize_seeds(values: Sequence[float], *, confidence: float = 0.95) -> SeedSummary:
    """Mean, standard deviation and t interval of the same number from several runs. Raises: BenchError of none."""
    if not len(values):
        raise BenchError("A spread is of one run at least; there are none. Run the bench first.")
    mean, runs = float(np.mean(values)), len(values)
    if runs == 1:
        return SeedSummary(mean, None, None, runs)
    std = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, runs - 1)) * std / runs**0.5
    return SeedSummary(mean, std, Interval(mean, mean - half, mean + half, confidence), runs)


# --- Which categories -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two methods on the same categories.

    Attributes:
        first, second: their names.
        difference: mean of first - second over categories.
        won, lost: in how many categories the first is higher, lower; a tie is neither.
        categories: how many there are.
        p: of the two-sided Wilcoxon signed-rank test.
        corrected: p after Holm's correction for `tests` comparisons.
        tests: how many were made at once.
    """

    first: str
    second: str
    difference: float
    wins: int
    losses: int
    categories: int
    p: float
    p_holm: float
    tests: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Several methods on the same categories, the best first.

    Attributes:
        methods: (k,) names.
        mean_ranks: (k,) over categories; 1 is best, ties share the mean of their ranks.
        categories: how many there are.
        p: of the Friedman test that all methods are equal.
        critical_difference: by Nemenyi; mean ranks that lie at least so far apart differ.
        groups: the largest sets of methods of which no two differ; the bars of the diagram.
        alpha: the error that the critical difference allows.
    """

    methods: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    categories: int
    p: float
    critical_difference: float
    groups: tuple[tuple[str, ...], ...]
    alpha: float


def compare(values: Mapping[str, Sequence[float]]) -> list[Comparison]:
    """Every pair of methods by a Wilcoxon signed-rank test over categories, with Holm's correction.

    `values` holds for each method one number a category, in one order. Categories with equal numbers keep their rank
    but take no side (Pratt). Raises: BenchError where there are under two methods or their lengths differ.
    """
    table = _table(values, 2)
    gaps = [(first, second, table[a] - table[b]) for (a, first), (b, second) in combinations(enumerate(values), 2)]
    found = [_signed_rank(gap) for _, _, gap in gaps]
    counted = [(float(gap.mean()), int(np.sum(gap > 0)), int(np.sum(gap < 0)), gap.size) for _, _, gap in gaps]
    return [
        Comparison(first, second, *counts, p, corrected, len(gaps))
        for (first, second, _), counts, p, corrected in zip(gaps, counted, found, holm(found), strict=True)
    ]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the i-th lowest of m times m - i + 1, never below the one before, at most 1."""
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)), 1)
    return [float(value) for value in corrected]


def rank(values: Mapping[str, Sequence[float]], *, alpha: float = 0.05) -> Ranking:
    """Mean ranks with Friedman's test and Nemenyi's critical difference (Demsar, JMLR 2006, section 3.2.2).

    Raises: BenchError where there are under three methods or under two categories, or where lengths differ.
    """
    table = _table(values, 3)  # (k, c)
    methods, categories = table.shape
    if categories < 2:
        raise BenchError(f"Mean ranks need two categories at least; there is {categories}. Judge on more of them.")
    ranks = stats.rankdata(-table, axis=0)
    equal = bool((ranks == ranks[0]).all())
    p = 1.0 if equal else float(stats.friedmanchisquare(*table).pvalue)
    quantile = stats.studentized_range.ppf(1 - alpha, methods, np.inf) / 2**0.5
    critical = float(quantile * (methods * (methods + 1) / (6 * categories)) ** 0.5)
    mean = ranks.mean(axis=1)
    order = np.argsort(mean, kind="stable")
    names, mean = [list(values)[place] for place in order], mean[order]
    last = [int(np.searchsorted(mean, value + critical)) for value in mean]  # past the last that does not differ
    groups = [
        tuple(names[first:past])
        for first, past in enumerate(last)
        if past > first + 1 and (first == 0 or past > last[first - 1])
    ]
    return Ranking(tuple(names), tuple(map(float, mean)), categories, p, critical, tuple(groups), alpha)


def _table(values: Mapping[str, Sequence[float]], least: int) -> Floats:
    """(methods, categories), rounded so far that arithmetic can't break a tie."""
    if len(values) < least:
        raise BenchError(f"This compares {least} methods at least; there are {len(values)}. Run more methods.")
    if len({len(row) for row in values.values()}) > 1:
        lengths = ", ".join(f"{name} {len(row)}" for name, row in values.items())
        raise BenchError(f"Methods are compared on the same categories; they have {lengths}. Run what is missing.")
    return np.round(np.array(list(values.values()), dtype=float), 12)


def _signed_rank(difference: Floats) -> float:
    """The exact two-sided p of the signed-rank sum, ties and zeros included, which scipy only approximates."""
    twice = np.rint(2 * stats.rankdata(np.abs(difference))).astype(int)  # ranks may be halves
    chance = np.ones(1)  # of each sum of the ranks with a positive sign; zeros have a rank and no sign
    for step in twice[difference != 0]:
        chance = (np.append(chance, np.zeros(step)) + np.append(np.zeros(step), chance)) / 2
    positive = int(twice[difference > 0].sum())
    return min(2 * float(min(chance[: positive + 1].sum(), chance[positive:].sum())), 1.0)


# --- In words -------------------------------------------------------------------------------------------------------


def conclude(comparison: Comparison, *, images: Interval | None = None, seeds: int = 1, alpha: float = 0.05) -> str:
    """What can be concluded from a comparison of two methods, and what can't.

    images: of the mean difference first - second over drawn test images, by `differences`.  seeds: runs a method.
    """
    first, second, points = comparison.first, comparison.second, comparison.difference * 100
    tested = f"p = {comparison.p:.2g}, {comparison.p_holm:.2g} after Holm's correction for {comparison.tests}"
    won = f"higher in {comparison.wins}, lower in {comparison.losses} of {comparison.categories} categories"
    told = [f"{first} lies {points:+.1f} points from {second} on average: {won} (Wilcoxon signed-rank {tested})."]
    if comparison.tests * 2.0 ** (1 - comparison.categories) > alpha:
        told.append("With so few categories this test can't show any difference, however large.")
    elif comparison.p_holm <= alpha:
        told.append("That is more than chance among categories explains.")
    else:
        told.append("No difference is shown over categories; that does not show that they are equal.")
    if images:
        sure = images.low > 0 or images.high < 0
        told.append(
            f"On these categories other test images would put it {images.low * 100:+.1f} to {images.high * 100:+.1f} "
            f"points from {second} ({images.confidence:.0%} interval): "
            + ("they would not turn it round." if sure else "they could turn it round.")
        )
    if seeds < 2:
        told.append("One seed each: what another seed or draw would change is not known.")
    return " ".join(told)


def conclude_ranking(ranking: Ranking) -> str:
    """What can be concluded from mean ranks, and what can't."""
    methods = len(ranking.methods)
    told = f"Friedman's test of {methods} methods on {ranking.categories} categories gives p = {ranking.p:.2g}. "
    if ranking.p > ranking.alpha:
        return told + "It does not show that any of them differ; that does not show that they are equal."
    told += f"They are not all equal; mean ranks {ranking.critical_difference:.2f} or more apart differ (Nemenyi). "
    if not ranking.groups:
        return told + "All of them differ from one another."
    groups = "; ".join(", ".join(group) for group in ranking.groups)
    return told + f"Not told apart: {groups}."
