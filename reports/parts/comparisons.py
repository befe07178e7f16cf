"""Figures that set methods beside each other: speed, k-shot, categories, mean ranks, ablations."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from bench.evaluation.statistics import rank, summarize_seeds
from bench.evaluation.summary import LATENCY, MEAN, METRICS, Cell, Group, latency_device, unique_names
from bench.report import Figure

from .ablation import conditions
from .differences import METRIC, alike, by_category, by_seed
from .drawing import absent, again, made
from .papers import few_shot, timing
from .style import (
    ALARM,
    FAINT,
    INK,
    MARKERS,
    Look,
    canvas,
    label,
    legend,
    panels,
    plain_ticks,
    themed,
    within_percent,
    wrapped,
)

AUROC = f"{METRICS[METRIC]} (%)"


# --- Speed -----------------------------------------------------------------------------------------------------------


def speed(topic: str, members: Sequence[Group], looks: Mapping[str, Look]) -> Figure:
    """Fig. 8: latency of one image against image AUROC; what is measured filled, what is published hollow."""
    title = "Speed against image AUROC"
    found = [
        (name, group, fast, good)
        for name, group in unique_names(members).items()
        if (fast := group.cell(MEAN, LATENCY)) and (good := group.cell(MEAN, METRIC))
    ]
    if not found:
        why = "No method has both a latency and an image AUROC for all its categories. "
        return absent("speed", topic, title, why + again(members[0].first, "--time", "--force"))
    places = {latency_device(group).rpartition("network to map and score, ")[2] for _, group, _, _ in found}
    run = members[0].first.run
    published = timing() if (run.dataset, run.protocol) == ("mvtec", "one-for-one") else []
    with themed():
        figure, (axes,) = canvas(7.2, 4.2)
        for name, _, fast, good in found:
            _point(axes, name, looks[name], fast, good)
        for name, milliseconds, value in published:
            look = looks.get(name, Look(INK, "o" if name == published[0][0] else "s", "-"))
            edge: dict[str, Any] = {"marker": look.marker, "mfc": "none", "mec": look.colour, "ms": 9, "mew": 1.5}
            axes.plot(milliseconds, value, ls="", label=label(f"{name}, published"), **edge)
        if len(places) == 1 and len(found) > 1:
            front = _front([(fast.mean, 100 * good.mean) for _, _, fast, good in found])
            x, y = zip(*front, strict=True)
            axes.step(x, y, where="post", color=FAINT, lw=1, zorder=1, label="Pareto front, measured")
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
        axes.margins(x=0.25, y=0.15)
        within_percent(axes)
        axes.set(xlabel="latency of one image (ms, log scale)", ylabel=AUROC)
        legend(figure, [axes])
        caption = (
            "Filled: measured, with the standard deviation over seeds where there are several. "
            + ("Hollow: published (RTX 4090, batch size not stated). " if published else "")
            + f"Measured on {'; '.join(sorted(places))}: batch 1, network to map and score. "
            + ("Latencies of several machines can't be compared: no front is drawn. " if len(places) > 1 else "")
            + "Up and to the left is better."
        )
        return made("speed", topic, title, caption, figure, groups=[group for _, group, _, _ in found])


def _point(axes: Axes, name: str, look: Look, fast: Cell, good: Cell) -> None:
    axes.errorbar(
        fast.mean,
        100 * good.mean,
        xerr=[[min(fast.std, 0.9 * fast.mean)], [fast.std]] if fast.std else None,
        yerr=100 * good.std if good.std else None,
        fmt=look.marker,
        color=look.colour,
        mec="white",
        mew=0.5,
        ms=9,
        capsize=3,
        label=label(name),
    )


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both: rising in time and in value."""
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


# --- k-shot ----------------------------------------------------------------------------------------------------------


