"""Figures that compare methods: speed, categories, mean ranks and ablations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from bench.evaluation.group_names import groups_by_unique_name
from bench.evaluation.statistics import Ranking, rank
from bench.evaluation.summary import LATENCY, MEAN, METRICS, Group, MeanStd, timed_devices
from bench.report_format import Figure

from .ablations import find_ablations
from .published import TABLES, PublishedTiming
from .statistics_tables import METRIC, comparable_groups, values_by_category
from .style import (
    BLACK,
    GRAY,
    WARNING_COLOR,
    MethodStyle,
    finish_figure,
    label,
    legend,
    limit_to_percent,
    missing_figure,
    new_figure,
    panels,
    plain_ticks,
    rerun_command,
    theme,
    wrapped,
)

STD_BARS = "Bars: standard deviation over seeds."
PUBLISHED_OTHER_DATA = (
    "Hollow: published for MVTec AD on an RTX 4090. The images and the machine of the measured values are others, so "
    "the two are not comparable."
)
_AXIS_LABEL = f"{METRICS[METRIC]} (%)"


# --- Speed -----------------------------------------------------------------------------------------------------------


def speed_figure(
    benchmark: str,
    members: Sequence[Group],
    styles: Mapping[str, MethodStyle],
    published: Sequence[PublishedTiming] = (),
) -> Figure:
    """Draw Fig. 8: latency of one image against image AUROC, with the published points."""
    title = "Speed against image AUROC"
    points = [
        (name, group, latency, auroc)
        for name, group in groups_by_unique_name(members).items()
        if (latency := group.mean_std(MEAN, LATENCY)) and (auroc := group.mean_std(MEAN, METRIC))
    ]
    if not points:
        reason = "No method has both a latency and an image AUROC for all its categories. Run "
        return missing_figure("speed", benchmark, title, reason + rerun_command(members[0].first, "--time", "--force"))
    devices = {timed_devices(group) for _, group, _, _ in points}
    is_other_data = published and not TABLES["1"].has_protocol_of(members[0].first.run)
    with theme():
        figure, (axes,) = new_figure(7.2, 4.2)
        for name, _, latency, auroc in sorted(points, key=lambda point: point[2].mean):  # the order of the legend
            _speed_point(axes, name, styles[name], latency, auroc)
        for index, timing in enumerate(published):
            style = styles.get(timing.method, MethodStyle(BLACK, "s" if index else "o", "-"))
            hollow: dict[str, Any] = {"marker": style.marker, "mfc": "none", "mec": style.color, "ms": 9, "mew": 1.5}
            name = label(f"{timing.method}, published")
            axes.plot(timing.latency_ms, timing.image_auroc, ls="", label=name, **hollow)
        if len(devices) == 1 and len(points) > 1:
            front = pareto_front([(latency.mean, 100 * auroc.mean) for _, _, latency, auroc in points])
            x, y = zip(*front, strict=True)
            axes.step(x, y, where="post", color=GRAY, lw=1, zorder=1, label="Pareto front, measured")
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
        axes.margins(x=0.25, y=0.15)
        limit_to_percent(axes)
        axes.set(xlabel="latency of one image (ms, log scale)", ylabel=_AXIS_LABEL)
        legend(figure, [axes])
        has_bars = any(latency.std or auroc.std for _, _, latency, auroc in points)
        several = "Latencies on different machines are not comparable, so there is no Pareto front. "
        caption = (
            "Filled: measured, with the standard deviation over seeds if there are several. "
            + ("Hollow: published (MVTec AD, RTX 4090, batch size not stated). " if published else "")
            + f"Measured on {'; '.join(sorted(devices))}: batch size 1, network to map and score. "
            + (several if len(devices) > 1 else "")
            + "Upper left is better."
        )
        groups = [group for _, group, _, _ in points]
        key = " ".join([STD_BARS] * has_bars + [PUBLISHED_OTHER_DATA] * bool(is_other_data))
        return finish_figure("speed", benchmark, title, caption, figure, groups=groups, key=key)


def _speed_point(axes: Axes, name: str, style: MethodStyle, latency: MeanStd, auroc: MeanStd) -> None:
    axes.errorbar(
        latency.mean,
        100 * auroc.mean,
        xerr=[[min(latency.std, 0.9 * latency.mean)], [latency.std]] if latency.std else None,
        yerr=100 * auroc.std if auroc.std else None,
        fmt=style.marker,
        color=style.color,
        mec="white",
        mew=0.5,
        ms=9,
        capsize=3,
        label=label(name),
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (time, value) points for which no other point is both faster and better, by increasing time."""
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


