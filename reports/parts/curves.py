"""Figures from within the fits: losses over epochs, ROC and region overlap, how scores are spread."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bench.evaluation.summary import Group, unique_names
from bench.record import Record
from bench.report import Figure

from .drawing import absent, again, made
from .evidence import LIMIT, Evidence, first_seed
from .style import (
    FAINT,
    INK,
    LEGEND,
    PALETTE,
    Look,
    canvas,
    grid,
    label,
    legend,
    looks,
    panels,
    plain_ticks,
    themed,
    within_percent,
    wrapped,
)

Found = Mapping[tuple[str, str, str], Evidence]
"""By name, variant and category of the run."""

PANELS = 15
"""At most so many categories are drawn; the hardest are."""

NAMED = 6
"""Up to so many categories have lines of their own colour over epochs."""

FIRST_SEED = "Of the lowest seed."


# --- Epochs ----------------------------------------------------------------------------------------------------------


def epochs(topic: str, members: Sequence[Group]) -> Figure:
    """Image AUROC and loss over epochs, a column a method, a line a category, with last and oracle epoch marked."""
    title = "Over epochs"
    names = {name: group for name, group in unique_names(members).items() if group.selection == "last"}
    fits = {name: [record for record in first_seed(group) if record.losses] for name, group in names.items()}
    fits = {name: records for name, records in list(fits.items()) if records}
    if not fits:
        why = "It needs a method that learns in epochs. "
        wanted = again(members[0].first, "--method", "aminet", "--selection", "both")
        return absent("epochs", topic, title, why + wanted)
    looked = sorted(
        fits, key=lambda name: not any(record.metrics_by_epoch for record in fits[name])
    )  # these show the most
    shown = {name: fits[name] for name in looked[:6]}
    categories = sorted({record.category for records in shown.values() for record in records})
    own = looks(categories) if len(categories) <= NAMED else {}
    with themed():
        figure, axes = canvas(2.9 * len(shown) + 1.8, 4.6, 2, len(shown), sharex="col")
        for column, (name, records) in enumerate(shown.items()):
            above, below = axes[column], axes[len(shown) + column]
            for record in records:
                _fit(above, below, record, own.get(record.category))
            above.set_title(wrapped(name, 32))
            below.set_xlabel("epoch")
            if all(value > 0 for record in records for value in record.losses):
                below.set_yscale("log")
                plain_ticks(below.yaxis)
            below.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            within_percent(above)
            if not above.has_data():
                told = "not looked at\n(--selection both)"
                above.set_yticks([])
                above.text(0.5, 0.5, told, transform=above.transAxes, ha="center", va="center")
        axes[0].set_ylabel("image AUROC (%)")
        axes[len(shown)].set_ylabel("loss, mean of the epoch")
        legend(figure, axes)
        caption = (
            f"{FIRST_SEED} Filled dot: the last epoch, which is the headline. Star: the epoch that the oracle chose, "
            "the best sum of image and pixel AUROC on the test set, which no one has who must decide before. "
            + ("" if own else f"A grey line is a category, of {len(categories)}. ")
            + (f"{len(shown)} of {len(fits)} methods, judged ones first. " if len(fits) > len(shown) else "")
        )
        return made("epochs", topic, title, caption, figure, groups=[names[name] for name in shown])


def _fit(above: Axes, below: Axes, record: Record, look: Look | None) -> None:
    colour, dash = (look.colour, look.dash) if look else (FAINT, "-")
    named_so = label(record.category) if look else None
    below.plot(range(1, len(record.losses) + 1), record.losses, ls=dash, color=colour, lw=1.3, label=named_so)
    points = [(point["epoch"], point) for point in record.metrics_by_epoch if "image_auroc" in point]
    if not points:
        return
    x, y = [epoch for epoch, _ in points], [100 * point["image_auroc"] for _, point in points]
    above.plot(x, y, ls=dash, color=colour, lw=1.3, label=named_so)
    best = max(range(len(points)), key=lambda i: _merit(points[i][1]))
    above.plot(x[-1], y[-1], "o", ms=5, color=colour, mec=INK, mew=0.6, label="last epoch")
    above.plot(x[best], y[best], "*", ms=11, color="white", mec=INK, mew=0.9, label="oracle, on the test set")


def _merit(point: Mapping[str, float]) -> tuple[float, float]:
    """What the oracle maximises: the sum of the AUROCs, then of the APs."""
    auroc, ap = (point.get(f"image_{name}", 0.0) + point.get(f"pixel_{name}", 0.0) for name in ("auroc", "ap"))
    return auroc, ap


# --- ROC and region overlap ------------------------------------------------------------------------------------------


def roc(topic: str, members: Sequence[Group], found: Found, own: Mapping[str, Look]) -> Figure:
    """The ROC curve over images, a panel a category, a line a method."""
    title = "ROC curves over images"
    caption = "The grey diagonal is chance; ties are straight lines."
    return _curves(
        "roc", topic, title, caption, members=members, found=found, own=own, line=lambda each: each.roc, limit=1
    )


def overlap(topic: str, members: Sequence[Group], found: Found, own: Mapping[str, Look]) -> Figure:
    """The mean share of a defect region found over the false positive rate of pixels, whose area is AUPRO."""
    title = "Per-region overlap (PRO) curves"
    caption = f"Up to a false positive rate of {LIMIT}; the area below, divided by {LIMIT}, is AUPRO."
    return _curves(
        "pro", topic, title, caption, members=members, found=found, own=own, line=lambda each: each.overlap, limit=LIMIT
    )


def _curves(
    kind: str,
    topic: str,
    title: str,
    caption: str,
    *,
    members: Sequence[Group],
    found: Found,
    own: Mapping[str, Look],
    line: Callable[[Evidence], tuple[np.ndarray, np.ndarray] | None],
    limit: float,
) -> Figure:
    lines = {
        (name, category): drawn
        for name, group in unique_names(members).items()
        if group.selection == "last"
        for category in group.categories
        if (each := found.get((*_key(group), category))) and (drawn := line(each)) is not None
    }
    if not lines:
        return absent(
            kind, topic, title, f"It needs stored answers of both classes. {again(members[0].first, '--force')}"
        )
    categories, left_out = _hardest(members, [category for _, category in lines])
    with themed():
        size = 2.0 if len(categories) > 3 else 2.7
        figure, axes, first = panels(len(categories), size, size, sharex=True, sharey=True)
        for panel, category in zip(axes, categories, strict=True):
            for name in (name for name, own_category in lines if own_category == category):
                look = own[name]
                panel.plot(*lines[name, category], color=look.colour, ls=look.dash, lw=1.4, label=label(name))
            if limit == 1:
                panel.plot([0, 1], [0, 1], color="#cfcfcf", lw=0.8, zorder=0)
            panel.set_title(wrapped(category, 24), fontsize=8.5)
        axes[0].set(xlim=(-0.02 * limit, limit), ylim=(0, 1.03), yticks=[0, 0.5, 1], xticks=[0, limit / 2, limit])
        first[0].set_ylabel("true positive rate" if limit == 1 else "share of a region found")
        first[-1].set_xlabel("false positive rate")
        legend(figure, axes)
        own_groups = [group for name, group in unique_names(members).items() if any(name == each for each, _ in lines)]
        return made(kind, topic, title, f"{FIRST_SEED} {caption} {left_out}", figure, groups=own_groups)


def _key(group: Group) -> tuple[str, str]:
    return group.first.run.name, group.first.run.group_hash


def _hardest(members: Sequence[Group], categories: Sequence[str]) -> tuple[list[str], str]:
    """At most PANELS of them by name, the hardest of all; and what was left out, in words."""
    every = sorted(set(categories))
    if len(every) <= PANELS:
        return every, ""
    mean = {
        category: np.mean([cell.mean for group in members if (cell := group.cell(category, "image_auroc"))] or [1.0])
        for category in every
    }
    hardest = sorted(sorted(every, key=lambda category: mean[category])[:PANELS])
    return hardest, f"The {PANELS} categories of lowest mean image AUROC, of {len(every)}."


# --- Scores ----------------------------------------------------------------------------------------------------------


def histogram(name: str, topic: str, group: Group, found: Found) -> Figure | None:
    """How the image scores of good and defective images lie, a panel a category; None without answers."""
    title = f"Scores of {name}"
    own = {category: each for category in group.categories if (each := found.get((*_key(group), category)))}
    if not own:
        return None
    categories, left_out = _hardest([group], list(own))
    rows, columns = grid(len(categories))
    with themed():
        figure, (axes,) = canvas(2.1 * columns + LEGEND, 1.5 * rows + 0.6)
        for place, category in enumerate(categories):
            _scores(axes, own[category], 1.12 * (place % columns), -1.5 * (place // columns))
        axes.set(xlim=(-0.02, 1.12 * columns - 0.1), ylim=(-1.5 * rows + 1.25, 1.25))
        axes.set_axis_off()
        legend(figure, [axes])
        caption = (
            f"{FIRST_SEED} Numbers of test images over their scores, good filled and defective as an outline, each "
            f"category from its lowest to its highest score: the less they overlap, the better they are told apart. "
            f"{left_out}"
        )
        return made("scores", topic, title, caption, figure, groups=[group], of=name)


def _scores(axes: Axes, each: Evidence, left: float, bottom: float) -> None:
    """The histogram of a category as a panel of width and height 1: an axes of its own would take ten times as long."""
    edges = np.histogram_bin_edges(each.scores, 24)
    good, defective = (np.histogram(each.scores[chosen], edges)[0] for chosen in (~each.anomalous, each.anomalous))
    highest, x = max(good.max(), defective.max()), left + np.linspace(0, 1, edges.size)
    filled: dict[str, Any] = {"fill": True, "color": PALETTE[0], "alpha": 0.55}
    axes.stairs(bottom + good / highest, x, baseline=bottom, label="good", **filled)
    axes.stairs(bottom + defective / highest, x, baseline=bottom, color="#b34700", lw=1.4, label="defective")
    axes.plot([left, left + 1], [bottom, bottom], color=FAINT, lw=0.8)
    value = each.record.metrics.get("image_auroc")
    told = each.record.category + (f", AUROC {100 * value:.1f}" if value is not None else "")
    axes.text(left, bottom + 1.06, label(told), fontsize=8, fontweight="bold")
    for end, side in ((0, "left"), (1, "right")):
        axes.text(left + end, bottom - 0.05, f"{edges[-end]:.3g}", fontsize=6.5, ha=side, va="top")
