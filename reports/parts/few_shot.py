"""k-shot runs of one dataset over k: a table with k as columns, and a figure, both with intervals over draws."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bench.evaluation.group_names import groups_by_unique_name
from bench.evaluation.statistics import SeedSummary, summarize_seeds
from bench.evaluation.summary import METRICS, Group, caveats, missing_summary
from bench.identity import comparison_key
from bench.report_format import Figure, Table, TableCell

from .published import published_few_shot
from .statistics_tables import MAIN_METRICS
from .style import (
    GRAY,
    MARKERS,
    PALETTE,
    MethodStyle,
    finish_figure,
    label,
    legend,
    limit_to_percent,
    missing_figure,
    new_figure,
    rerun_command,
    theme,
    wrapped,
)
from .tables import MISSING, NO_VALUE, divide_caveats, rank_comparable

MAX_LINES = 10
"""Methods that are drawn as lines over k, which is the number of colors; more are drawn as rows, a panel per k."""

INTERVAL = "95 % interval of the mean over draws (Student's t, limited to 0 and 100)"

_PANEL_STYLES = {"image_auroc": (PALETTE[0], "o", -0.16), "pixel_auroc": (PALETTE[1], "s", 0.16)}
"""Color, marker and vertical shift of a metric in a figure with the methods as rows."""


@dataclass(frozen=True, slots=True)
class FewShotRow:
    """A method with one set of settings and one selection rule, over k.

    Attributes:
        name: unique name of the method.
        groups: groups by k.
        categories: the categories that were requested for any k; a mean requires all of them.
    """

    name: str
    groups: dict[int, Group]
    categories: tuple[str, ...]

    @property
    def first(self) -> Group:
        """The group of the lowest k, for what all groups share."""
        return next(iter(self.groups.values()))

    @property
    def caveats(self) -> list[str]:
        """The caveats of all groups, each once."""
        return list(dict.fromkeys(note for group in self.groups.values() for note in caveats(group)))

    def complete_draws(self, k: int, metric: str) -> tuple[int, ...]:
        """Return the seeds that have this metric for all categories."""
        group = self.groups.get(k)
        if group is None:
            return ()
        return tuple(
            seed for seed in group.seeds if all(self._has_value(group, c, seed, metric) for c in self.categories)
        )

    def summary(self, k: int, metric: str) -> SeedSummary | None:
        """Return mean and interval over the complete draws, as fractions; None if no draw is complete."""
        group = self.groups.get(k)
        means = group.seed_means(self.categories, metric) if group else []
        return summarize_seeds(means) if means else None

    @staticmethod
    def _has_value(group: Group, category: str, seed: int, metric: str) -> bool:
        record = group.records.get((category, seed))
        return record is not None and metric in record.metrics


def by_few_shot_dataset(members: Sequence[Group]) -> dict[str, list[Group]]:
    """Return the k-shot groups by dataset."""
    datasets: dict[str, list[Group]] = {}
    for group in members:
        if group.first.run.k:
            datasets.setdefault(group.dataset, []).append(group)
    return datasets


def few_shot_rows(members: Sequence[Group]) -> list[FewShotRow]:
    """Return the k-shot groups of one dataset as rows: groups that differ in k only are one row."""
    by_method: dict[Hashable, dict[int, Group]] = {}
    for group in sorted(members, key=lambda group: group.first.run.k):
        run = group.first.run
        by_method.setdefault((run.title, run.name, run.group_hash, group.selection), {})[run.k] = group
    by_first = {id(next(iter(groups.values()))): groups for groups in by_method.values()}
    firsts = [next(iter(groups.values())) for groups in by_method.values()]
    rows = []
    for name, first in groups_by_unique_name(firsts).items():
        groups = by_first[id(first)]
        categories = {category for group in groups.values() for category in group.categories}
        rows.append(FewShotRow(name, groups, tuple(sorted(categories))))
    return sorted(rows, key=lambda row: row.name)


# --- Table -----------------------------------------------------------------------------------------------------------


def few_shot_table(members: Sequence[Group]) -> Table | None:
    """Return image and pixel AUROC with k as columns: one row per method; None if there is only one k.

    members: the k-shot groups of one dataset.
    """
    rows = few_shot_rows(members)
    ks = sorted({k for row in rows for k in row.groups})
    if len(ks) < 2:
        return None
    columns = [(metric, k) for metric in MAIN_METRICS for k in ks]
    parts: dict[Hashable, list[FewShotRow]] = {}
    for row in sorted(rows, key=lambda row: row.first.selection):
        parts.setdefault(_part_key(row), []).append(row)
    draws = Counter(seeds for row in rows for metric, k in columns if (seeds := row.complete_draws(k, metric)))
    usual_draws = draws.most_common(1)[0][0] if draws else ()
    caveat_remarks, notes_by_name = divide_caveats({row.name: row.caveats for row in rows})
    has_shared_categories = len({row.categories for row in rows}) == 1
    cells: list[tuple[TableCell, ...]] = []
    rules_after = []
    for part in parts.values():
        ranked = [
            rank_comparable(
                [_cell(row, k, metric, usual_draws) for row in part], [row.complete_draws(k, metric) for row in part]
            )
            for metric, k in columns
        ]
        for index, row in enumerate(part):
            notes = [] if has_shared_categories else [f"{row.name}: {_mean_over(row.categories)}"]
            title = TableCell.from_text(row.name, *notes, *notes_by_name[row.name])
            cells.append((title, *(column[index] for column in ranked)))
        rules_after.append(len(cells) - 1)
    remarks = [
        *caveat_remarks,
        *([_mean_over(rows[0].categories).capitalize() + "."] if has_shared_categories else []),
        _draws_remark(usual_draws),
        "Best and second best are marked in each column among methods with the same images, draws, options and "
        "selection of the epoch" + (", within each part of the table." if len(parts) > 1 else "."),
    ]
    header = ("method", *(f"k = {k}" for _, k in columns))
    column_groups = [(heading, len(ks)) for heading in MAIN_METRICS.values()]
    return Table.from_rows(
        "AUROC over k", header, cells, column_groups=column_groups, rules_after=rules_after, remarks=remarks
    )


def _part_key(row: FewShotRow) -> Hashable:
    """Return what the rows of one part share: evaluation, images, categories and selection, for any k."""
    run = row.first.first.run
    images = tuple((category, run.data_fingerprints.get(category)) for category in row.categories)
    return comparison_key(replace(run, k=0)), row.first.dataset, row.first.selection, images


def _cell(row: FewShotRow, k: int, metric: str, usual_draws: tuple[int, ...]) -> TableCell:
    """Return the mean with its interval; a note states the draws if they are not the usual ones."""
    group, summary = row.groups.get(k), row.summary(k, metric)
    if group is None:
        return TableCell.from_text(MISSING)
    if summary is None:
        reasons = missing_summary(group, row.categories, metric)
        return TableCell.from_text(NO_VALUE, *(f"{row.name}, k = {k}: {reason}" for reason in reasons))
    text = f"{100 * summary.mean:.1f}"
    if summary.interval:
        low, high = (100 * min(max(value, 0.0), 1.0) for value in (summary.interval.low, summary.interval.high))
        text += f" [{low:.1f}, {high:.1f}]"
    draws = row.complete_draws(k, metric)
    notes = [] if draws == usual_draws else [_count_draws(draws)]
    n_incomplete = len(group.seeds) - len(draws)
    notes += (
        [f"{n_incomplete} of {len(group.seeds)} draws are incomplete and not part of the mean"] if n_incomplete else []
    )
    return TableCell.from_text(text, *notes)


def _draws_remark(draws: tuple[int, ...]) -> str:
    interval = f", with the {INTERVAL} in brackets" if len(draws) > 1 else "; one draw has no interval"
    count = _count_draws(draws)
    return f"Mean in percent over draws of the training images, {count} unless a note states others{interval}."


def _count_draws(draws: tuple[int, ...]) -> str:
    return f"n = {len(draws)} (seed{'' if len(draws) == 1 else 's'} {', '.join(map(str, draws))})"


def _mean_over(categories: Sequence[str]) -> str:
    count = "1 category" if len(categories) == 1 else f"{len(categories)} categories"
    return f"mean over {count}: {', '.join(categories)}"


# --- Figure ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Series:
    """The values of a method in the figure.

    Attributes:
        name: entry of the legend, or label of the row.
        style: color, marker and dash of its line.
        points: (k, mean, low, high) in percent by metric; low and high are equal to the mean without an interval.
        is_published: whether the values are published and not measured.
    """

    name: str
    style: MethodStyle
    points: Mapping[str, list[tuple[int, float, float, float]]]
    is_published: bool = False


def few_shot_figure(dataset: str, members: Sequence[Group], styles: Mapping[str, MethodStyle]) -> Figure:
    """Draw image and pixel AUROC over k with the interval over draws: as lines, or for many methods as rows.

    members: the k-shot groups of one dataset.
    """
    title = "AUROC against the number of training images per category"
    rows = few_shot_rows(members)
    series = [_series(row, styles[row.name]) for row in rows]
    series = [each for each in series if any(each.points.values())]
    ks = sorted({point[0] for each in series for points in each.points.values() for point in points})
    if len(ks) < 2:
        command = rerun_command(members[0].first, "--k", "1,2,4,8")
        return missing_figure("k", dataset, title, f"At least two values of k are required. Run {command}")
    published = list(_published_series(styles)) if members[0].first.run.dataset == "mvtec" else []
    counts = {len(row.complete_draws(k, metric)) for row in rows for k in row.groups for metric in MAIN_METRICS} - {0}
    n = f"n = {min(counts)}" if len(counts) == 1 else f"n = {min(counts)} to {max(counts)}"
    bars = f"Bars: {INTERVAL}, {n}." if max(counts) > 1 else "One draw of the training images: no intervals."
    bars += " Points without a bar have one draw." if len(counts) > 1 and min(counts) == 1 else ""
    with theme():
        draw = _draw_lines if len(series) + len(published) <= MAX_LINES else _draw_rows
        figure = draw([*series, *published], ks)
        caption = (
            f"Mean over categories in percent; each draw is a choice of the training images and a training run. {bars} "
            + ("Hollow: published in Table IV, one draw. " if published else "")
            + "A mean requires all categories."
        )
        plotted = [group for row in rows for group in row.groups.values()]
        return finish_figure("k", dataset, title, caption, figure, groups=plotted, key=bars)


def _series(row: FewShotRow, style: MethodStyle) -> _Series:
    points: dict[str, list[tuple[int, float, float, float]]] = {metric: [] for metric in MAIN_METRICS}
    for metric, metric_points in points.items():
        for k in row.groups:
            if summary := row.summary(k, metric):
                interval = summary.interval
                ends = (interval.low, interval.high) if interval else (summary.mean, summary.mean)
                low, high = (100 * min(max(value, 0.0), 1.0) for value in ends)
                metric_points.append((k, 100 * summary.mean, low, high))
    return _Series(row.name, style, points)


def _published_series(styles: Mapping[str, MethodStyle]) -> Iterator[_Series]:
    for index, (name, by_k) in enumerate(published_few_shot().items()):
        points = {
            metric: [
                (k, values[metric], values[metric], values[metric]) for k, values in by_k.items() if metric in values
            ]
            for metric in MAIN_METRICS
        }
        style = styles.get(name, MethodStyle(GRAY, MARKERS[-1 - index % len(MARKERS)], ":"))
        yield _Series(f"{name}, published", style, points, is_published=True)


def _draw_lines(series: Sequence[_Series], ks: Sequence[int]) -> Any:
    """Draw one panel per metric with k on the x axis and a line per method."""
    figure, panels = new_figure(9.2, 4.2, 1, 2)
    for axes, metric in zip(panels, MAIN_METRICS, strict=True):
        for index, each in enumerate(series):
            shift = 1 + 0.015 * (index - len(series) / 2)  # so that error bars do not cover each other
            x = [shift * point[0] for point in each.points[metric]]
            line: dict[str, Any] = {"color": each.style.color, "fmt": each.style.marker, "label": label(each.name)}
            line |= {"ls": ":", "mfc": "none"} if each.is_published else {"ls": each.style.dash}
            if x:
                means, bars = _means_and_bars(each.points[metric])
                axes.errorbar(x, means, yerr=bars if bars.any() else None, capsize=3, **line)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, list(map(str, ks)))
        limit_to_percent(axes)
        axes.set_title(METRICS[metric])
        axes.set_xlabel("k, training images per category (log scale)")
    panels[0].set_ylabel("AUROC (%), mean over categories")
    legend(figure, panels)
    return figure


def _draw_rows(series: Sequence[_Series], ks: Sequence[int]) -> Any:
    """Draw one panel per k with a row per method, the highest mean image AUROC over the k that all have at the top."""
    ks_by_series = [{point[0] for point in each.points["image_auroc"]} for each in series]
    common_ks = set.intersection(*(each for each in ks_by_series if each), set(ks)) or set(ks)

    def image_auroc(each: _Series) -> float:
        return float(np.mean([point[1] for point in each.points["image_auroc"] if point[0] in common_ks] or [0.0]))

    ordered = sorted(series, key=image_auroc)
    figure, panels = new_figure(
        2.6 + 2.0 * len(ks) + 1.2, 1.2 + 0.24 * len(ordered), 1, len(ks), sharex=True, sharey=True
    )
    for axes, k in zip(panels, ks, strict=True):
        for metric in MAIN_METRICS:
            _draw_panel(axes, ordered, k, metric)
        axes.set_title(f"k = {k}")
        axes.set_xlabel("%")
        axes.margins(y=0.5 / len(ordered))
        axes.set_yticks(range(len(ordered)), [wrapped(each.name, 34) for each in ordered])
        axes.tick_params(axis="y", length=0)
    legend(figure, panels)
    return figure


def _draw_panel(axes: Axes, series: Sequence[_Series], k: int, metric: str) -> None:
    color, marker, shift = _PANEL_STYLES[metric]
    for is_published in (False, True):
        points = {
            height: point
            for height, each in enumerate(series)
            if each.is_published == is_published
            for point in each.points[metric]
            if point[0] == k
        }
        if points:
            means, bars = _means_and_bars(list(points.values()))
            heights = [height - shift for height in points]
            fill = {"mfc": "none"} if is_published else {}
            name = f"{METRICS[metric]}{', published' if is_published else ''}"
            style: dict[str, Any] = {"fmt": marker, "color": color, "ms": 4, "capsize": 2, "elinewidth": 0.9} | fill
            axes.errorbar(means, heights, xerr=bars if bars.any() else None, label=name, **style)


def _means_and_bars(points: Sequence[tuple[int, float, float, float]]) -> tuple[Any, Any]:
    """Return the (n,) means and the (2, n) lengths of the bars below and above them."""
    _, means, low, high = np.array(points).T
    return means, np.array([means - low, high - means])
