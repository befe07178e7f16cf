"""The style of all figures, and their conversion to files. Neither uses pyplot, so no global state changes.

Each method has its own color, marker and dash, so figures are readable in gray and with color blindness. Measured
values are filled, published ones hollow. The caveats of the data are printed inside the figure, below the axes.
"""

import io
import re
import shlex
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
from matplotlib.ticker import FuncFormatter, LogFormatter

from bench.evaluation.group_names import groups_by_unique_name, title_with_selection
from bench.evaluation.reproduction import without_options
from bench.evaluation.summary import Group, caveats, format_significant
from bench.record import Record
from bench.report_format import Figure

DPI = 160
GRID_COLOR = "#e6e6e6"
_PAINTS = ("fill", "stroke")
_DARK_AREAS = {"#ffffff": "#1b2026", "#f2f2f2": "#2a3138"}
"""Colors of the background and of empty axes, and what replaces them in dark mode."""

BLACK, GRAY, WARNING_COLOR = "#222222", "#8a8a8a", "#a33b00"
PALETTE = sns.color_palette("colorblind").as_hex()
"""Ten colors that remain distinguishable with color blindness."""

MARKERS = "osD^vPX*hd"
DASHES: tuple[Any, ...] = (
    *("-", (0, (5, 2)), (0, (1, 1.3)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1))),
    *((0, (9, 2)), (0, (3, 3)), (0, (9, 1.5, 1, 1.5, 1, 1.5)), (0, (5, 1, 2, 1)), (0, (1, 3.5))),
)

_THEME: Any = {
    "font.family": "DejaVu Sans",  # included in matplotlib
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # fixed, since there are no ticks above the axes
    "axes.labelsize": 9,
    "axes.labelcolor": BLACK,
    "axes.edgecolor": GRAY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID_COLOR,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.minor.pad": 4.9,  # aligned with the labels of the longer major ticks
    "ytick.minor.pad": 4.9,
    "xtick.color": BLACK,
    "ytick.color": BLACK,
    "image.composite_image": False,  # pictures keep their own pixels in SVG and PDF
    "lines.markersize": 6,
    "text.color": BLACK,
    "text.parse_math": False,  # a dollar sign in a name is not a formula
    "svg.hashsalt": "maskbench",  # the same figure gives the same bytes
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # publishers do not accept Type 3 fonts
    "path.simplify_threshold": 0.5,
}

_METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Metadata by file format: no date, so that the same figure gives the same bytes."""

PERCENT_MARGIN = 0.05
"""Fraction of the range of a percent axis that is added beyond 0 and 100."""

LEGEND_WIDTH = 1.6
"""Inches reserved for a legend on the right of the panels."""

LEGEND_PADDING = 0.3
"""Inches above, below and between the legend and the notes of a figure."""


@dataclass(frozen=True, slots=True)
class MethodStyle:
    """Color, marker and dash pattern of a method in all figures of a report."""

    color: str
    marker: str
    dash: Any


def method_styles(names: Iterable[str]) -> dict[str, MethodStyle]:
    """Return a style per name; after ten names the colors repeat with other markers."""
    styles = {}
    for index, name in enumerate(dict.fromkeys(names)):
        shift = index // len(PALETTE)
        marker = MARKERS[(index + shift) % len(MARKERS)]
        styles[name] = MethodStyle(PALETTE[index % len(PALETTE)], marker, DASHES[(index + shift) % len(DASHES)])
    return styles


# --- Text ------------------------------------------------------------------------------------------------------------


def label(name: str) -> str:
    """Return a name as printable text; matplotlib hides legend entries that start with an underscore."""
    text = "".join(character if character.isprintable() else " " for character in name)
    return f" {text}" if text.startswith("_") else text


def label_lines(text: str) -> str:
    """Apply `label` to each line."""
    return "\n".join(label(line) for line in text.split("\n"))


def wrapped(text: str, width: float) -> str:
    """Return the text in lines of at most this many characters."""
    return "\n".join(textwrap.wrap(label(text), max(int(width), 20), break_on_hyphens=False))


def slug(text: str) -> str:
    """Return a file name of letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def shared_and_other_caveats(groups: Sequence[Group]) -> list[str]:
    """Return the caveats that all groups share in one line, then the others by the name of the method."""
    names = {id(group): name for name, group in groups_by_unique_name(groups).items()}
    by_group = [caveats(group) for group in groups]
    shared_notes = [note for note in (by_group[0] if by_group else []) if all(note in notes for notes in by_group)]
    lines = ["; ".join(shared_notes)] if shared_notes else []
    for group, notes in zip(groups, by_group, strict=True):
        other_notes = [note for note in notes if note not in shared_notes]
        title = names.get(id(group)) or title_with_selection(group.first.run.title, group.selection)
        lines += [f"{title}: {'; '.join(other_notes)}"] if other_notes else []
    return list(dict.fromkeys(lines))