def shots(dataset: str, members: Sequence[Group], looks: Mapping[str, Look]) -> Figure:
    """Image AUROC over k, of all k-shot groups of a data set, with the 95 % interval of the mean over draws."""
    title = "Training images a category against image AUROC"
    series: dict[str, list[Group]] = {}
    for name, group in _named_over_k(members):
        if group.cell(MEAN, METRIC):
            series.setdefault(name, []).append(group)
    series = {name: own for name, own in series.items() if len(own) > 1}  # one k alone shows no course
    ks = sorted({group.first.run.k for own in series.values() for group in own})
    if not series:
        why = f"It needs a method with two k at least. {again(members[0].first, '--k', '2,4,8')}"
        return absent("k", dataset, title, why)
    published = few_shot() if dataset == "mvtec" else {}
    with themed():
        figure, (axes,) = canvas(7.2, 4.2)
        alone = False
        for place, (name, own) in enumerate(series.items()):
            look, shift = looks[name], 1 + 0.015 * (place - len(series) / 2)  # side by side, so that bars don't hide
            found = [summarize_seeds(by_seed(group, METRIC)) for group in own]
            means = np.array([100 * each.mean for each in found])
            half = [100 * (each.interval.high - each.mean) if each.interval else np.nan for each in found]
            alone = alone or any(each.interval is None for each in found)
            x = [group.first.run.k * shift for group in own]
            stroke: dict[str, Any] = {"ls": look.dash, "color": look.colour, "capsize": 3, "label": label(name)}
            axes.errorbar(x, means, yerr=half, fmt=look.marker, **stroke)
        for place, (name, points) in enumerate(published.items()):
            look = looks.get(name, Look(FAINT, MARKERS[-1 - place], ":"))
            hollow: dict[str, Any] = {"ls": ":", "marker": look.marker, "color": look.colour, "mfc": "none"}
            axes.plot(*zip(*points, strict=True), **hollow, label=label(f"{name}, published"))
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, list(map(str, ks)))
        within_percent(axes)
        axes.set(xlabel="k, training images a category (log scale)", ylabel=f"{AUROC}, mean over categories")
        legend(figure, [axes])
        caption = (
            "Of methods that ran with several k. Bars: 95 % interval of the mean over seeds (Student's t, cut at 100); "
            "a seed is a draw and a fit. "
            + ("Points without a bar have one seed: their spread is not known. " if alone else "")
            + ("Hollow and dotted: published in Table IV, one draw. " if published else "")
        )
        return made("k", dataset, title, caption, figure, groups=[group for own in series.values() for group in own])


def _named_over_k(members: Sequence[Group]) -> list[tuple[str, Group]]:
    """Each group under the name that it has among those of its own k, where no setting is swept; sorted by k."""
    by_k: dict[int, list[Group]] = {}
    for group in members:
        by_k.setdefault(group.first.run.k, []).append(group)
    return [(name, group) for _, own in sorted(by_k.items()) for name, group in unique_names(own).items()]


# --- Categories ------------------------------------------------------------------------------------------------------


