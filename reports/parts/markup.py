"""Sections as Markdown and as LaTeX; whatever a name holds, it stays text."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bench.report import FOLDER, Figure

from .tables import Block, Entry, Piece, Section, Table

WIDTH = 100
"""Characters of a line of a terminal: a wider Markdown table is folded, its first column repeated."""

_CODE = re.compile(r"(`[^`]*`)")


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
    return re.sub(r"([\\*`]|(?<!\w)_|_(?!\w)|(?<=\])\()", r"\\\1", text)


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        return escape(block)
    if isinstance(block, tuple):
        return "\n".join(f"- {escape(line)}" for line in block)
    if isinstance(block, Figure):
        place = _place(block, "png")
        link = f"[{escape(block.title)}]({place})"
        return f"- {link}" if block.kind == "sheet" else f"!{link}\n\n{escape(block.caption)}"
    caption = [f"**{escape(block.title)}**"] if block.title else []
    marks = block.marks
    told = [f"- {_raised(mark)} {escape(note)}" for note, mark in marks.items()]
    told += [f"- {escape(remark)}" for remark in block.remarks]
    return "\n\n".join([*caption, *_folded(block, marks), *(["\n".join(told)] if told else [])])


def _place(figure: Figure, wanted: str) -> str:
    """The figure's file, of that suffix where there is one."""
    return f"{FOLDER}/{figure.name}.{wanted if wanted in figure.files else next(iter(figure.files))}"


def _folded(table: Table, marks: Mapping[str, str]) -> Iterator[str]:
    """The table, cut into several where columns are of different kinds, and where a line would be too long."""
    cells = [[_cell(entry, marks) for entry in row] for row in (table.head, *table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    first = 1
    for name, count in table.spans or [("", len(table.head) - 1)]:
        if name:
            yield f"{escape(name)}:"
        for part in _parts(widths, range(first, first + count)):
            lines = [_line([row[i].ljust(widths[i]) for i in (0, *part)]) for row in cells]
            yield "\n".join([lines[0], _line("-" * widths[i] for i in (0, *part)), *lines[1:]])
        first += count


def _parts(widths: Sequence[int], columns: range) -> list[range]:
    """The columns in as few parts as fit into a line beside the first column, and as even as can be."""
    for size in range(len(columns), 0, -1):
        parts = [columns[i : i + size] for i in range(0, len(columns), size)]
        if all(sum(widths[i] + 3 for i in (0, *part)) < WIDTH for part in parts):
            break
    even = -(-len(columns) // len(parts))
    balanced = [columns[i : i + even] for i in range(0, len(columns), even)]
    fits = all(sum(widths[i] + 3 for i in (0, *part)) < WIDTH for part in balanced)
    return balanced if fits else parts


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(entry: Entry, marks: Mapping[str, str]) -> str:
    letters = [_raised(marks[note]) for note in entry.notes]
    raised = ("" if all(len(each) == 1 for each in letters) else " ").join(letters)
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
\begin{document}
"""

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
    "±": r"\ensuremath{\pm}", "−": r"\ensuremath{-}", "×": r"\ensuremath{\times}", "≤": r"\ensuremath{\leq}",
    "≥": r"\ensuremath{\geq}", "·": r"\textperiodcentered{}", "–": r"\textendash{}", "—": r"\textemdash{}",
    "‡": r"\ensuremath{\ddagger}", "†": r"\ensuremath{\dagger}", "…": r"\ldots{}",
}  # fmt: skip
_HEADINGS = (r"\section*", r"\subsection*", r"\subsubsection*", r"\paragraph*")


def latex(title: str, sections: Iterable[Section]) -> str:
    """A page that compiles as it is, and whose tables can be pasted into a paper one by one."""
    parts = [_PREAMBLE, rf"\begin{{center}}\Large {tex(title)}\end{{center}}"]
    for section in sections:
        heading = [f"{_HEADINGS[min(section.level, 4) - 1]}{{{tex(section.title)}}}"] if section.title else []
        parts += [*heading, *(_latex(block) for block in section.blocks)]
    return "\n\n".join([*parts, r"\end{document}"]) + "\n"


def tex(text: str) -> str:
    """One line of plain text for LaTeX. A sign that pdflatex does not know is told by its number."""
    line = " ".join(text.split())
    parts = [rf"\texttt{{{_tex(part[1:-1])}}}" if _CODE.fullmatch(part) else _tex(part) for part in _CODE.split(line)]
    return "".join(parts)


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
        return f"\\begin{{figure}}[!htbp]\n  \\centering\n{shown}\n  \\caption{{{tex(block.caption)}}}\n\\end{{figure}}"
    return "\n".join(_table(block))


def _table(table: Table) -> Iterator[str]:
    marks = table.marks
    told = [rf"\textsuperscript{{{mark}}}~{tex(note)}" for note, mark in marks.items()]
    told += [tex(remark) for remark in table.remarks]
    spans = table.spans or (("", len(table.head) - 1),)
    yield r"\begin{table*}[!htbp]"
    yield r"  \centering\footnotesize"
    if table.title:
        yield rf"  \caption{{{tex(table.title)}}}"
    yield r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    columns = r"@{\hspace{1.5em}}".join(["l", *("c" * count for _, count in spans)])
    yield rf"  \begin{{tabular}}{{@{{}}{columns}@{{}}}}"
    yield r"    \toprule"
    if table.spans:
        yield "    " + " & ".join(["", *(rf"\multicolumn{{{n}}}{{c}}{{{tex(name)}}}" for name, n in spans)]) + r" \\"
        yield "    " + " ".join(_rules(spans))
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


def _rules(spans: Iterable[tuple[str, int]]) -> Iterator[str]:
    first = 2
    for _, count in spans:
        yield rf"\cmidrule(lr){{{first}-{first + count - 1}}}"
        first += count


def _row(row: Iterable[Entry], marks: Mapping[str, str]) -> str:
    cells = []
    for entry in row:
        letters = ",".join(marks[note] for note in entry.notes)
        raised = rf"\textsuperscript{{{letters}}}" if letters else ""
        cells.append(entry.joint.join(map(_set, entry.pieces)) + raised)
    return "    " + " & ".join(cells) + r" \\"


def _set(piece: Piece) -> str:
    text = tex(piece.text)
    return rf"\textbf{{{text}}}" if piece.bold else rf"\underline{{{text}}}" if piece.underlined else text
