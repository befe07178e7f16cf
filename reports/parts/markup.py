"""Sections as Markdown and as LaTeX; whatever a name holds, it stays text."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from bench.report import FIGURES_FOLDER, Figure

from .tables import Block, Entry, Piece, Section, Table, parted

WIDTH = 100
"""Characters of a line of a terminal: a wider Markdown table is folded, its first column repeated."""

PAGE = 150
"""The same of a page, on which small print is read more easily."""

_CODE = re.compile(r"(`[^`]*`)")


def _letters(entry: Entry, marks: Mapping[str, str]) -> list[str]:
    """The marks of an entry's notes, in the order of the alphabet."""
    return sorted((marks[note] for note in entry.notes), key=lambda mark: (len(mark), mark))


# --- Markdown --------------------------------------------------------------------------------------------------------

_RAISED = dict(zip("abcdefghijklmnoprstuvwxyz", "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", strict=True))


def markdown(title: str, sections: Iterable[Section]) -> str:
    """A Markdown page. The second best is in italics, since Markdown can't underline."""
    parts = [f"# {escape(title)}"]
    for section in sections:
        heading = [f"{'#' * (section.level + 1)} {escape(section.title)}"] if section.title else []
        parts += [*heading, *(_markdown(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """One line of plain text that holds no HTML, emphasis or link."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(part if _CODE.fullmatch(part) else _emphasis(part) for part in _CODE.split(line))


def _emphasis(text: str) -> str:
    """An underscore inside a word and a bracket without a link are no markup, and stay readable."""
    return re.sub(r"([\\*`~$]|(?<!\w)_|_(?!\w)|(?<=\])\()", r"\\\1", text)


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        return escape(block)
    if isinstance(block, tuple):
        return "\n".join(f"- {escape(line)}" for line in block)
    if isinstance(block, Figure):
        place = _place(block, "png")
        link = f"[{escape(block.title)}]({place})"
        return f"- {link}" if block.kind == "sheet" else f"!{link}\n\n{escape(block.caption)}"
    return "\n\n".join(text for part in parted(block) for text in _captioned(part))


def _captioned(table: Table) -> Iterator[str]:
    marks = table.marks
    if table.title:
        yield f"**{escape(table.title)}**"
    yield from _folded(table, marks)
    told = [f"- {_raised(mark)} {escape(note)}" for note, mark in marks.items()]
    told += [f"- {escape(remark)}" for remark in table.remarks]
    if told:
        yield "\n".join(told)


def _place(figure: Figure, wanted: str) -> str:
    """The figure's file, of that suffix where there is one."""
    return f"{FIGURES_FOLDER}/{figure.name}.{wanted if wanted in figure.files else next(iter(figure.files))}"


def _folded(table: Table, marks: Mapping[str, str]) -> Iterator[str]:
    """The table, cut into several where a line would be too long."""
    cells = [[_cell(entry, marks) for entry in row] for row in (table.head, *table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    for part in _fitting(widths, WIDTH):
        lines = [_line(row[i].ljust(widths[i]) for i in (0, *part)) for row in cells]
        yield "\n".join([lines[0], _line("-" * widths[i] for i in (0, *part)), *lines[1:]])


def _fitting(widths: Sequence[int], limit: int) -> list[range]:
    """The columns after the first in as few parts as fit into a line beside it, and as even as can be."""

    def cut(size: int) -> list[range]:
        return [range(i, min(i + size, len(widths))) for i in range(1, len(widths), size)]

    def fits(parts: list[range]) -> bool:
        return all(sum(widths[i] + 3 for i in (0, *part)) < limit for part in parts)

    size = next((size for size in range(len(widths) - 1, 1, -1) if fits(cut(size))), 1)
    even = -(-(len(widths) - 1) // len(cut(size)))
    return cut(even) if fits(cut(even)) else cut(size)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(entry: Entry, marks: Mapping[str, str]) -> str:
    letters = _letters(entry, marks)
    raised = ("" if all(len(each) == 1 for each in letters) else " ").join(map(_raised, letters))
    return entry.joint.join(map(_piece, entry.pieces)) + (f" {raised}" if raised else "")


def _piece(piece: Piece) -> str:
    text = escape(piece.text).replace("|", "\\|")
    return f"**{text}**" if piece.bold else f"_{text}_" if piece.underlined else text


def _raised(mark: str) -> str:
    return "".join(_RAISED[letter] for letter in mark)


# --- LaTeX -----------------------------------------------------------------------------------------------------------

_PREAMBLE = r"""\documentclass[10pt]{article}
\usepackage[a4paper,margin=2cm]{geometry}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
% A table pasted elsewhere needs these two and, for its raised and mathematical signs, textcomp.
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
WAITING = 10
"""After so many figures and tables LaTeX sets those that wait for a place: over about fifty it gives up."""

_HEADINGS = (r"\section*", r"\subsection*", r"\subsubsection*", r"\paragraph*")


def latex(title: str, sections: Iterable[Section]) -> str:
    """A page that compiles as it is, and whose tables can be pasted into a paper one by one."""
    parts = [_PREAMBLE, rf"\begin{{center}}\Large {tex(title)}\end{{center}}"]
    floats = 0
    for section in sections:
        if section.title and not (section.blocks and all(isinstance(block, Figure) for block in section.blocks)):
            parts.append(rf"{_HEADINGS[min(section.level, 4) - 1]}{{{tex(section.title)}}}")  # figures would leave it
        for block in section.blocks:
            parts.append(_latex(block))
            waits = isinstance(block, Figure | Table)
            floats += waits
            if waits and floats % WAITING == 0:
                parts.append(r"\clearpage")
    return "\n\n".join([*parts, r"\end{document}"]) + "\n"


def tex(text: str) -> str:
    """One line of plain text for LaTeX. A sign that pdflatex does not know is told by its number."""
    line = " ".join(text.split())
    parts = [_code(part[1:-1]) if _CODE.fullmatch(part) else _tex(part) for part in _CODE.split(line)]
    return re.sub(r"(?<!\S)-(?=\d)", r"\\ensuremath{-}", "".join(parts))  # the sign of a number is no hyphen


def _code(text: str) -> str:
    """A command, whose lists may be broken."""
    return rf"\texttt{{{_tex(text)}}}".replace(",", r",\allowbreak{}")


def _tex(text: str) -> str:
    told = "".join(_SPECIAL.get(letter) or _letter(letter) for letter in unicodedata.normalize("NFC", text))
    return told.replace("--", "-{}-")  # two hyphens would be a dash


def _letter(letter: str) -> str:
    european = letter.isalpha() and "À" <= letter <= "ž" and letter not in "ĦħĸĿŀŉŦŧ"  # what T1 has a sign for
    return letter if european or (letter.isascii() and letter.isprintable()) else f"[U+{ord(letter):04X}]"


def _latex(block: Block) -> str:
    if isinstance(block, str):
        return tex(block)
    if isinstance(block, tuple):
        items = "\n".join(rf"  \item {tex(line)}" for line in block)
        return f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}"
    if isinstance(block, Figure):
        place = _place(block, "pdf")
        shown = rf"  \IfFileExists{{{place}}}{{\includegraphics[width=0.8\linewidth]{{{place}}}}}{{{tex(place)}}}"
        told = tex(f"{block.title}, {block.topic}. {block.caption}")
        return f"\\begin{{figure}}[!htbp]\n  \\centering\n{shown}\n  \\caption{{{told}}}\n\\end{{figure}}"
    return "\n".join(line for part in parted(block) for sheet in _sheets(part) for line in _table(sheet))


def _sheets(table: Table) -> Iterator[Table]:
    """The table, cut into several where a page is not wide enough."""
    lines = [(table.head), *table.rows]
    widths = [max(len(row[i].text) for row in lines) for i in range(len(table.head))]
    for number, part in enumerate(_fitting(widths, PAGE)):
        cut = [tuple(row[i] for i in (0, *part)) for row in lines]
        title = f"{table.title} (continued)" if number else table.title
        yield replace(table, title=title, head=cut[0], rows=tuple(cut[1:]), remarks=() if number else table.remarks)


def _table(table: Table) -> Iterator[str]:
    marks = table.marks
    told = [rf"\textsuperscript{{{mark}}}~{tex(note)}" for note, mark in marks.items()]
    told += [tex(remark) for remark in table.remarks]
    yield r"\begin{table*}[!htbp]"
    yield r"  \centering\footnotesize"
    if table.title:
        yield rf"  \caption{{{tex(table.title)}}}"
    yield r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    yield rf"  \begin{{tabular}}{{@{{}}l{'c' * (len(table.head) - 1)}@{{}}}}"
    yield r"    \toprule"
    yield _row(table.head, marks)
    yield r"    \midrule"
    for number, row in enumerate(table.rows):
        yield _row(row, marks)
        if number in table.ruled and number + 1 < len(table.rows):
            yield r"    \midrule"
    yield r"    \bottomrule"
    yield r"  \end{tabular}}"
    yield from (rf"  \par\smallskip\parbox{{\linewidth}}{{\scriptsize\raggedright {note}}}" for note in told)
    yield r"\end{table*}"


def _row(row: Iterable[Entry], marks: Mapping[str, str]) -> str:
    cells = []
    for entry in row:
        letters = ",".join(_letters(entry, marks))
        raised = rf"\textsuperscript{{{letters}}}" if letters else ""
        cells.append(entry.joint.join(map(_set, entry.pieces)) + raised)
    return "    " + " & ".join(cells) + r" \\"


def _set(piece: Piece) -> str:
    text = tex(piece.text)
    return rf"\textbf{{{text}}}" if piece.bold else rf"\underline{{{text}}}" if piece.underlined else text