def heat(topic: str, members: Sequence[Group]) -> Figure:
    """Image AUROC of each method on each category, the hardest category first."""
    title = "Image AUROC by category"
    names = {name: group for name, group in unique_names(members).items() if group.records}
    categories = sorted({category for group in names.values() for category, _ in group.records})
    cells = [[group.cell(category, METRIC) for category in categories] for group in names.values()]
    values = np.array([[np.nan if cell is None else 100 * cell.mean for cell in row] for row in cells])
    if len(categories) < 2 or np.isnan(values).all():
        why = f"It needs two judged categories at least. {again(members[0].first, '--category', 'all')}"
        return absent("heat", topic, title, why.replace(" --category all", ""))
    hard = np.argsort(np.nanmean(values, axis=0), kind="stable")
    values, categories = values[:, hard], [categories[i] for i in hard]
    with themed():
        width = max(6.0, 2.6 + 0.52 * len(categories))
        figure, (axes,) = canvas(width, 1.9 + 0.32 * len(names))
        low = min(50.0, float(np.nanmin(values)))
        sns.heatmap(
            values,
            ax=axes,
            vmin=low,
            vmax=100,
            cmap="cividis",
            annot=True,
            fmt=".0f" if len(categories) > 8 else ".1f",
            annot_kws={"fontsize": 7.5},
            linewidths=0.6,
            xticklabels=[label(name) for name in categories],
            yticklabels=[label(name) for name in names],
            cbar_kws={"label": "%", "aspect": 12},
        )
        axes.set_facecolor("#f2f2f2")
        for row, column in np.argwhere(np.isnan(values)):
            axes.text(column + 0.5, row + 0.5, "–", ha="center", va="center", color=ALARM)
        axes.tick_params(length=0)
        axes.set_xticklabels(axes.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticklabels(axes.get_yticklabels(), rotation=0)
        axes.grid(visible=False)
        caption = "Mean over seeds, in percent; the hardest category on the left. – is a category without a value."
        return made("heat", topic, title, caption, figure, groups=list(names.values()))


# --- Mean ranks ------------------------------------------------------------------------------------------------------


def critical(topic: str, members: Sequence[Group]) -> Figure:
    """The critical-difference diagram of the largest set of methods with the same runs."""
    title = "Mean ranks over categories"
    found = max(alike(unique_names(members)), key=len, default={})
    values, categories = by_category(found) if len(found) > 2 else ({}, [])
    if len(values) < 3 or len(categories) < 2:
        why = "It needs three methods at least on the same categories (two or more), seeds and selection. "
        return absent("ranks", topic, title, why + again(members[0].first, "--method", "meanmap,patchcore,aminet"))
    ranking = rank(values)
    count = len(ranking.methods)
    left = -(-count // 2)
    with themed():
        figure, (axes,) = canvas(7.2, 1.7 + 0.24 * (left + len(ranking.groups)))
        bars = 0.35 + 0.3 * len(ranking.groups)
        bottom = bars + 0.5 * left + 0.4
        axes.set(xlim=(0.4, count + 0.6), ylim=(bottom, -1.5))
        axes.axis("off")
        axes.plot([1, count], [0, 0], color=INK, lw=1.2)
        for tick in range(1, count + 1):
            axes.plot([tick, tick], [-0.12, 0], color=INK, lw=1)
            axes.text(tick, -0.25, str(tick), ha="center", va="bottom", fontsize=8)
        for place, (name, mean) in enumerate(zip(ranking.methods, ranking.mean_ranks, strict=True)):
            first = place < left
            height = bars + 0.5 * (place if first else count - 1 - place) + 0.25
            edge = 0.9 if first else count + 0.1
            axes.plot([mean, mean, edge], [0, height, height], color=FAINT, lw=0.9)
            axes.plot(mean, 0, "o", ms=4, color=INK)
            told = f"{name} ({mean:.2f})"
            side = "right" if first else "left"
            axes.text(edge + (-0.05 if first else 0.05), height, label(told), ha=side, va="center", fontsize=8)
        ranks = dict(zip(ranking.methods, ranking.mean_ranks, strict=True))
        for place, group in enumerate(ranking.groups):
            ends = [ranks[group[0]] - 0.04, ranks[group[-1]] + 0.04]
            axes.plot(ends, [0.25 + 0.3 * place] * 2, color=INK, lw=3.5, solid_capstyle="round")
        axes.plot([1, 1 + ranking.critical_difference], [-1.1, -1.1], color=INK, lw=1.5, marker="|", ms=7)
        told = f"critical difference {ranking.critical_difference:.2f}"
        axes.text(1 + ranking.critical_difference / 2, -1.2, told, ha="center", va="bottom", fontsize=8)
        caption = (
            f"Mean rank in image AUROC over {ranking.categories} categories, 1 is best. Methods joined by a bar are "
            f"not told apart by Nemenyi's test at {ranking.alpha:.0%} (Friedman's test: p = {ranking.p:.2g})."
        )
        return made("ranks", topic, title, caption, figure, groups=list(found.values()))


# --- Ablations -------------------------------------------------------------------------------------------------------


def ablations(topic: str, members: Sequence[Group]) -> Figure:
    """Fig. 9: for each setting in which runs of one method differ alone, the AUROCs over its values."""
    title = "Ablations"
    swept = _swept(members)
    if not swept:
        first = next((group.first for group in members if group.first.run.settings), members[0].first)
        setting = next(iter(first.run.settings), "epochs")
        over = again(first, "--over", f"{first.run.name}.{setting}=VALUE,VALUE")
        return absent("ablation", topic, title, f"It needs runs that differ in one setting alone. {over}")
    with themed():
        figure, axes, _ = panels(len(swept), 2.9, 2.6, most=3)
        for panel, (method, setting, own) in zip(axes, swept, strict=True):
            _ablation(panel, own)
            panel.set_title(wrapped(method, 32), fontsize=8.5)
            panel.set_xlabel(label(setting))
        legend(figure, axes)
        caption = (
            "Each panel varies one setting and holds all others; mean over categories, bars are the standard deviation "
            "over seeds where there are several. The scales differ from panel to panel."
        )
        groups = list({id(group): group for _, _, own in swept for _, group in own}.values())
        return made("ablation", topic, title, caption, figure, groups=groups)


def _ablation(axes: Axes, own: Sequence[tuple[Any, Group]]) -> None:
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value, _ in own)
    x = [value if numeric else place for place, (value, _) in enumerate(own)]
    for metric, style, colour in (("image_auroc", "o-", "#0173b2"), ("pixel_auroc", "s--", "#de8f05")):
        cells = [group.cell(MEAN, metric) for _, group in own]
        means = [100 * cell.mean if cell else np.nan for cell in cells]
        bars = [100 * cell.std if cell and cell.std else 0 for cell in cells]
        line: dict[str, Any] = {"color": colour, "capsize": 3, "label": METRICS[metric]}
        axes.errorbar(x, means, yerr=bars if any(bars) else None, fmt=style, **line)
    values = [value for value, _ in own]
    if numeric and min(values) > 0 and max(values) / min(values) >= 16:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(x, [label(f"{value:g}" if isinstance(value, float) else str(value)) for value in values])
    within_percent(axes)
    axes.set_ylabel("%")


def _swept(members: Sequence[Group]) -> list[tuple[str, str, list[tuple[Any, Group]]]]:
    """(method's title, setting, its values with their groups), wherever two groups at least differ in that alone."""
    found: dict[tuple[str, str], list[tuple[Any, Group]]] = {}
    for group in members:
        run = group.first.run
        if not group.records:
            continue
        for setting, value in run.settings.items():
            others = {name: own for name, own in run.settings.items() if name != setting}
            inputs = {} if setting == "backbone" else run.file_hashes
            same = (run.method, others, conditions(run), inputs, group.selection, group.categories)
            key = json.dumps(same, sort_keys=True, default=list)
            found.setdefault((setting, key), []).append((value, group))
    panels = []
    for (setting, _), own in found.items():
        distinct = {json.dumps(value, default=list): (value, group) for value, group in own}
        if len(distinct) > 1:
            ordered = sorted(distinct.values(), key=lambda pair: _order(pair[0]))
            first = ordered[0][1]
            oracle = " (oracle)" if first.selection == "oracle" else ""
            panels.append((f"{first.first.run.title}{oracle}", setting, ordered))
    return [(title + _held(title, setting, own, panels), setting, own) for title, setting, own in panels]


def _held(title: str, setting: str, own: Sequence[tuple[Any, Group]], panels: Sequence[tuple[str, str, Any]]) -> str:
    """At which values of the others a panel varies its setting, where a product makes several panels of it."""
    several = sum((title, setting) == (other, name) for other, name, _ in panels) > 1
    varied = sorted({name for other, name, _ in panels if other == title} - {setting}) if several else []
    return "".join(f", {name}={own[0][1].first.run.settings[name]}" for name in varied)


def _order(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, int | float)
    return (0, float(value), "") if number else (1, 0.0, str(value))


def datasets(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The k-shot groups by data set."""
    few = [group for group in groups if group.first.run.k]
    return {name: list(own) for name, own in itertools.groupby(few, key=lambda group: group.first.run.dataset)}
