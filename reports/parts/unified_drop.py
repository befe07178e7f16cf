"""One model for all categories against one model per category: the drop of each method as a table and a figure."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.evaluation.bootstrap import Interval
from bench.evaluation.group_names import groups_by_unique_name
from bench.evaluation.statistics import summarize_seeds
from bench.evaluation.summary import METRICS, Group, MeanStd, caveats, format_percent
from bench.identity import run_hash
from bench.report_format import Block, Figure, Table, TableCell

from .statistics_tables import MAIN_METRICS
from .style import (
    GRAY,
    PALETTE,
    finish_figure,
    legend,
    missing_figure,
    new_figure,
    rerun_command,
    theme,
    wrapped,
)
from .tables import NO_VALUE, divide_caveats, rank_comparable, ranking_key

COLUMNS = ("one per category", "one for all", "drop")

_DEFINITION = (
    "Drop: mean of one model per category minus mean of one model for all categories, in percentage points over the "
    "same seeds; positive means that one model for all is worse."
)
_RANKED = (
    "Best and second best are marked among methods with the same images, seeds, options and selection of the epoch; "
    "drops are not ranked, because a method that is poor in both has a small one."
)


@dataclass(frozen=True, slots=True)
class ProtocolPair:
    """One method with the same settings, options and images under both protocols.

    Attributes:
        name: unique name of the method.
        separate: one model per category.
        unified: one model for all categories.
        seeds: the seeds that both have.
    """

    name: str
    separate: Group
    unified: Group
    seeds: tuple[int, ...]

    @property
    def categories(self) -> list[str]:
        """The categories of the unified model."""
        return self.unified.categories

    def seed_means(self, group: Group, metric: str) -> list[float]:
        """Return the mean over the categories of each seed for which both protocols have all of them."""
        return [value for seed in self.seeds if (value := self._seed_mean(group, seed, metric)) is not None]

    def mean_std(self, group: Group, metric: str) -> MeanStd | None:
        """Return the mean of one of the groups over the seeds, as a fraction; None if no seed is complete."""
        means = self.seed_means(group, metric)
        if not means:
            return None
        return MeanStd(float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else None, len(means))

    def drop(self, metric: str) -> tuple[float, Interval | None] | None:
        """Return the mean drop over seeds as a fraction with its interval; None if no seed is complete."""
        before, after = (self.seed_means(group, metric) for group in (self.separate, self.unified))
        if not before:
            return None
        summary = summarize_seeds([first - second for first, second in zip(before, after, strict=True)])
        return summary.mean, summary.interval

    def _seed_mean(self, group: Group, seed: int, metric: str) -> float | None:
        keys = [(category, seed) for category in self.categories]
        both = [each.records.get(key) for each in (self.separate, self.unified) for key in keys]
        if any(record is None or metric not in record.metrics for record in both):
            return None
        return float(np.mean([group.records[key].metrics[metric] for key in keys]))


def by_unified_dataset(members: Sequence[Group]) -> dict[str, list[Group]]:
    """Return the groups of both protocols by dataset, for the datasets that have a unified model."""
    names = dict.fromkeys(group.dataset for group in members if group.first.run.protocol == "unified")
    protocols = {"unified", "one-for-one"}
    return {
        name: [group for group in members if group.dataset == name and group.first.run.protocol in protocols]
        for name in names
    }


def protocol_pairs(members: Sequence[Group]) -> tuple[list[ProtocolPair], dict[str, str]]:
    """Return each unified group with its counterpart, and the reason by name for those that have none.

    The counterpart has the same method, settings, weights, options, dataset and selection, the same test images of all
    categories of the unified model, and at least one seed in common.
    """
    separate: dict[Hashable, Group] = {}
    for group in members:
        if group.first.run.protocol == "one-for-one":
            separate[_method_key(group, group.first.run.group_hash)] = group
    names_with_separate = {(group.first.run.name, group.selection) for group in separate.values()}
    pairs, reasons = [], {}
    unified = [group for group in members if group.first.run.protocol == "unified"]
    for name, group in groups_by_unique_name(unified).items():
        run = group.first.run
        # The hash of a unified group contains the hash of the images of all its categories; without it, it is that of
        # the group of single models.
        other = separate.get(_method_key(group, run_hash(run, "")))
        if other is None:
            if (run.name, group.selection) in names_with_separate:
                reasons[name] = "its settings, weights or options differ between the protocols"
            else:
                reasons[name] = "there are no models per category"
            continue
        reason = _difference(other, group)
        if reason:
            reasons[name] = reason
            continue
        seeds = tuple(seed for seed in group.seeds if seed in other.seeds)
        pairs.append(ProtocolPair(name, other, group, seeds))
    return pairs, reasons


def _method_key(group: Group, settings_hash: str) -> Hashable:
    return group.first.run.name, settings_hash, group.dataset, group.selection


def _difference(separate: Group, unified: Group) -> str:
    """Return why the two groups cannot be compared; "" if they can."""
    absent = [category for category in unified.categories if category not in separate.categories]
    if absent:
        return f"there is no model per category of {', '.join(absent)}"
    if not {*separate.seeds} & {*unified.seeds}:
        return "the protocols have no seed in common"
    for key, record in unified.records.items():
        other = separate.records.get(key)
        if other and (
            other.test_files != record.test_files
            or other.run.data_fingerprints.get(key[0]) != record.run.data_fingerprints.get(key[0])
        ):
            return f"the images of {key[0]} differ between the protocols"
    return ""


# --- Table -----------------------------------------------------------------------------------------------------------


def unified_drop_blocks(members: Sequence[Group]) -> list[Block]:
    """Return the table of the drop and the methods without a counterpart; empty if there is no pair.

    members: the groups of both protocols of one dataset.
    """
    pairs, reasons = protocol_pairs(members)
    if not pairs:
        return []
    caveat_remarks, notes_by_name = divide_caveats({pair.name: caveats(pair.unified) for pair in pairs})
    categories = list(dict.fromkeys(tuple(pair.categories) for pair in pairs))
    keys = [(ranking_key(pair.unified, pair.categories), tuple(pair.categories), pair.seeds) for pair in pairs]
    columns: list[list[TableCell]] = []
    for metric in MAIN_METRICS:
        for side in ("separate", "unified"):
            cells = [TableCell.from_text(format_percent(pair.mean_std(getattr(pair, side), metric))) for pair in pairs]
            columns.append(rank_comparable(cells, keys))
        columns.append([_drop_cell(pair, metric) for pair in pairs])
    usual_seeds = Counter(pair.seeds for pair in pairs).most_common(1)[0][0]
    rows = []
    for index, pair in enumerate(pairs):
        notes = [f"{pair.name}: {_other_settings(pair)}"] if _other_settings(pair) else []
        notes += [f"{pair.name}: mean over {', '.join(pair.categories)}"] if len(categories) > 1 else []
        notes += [f"{pair.name}: {_seeds(pair.seeds)}"] if pair.seeds != usual_seeds else []
        title = TableCell.from_text(pair.name, *notes, *notes_by_name[pair.name])
        rows.append((title, *(column[index] for column in columns)))
    several = any(len(pair.seeds) > 1 for pair in pairs)
    remarks = [
        *caveat_remarks,
        *([f"Mean over {len(categories[0])} categories: {', '.join(categories[0])}."] if len(categories) == 1 else []),
        _DEFINITION,
        f"{_seeds(usual_seeds).capitalize()}"
        + (" unless a note states others" if len({pair.seeds for pair in pairs}) > 1 else "")
        + ("; in brackets the 95 % interval of the mean drop over seeds (Student's t)." if several else "."),
        _RANKED,
    ]
    table = Table.from_rows(
        "One model for all categories against one model per category",
        ("method", *(COLUMNS * len(MAIN_METRICS))),
        rows,
        column_groups=[(heading, len(COLUMNS)) for heading in MAIN_METRICS.values()],
        remarks=remarks,
    )
    not_compared = "; ".join(f"{name}, because {reason}" for name, reason in reasons.items())
    return [table, *([f"Not in this table: {not_compared}."] if reasons else [])]


def _drop_cell(pair: ProtocolPair, metric: str) -> TableCell:
    drop = pair.drop(metric)
    if drop is None:
        sides = (pair.separate, pair.unified)
        absent = [
            f"{category}, seed {seed}"
            for seed in pair.seeds
            for category in pair.categories
            if any((category, seed) not in side.records for side in sides)
        ]
        reason = f"missing or failed: {'; '.join(absent)}" if absent else f"no {METRICS[metric]} in a category"
        return TableCell.from_text(NO_VALUE, f"{pair.name}: no seed has all categories in both protocols; {reason}")
    mean, interval = drop
    text = _points(mean)
    if interval:
        text += f" [{_points(interval.low)}, {_points(interval.high)}]"
    n_seeds = len(pair.seed_means(pair.unified, metric))
    notes = [f"{n_seeds} of {len(pair.seeds)} seeds are complete"] if n_seeds < len(pair.seeds) else []
    return TableCell.from_text(text, *notes)


def _points(fraction: float) -> str:
    """Format percentage points with one decimal and a sign."""
    text = f"{100 * fraction:+.1f}"
    return "0.0" if float(text) == 0 else text


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"


def _other_settings(pair: ProtocolPair) -> str:
    """Return the categories whose own model has other settings than the unified one; "" if there are none."""
    settings = pair.unified.first.run.settings
    names: dict[str, list[str]] = {}
    for (category, _), record in sorted(pair.separate.records.items()):
        changed = [name for name in settings if record.run.settings.get(name) != settings[name]]
        if changed and category in pair.categories:
            names.setdefault(category, changed)
    return "; ".join(
        f"the model of {category} has other values of {', '.join(each)}" for category, each in names.items()
    )


# --- Figure ----------------------------------------------------------------------------------------------------------


def unified_drop_figure(dataset: str, members: Sequence[Group]) -> Figure:
    """Draw the AUROCs under both protocols and the drop of each method, the best unified one at the top.

    members: the groups of both protocols of one dataset.
    """
    title = "One model for all categories against one per category"
    pairs = [pair for pair in protocol_pairs(members)[0] if pair.drop("image_auroc") or pair.drop("pixel_auroc")]
    if not pairs:
        first = next(group.first for group in members if group.first.run.protocol == "unified")
        command = rerun_command(first, "--protocol", "one-for-one")
        reason = f"A method with both protocols, the same images and settings is required. Run {command}"
        return missing_figure("unified", dataset, title, reason)
    pairs = sorted(pairs, key=lambda pair: mean.mean if (mean := pair.mean_std(pair.unified, "image_auroc")) else 0.0)
    heights = range(len(pairs))
    with theme():
        figure, panels = new_figure(9.2, 1.4 + 0.25 * len(pairs), 1, 2, sharey=True)
        for axes, metric in zip(panels, MAIN_METRICS, strict=True):
            values = {
                side: [_percent(pair.mean_std(getattr(pair, side), metric)) for pair in pairs]
                for side in ("separate", "unified")
            }
            axes.hlines(heights, values["separate"], values["unified"], color=GRAY, lw=1.2, zorder=1)
            marks: tuple[tuple[str, str, dict[str, Any]], ...] = (
                ("separate", "one model per category", {"marker": "o", "color": PALETTE[0]}),
                ("unified", "one model for all", {"marker": "s", "color": PALETTE[1]}),
            )
            for side, name, style in marks:
                axes.plot(values[side], heights, ls="", ms=5, label=name, **style)
            for height, pair in zip(heights, pairs, strict=True):
                if drop := pair.drop(metric):
                    place = (1.01, height)
                    axes.annotate(
                        _points(drop[0]), place, xycoords=axes.get_yaxis_transform(), va="center", fontsize=7.5
                    )
            axes.set_title(METRICS[metric])
            axes.set_xlabel("%, and drop in points on the right")
            axes.margins(y=0.5 / len(pairs))
            axes.set_yticks(heights, [wrapped(pair.name, 34) for pair in pairs])
            axes.tick_params(axis="y", length=0)
        legend(figure, panels)
        counts = sorted({len(pair.seed_means(pair.unified, metric)) for pair in pairs for metric in MAIN_METRICS} - {0})
        n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
        key = f"Means over categories and seeds ({n}). Drop: one per category minus one for all, in points."
        caption = f"{key} Each method has the same settings, test images and seeds under both protocols."
        plotted = [pair.unified for pair in pairs]
        return finish_figure("unified", dataset, title, caption, figure, groups=plotted, key=key)


def _percent(value: MeanStd | None) -> float:
    return 100 * value.mean if value else float("nan")