# --- Categories ------------------------------------------------------------------------------------------------------


def category_heatmap(benchmark: str, members: Sequence[Group]) -> Figure:
    """Draw the image AUROC of each method on each category, hardest category first."""
    title = "Image AUROC by category"
    groups_by_name = {name: group for name, group in groups_by_unique_name(members).items() if group.records}
    categories = sorted({category for group in groups_by_name.values() for category, _ in group.records})
    results = [[group.mean_std(category, METRIC) for category in categories] for group in groups_by_name.values()]
    values = np.array([[np.nan if cell is None else 100 * cell.mean for cell in row] for row in results])
    if len(categories) < 2 or np.isnan(values).all():
        command = rerun_command(members[0].first, "--category", "all").replace(" --category all", "")
        return missing_figure("heatmap", benchmark, title, f"At least two categories are required. Run {command}")
    order = np.argsort(np.nanmean(values, axis=0), kind="stable")
    values, categories = values[:, order], [categories[i] for i in order]
    with theme():
        width = max(6.0, 2.6 + 0.52 * len(categories))
        figure, (axes,) = new_figure(width, 1.9 + 0.32 * len(groups_by_name))
        sns.heatmap(
            values,
            ax=axes,
            vmin=min(50.0, float(np.nanmin(values))),
            vmax=100,
            cmap="cividis",
            annot=True,
            fmt=".0f" if len(categories) > 8 else ".1f",
            annot_kws={"fontsize": 7.5},
            linewidths=0.6,
            xticklabels=[label(name) for name in categories],
            yticklabels=[label(name) for name in groups_by_name],
            cbar_kws={"label": "%", "aspect": 12},
        )
        axes.set_facecolor("#f2f2f2")
        for row, column in np.argwhere(np.isnan(values)):
            axes.text(column + 0.5, row + 0.5, "–", ha="center", va="center", color=WARNING_COLOR)
        axes.tick_params(length=0)
        axes.set_xticklabels(axes.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticklabels(axes.get_yticklabels(), rotation=0)
        axes.grid(visible=False)
        caption = "Mean over seeds in percent; hardest category on the left. – marks a category without a value."
        return finish_figure("heatmap", benchmark, title, caption, figure, groups=list(groups_by_name.values()))


# --- Mean ranks ------------------------------------------------------------------------------------------------------


def critical_difference_diagram(benchmark: str, members: Sequence[Group]) -> Figure:
    """Draw the mean ranks of the largest set of comparable methods with Nemenyi's critical difference."""
    title = "Mean ranks over categories"
    methods = max(comparable_groups(groups_by_unique_name(members)), key=len, default={})
    values, categories = values_by_category(methods) if len(methods) > 2 else ({}, [])
    if len(values) < 3 or len(categories) < 2:
        reason = "At least three methods with the same categories (two or more), seeds and selection are required. Run "
        command = rerun_command(members[0].first, "--method", "meanmap,patchcore,aminet")
        return missing_figure("ranks", benchmark, title, reason + command)
    ranking = rank(values)
    count, n_groups = len(ranking.methods), len(ranking.groups)
    n_left = -(-count // 2)
    with theme():
        n_lines = max(_rank_label(name, 0).count("\n") + 1 for name in ranking.methods)
        figure, (axes,) = new_figure(7.2, 1.7 + 0.24 * (n_left * n_lines + n_groups))
        axes.set(xlim=(0.4, count + 0.6), ylim=(0.35 + 0.3 * n_groups + 0.5 * n_left + 0.4, -1.5))
        axes.axis("off")
        _rank_axis(axes, count)
        _rank_labels(axes, ranking)
        _rank_bars(axes, ranking)
        caption = (
            f"Mean rank in image AUROC over {ranking.categories} categories; 1 is best. Methods connected by a bar do "
            f"not differ significantly by Nemenyi's test at {ranking.alpha:.0%} (Friedman's test: p = {ranking.p:.2g})."
        )
        return finish_figure("ranks", benchmark, title, caption, figure, groups=list(methods.values()))


def _rank_axis(axes: Axes, count: int) -> None:
    axes.plot([1, count], [0, 0], color=BLACK, lw=1.2)
    for tick in range(1, count + 1):
        axes.plot([tick, tick], [-0.12, 0], color=BLACK, lw=1)
        axes.text(tick, -0.25, str(tick), ha="center", va="bottom", fontsize=8)


def _rank_labels(axes: Axes, ranking: Ranking) -> None:
    """Write the better half of the methods on the left and the others on the right."""
    count = len(ranking.methods)
    n_left = -(-count // 2)
    top = 0.35 + 0.3 * len(ranking.groups)
    for index, (name, mean) in enumerate(zip(ranking.methods, ranking.mean_ranks, strict=True)):
        is_left = index < n_left
        height = top + 0.5 * (index if is_left else count - 1 - index) + 0.25
        edge = 0.9 if is_left else count + 0.1
        axes.plot([mean, mean, edge], [0, height, height], color=GRAY, lw=0.9)
        axes.plot(mean, 0, "o", ms=4, color=BLACK)
        alignment = "right" if is_left else "left"
        x = edge + (-0.05 if is_left else 0.05)
        axes.text(x, height, _rank_label(name, mean), ha=alignment, va="center", fontsize=8)


def _rank_label(name: str, mean: float) -> str:
    return wrapped(f"{name} ({mean:.2f})", 30)


def _rank_bars(axes: Axes, ranking: Ranking) -> None:
    """Draw a bar per set of methods that do not differ, and the length of the critical difference."""
    ranks = dict(zip(ranking.methods, ranking.mean_ranks, strict=True))
    for index, names in enumerate(ranking.groups):
        ends = [ranks[names[0]] - 0.04, ranks[names[-1]] + 0.04]
        axes.plot(ends, [0.25 + 0.3 * index] * 2, color=BLACK, lw=3.5, solid_capstyle="round")
    axes.plot([1, 1 + ranking.critical_difference], [-1.1, -1.1], color=BLACK, lw=1.5, marker="|", ms=7)
    text = f"critical difference {ranking.critical_difference:.2f}"
    axes.text(1 + ranking.critical_difference / 2, -1.2, text, ha="center", va="bottom", fontsize=8)


# --- Ablations -------------------------------------------------------------------------------------------------------


def ablation_figure(benchmark: str, members: Sequence[Group]) -> Figure:
    """Draw Fig. 9: the AUROCs over the values of each setting in which runs of one method differ only."""
    title = "Ablations"
    ablations = find_ablations(members)
    if not ablations:
        first = next((group.first for group in members if group.first.run.settings), members[0].first)
        setting = next(iter(first.run.settings), "epochs")
        command = rerun_command(first, "--sweep", f"{first.run.name}.{setting}=VALUE,VALUE")
        reason = f"Runs that differ in one setting are required. Run {command}"
        return missing_figure("ablation", benchmark, title, reason)
    with theme():
        figure, axes, _ = panels(len(ablations), 2.9, 2.6, max_columns=3)
        for panel, ablation in zip(axes, ablations, strict=True):
            _ablation_panel(panel, ablation.points)
            panel.set_title(wrapped(ablation.title, 32), fontsize=8.5)
            panel.set_xlabel(label(ablation.setting))
        legend(figure, axes)
        caption = (
            "Each panel varies one setting; all others are fixed. Mean over categories; bars are the standard "
            "deviation over seeds if there are several. The y axes of the panels differ."
        )
        groups = list({id(group): group for ablation in ablations for _, group in ablation.points}.values())
        key = STD_BARS if any(len(group.seeds) > 1 for group in groups) else ""
        return finish_figure("ablation", benchmark, title, caption, figure, groups=groups, key=key)


def _ablation_panel(axes: Axes, points: Sequence[tuple[Any, Group]]) -> None:
    values = [value for value, _ in points]
    is_numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    x = values if is_numeric else list(range(len(values)))
    for metric, line_format, color in (("image_auroc", "o-", "#0173b2"), ("pixel_auroc", "s--", "#de8f05")):
        results = [group.mean_std(MEAN, metric) for _, group in points]
        means = [100 * result.mean if result else np.nan for result in results]
        bars = [100 * result.std if result and result.std else 0 for result in results]
        line: dict[str, Any] = {"color": color, "capsize": 3, "label": METRICS[metric]}
        axes.errorbar(x, means, yerr=bars if any(bars) else None, fmt=line_format, **line)
    if is_numeric and min(values) > 0 and max(values) / min(values) >= 16:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(x, [label(f"{value:g}" if isinstance(value, float) else str(value)) for value in values])
    limit_to_percent(axes)
    axes.set_ylabel("%")
