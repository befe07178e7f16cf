"""Significance of differences between methods: over seeds and over categories.

The variation over seeds and k-shot draws is summarized by `summarize_seeds`; the variation over test images by
`bench.evaluation.bootstrap`. Over categories, two methods are compared by a signed-rank test (`compare`) and several by
mean ranks (`rank`), as Demsar (JMLR 2006) recommends for several methods on several datasets. `conclude` and
`conclude_ranking` state the conclusions in sentences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from bench.errors import BenchError
from bench.evaluation.bootstrap import Interval
from bench.evaluation.curves import Floats

# --- Seeds ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SeedSummary:
    """A value over several seeds.

    Attributes:
        mean: mean over the seeds.
        std: standard deviation (n - 1); None for a single seed.
        interval: confidence interval of the mean, by Student's t; None for a single seed.
        n_seeds: number of seeds.
    """

    mean: float
    std: float | None
    interval: Interval | None
    n_seeds: int


def summarize_seeds(values: Sequence[float], *, confidence: float = 0.95) -> SeedSummary:
    """Compute mean, standard deviation and t interval over seeds. Raises BenchError if there are no values."""
    if not len(values):
        raise BenchError("A summary over seeds needs at least one run, got none. Run the method first.")
    mean, n_seeds = float(np.mean(values)), len(values)
    if n_seeds == 1:
        return SeedSummary(mean, None, None, n_seeds)
    std = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, n_seeds - 1)) * std / n_seeds**0.5
    return SeedSummary(mean, std, Interval(mean, mean - half, mean + half, confidence), n_seeds)


# --- Categories -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two methods on the same categories.

    Attributes:
        first, second: names of the methods.
        difference: mean of first - second over the categories.
        wins, losses: number of categories in which the first is higher, lower; a tie is neither.
        categories: number of categories.
        p: p-value of the two-sided Wilcoxon signed-rank test.
        p_holm: p after Holm's correction for `tests` comparisons.
        tests: number of simultaneous comparisons.
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
    """Several methods on the same categories, best first.

    Attributes:
        methods: (k,) names.
        mean_ranks: (k,) over the categories; 1 is best, tied methods share the mean of their ranks.
        categories: number of categories.
        p: p-value of Friedman's test that all methods are equal.
        critical_difference: Nemenyi's; methods whose mean ranks differ by at least this value differ.
        groups: maximal sets of methods of which no two differ; the bars of the critical-difference diagram.
        alpha: significance level of the critical difference.
    """

    methods: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    categories: int
    p: float
    critical_difference: float
    groups: tuple[tuple[str, ...], ...]
    alpha: float


def compare(values: Mapping[str, Sequence[float]]) -> list[Comparison]:
    """Compare every pair of methods by a Wilcoxon signed-rank test over categories, with Holm's correction.

    Categories with equal values are ranked, but their rank has no sign (Pratt).

    Args:
        values: one value per category for each method, all in the same order.

    Raises: BenchError if there are fewer than two methods or their lengths differ.
    """
    table = _table(values, 2)
    pairs = [(first, second, table[a] - table[b]) for (a, first), (b, second) in combinations(enumerate(values), 2)]
    p_values = [_signed_rank_p(delta) for _, _, delta in pairs]
    counts = [(float(delta.mean()), int(np.sum(delta > 0)), int(np.sum(delta < 0)), delta.size) for *_, delta in pairs]
    return [
        Comparison(first, second, *count, p, p_holm, len(pairs))
        for (first, second, _), count, p, p_holm in zip(pairs, counts, p_values, holm(p_values), strict=True)
    ]


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values after Holm's step-down correction.

    The i-th lowest of m values is multiplied by m - i + 1, is not smaller than the one before, and is at most 1.
    """
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)), 1)
    return [float(value) for value in corrected]


def rank(values: Mapping[str, Sequence[float]], *, alpha: float = 0.05) -> Ranking:
    """Compute mean ranks, Friedman's test and Nemenyi's critical difference (Demsar, JMLR 2006, paper, section 3.2.2).

    Raises: BenchError if there are fewer than three methods or two categories, or the lengths differ.
    """
    table = _table(values, 3)  # (k, c)
    methods, categories = table.shape
    if categories < 2:
        raise BenchError(f"Mean ranks need at least 2 categories, got {categories}. Run more categories.")
    ranks = stats.rankdata(-table, axis=0)
    equal = bool((ranks == ranks[0]).all())
    p = 1.0 if equal else float(stats.friedmanchisquare(*table).pvalue)
    quantile = stats.studentized_range.ppf(1 - alpha, methods, np.inf) / 2**0.5
    critical = float(quantile * (methods * (methods + 1) / (6 * categories)) ** 0.5)
    mean = ranks.mean(axis=1)
    order = np.argsort(mean, kind="stable")
    names, mean = [list(values)[index] for index in order], mean[order]
    ends = [int(np.searchsorted(mean, value + critical)) for value in mean]  # (k,) one after the last equal method
    groups = [
        tuple(names[start:end])
        for start, end in enumerate(ends)
        if end > start + 1 and (start == 0 or end > ends[start - 1])
    ]
    return Ranking(tuple(names), tuple(map(float, mean)), categories, p, critical, tuple(groups), alpha)


