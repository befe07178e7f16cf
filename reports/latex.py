"""The report as a LaTeX document that compiles as it is, and whose tables can be copied into a paper."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import count

from bench.report_format import FIGURES_FOLDER, Block, Figure, FigurePlacement, Report, Table, TableCell, TextRun

from .parts.style import slug
from .parts.tables import columns_per_line, select_columns, split_by_column_group

SUFFIX = "tex"
FIGURES: FigurePlacement = "files"

MAX_WIDTH = 150
"""Characters per row of a table; a wider table is divided, with its first column repeated."""

FLOATS_PER_CLEARPAGE = 10
"""Figures and tables after which LaTeX must place those that are waiting; it fails with more than about fifty."""

_CODE = re.compile(r"(`[^`]*`)")
_HEADINGS = (r"\section*", r"\subsection*", r"\subsubsection*", r"\paragraph*")
_PREAMBLE = r"""\documentclass[10pt]{article}
\usepackage[a4paper,margin=2cm]{geometry}
\usepackage[T1]{fontenc}
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}  % Type 1 fonts; those of T1 encoding without it may be bitmaps
\usepackage[utf8]{inputenc}
% A table copied into another document needs booktabs, graphicx and, for superscripts and symbols, textcomp.
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage{textcomp}
\sloppy
\begin{document}
"""
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}",
    "±": r"\ensuremath{\pm}", "−": r"\ensuremath{-}", "×": r"\ensuremath{\times}", "≤": r"\ensuremath{\leq}",
    "≥": r"\ensuremath{\geq}", "·": r"\textperiodcentered{}", "–": r"\textendash{}", "—": r"\textemdash{}",
    "‡": r"\ensuremath{\ddagger}", "†": r"\ensuremath{\dagger}", "…": r"\ldots{}",
}  # fmt: skip


def render(report: Report) -> str:
    """Return the report as one LaTeX document."""
    parts = [_PREAMBLE, rf"\begin{{center}}\Large {escape(report.title)}\end{{center}}"]
    n_floats = 0
    labels = _Labels()
    for section in report.sections:
        floats_away = section.blocks and all(isinstance(block, Figure) and block.files for block in section.blocks)
        if section.title and not floats_away:  # figures float away from their heading, which would be empty
            parts.append(rf"{_HEADINGS[min(section.level, 4) - 1]}{{{escape(section.title)}}}")
        for block in section.blocks:
            parts.append(_block(block, section.title or report.title, labels))
            n_floats += isinstance(block, Figure | Table)
            if isinstance(block, Figure | Table) and n_floats % FLOATS_PER_CLEARPAGE == 0:
                parts.append(r"\clearpage")
    return "\n\n".join([*parts, r"\end{document}"]) + "\n"


def escape(text: str) -> str:
    """Return plain text as one line of LaTeX. Characters unknown to pdflatex become their code point."""
    line = " ".join(text.split())
    parts = [_code(part[1:-1]) if _CODE.fullmatch(part) else _plain(part) for part in _CODE.split(line)]
    return re.sub(r"(?<![^\s\[])-(?=\d)", r"\\ensuremath{-}", "".join(parts))  # minus sign instead of hyphen


def _code(text: str) -> str:
    return rf"\texttt{{{_plain(text)}}}".replace(",", r",\allowbreak{}")  # lists in commands may break


def _plain(text: str) -> str:
    characters = (_SPECIAL.get(character) or _character(character) for character in unicodedata.normalize("NFC", text))
    return "".join(characters).replace("--", "-{}-")  # two hyphens would become a dash


def _character(character: str) -> str:
    # the letters that the T1 font encoding contains
    european = character.isalpha() and "À" <= character <= "ž" and character not in "ĦħĸĿŀŉŦŧ"
    printable = european or (character.isascii() and character.isprintable())
    return character if printable else f"[U+{ord(character):04X}]"


class _Labels:
    """Labels of tables and figures, each once."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def add(self, prefix: str, text: str) -> str:
        """Return a new label, for example "tab:by-category-2"; prefix: "tab" or "fig"."""
        name = f"{prefix}:{slug(text) or 'untitled'}"
        label = next(each for i in count(1) if (each := name if i == 1 else f"{name}-{i}") not in self._used)
        self._used.add(label)
        return label


