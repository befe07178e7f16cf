"""The contract of a report format, and the document that every format renders.

A `reports/<name>.py` is a format. Nothing registers it: the file name is the format's name. It defines three things:

    SUFFIX   file suffix, for example "md"
    FIGURES  how the format shows figures, a `FigurePlacement`
    render   (report: Report) -> str, or bytes for a format that is not text

and, if the text needs other files next to it,

    render_files   (report: Report) -> Iterator[tuple[str, str]]: relative path and text of each, written one by one

A format only lays out a `Report`. The content comes from functions with the signatures in `ReportContent`, which
`registry.report_content()` returns. Neither needs torch, a GPU or the images.

All text in a `Report` is plain text, which the format escapes. A pair of backticks marks a command or settings.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from PIL import Image

    from bench.record import Record
    from bench.store import Store

ImageSource = Callable[["Record", str], "Image.Image | str"]
"""Returns a test image of a record by its `Sample.id`, at the size of the input, or the reason why it is missing."""

FigurePlacement = Literal["none", "files", "embedded"]
"""No figures, image files in a folder next to the text, or images embedded in the text itself."""

FIGURES_FOLDER = "figures"
"""Folder of the image files, relative to the text."""

_LETTERS = "abcdefghijklmnoprstuvwxyz"  # no "q": Unicode has no superscript q


@dataclass(frozen=True, slots=True)
class TextRun:
    """A piece of text with one formatting; in a ranked column the best value is bold and the second underlined."""

    text: str
    bold: bool = False
    underlined: bool = False


@dataclass(frozen=True, slots=True)
class TableCell:
    """A cell of a table.

    Attributes:
        runs: the text, for example image and pixel AUROC side by side.
        notes: sentences that a reader needs with the value, shown as footnotes.
    """

    runs: tuple[TextRun, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def from_text(cls, text: "str | TableCell", *notes: str) -> "TableCell":
        """Return a cell of plain text; of a cell, a copy with these notes added."""
        if isinstance(text, str):
            return cls((TextRun(text),), notes)
        return cls(text.runs, (*text.notes, *notes))

    @property
    def separator(self) -> str:
        """The text between two runs: "/" as the papers print it, " / " if a run contains a space."""
        return " / " if any(" " in run.text for run in self.runs) else "/"

    @property
    def text(self) -> str:
        """The text without formatting and notes."""
        return self.separator.join(run.text for run in self.runs)


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        title: caption; "" if the heading of the section is enough.
        header: one cell per column.
        rows: cells, each row as long as the header.
        column_groups: (title, number of columns) of neighboring columns, left to right, after the first column.
        rules_after: indices of the rows that are followed by a horizontal rule.
        remarks: sentences about the whole table.
    """

    title: str
    header: tuple[TableCell, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    column_groups: tuple[tuple[str, int], ...] = ()
    rules_after: frozenset[int] = frozenset()
    remarks: tuple[str, ...] = ()

    @classmethod
    def from_rows(
        cls,
        title: str,
        header: Sequence[str | TableCell],
        rows: Iterable[Sequence[str | TableCell]],
        *,
        column_groups: Sequence[tuple[str, int]] = (),
        rules_after: Iterable[int] = (),
        remarks: Sequence[str] = (),
    ) -> "Table":
        """Build a table from cells and plain text."""
        return cls(
            title=title,
            header=tuple(map(TableCell.from_text, header)),
            rows=tuple(tuple(map(TableCell.from_text, row)) for row in rows),
            column_groups=tuple(column_groups),
            rules_after=frozenset(rules_after),
            remarks=tuple(remarks),
        )

    @property
    def note_marks(self) -> dict[str, str]:
        """The footnote letters by note, in reading order."""
        cells = [*self.header, *(cell for row in self.rows for cell in row)]
        notes = dict.fromkeys(note for cell in cells for note in cell.notes)
        return {note: _letters(index) for index, note in enumerate(notes)}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure, or the reason why it cannot be drawn.

    Attributes:
        name: file name without suffix, for example "speed-mvtec-one-for-one".
        kind: "speed", "k", "unified", "heatmap", "ranks", "ablation", "epochs", "roc", "pro", "scores", "masks" or
            "examples".
        benchmark: dataset and protocol, for example "mvtec · one-for-one"; the dataset alone for "k" and "unified".
        title: one line.
        caption: how to read the figure. Without files: why it is missing and the command that produces the data.
        files: content by suffix ("png", "svg", "pdf", or "jpg" for photographs), rendered on first access. Empty if
            the data are missing.
    """

    name: str
    kind: str
    benchmark: str
    title: str
    caption: str
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Gallery:
    """All test images of one category with the predictions of each method.

    Attributes:
        name: file name without suffix, for example "mvtec-one-for-one-bottle".
        benchmark: dataset and protocol.
        category: category of the test images.
        methods: the unique names of the methods.
        n_images: number of test images of all methods together.
        read: returns images, masks and maps as plain JSON values; `reports/parts/gallery.py` describes them.
    """

    name: str
    benchmark: str
    category: str
    methods: tuple[str, ...]
    n_images: int
    read: Callable[[], Mapping[str, Any]]


Block = Table | Figure | str | tuple[str, ...]
"""A table, a figure, a paragraph, or a list of sentences."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and its blocks. level: 1 for a part of the report, 2 for a section of a part."""

    title: str
    blocks: tuple[Block, ...]
    level: int = 1


@dataclass(frozen=True, slots=True)
class Report:
    """What a format renders.

    Attributes:
        name: "report", "table1", "audit", "verification" or "figures"; the file name without suffix.
        title: title of the document.
        sections: the document; figures are blocks of their sections.
        records: the records behind it, for formats that show single runs.
        figures: all figures, those that cannot be drawn included.
        galleries: the test images by category, for formats that show them.
    """

    name: str
    title: str
    sections: tuple[Section, ...]
    records: tuple["Record", ...]
    figures: tuple[Figure, ...] = ()
    galleries: tuple[Gallery, ...] = ()


class ReportContent(Protocol):
    """The functions that build reports. table: one table or figure of the AMI-Net paper ("1", "fig8"), "" for all."""

    def draw_figures(self, records: Sequence["Record"], store: "Store", table: str) -> list[Figure]:
        """Draw every figure of the records."""

    def list_galleries(
        self, records: Sequence["Record"], store: "Store", images: ImageSource, table: str
    ) -> list[Gallery]:
        """List the test images of each category; nothing is read before `Gallery.read`."""

    def overview(self, records: Sequence["Record"]) -> Report:
        """Build the table of means per dataset and protocol."""

    def results(
        self,
        records: Sequence["Record"],
        store: "Store",
        figures: Sequence[Figure],
        table: str,
        galleries: Sequence[Gallery] = (),
    ) -> Report:
        """Build tables, statistics and figures of all results."""

    def comparison(self, records: Sequence["Record"], store: "Store", first: str, second: str) -> Report:
        """Build the comparison of two groups of records."""

    def comparison_values(self, records: Sequence["Record"], store: "Store", first: str, second: str) -> dict[str, Any]:
        """Return the numbers of the comparison as plain values."""

    def figures_only(self, records: Sequence["Record"], figures: Sequence[Figure], table: str) -> Report:
        """Build a report of the figures and their captions."""

    def audit(self, records: Sequence["Record"], store: "Store", table: str) -> Report:
        """Build the comparison of metric implementations."""

    def verification(
        self, records: Sequence["Record"], table: str, against: Path | None, criteria: Mapping[str, Sequence[str]]
    ) -> tuple[Report, bool | None]:
        """Compare with published values; also return whether all agree, None if nothing could be compared."""

    def audit_values(self, records: Sequence["Record"], store: "Store", table: str) -> list[dict[str, Any]]:
        """Return the numbers of the audit as plain values."""

    def verification_values(
        self, records: Sequence["Record"], table: str, against: Path | None, criteria: Mapping[str, Sequence[str]]
    ) -> dict[str, Any]:
        """Return the numbers of the verification as plain values: "agrees", as `verification` returns it, "checks"."""


def _letters(index: int) -> str:
    quotient, remainder = divmod(index, len(_LETTERS))
    return (_letters(quotient - 1) if quotient else "") + _LETTERS[remainder]


def escape_formula(value: Any) -> Any:
    """Prefix text that a spreadsheet would evaluate as a formula with an apostrophe; for every CSV file."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