def _table(values: Mapping[str, Sequence[float]], min_methods: int) -> Floats:
    """Return (methods, categories), rounded to 12 decimals so that rounding errors do not break ties."""
    if len(values) < min_methods:
        raise BenchError(f"A comparison needs at least {min_methods} methods, got {len(values)}. Run more methods.")
    if len({len(row) for row in values.values()}) > 1:
        lengths = ", ".join(f"{len(row)} for {name}" for name, row in values.items())
        raise BenchError(f"Compared methods must have the same number of categories, got {lengths}. Run the others.")
    return np.round(np.array(list(values.values()), dtype=float), 12)


def _signed_rank_p(difference: Floats) -> float:
    """Return the exact two-sided p of the signed-rank test; scipy approximates it if there are ties or zeros."""
    doubled_ranks = np.rint(2 * stats.rankdata(np.abs(difference))).astype(int)  # (c,) doubled: ranks can be halves
    probability = np.ones(1)  # probability of each sum of positive ranks; zeros have a rank without sign
    for step in doubled_ranks[difference != 0]:
        probability = (np.append(probability, np.zeros(step)) + np.append(np.zeros(step), probability)) / 2
    positive = int(doubled_ranks[difference > 0].sum())
    return min(2 * float(min(probability[: positive + 1].sum(), probability[positive:].sum())), 1.0)


# --- Conclusions ----------------------------------------------------------------------------------------------------


def conclude(comparison: Comparison, *, images: Interval | None = None, seeds: int = 1, alpha: float = 0.05) -> str:
    """State in sentences what a comparison of two methods shows and what it does not show.

    Args:
        comparison: a result of `compare`.
        images: interval of the mean difference first - second over bootstrap samples, from `differences`.
        seeds: number of seeds of each method.
        alpha: significance level.
    """
    first, second, points = comparison.first, comparison.second, comparison.difference * 100
    direction = "above" if points >= 0 else "below"
    counts = f"higher in {comparison.wins}, lower in {comparison.losses} of {comparison.categories} categories"
    test = f"Wilcoxon signed-rank test, p = {comparison.p:.2g}; {comparison.p_holm:.2g} after Holm's correction"
    test += f", number of tests: {comparison.tests}"
    sentences = [f"{first} is on average {abs(points):.1f} points {direction} {second}: {counts} ({test})."]
    if comparison.tests * 2.0 ** (1 - comparison.categories) > alpha:
        sentences.append("There are too few categories for this test: no difference can be significant.")
    elif comparison.p_holm <= alpha:
        sentences.append("The difference over categories is significant.")
    else:
        sentences.append("The difference over categories is not significant; this does not show that they are equal.")
    if images:
        excludes_zero = images.low > 0 or images.high < 0
        sentences.append(
            f"For other test images of these categories the difference lies between {images.low * 100:+.1f} and "
            f"{images.high * 100:+.1f} points ({images.confidence:.0%} interval), which "
            + ("excludes zero." if excludes_zero else "includes zero.")
        )
    if seeds < 2:
        sentences.append("Only one seed per method: the variation over seeds and draws is unknown.")
    return " ".join(sentences)


def conclude_ranking(ranking: Ranking) -> str:
    """State in sentences what mean ranks show and what they do not show."""
    methods = len(ranking.methods)
    text = f"Friedman's test of {methods} methods on {ranking.categories} categories gives p = {ranking.p:.2g}. "
    if ranking.p > ranking.alpha:
        return text + "No difference is significant; this does not show that the methods are equal."
    text += (
        f"Not all methods are equal: mean ranks that differ by {ranking.critical_difference:.2f} or more differ "
        "significantly (Nemenyi). "
    )
    if not ranking.groups:
        return text + "All methods differ from one another."
    groups = "; ".join(", ".join(group) for group in ranking.groups)
    return text + f"Without significant difference: {groups}."