def rerun_command(record: Record, *options: str) -> str:
    """Return the command of a record with other options, in backticks: `rerun_command(record, "--k", "2,4,8")`."""
    run = record.run
    try:
        words = shlex.split(record.command)
    except ValueError:  # unbalanced quotes
        words = []
    if words[:2] != ["bench", "run"]:  # of Python, of `bench time`, or unreadable
        protocol = ["--protocol", run.protocol, *(["--k", str(run.k)] if run.k else [])]
        words = ["bench", "run", "--method", run.name, "--dataset", run.dataset, *protocol, "--seed", str(run.seed)]
    has_value = {
        word: index + 1 < len(options) and not options[index + 1].startswith("--")
        for index, word in enumerate(options)
        if word.startswith("--")
    }
    return f"`{shlex.join([*without_options(words, has_value), *options])}`"


# --- Axes ------------------------------------------------------------------------------------------------------------


@contextmanager
def theme() -> Iterator[None]:
    """Apply the theme inside a `with` block; characters that the font lacks cause no warnings."""
    with mpl.rc_context(_THEME), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any
) -> tuple[Canvas, list[Axes]]:
    """Return an empty figure of this size in inches with its axes, row by row; call it inside `theme`."""
    figure = Canvas(figsize=(width, height), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False, **kwargs)).tolist()
    return figure, axes


def grid_shape(count: int, max_columns: int = 5) -> tuple[int, int]:
    """Return rows and columns of a grid of panels."""
    columns = min(count, max_columns) if count != 4 else 2
    return -(-count // columns), columns


def panels(
    count: int, width: float, height: float, max_columns: int = 5, **kwargs: Any
) -> tuple[Canvas, list[Axes], list[Axes]]:
    """Return a figure with panels of this size in inches, all panels, and the first panel of each row."""
    rows, columns = grid_shape(count, max_columns)
    figure, axes = new_figure(width * columns + LEGEND_WIDTH, height * rows + 0.9, rows, columns, **kwargs)
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count], axes[::columns]


class _MinorFormatter(LogFormatter):
    """Label minor ticks if there are few major ones, as 0.2 instead of 2e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return format_significant(x) if super().__call__(x, pos) else ""


def plain_ticks(axis: Axis) -> None:
    """Label the ticks of a logarithmic axis with plain numbers instead of powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda x, _: format_significant(x)))
    axis.set_minor_formatter(_MinorFormatter(minor_thresholds=(2, 1)))


def limit_to_percent(axes: Axes) -> None:
    """Limit a y axis in percent to 0..100, with a margin that shows markers at the ends as a whole."""
    low, high = (min(max(value, 0.0), 100.0) for value in axes.get_ylim())
    margin = PERCENT_MARGIN * max(high - low, 1.0)
    axes.set_ylim(low - margin if low == 0 else low, high + margin if high == 100 else high)
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= high])


