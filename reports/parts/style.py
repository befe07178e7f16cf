"""How all figures look, and how one becomes files: no pyplot, no state left behind.

A method has a colour, a marker and a dash of its own, so that it is known in grey and by colour-blind eyes. What is
measured is filled, what is published hollow. What a reader must know of the data stands below, within the figure.
"""

import io
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogFormatter

from bench.evaluation.summary import Group, caveats

DPI = 160
INK, FAINT, ALARM = "#222222", "#8a8a8a", "#a33b00"
PALETTE = sns.color_palette("colorblind").as_hex()
"""Ten colours that colour-blind eyes tell apart."""

MARKERS = "osD^vPX*hd"
DASHES: tuple[Any, ...] = (
    *("-", (0, (5, 2)), (0, (1, 1.3)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1))),
    *((0, (9, 2)), (0, (3, 3)), (0, (9, 1.5, 1, 1.5, 1, 1.5)), (0, (5, 1, 2, 1)), (0, (1, 3.5))),
)

_THEME: Any = {
    "font.family": "DejaVu Sans",  # it comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # there are no ticks above that it would have to give way to
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.minor.pad": 4.9,  # in a line with those of the longer major ticks
    "ytick.minor.pad": 4.9,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.markersize": 6,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.hashsalt": "maskbench",  # the same figure, the same bytes
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # publishers refuse Type 3
    "path.simplify_threshold": 0.5,
}

_METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""By kind of file: without its date, so that the same figure has the same bytes."""


LEGEND = 1.6
"""Inches beside panels for a legend of common width."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a method is drawn in every figure of a report."""

    colour: str
    marker: str
    dash: Any


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name, in the order given; after ten the colours come again with other markers."""
    found = {}
    for place, name in enumerate(dict.fromkeys(names)):
        turn = place // len(PALETTE)
        marker = MARKERS[(place + turn) % len(MARKERS)]
        found[name] = Look(PALETTE[place % len(PALETTE)], marker, DASHES[(place + turn) % len(DASHES)])
    return found


def label(name: str) -> str:
    """A name as text of a legend: printable, and never hidden by a leading underscore."""
    told = "".join(sign if sign.isprintable() else " " for sign in name)
    return f" {told}" if told.startswith("_") else told


def notes(groups: Sequence[Group]) -> list[str]:
    """What a reader must know of the numbers drawn: what all groups share once, the rest by the method's title."""
    each = [caveats(group) for group in groups]
    shared = [mark for mark in (each[0] if each else []) if all(mark in own for own in each)]
    found = ["; ".join(shared)] if shared else []
    for group, own in zip(groups, each, strict=True):
        rest = [mark for mark in own if mark not in shared]
        oracle = " (oracle)" if group.selection == "oracle" else ""
        found += [f"{group.first.run.title}{oracle}: {'; '.join(rest)}"] if rest else []
    return list(dict.fromkeys(found))


@contextmanager
def themed() -> Iterator[None]:
    """The theme, for this block only; signs that the font lacks are boxes and no warnings."""
    with mpl.rc_context(_THEME), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Canvas, list[Axes]]:
    """An empty figure of that size in inches with its axes, row by row; call it within `themed`."""
    figure = Canvas(figsize=(width, height), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False, **more)).tolist()
    return figure, axes


def grid(count: int, most: int = 5) -> tuple[int, int]:
    """Rows and columns for that many panels, `most` in a row."""
    columns = min(count, most) if count != 4 else 2
    return -(-count // columns), columns


def panels(
    count: int, width: float, height: float, most: int = 5, **more: Any
) -> tuple[Canvas, list[Axes], list[Axes]]:
    """A figure of that many panels of that size in inches: all of them, and the first of each row."""
    rows, columns = grid(count, most)
    figure, axes = canvas(width * columns + LEGEND, height * rows + 0.9, rows, columns, **more)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count], axes[::columns]


class _Between(LogFormatter):
    """Numbers at minor ticks, where there are few major ones; as 0.2, and not as 2e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def plain_ticks(axis: Axis) -> None:
    """Numbers as they are at the ticks of a logarithmic axis, which would set them in TeX."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(_Between(minor_thresholds=(2, 1)))


def within_percent(axes: Axes) -> None:
    """No value of an axis in percent lies below 0 or above 100."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, 100.9))


def legend(figure: Canvas, axes: Sequence[Axes]) -> None:
    """One legend for all axes, at the right of them."""
    handles: dict[str, Any] = {}
    for each in axes:
        found, names = each.get_legend_handles_labels()
        handles |= {name: handle for name, handle in zip(names, found, strict=True) if name not in handles}
    if handles:
        figure.legend(list(handles.values()), [wrapped(name, 30) for name in handles], loc="outside right upper")


class Drawn(Mapping[str, bytes]):
    """A figure as PNG, SVG and PDF, each made when it is asked for: a page shows one of them."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self._made: dict[str, bytes] = {}

    def __getitem__(self, kind: str) -> bytes:
        if kind not in self._made:
            file = io.BytesIO()
            with themed():
                self._canvas.savefig(file, format=kind, dpi=DPI, metadata=_METADATA[kind], facecolor="white")
            self._made[kind] = file.getvalue()
        return self._made[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(_METADATA)

    def __len__(self) -> int:
        return len(_METADATA)


def files(figure: Canvas, title: str, told: Sequence[str]) -> Drawn:
    """The figure with its title and the notes below; call it within `themed`."""
    width = figure.get_figwidth()
    beside = sum(own.get_window_extent().width / figure.dpi for own in figure.legends)
    figure.suptitle(wrapped(title, (width - beside) * 10), x=0.01, ha="left", fontsize=11, fontweight="bold")
    if told:
        lines = "\n".join(wrapped(line, width * 17) for line in told)
        figure.supxlabel(label_lines(lines), x=0.01, ha="left", fontsize=7, color=ALARM)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # found once, for all files: "none" leaves a placeholder, and draws twice
    return Drawn(figure)


def wrapped(text: str, width: float) -> str:
    """The text in lines of at most so many signs."""
    return "\n".join(textwrap.wrap(label(text), max(int(width), 20), break_on_hyphens=False))


def label_lines(text: str) -> str:
    """Each line as a `label`."""
    return "\n".join(label(line) for line in text.split("\n"))