def _block(block: Block, heading: str, labels: _Labels) -> str:
    """Return a block of a section; heading: the caption of a table without a title."""
    if isinstance(block, str):
        return escape(block)
    if isinstance(block, tuple):
        items = "\n".join(rf"  \item {escape(sentence)}" for sentence in block)
        return f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}"
    if isinstance(block, Figure):
        return _figure(block, labels)
    titled = replace(block, title=block.title or heading)
    tables = (part for group in split_by_column_group(titled) for part in _fit_page(group))
    return "\n".join(line for table in tables for line in _table(table, labels))


def _figure(figure: Figure, labels: _Labels) -> str:
    if not figure.files:
        return escape(f"{figure.title}: {figure.caption}")
    suffix = "pdf" if "pdf" in figure.files else next(iter(figure.files))
    path = f"{FIGURES_FOLDER}/{figure.name}.{suffix}"
    image = rf"  \IfFileExists{{{path}}}{{\includegraphics[width=0.8\linewidth]{{{path}}}}}{{{escape(path)}}}"
    caption = escape(f"{figure.title}, {figure.benchmark}. {figure.caption}")
    label = labels.add("fig", figure.name)
    head = f"\\begin{{figure}}[!htbp]\n  \\centering\n{image}\n"
    return f"{head}  \\caption{{{caption}}}\n  \\label{{{label}}}\n\\end{{figure}}"


def _fit_page(table: Table) -> Iterator[Table]:
    """Divide a table that is wider than a page."""
    widths = [max(len(cell.text) for cell in column) for column in zip(table.header, *table.rows, strict=True)]
    for index, columns in enumerate(columns_per_line(widths, MAX_WIDTH)):
        part = select_columns(table, columns)
        yield replace(part, title=f"{table.title} (continued)", remarks=()) if index else part


def _table(table: Table, labels: _Labels) -> Iterator[str]:
    marks = table.note_marks
    notes = [rf"\textsuperscript{{{mark}}}~{escape(note)}" for note, mark in marks.items()]
    notes += [escape(remark) for remark in table.remarks]
    yield r"\begin{table*}[!htbp]"
    yield r"  \centering\footnotesize"
    yield rf"  \caption{{{escape(table.title)}}}"
    yield rf"  \label{{{labels.add('tab', table.title)}}}"
    yield r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    yield rf"  \begin{{tabular}}{{@{{}}l{'c' * (len(table.header) - 1)}@{{}}}}"
    yield r"    \toprule"
    yield _row(table.header, marks)
    yield r"    \midrule"
    for index, row in enumerate(table.rows):
        yield _row(row, marks)
        if index in table.rules_after and index + 1 < len(table.rows):
            yield r"    \midrule"
    yield r"    \bottomrule"
    yield r"  \end{tabular}}"
    yield from (rf"  \par\smallskip\parbox{{\linewidth}}{{\scriptsize\raggedright {note}}}" for note in notes)
    yield r"\end{table*}"


def _row(row: Iterable[TableCell], marks: Mapping[str, str]) -> str:
    cells = []
    for cell in row:
        letters = ",".join(sorted((marks[note] for note in cell.notes), key=lambda mark: (len(mark), mark)))
        superscript = rf"\textsuperscript{{{letters}}}" if letters else ""
        cells.append(cell.separator.join(map(_text_run, cell.runs)) + superscript)
    return "    " + " & ".join(cells) + r" \\"


def _text_run(run: TextRun) -> str:
    text = escape(run.text)
    return rf"\textbf{{{text}}}" if run.bold else rf"\underline{{{text}}}" if run.underlined else text
