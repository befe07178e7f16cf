"""Whether the differences between the methods of a table are real: the statistics section."""

from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np

from bench.record import Answers
from bench.statistics import (
    Draws,
    Spread,
    compare,
    conclude,
    conclude_ranking,
    differences,
    intervals,
    mean_of,
    rank,
    resample,
    spread,
)
from bench.store import Store
from bench.summary import METRICS, Group, named

from .stored import answers
from .tables import NONE, Block, Section, Table, points

METRIC = "image_auroc"
OVER_IMAGES = "95 % over test images"
SEED = 0
"""Of the bootstrap; each category adds its own name, so that not all are lucky at once."""


def statistics(members: Sequence[Group], store: Store) -> list[Section]:
    """What can be concluded from the runs of one data set and protocol; nothing where there is nothing to compare.

    Methods are compared where they ran on the same categories, seeds and test images, by the same selection rule.
    """
    names = named(members)
    blocks: list[Block] = [*_spreads(names)]
    alike: dict[tuple[object, ...], dict[str, Group]] = {}
    for name, group in names.items():
        if group.records:
            alike.setdefault(_runs(group), {})[name] = group
    compared = [found for found in alike.values() if len(found) > 1]
    blocks += [block for found in compared for block in _comparison(found, store)]
    alone = [name for found in alike.values() if len(found) == 1 for name in found]
    if compared and alone:
        blocks.append(
            f"Not compared, since they have other categories, seeds, test images or selection: {', '.join(alone)}."
        )
    return [Section("Statistics", tuple(blocks), 2)] if blocks else []


def _runs(group: Group) -> tuple[object, ...]:
    """What two methods must share to be compared."""
    tests = tuple((place, tuple(record.tests)) for place, record in sorted(group.records.items()))
    return group.selection, tests


# --- Seeds and draws -------------------------------------------------------------------------------------------------


def _spreads(names: Mapping[str, Group]) -> list[Block]:
    """How the means over categories vary from seed to seed, of the methods that ran several."""
    head = ("method", "metric", "seeds", "mean", "standard deviation", "95 % interval of the mean")
    rows = []
    for name, group in names.items():
        for metric, heading in METRICS.items():
            found = _by_seed(group, metric)
            if len(found) > 1:
                rows.append((name, heading, str(len(found)), *_spread(spread(found))))
    if not rows:
        return []
    drawn = any(group.first.run.k for group in names.values())
    each = "a seed is a fit and a draw of the training images" if drawn else "a seed is a fit on the same images"
    return [Table.of(f"Over seeds ({each}; Student's t)", head, rows)]


def _by_seed(group: Group, metric: str) -> list[float]:
    """The mean over categories of each seed that has all of them."""
    seeds = sorted({seed for _, seed in group.records})
    found = []
    for seed in seeds:
        own = [group.records.get((category, seed)) for category in group.categories]
        values = [record.metrics[metric] for record in own if record and metric in record.metrics]
        if len(values) == len(own):
            found.append(float(np.mean(values)))
    return found


def _spread(found: Spread) -> tuple[str, str, str]:
    assert found.std is not None  # there are two runs at least
    assert found.interval is not None
    low, high = found.interval.low, found.interval.high
    return f"{100 * found.mean:.1f}", f"{100 * found.std:.2f}", f"{100 * low:.1f} to {100 * high:.1f}"


# --- Methods ---------------------------------------------------------------------------------------------------------


def _comparison(found: Mapping[str, Group], store: Store) -> list[Block]:
    values, categories = _by_category(found)
    if not categories:
        return []
    seeds = len({seed for group in found.values() for _, seed in group.records})
    drawn = _draws(found, categories, store)
    title = f"{METRICS[METRIC]} of methods with the same runs (categories: {len(categories)}, seeds: {seeds})"
    blocks = [_means(title, values, drawn), *_pairs(values, drawn, seeds)]
    if not drawn:
        blocks.append("The raw answers are not all here: what other test images would change is not known.")
    if len(values) > 2 and len(categories) > 1:
        blocks += _ranking(values)
    return blocks


def _by_category(found: Mapping[str, Group]) -> tuple[dict[str, list[float]], list[str]]:
    """For each method the mean over seeds of each category in which all methods have the metric; and these."""
    values: dict[str, list[float]] = {name: [] for name in found}
    categories = []
    for category in sorted({category for group in found.values() for category, _ in group.records}):
        cells = [cell for group in found.values() if (cell := group.cell(category, METRIC))]
        if len(cells) == len(found):
            categories.append(category)
            for own, cell in zip(values.values(), cells, strict=True):
                own.append(cell.mean)
    return values, categories


def _pairs(values: Mapping[str, Sequence[float]], drawn: Mapping[str, Draws], seeds: int) -> list[Block]:
    """Every pair of methods: a row of numbers, and what can be concluded from them."""
    head = ("first − second", "points", OVER_IMAGES, "higher", "lower", "p (Wilcoxon)", "p after Holm")
    rows, told = [], []
    for each in compare(values):
        images = differences(drawn[each.first], drawn[each.second])[METRIC] if drawn else None
        over = f"{points(images.low)} to {points(images.high)}" if images else NONE
        tested = (str(each.won), str(each.lost), f"{each.p:.2g}", f"{each.corrected:.2g}")
        rows.append((f"{each.first} − {each.second}", points(each.difference), over, *tested))
        told.append(conclude(each, images=images, seeds=seeds))
    return [Table.of("", head, rows), tuple(told)]


def _means(title: str, values: Mapping[str, Sequence[float]], drawn: Mapping[str, Draws]) -> Block:
    rows = []
    for name, own in values.items():
        over = NONE
        if drawn:
            found = intervals(drawn[name])[METRIC]
            over = f"{100 * found.low:.1f} to {100 * found.high:.1f}"
        rows.append((name, f"{100 * float(np.mean(own)):.1f}", over))
    return Table.of(title, ("method", METRICS[METRIC], OVER_IMAGES), rows)


def _ranking(values: Mapping[str, Sequence[float]]) -> list[Block]:
    found = rank(values)
    title = f"Mean ranks (1 is best; critical difference {found.critical_difference:.2f} at {found.alpha:.0%})"
    rows = [(name, f"{mean:.2f}") for name, mean in zip(found.methods, found.mean_ranks, strict=True)]
    return [Table.of(title, ("method", "mean rank"), rows), conclude_ranking(found)]


def _draws(found: Mapping[str, Group], categories: Sequence[str], store: Store) -> dict[str, Draws]:
    """For each method the draws of its mean over categories; empty where an answer is missing or images differ.

    All seeds of a category are judged on the same drawn images: to the test set, they are one method asked again.
    """
    drawn: dict[str, Draws] = {}
    asked: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for name, group in found.items():
        means = []
        for category in categories:
            given = [answers(store, record) for (own, _), record in sorted(group.records.items()) if own == category]
            whole = [each for each in given if each is not None]
            if len(whole) < len(given) or any(
                asked.setdefault(category, (each.files, each.defects)) != (each.files, each.defects) for each in whole
            ):
                return {}
            means.append(mean_of([_resampled(each, category) for each in whole]))
        drawn[name] = mean_of(means)
    return drawn


def _resampled(given: Answers, category: str) -> Draws:
    return resample(given.scores, given.anomalous, None, None, seed=[SEED, crc32(category.encode())])
