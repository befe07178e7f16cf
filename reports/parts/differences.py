"""Whether the differences between the methods of a table are real: the statistics section."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.evaluation.statistics import (
    BootstrapSamples,
    SeedSummary,
    compare,
    conclude,
    conclude_ranking,
    differences,
    intervals,
    rank,
    summarize_seeds,
)
from bench.evaluation.summary import METRICS, Group, unique_names

from .drawn import over, span
from .tables import NONE, Block, Section, Table, points

METRIC = "image_auroc"
HEADLINES = (METRIC, "pixel_auroc")
"""Of which is told in words what can be concluded."""


def statistics(members: Sequence[Group], draws: Mapping[str, Mapping[str, BootstrapSamples]]) -> list[Section]:
    """What can be concluded from the runs of one data set and protocol; nothing where there is nothing to compare.

    Methods are compared where they ran on the same categories, seeds and images, by the same selection rule.
    `draws` are those of each method, by its name and category.
    """
    names = unique_names(members)
    blocks: list[Block] = [*_spreads(names)]
    sets = alike(names)
    compared = [found for found in sets if len(found) > 1]
    blocks += [block for found in compared for block in _comparison(found, draws)]
    alone = [name for found in sets if len(found) == 1 for name in found]
    if compared and alone:
        other = "categories, seeds, training or test images, resolution or selection"
        blocks.append(f"Not compared, since they have other {other}: {', '.join(alone)}.")
    return [Section("Statistics", tuple(blocks), 2)] if blocks else []


def alike(names: Mapping[str, Group]) -> list[dict[str, Group]]:
    """The groups in sets that can be compared: categories, seeds, images, resolution and selection are the same."""
    found: dict[tuple[object, ...], dict[str, Group]] = {}
    for name, group in names.items():
        if group.records:
            found.setdefault(_runs(group), {})[name] = group
    return list(found.values())


def _runs(group: Group) -> tuple[object, ...]:
    """What two methods must share to be compared."""
    records = sorted(group.records.items())
    images = tuple(
        (place, record.data_digest, *record.train_files, "", *record.test_files) for place, record in records
    )
    return group.selection, group.first.run.resolution, images


# --- Seeds and draws -------------------------------------------------------------------------------------------------


def _spreads(names: Mapping[str, Group]) -> list[Block]:
    """How the means over categories vary from seed to seed, of the methods that ran several."""
    head = ("method", "metric", "seeds", "mean", "standard deviation", "95 % interval of the mean")
    rows = []
    for name, group in names.items():
        for metric, heading in METRICS.items():
            found = by_seed(group, metric)
            if len(found) > 1:
                rows.append((name, heading, str(len(found)), *_spread(summarize_seeds(found))))
    if not rows:
        return []
    drawn = any(group.first.run.k for group in names.values())
    each = "a seed is a fit and a draw of the training images" if drawn else "a seed is a fit on the same images"
    return [Table.of(f"Over seeds ({each}; Student's t, cut at 0 and 100)", head, rows)]


def by_seed(group: Group, metric: str) -> list[float]:
    """The mean over categories of each seed that has all of them."""
    seeds = sorted({seed for _, seed in group.records})
    found = []
    for seed in seeds:
        own = [group.records.get((category, seed)) for category in group.categories]
        values = [record.metrics[metric] for record in own if record and metric in record.metrics]
        if len(values) == len(own):
            found.append(float(np.mean(values)))
    return found


def _spread(found: SeedSummary) -> tuple[str, str, str]:
    assert found.std is not None  # there are two runs at least
    assert found.interval is not None
    low, high = max(found.interval.low, 0), min(found.interval.high, 1)
    return f"{100 * found.mean:.1f}", f"{100 * found.std:.2f}", f"{100 * low:.1f} to {100 * high:.1f}"


# --- Methods ---------------------------------------------------------------------------------------------------------


def _comparison(found: Mapping[str, Group], draws: Mapping[str, Mapping[str, BootstrapSamples]]) -> list[Block]:
    """The methods of a set: their means, every pair of them and their ranks, by every metric that all of them have."""
    compared = {}
    for metric in METRICS:
        values, categories = by_category(found, metric)
        if categories:
            over_categories = {name: over(draws[name], categories, metric) for name in found}
            compared[metric] = _Compared(values, categories, over_categories)
    if not compared:
        return []
    seeds = len({seed for group in found.values() for _, seed in group.records})
    blocks = [_means(compared, seeds), *_pairs(compared, seeds)]
    if any(own is None for each in compared.values() for own in each.draws.values()):
        blocks.append("Where there is no interval, what other test images would change is not known.")
    return blocks + _ranking(compared)


@dataclass(frozen=True, slots=True)
class _Compared:
    """A metric of several methods: (c,) values of each in one order of categories, and the draws of each one's mean."""

    values: dict[str, list[float]]
    categories: list[str]
    draws: dict[str, BootstrapSamples | None]