def legend(figure: Canvas, axes: Sequence[Axes]) -> None:
    """Add one legend for all axes on the right."""
    handles: dict[str, Any] = {}
    for panel in axes:
        new_handles, names = panel.get_legend_handles_labels()
        handles |= {name: handle for name, handle in zip(names, new_handles, strict=True) if name not in handles}
    if handles:
        figure.legend(list(handles.values()), [wrapped(name, 30) for name in handles], loc="outside right upper")


# --- Files -----------------------------------------------------------------------------------------------------------


class RenderedFigure(Mapping[str, bytes]):
    """A figure as PNG, SVG and PDF, each rendered on first access, since a page needs only one of them."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self._files: dict[str, bytes] = {}

    def __getitem__(self, suffix: str) -> bytes:
        if suffix not in self._files:
            file = io.BytesIO()
            with theme():
                self._canvas.savefig(file, format=suffix, dpi=DPI, metadata=_METADATA[suffix], facecolor="white")
            self._files[suffix] = file.getvalue()
        return self._files[suffix]

    def __iter__(self) -> Iterator[str]:
        return iter(_METADATA)

    def __len__(self) -> int:
        return len(_METADATA)


def with_dark_mode(svg: bytes) -> bytes:
    """Return the SVG with a style that replaces white, black and gray if the reader prefers dark colors."""
    text = {BLACK: "#e4e8ec", GRAY: "#8d97a1", WARNING_COLOR: "#f0c27a", GRID_COLOR: "#39414a", "#cfcfcf": "#4a535c"}
    rules = [f'[style*="{kind}: {old}"]{{{kind}:{new}!important}}' for old, new in text.items() for kind in _PAINTS]
    rules += [f'[id^="patch_"]>[style*="fill: {old}"]{{fill:{new}!important}}' for old, new in _DARK_AREAS.items()]
    style = f"<style>@media (prefers-color-scheme: dark){{{''.join(rules)}}}</style>"
    start, end, rest = svg.partition(b"<defs>")  # the first element of matplotlib's files
    return start + style.encode() + end + rest if end else svg


def finish_figure(
    kind: str,
    benchmark: str,
    title: str,
    caption: str,
    canvas: Canvas,
    *,
    groups: Sequence[Group],
    method: str = "",
    key: str = "",
) -> Figure:
    """Return the figure with its title and the caveats of the groups; call it inside `theme`.

    method: the method that is shown, if a benchmark has several figures of this kind. key: what a reader of the figure
    alone needs, such as the meaning of the error bars.
    """
    files = render_files(canvas, f"{title}: {benchmark}", [*([key] if key else []), *shared_and_other_caveats(groups)])
    return Figure(slug(f"{kind} {benchmark} {method}"), kind, benchmark, title, caption.strip(), files)


def missing_figure(kind: str, benchmark: str, title: str, reason: str) -> Figure:
    """Return a figure that cannot be drawn; `reason` ends with the command that produces the data."""
    return Figure(slug(f"{kind} {benchmark}"), kind, benchmark, title, reason, {})


def render_files(canvas: Canvas, title: str, notes: Sequence[str]) -> RenderedFigure:
    """Add title and notes to the figure, make it as high as its legend, and fix its layout; call it inside `theme`."""
    width = canvas.get_figwidth()
    legend_width = sum(box.get_window_extent().width / canvas.dpi for box in canvas.legends)
    canvas.suptitle(wrapped(title, (width - legend_width) * 10), x=0.01, ha="left", fontsize=11, fontweight="bold")
    height = max((box.get_window_extent().height / canvas.dpi for box in canvas.legends), default=0.0)
    if notes:
        lines = "\n".join(wrapped(note, width * 17) for note in notes)
        text = canvas.supxlabel(label_lines(lines), x=0.01, ha="left", fontsize=7, color=WARNING_COLOR)
        height += text.get_window_extent().height / canvas.dpi
    canvas.set_figheight(max(canvas.get_figheight(), height + LEGEND_PADDING))
    engine = canvas.get_layout_engine()
    if engine is not None:
        engine.execute(canvas)
        canvas.set_layout_engine(None)  # computed once for all files; the string "none" would draw the figure twice
    return RenderedFigure(canvas)
