"""The report in Markdown. The second best value is in italics, because Markdown cannot underline."""

import re
from collections.abc import Iterable, Iterator, Mapping

from bench.report_format import FIGURES_FOLDER, Block, Figure, FigurePlacement, Report, Table, TableCell, TextRun

from .parts.tables import columns_per_line, select_columns, split_by_column_group

SUFFIX = "md"
FIGURES: FigurePlacement = "files"

MAX_WIDTH = 100
"""Characters per line of a table, which fits a terminal; a wider table is divided, with its first column repeated."""

_CODE = re.compile(r"(`[^`]*`)")
_SUPERSCRIPT = dict(zip("abcdefghijklmnoprstuvwxyz", "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", strict=True))


def render(report: Report) -> str:
    """Return the report as Markdown with tables that also read well as plain text."""
    parts = [f"# {_escape(report.title)}"]
    for section in report.sections:
        parts += [f"{'#' * (section.level + 1)} {_escape(section.title)}"] if section.title else []
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _escape(text: str) -> str:
    """Return plain text as one line of Markdown without HTML, emphasis or links."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(part if _CODE.fullmatch(part) else _escape_markup(part) for part in _CODE.split(line))


def _escape_markup(text: str) -> str:
    # An underscore inside a word and a bracket without a link target need no backslash.
    return re.sub(r"([\\*`~$]|(?<!\w)_|_(?!\w)|(?<=\])\()", r"\\\1", text)


def _block(block: Block) -> str:
    if isinstance(block, str):
        return _escape(block)
    if isinstance(block, tuple):
        return "\n".join(f"- {_escape(sentence)}" for sentence in block)
    if isinstance(block, Figure):
        return _figure(block)
    return "\n\n".join(text for part in split_by_column_group(block) for text in _table(part))


def _figure(figure: Figure) -> str:
    if not figure.files:
        return f"- {_escape(figure.title)}: {_escape(figure.caption)}"
    suffix = "png" if "png" in figure.files else next(iter(figure.files))
    link = f"[{_escape(figure.title)}]({FIGURES_FOLDER}/{figure.name}.{suffix})"
    return f"- {link}" if figure.kind == "examples" else f"!{link}\n\n{_escape(figure.caption)}"


def _table(table: Table) -> Iterator[str]:
    marks = table.note_marks
    if table.title:
        yield f"**{_escape(table.title)}**"
    cells = [[_cell(cell, marks) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    for columns in columns_per_line(widths, MAX_WIDTH):
        part = select_columns(table, columns)
        yield _aligned(part, marks, [widths[i] for i in (0, *columns)])
    notes = [f"- {_superscript(mark)} {_escape(note)}" for note, mark in marks.items()]
    notes += [f"- {_escape(remark)}" for remark in table.remarks]
    if notes:
        yield "\n".join(notes)


def _aligned(table: Table, marks: Mapping[str, str], widths: list[int]) -> str:
    lines = [
        _line(_cell(cell, marks).ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (table.header, *table.rows)
    ]
    return "\n".join([lines[0], _line("-" * width for width in widths), *lines[1:]])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(cell: TableCell, marks: Mapping[str, str]) -> str:
    letters = sorted((marks[note] for note in cell.notes), key=lambda mark: (len(mark), mark))
    superscript = ("" if all(len(mark) == 1 for mark in letters) else " ").join(map(_superscript, letters))
    return cell.separator.join(map(_text_run, cell.runs)) + (f" {superscript}" if superscript else "")


def _text_run(run: TextRun) -> str:
    text = _escape(run.text).replace("|", "\\|")
    return f"**{text}**" if run.bold else f"_{text}_" if run.underlined else text


def _superscript(mark: str) -> str:
    return "".join(_SUPERSCRIPT[letter] for letter in mark)