def by_category(found: Mapping[str, Group], metric: str = METRIC) -> tuple[dict[str, list[float]], list[str]]:
    """For each method the mean over seeds of each category in which all methods have the metric; and these."""
    values: dict[str, list[float]] = {name: [] for name in found}
    categories = []
    for category in sorted({category for group in found.values() for category, _ in group.records}):
        cells = [cell for group in found.values() if (cell := group.cell(category, metric))]
        if len(cells) == len(found):
            categories.append(category)
            for own, cell in zip(values.values(), cells, strict=True):
                own.append(cell.mean)
    return values, categories


def _means(compared: Mapping[str, _Compared], seeds: int) -> Block:
    rows = []
    for name in next(iter(compared.values())).values:
        cells = []
        for metric, each in compared.items():
            own = each.draws[name]
            interval = intervals(own).get(metric) if own else None
            told = f"{100 * float(np.mean(each.values[name])):.1f}"
            cells.append(f"{told} ({span(interval)})" if interval else told)
        rows.append((name, *cells))
    count = max(len(each.categories) for each in compared.values())
    title = f"Methods with the same runs, with 95 % over test images (categories: {count}, seeds: {seeds})"
    return Table.of(title, ("method", *(METRICS[metric] for metric in compared)), rows)


def _pairs(compared: Mapping[str, _Compared], seeds: int) -> list[Block]:
    """For every pair of methods a table by metric, and in words what can be concluded by the headlines."""
    head = ("metric", "points", "95 % over test images", "higher", "lower", "p (Wilcoxon)", "p after Holm")
    rows: dict[str, list[tuple[str, ...]]] = {}
    told = []
    for metric, found in compared.items():
        for each in compare(found.values):
            first, second = found.draws[each.first], found.draws[each.second]
            images = differences(first, second).get(metric) if first and second else None
            interval = f"{points(images.low)} to {points(images.high)}" if images else NONE
            tested = (str(each.wins), str(each.losses), f"{each.p:.2g}", f"{each.p_holm:.2g}")
            own = rows.setdefault(f"{each.first} − {each.second}", [])
            own.append((METRICS[metric], points(each.difference), interval, *tested))
            if metric in HEADLINES:
                told.append(f"{METRICS[metric]}: {conclude(each, images=images, seeds=seeds)}")
    told.append("Holm's correction is for the pairs of one metric, not for there being several metrics.")
    return [*(Table.of(pair, head, own) for pair, own in rows.items()), tuple(told)]


def _ranking(compared: Mapping[str, _Compared]) -> list[Block]:
    """Mean ranks of three methods or more, by each metric of two categories or more."""
    found = {
        metric: rank(each.values)
        for metric, each in compared.items()
        if len(each.values) > 2 and len(each.categories) > 1
    }
    if not found:
        return []
    first, every = next(iter(found.values())), found.values()
    ranks = [dict(zip(each.methods, each.mean_ranks, strict=True)) for each in every]
    rows = [(name, *(f"{own[name]:.2f}" for own in ranks)) for name in first.methods]
    rows.append(("critical difference", *(f"{each.critical_difference:.2f}" for each in every)))
    title = f"Mean ranks (1 is best; critical difference by Nemenyi at {first.alpha:.0%})"
    told = [f"{METRICS[metric]}: {conclude_ranking(found[metric])}" for metric in HEADLINES if metric in found]
    heads = ("method", *(METRICS[metric] for metric in found))
    return [Table.of(title, heads, rows, ruled=[len(rows) - 2]), tuple(told)]
