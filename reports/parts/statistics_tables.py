"""Statistics of the methods of one benchmark: test images, seeds, pairs of methods, mean ranks, and selection gap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.evaluation.bootstrap import BootstrapSamples, Interval, differences, intervals, mean_over_categories
from bench.evaluation.group_names import groups_by_unique_name
from bench.evaluation.statistics import SeedSummary, compare, conclude, conclude_ranking, rank, summarize_seeds
from bench.evaluation.summary import HEADINGS, MEAN, METRICS, Group, format_percent
from bench.identity import comparison_key
from bench.record import Record
from bench.report_format import Block, Section, Table

from .tables import NO_VALUE, format_points, select_columns

METRIC = "image_auroc"
MAIN_METRICS = {METRIC: METRICS[METRIC], "pixel_auroc": METRICS["pixel_auroc"]}
"""The metrics whose conclusions are stated in sentences; the oracle maximizes their sum."""

Samples = Mapping[str, BootstrapSamples]
"""Bootstrap samples of one method by category."""


def statistics_section(members: Sequence[Group], samples: Mapping[str, Samples]) -> list[Section]:
    """Return the statistics of one benchmark; empty if there is nothing to compare.

    samples: bootstrap samples by the unique name of the method.
    """
    groups_by_name = groups_by_unique_name(members)
    blocks: list[Block] = [*_seed_tables(groups_by_name)]
    sets = comparable_groups(groups_by_name)
    compared = [methods for methods in sets if len(methods) > 1]
    blocks += [block for methods in compared for block in _comparison(methods, samples)]
    others = [name for methods in sets if len(methods) == 1 for name in methods]
    if compared and others:
        differing = "categories, seeds, training or test images, evaluation options or selection"
        blocks.append(f"Not compared, because their {differing} differ: {', '.join(others)}.")
    return [Section("Statistics", tuple(blocks), 2)] if blocks else []


def comparable_groups(groups_by_name: Mapping[str, Group]) -> list[dict[str, Group]]:
    """Divide groups into sets with the same protocol, categories, seeds, images, evaluation and selection."""
    sets: dict[tuple[object, ...], dict[str, Group]] = {}
    for name, group in groups_by_name.items():
        if group.records:
            sets.setdefault(images_key(group), {})[name] = group
    return list(sets.values())


def images_key(group: Group) -> tuple[object, ...]:
    """Return what must be equal for a comparison: protocol, categories, seeds, images, evaluation and selection."""
    images = tuple(
        (key, record.data_hash, *record.train_files, "", *record.test_files)
        for key, record in sorted(group.records.items())
    )
    return comparison_key(group.first.run), group.dataset, group.selection, images


# --- Seeds -----------------------------------------------------------------------------------------------------------


def _seed_tables(groups_by_name: Mapping[str, Group]) -> list[Block]:
    """Return a table of the variation over seeds, for methods with several seeds."""
    header = ("method", "metric", "seeds", "mean", "standard deviation", "95 % interval of the mean")
    rows = []
    for name, group in groups_by_name.items():
        for metric, heading in METRICS.items():
            means = group.seed_means(group.categories, metric)
            if len(means) > 1:
                rows.append((name, heading, str(len(means)), *_seed_cells(summarize_seeds(means))))
    if not rows:
        return []
    has_draws = any(group.first.run.k for group in groups_by_name.values())
    meaning = "training run and a draw of the training images" if has_draws else "training run on the same images"
    title = f"Variation over seeds (a seed is a {meaning}; interval by Student's t, limited to 0 and 100)"
    return [Table.from_rows(title, header, rows)]


def _seed_cells(summary: SeedSummary) -> tuple[str, str, str]:
    assert summary.std is not None  # there are at least two seeds
    assert summary.interval is not None
    low, high = max(summary.interval.low, 0), min(summary.interval.high, 1)
    return f"{100 * summary.mean:.1f}", f"{100 * summary.std:.2f}", f"{100 * low:.1f} to {100 * high:.1f}"


# --- Test images -----------------------------------------------------------------------------------------------------


def interval_table(group: Group, samples: Samples) -> list[Table]:
    """Return a table of each metric and category with its bootstrap interval; empty without samples."""
    if not samples:
        return []
    by_row = {category: intervals(category_samples) for category, category_samples in samples.items()}
    if len(samples) > 1 and samples.keys() == set(group.categories):
        by_row[MEAN] = intervals(mean_over_categories(list(samples.values())))
    metrics = [metric for metric in HEADINGS if any(metric in row_intervals for row_intervals in by_row.values())]
    rows = [
        (category, *(_interval_cell(group, category, metric, row_intervals.get(metric)) for metric in metrics))
        for category, row_intervals in by_row.items()
    ]
    remarks = ["Percentile bootstrap of whole test images, good and defective ones resampled separately, 1000 samples."]
    error_bound = max(category_samples.error_bound for category_samples in samples.values())
    remarks += [f"Pixel metrics of a sample are exact to {100 * error_bound:.2g} points."] if error_bound else []
    if group.first.run.resolution == "original":
        remarks.append("No intervals of pixel metrics at original resolution: maps are stored at input size.")
    rules_after = [len(rows) - 2] if MEAN in by_row else []
    header = ("category", *(HEADINGS[metric] for metric in metrics))
    title = "95 % intervals over test images"
    return [Table.from_rows(title, header, rows, rules_after=rules_after, remarks=remarks)]


def _interval_cell(group: Group, category: str, metric: str, interval: Interval | None) -> str:
    return f"{format_percent(group.mean_std(category, metric))} ({_percent_range(interval)})" if interval else NO_VALUE


def _percent_range(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


# --- Methods ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _MetricComparison:
    """One metric of several methods.

    Attributes:
        values: (c,) values of each method.
        categories: (c,) the categories that all methods have.
        samples: bootstrap samples of the mean of each method; None if a category has none.
    """

    values: dict[str, list[float]]
    categories: list[str]
    samples: dict[str, BootstrapSamples | None]


def _comparison(methods: Mapping[str, Group], samples: Mapping[str, Samples]) -> list[Block]:
    """Return means, pairwise comparisons and ranks of comparable methods, for every metric that all of them have."""
    comparisons = {}
    for metric in METRICS:
        values, categories = values_by_category(methods, metric)
        if categories:
            of_mean = {name: _mean_samples(samples[name], categories, metric) for name in methods}
            comparisons[metric] = _MetricComparison(values, categories, of_mean)
    if not comparisons:
        return []
    n_seeds = len({seed for group in methods.values() for _, seed in group.records})
    blocks = [_means_table(comparisons, n_seeds), *_pair_tables(comparisons, n_seeds)]
    samples_of_means = [samples for comparison in comparisons.values() for samples in comparison.samples.values()]
    if any(samples is None for samples in samples_of_means):
        blocks.append("Without an interval, the variation over test images is unknown, since predictions are missing.")
    return blocks + _ranking(comparisons)


def _mean_samples(samples: Samples, categories: Sequence[str], metric: str) -> BootstrapSamples | None:
    """Return the samples of the mean over these categories; None if one of them lacks the metric."""
    if not all(category in samples and metric in samples[category].values for category in categories):
        return None
    return mean_over_categories([samples[category] for category in categories])


def values_by_category(methods: Mapping[str, Group], metric: str = METRIC) -> tuple[dict[str, list[float]], list[str]]:
    """Return the mean over seeds of each method and category, and the categories in which all methods have values."""
    values: dict[str, list[float]] = {name: [] for name in methods}
    categories = []
    for category in sorted({category for group in methods.values() for category, _ in group.records}):
        means = [mean for group in methods.values() if (mean := group.mean_std(category, metric))]
        if len(means) == len(methods):
            categories.append(category)
            for column, mean in zip(values.values(), means, strict=True):
                column.append(mean.mean)
    return values, categories


def _means_table(comparisons: Mapping[str, _MetricComparison], n_seeds: int) -> Block:
    rows = []
    for name in next(iter(comparisons.values())).values:
        cells = []
        for metric, comparison in comparisons.items():
            samples = comparison.samples[name]
            interval = intervals(samples).get(metric) if samples else None
            mean = f"{100 * float(np.mean(comparison.values[name])):.1f}"
            cells.append(f"{mean} ({_percent_range(interval)})" if interval else mean)
        rows.append((name, *cells))
    n_categories = max(len(comparison.categories) for comparison in comparisons.values())
    title = f"Comparable methods, with 95 % intervals over test images (categories: {n_categories}, seeds: {n_seeds})"
    return Table.from_rows(title, ("method", *(METRICS[metric] for metric in comparisons)), rows)


def _pair_tables(comparisons: Mapping[str, _MetricComparison], n_seeds: int) -> list[Block]:
    """Return one table per pair of methods, and the conclusions from the main metrics."""
    header = ("metric", "difference", "95 % over test images", "higher", "lower", "p (Wilcoxon)", "p (Holm)")
    is_tested = max(len(comparison.categories) for comparison in comparisons.values()) > 1
    rows: dict[str, list[tuple[str, ...]]] = {}
    sentences = []
    for metric, comparison in comparisons.items():
        for pair in compare(comparison.values):
            first, second = comparison.samples[pair.first], comparison.samples[pair.second]
            interval = differences(first, second).get(metric) if first and second else None
            text = f"{format_points(interval.low)} to {format_points(interval.high)}" if interval else NO_VALUE
            test = (str(pair.wins), str(pair.losses), f"{pair.p:.2g}", f"{pair.p_holm:.2g}")
            row = (METRICS[metric], format_points(pair.difference), text, *test)
            rows.setdefault(f"{pair.first} − {pair.second}", []).append(row)
            if metric in MAIN_METRICS and is_tested:
                sentences.append(f"{METRICS[metric]}: {conclude(pair, images=interval, seeds=n_seeds)}")
    tables = [Table.from_rows(title, header, pair_rows) for title, pair_rows in rows.items()]
    if not is_tested:  # a test over one category has no meaning
        untested = "Differences are in percentage points. Methods are tested over at least two categories."
        return [*(select_columns(table, (1, 2)) for table in tables), untested]
    sentences.append("Differences are in percentage points; higher and lower count categories.")
    sentences.append("Holm's correction accounts for the number of pairs of one metric, not for the number of metrics.")
    return [*tables, tuple(sentences)]


def _ranking(comparisons: Mapping[str, _MetricComparison]) -> list[Block]:
    """Return mean ranks of at least three methods over at least two categories."""
    rankings = {
        metric: rank(comparison.values)
        for metric, comparison in comparisons.items()
        if len(comparison.values) > 2 and len(comparison.categories) > 1
    }
    if not rankings:
        return []
    first = next(iter(rankings.values()))
    ranks = [dict(zip(ranking.methods, ranking.mean_ranks, strict=True)) for ranking in rankings.values()]
    rows = [(name, *(f"{rank_of[name]:.2f}" for rank_of in ranks)) for name in first.methods]
    rows.append(("critical difference", *(f"{ranking.critical_difference:.2f}" for ranking in rankings.values())))
    title = f"Mean ranks (1 is best; critical difference by Nemenyi at {first.alpha:.0%})"
    header = ("method", *(METRICS[metric] for metric in rankings))
    table = Table.from_rows(title, header, rows, rules_after=[len(rows) - 2])
    return [
        table,
        tuple(
            f"{METRICS[metric]}: {conclude_ranking(rankings[metric])}" for metric in MAIN_METRICS if metric in rankings
        ),
    ]


# --- Selection gap ---------------------------------------------------------------------------------------------------

_Pair = tuple[Record, Record]
"""The records of the last and of the best epoch on the test set of one fit."""


def selection_gap(members: Sequence[Group]) -> list[Section]:
    """Return how much the metrics increase if the epoch is chosen on the test set, for methods with both records."""
    groups_by_name = groups_by_unique_name(members)
    last = {_method_key(group): (name, group) for name, group in groups_by_name.items() if group.selection == "last"}
    oracles = [group for group in members if group.selection == "oracle" and _method_key(group) in last]
    blocks = [block for group in oracles for block in _gap_blocks(*last[_method_key(group)], group)]
    sentence = (
        "The last epoch and the best epoch on the test set, of the same fits. The gap is not an improvement of the "
        "method: it exists because the epoch is chosen with the test labels."
    )
    return [Section("Selection gap", (sentence, *blocks), 2)] if blocks else []


def _method_key(group: Group) -> tuple[str, ...]:
    run = group.first.run
    return group.dataset, run.title, run.name, run.group_hash


def _gap_blocks(name: str, last: Group, oracle: Group) -> list[Block]:
    keys = sorted(last.records.keys() & oracle.records.keys())
    fits: dict[str, list[_Pair]] = {}
    for category, seed in keys:
        fits.setdefault(category, []).append((last.records[category, seed], oracle.records[category, seed]))
    if not fits:
        return []
    header = (
        "category",
        "last epoch",
        "best epoch",
        *(f"{heading}: last, best, gap" for heading in MAIN_METRICS.values()),
    )
    rows = []
    for category, pairs in fits.items():
        epochs = [", ".join(str(pair[side].epoch) for pair in pairs) for side in (0, 1)]
        rows.append((category, *epochs, *(_format_gap(_last_and_best(pairs, metric)) for metric in MAIN_METRICS)))
    means = []
    for metric in MAIN_METRICS:
        values = [pair for pairs in fits.values() if (pair := _last_and_best(pairs, metric))]
        means.append(_format_gap(_mean_pair(values) if len(values) == len(fits) else None))
    rows.append((MEAN, "", "", *means))
    blocks: list[Block] = [Table.from_rows(f"{name}, mean over seeds", header, rows, rules_after=[len(rows) - 2])]
    curves = [sentence for key in keys if (sentence := _metrics_by_epoch(oracle.records[key]))]
    if curves:
        blocks += ["Over epochs, as epoch: image AUROC / pixel AUROC", tuple(curves)]
    return blocks


def _last_and_best(pairs: Sequence[_Pair], metric: str) -> tuple[float, float] | None:
    """Return the means over seeds at the last and at the best epoch; None if a record lacks the metric."""
    if not all(metric in record.metrics for pair in pairs for record in pair):
        return None
    return _mean_pair([(last.metrics[metric], best.metrics[metric]) for last, best in pairs])


def _mean_pair(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    last, best = np.mean(values, axis=0).tolist()
    return last, best


def _format_gap(values: tuple[float, float] | None) -> str:
    if values is None:
        return NO_VALUE
    last, best = values
    return f"{100 * last:.1f}, {100 * best:.1f}, {format_points(best - last)}"


def _metrics_by_epoch(record: Record) -> str:
    """Return the metrics at each evaluated epoch in one line; "" without any."""
    points = []
    for point in record.metrics_by_epoch:
        values = [f"{100 * point[metric]:.1f}" if metric in point else NO_VALUE for metric in MAIN_METRICS]
        points.append(f"{point['epoch']:.0f}: {' / '.join(values)}")
    return f"{record.category}, seed {record.run.seed}: {', '.join(points)}" if points else ""
