"""Figures of single fits: metrics and loss over epochs, ROC and PRO curves, histograms of the scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bench.evaluation.curves import Floats
from bench.evaluation.group_names import groups_by_unique_name
from bench.evaluation.summary import Group, format_significant
from bench.record import Record
from bench.report_format import Figure

from .benchmark_tables import reached_rate
from .prediction_data import MAX_FPR, FigureData, FigureDataByKey, figure_key, first_seed_records
from .style import (
    BLACK,
    GRAY,
    LEGEND_WIDTH,
    PALETTE,
    MethodStyle,
    finish_figure,
    grid_shape,
    label,
    legend,
    limit_to_percent,
    method_styles,
    missing_figure,
    new_figure,
    panels,
    plain_ticks,
    rerun_command,
    theme,
    wrapped,
)

MAX_PANELS = 15
"""Largest number of categories in a figure; the hardest ones are shown."""

MAX_COLORS = 6
"""Largest number of categories that have their own color in the figure over epochs."""

MAX_COLUMNS = 6
"""Largest number of methods in the figure over epochs."""

_LOWEST_SEED = "Results of the lowest seed."


# --- Epochs ----------------------------------------------------------------------------------------------------------


def epochs_figure(benchmark: str, members: Sequence[Group]) -> Figure:
    """Draw image AUROC and loss over epochs: one column per method, one line per category."""
    title = "Over epochs"
    groups_by_name = {
        name: group for name, group in groups_by_unique_name(members).items() if group.selection == "last"
    }
    fits = {
        name: [record for record in first_seed_records(group) if record.losses]
        for name, group in groups_by_name.items()
    }
    fits = {name: records for name, records in fits.items() if records}
    if not fits:
        command = rerun_command(members[0].first, "--method", "aminet", "--selection", "both")
        return missing_figure("epochs", benchmark, title, f"A method that trains in epochs is required. Run {command}")
    ordered = sorted(fits, key=lambda name: not any(record.metrics_by_epoch for record in fits[name]))
    plotted_fits = {name: fits[name] for name in ordered[:MAX_COLUMNS]}  # methods evaluated over epochs first
    categories = sorted({record.category for records in plotted_fits.values() for record in records})
    styles = method_styles(categories) if len(categories) <= MAX_COLORS else {}
    with theme():
        figure, axes = new_figure(2.9 * len(plotted_fits) + 1.8, 4.6, 2, len(plotted_fits), sharex="col")
        for column, (name, records) in enumerate(plotted_fits.items()):
            auroc_axes, loss_axes = axes[column], axes[len(plotted_fits) + column]
            for record in records:
                _plot_fit(auroc_axes, loss_axes, record, styles.get(record.category))
            _format_epoch_axes(auroc_axes, loss_axes, records)
            auroc_axes.set_title(wrapped(name, 28))
        axes[0].set_ylabel("image AUROC (%)")
        axes[len(plotted_fits)].set_ylabel("loss, mean of the epoch")
        legend(figure, axes)
        caption = (
            f"{_LOWEST_SEED} Filled dot: last epoch, the reported value. Star: epoch chosen by the oracle, with the "
            "best sum of image and pixel AUROC on the test set; such a choice is not possible in practice. "
            + ("" if styles else f"Each gray line is one of {len(categories)} categories. ")
            + (f"{len(plotted_fits)} of {len(fits)} methods. " if len(fits) > len(plotted_fits) else "")
        )
        groups = [groups_by_name[name] for name in plotted_fits]
        return finish_figure("epochs", benchmark, title, caption, figure, groups=groups)


def _plot_fit(auroc_axes: Axes, loss_axes: Axes, record: Record, style: MethodStyle | None) -> None:
    color, dash = (style.color, style.dash) if style else (GRAY, "-")
    name = label(record.category) if style else None
    loss_axes.plot(range(1, len(record.losses) + 1), record.losses, ls=dash, color=color, lw=1.3, label=name)
    points = [(point["epoch"], point) for point in record.metrics_by_epoch if "image_auroc" in point]
    if not points:
        return
    x, y = [epoch for epoch, _ in points], [100 * point["image_auroc"] for _, point in points]
    auroc_axes.plot(x, y, ls=dash, color=color, lw=1.3, label=name)
    oracle_index = best_epoch_index([point for _, point in points])
    auroc_axes.plot(x[-1], y[-1], "o", ms=5, color=color, mec=BLACK, mew=0.6, label="last epoch")
    auroc_axes.plot(
        x[oracle_index], y[oracle_index], "*", ms=11, color="white", mec=BLACK, mew=0.9, label="oracle, on the test set"
    )


def _format_epoch_axes(auroc_axes: Axes, loss_axes: Axes, records: Sequence[Record]) -> None:
    loss_axes.set_xlabel("epoch")
    if all(value > 0 for record in records for value in record.losses):
        loss_axes.set_yscale("log")
        plain_ticks(loss_axes.yaxis)
    loss_axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    limit_to_percent(auroc_axes)
    if not auroc_axes.has_data():
        text = "not evaluated per epoch\n(--selection both)"
        auroc_axes.set_yticks([])
        auroc_axes.text(0.5, 0.5, text, transform=auroc_axes.transAxes, ha="center", va="center")


def best_epoch_index(points: Sequence[Mapping[str, float]]) -> int:
    """Return the index of the epoch that the oracle chooses: highest sum of the AUROCs, then of the APs."""

    def sums(point: Mapping[str, float]) -> tuple[float, float]:
        auroc, ap = (point.get(f"image_{name}", 0.0) + point.get(f"pixel_{name}", 0.0) for name in ("auroc", "ap"))
        return auroc, ap

    return max(range(len(points)), key=lambda i: sums(points[i]))


# --- ROC and PRO curves ----------------------------------------------------------------------------------------------


def roc_figure(
    benchmark: str, members: Sequence[Group], data: FigureDataByKey, styles: Mapping[str, MethodStyle]
) -> Figure:
    """Draw the ROC curve over images: one panel per category, one line per method."""
    return _curve_figure(
        ("roc", "ROC curves over images"),
        benchmark,
        "The gray diagonal is a random classifier; ties are straight lines.",
        members=members,
        data=data,
        styles=styles,
        line=lambda figure_data: figure_data.roc,
        max_rate=1,
    )


def pro_figure(
    benchmark: str, members: Sequence[Group], data: FigureDataByKey, styles: Mapping[str, MethodStyle]
) -> Figure:
    """Draw the mean detected fraction of a defect region over the pixel false positive rate; its area is AUPRO."""
    return _curve_figure(
        ("pro", "Per-region overlap (PRO) curves"),
        benchmark,
        f"Up to a false positive rate of {MAX_FPR}; AUPRO is the area below the curve, divided by {MAX_FPR}.",
        members=members,
        data=data,
        styles=styles,
        line=lambda figure_data: figure_data.pro,
        max_rate=MAX_FPR,
    )


def _curve_figure(
    kind_and_title: tuple[str, str],
    benchmark: str,
    caption: str,
    *,
    members: Sequence[Group],
    data: FigureDataByKey,
    styles: Mapping[str, MethodStyle],
    line: Callable[[FigureData], tuple[Floats, Floats] | None],
    max_rate: float,
) -> Figure:
    kind, title = kind_and_title
    groups_by_name = {
        name: group for name, group in groups_by_unique_name(members).items() if group.selection == "last"
    }
    lines = {
        (name, category): points
        for name, group in groups_by_name.items()
        for category in group.categories
        if (figure_data := data.get(figure_key(group, category))) and (points := line(figure_data)) is not None
    }
    if not lines:
        command = rerun_command(members[0].first, "--force")
        reason = f"Stored predictions of good and defective images are required. Run {command}"
        return missing_figure(kind, benchmark, title, reason)
    categories, selection_note = hardest_categories(members, [category for _, category in lines])
    with theme():
        size = 2.0 if len(categories) > 3 else 2.7
        figure, axes, first_of_row = panels(len(categories), size, size, sharex=True, sharey=True)
        for panel, category in zip(axes, categories, strict=True):
            for name in (name for name, line_category in lines if line_category == category):
                style = styles[name]
                panel.plot(*lines[name, category], color=style.color, ls=style.dash, lw=1.4, label=label(name))
            if max_rate == 1:
                panel.plot([0, 1], [0, 1], color="#cfcfcf", lw=0.8, zorder=0)
            panel.set_title(wrapped(category, 24), fontsize=8.5)
        xticks = [0, max_rate / 2, max_rate]
        axes[0].set(xlim=(-0.02 * max_rate, max_rate), ylim=(0, 1.03), yticks=[0, 0.5, 1], xticks=xticks)
        first_of_row[0].set_ylabel("true positive rate" if max_rate == 1 else "detected fraction of a region")
        first_of_row[-1].set_xlabel("false positive rate")
        legend(figure, axes)
        groups = [group for name, group in groups_by_name.items() if any(name == line_name for line_name, _ in lines)]
        text = f"{_LOWEST_SEED} {caption} {selection_note}"
        return finish_figure(kind, benchmark, title, text, figure, groups=groups)


def hardest_categories(members: Sequence[Group], categories: Sequence[str]) -> tuple[list[str], str]:
    """Return at most `MAX_PANELS` categories, those with the lowest mean image AUROC, and a note on omitted ones."""
    names = sorted(set(categories))
    if len(names) <= MAX_PANELS:
        return names, ""
    means = {
        name: np.mean([value.mean for group in members if (value := group.mean_std(name, "image_auroc"))] or [1.0])
        for name in names
    }
    hardest = sorted(sorted(names, key=lambda name: means[name])[:MAX_PANELS])
    return hardest, f"The {MAX_PANELS} of {len(names)} categories with the lowest mean image AUROC."


# --- Scores ----------------------------------------------------------------------------------------------------------


def score_histogram(name: str, benchmark: str, group: Group, data: FigureDataByKey) -> Figure | None:
    """Draw the histograms of the image scores, one panel per category; None without stored predictions."""
    title = f"Scores of {name}"
    by_category = {
        category: figure_data for category in group.categories if (figure_data := data.get(figure_key(group, category)))
    }
    if not by_category:
        return None
    categories, selection_note = hardest_categories([group], list(by_category))
    rows, columns = grid_shape(len(categories))
    with theme():
        figure, (axes,) = new_figure(2.1 * columns + LEGEND_WIDTH, 1.5 * rows + 0.75)
        for index, category in enumerate(categories):
            _histogram_panel(axes, by_category[category], 1.12 * (index % columns), -1.5 * (index // columns))
        axes.set(xlim=(-0.02, 1.12 * columns - 0.1), ylim=(-1.5 * rows + 1.25, 1.4))
        axes.set_axis_off()
        legend(figure, [axes])
        caption = (
            f"{_LOWEST_SEED} Number of test images by score, from the lowest to the highest score of the category: "
            f"good images filled, defective images as outline. The less they overlap, the better. A dashed line is the "
            f"calibrated threshold, with the reached and the target false positive rate (FPR). {selection_note}"
        )
        return finish_figure("scores", benchmark, title, caption, figure, groups=[group], method=name)


def _histogram_panel(axes: Axes, data: FigureData, left: float, bottom: float) -> None:
    """Draw a panel of width and height 1 into shared axes, which is ten times faster than separate axes."""
    threshold = data.record.threshold
    edges = np.histogram_bin_edges(data.scores if threshold is None else np.append(data.scores, threshold), 24)
    masks = (~data.is_anomalous, data.is_anomalous)
    good, defective = (np.histogram(data.scores[mask], edges)[0] for mask in masks)
    highest, x = max(good.max(), defective.max()), left + np.linspace(0, 1, edges.size)
    filled: dict[str, Any] = {"fill": True, "color": PALETTE[0], "alpha": 0.55}
    axes.stairs(bottom + good / highest, x, baseline=bottom, label="good", **filled)
    axes.stairs(bottom + defective / highest, x, baseline=bottom, color="#b34700", lw=1.4, label="defective")
    axes.plot([left, left + 1], [bottom, bottom], color=GRAY, lw=0.8)
    if threshold is not None:
        position = left + (threshold - edges[0]) / (edges[-1] - edges[0])
        axes.plot([position] * 2, [bottom, bottom + 1], color=BLACK, ls=(0, (3, 2)), lw=1, label="calibrated threshold")
        rate = reached_rate(data.record)
        text = f"FPR {100 * rate.n_above / rate.n_good:.1f} %, target {100 * rate.target:g} %" if rate else ""
        axes.text(left + 0.5, bottom - 0.05, text, fontsize=6.5, ha="center", va="top")
    value = data.record.metrics.get("image_auroc")
    title = data.record.category + (f", AUROC {100 * value:.1f}" if value is not None else "")
    axes.text(left, bottom + 1.06, wrapped(title, 26), fontsize=8, fontweight="bold", va="bottom", linespacing=1)
    for end, alignment in ((0, "left"), (1, "right")):
        axes.text(
            left + end, bottom - 0.05, format_significant(float(edges[-end]), 4), fontsize=6.5, ha=alignment, va="top"
        )
