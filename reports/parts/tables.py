"""What a report is made of, whatever its format: sections of paragraphs, lists, tables and figures.

All text in it is plain: a format escapes it. A pair of backticks marks a command or settings. The notes of a table
belong to its entries, so that no mark can lack its explanation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bench.report import Figure

NONE = "–"
"""In the place of a number that there is not."""

MISSING = "missing"
"""In the place of what did not run."""

_LETTERS = "abcdefghijklmnoprstuvwxyz"  # there is no small raised q


@dataclass(frozen=True, slots=True)
class Piece:
    """A word or number of an entry; the best of its like is bold, the second underlined."""

    text: str
    bold: bool = False
    underlined: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A cell of a table: pieces side by side, as image / pixel, and what a reader must know with them, in sentences."""

    pieces: tuple[Piece, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: "str | Entry", *notes: str) -> "Entry":
        """Plain text as an entry, with these notes added."""
        if isinstance(text, str):
            return cls((Piece(text),), notes)
        return cls(text.pieces, (*text.notes, *notes))

    @property
    def joint(self) -> str:
        """What stands between two pieces: as close as the papers set it where no piece has a blank."""
        return " / " if any(" " in piece.text for piece in self.pieces) else "/"

    @property
    def text(self) -> str:
        """The pieces without their typography."""
        return self.joint.join(piece.text for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Table:
    """A table; its first column names the rows.

    Attributes:
        title: what it shows; "" where its section says so.
        head: an entry a column. rows: as long as the head.
        spans: what neighbouring columns have in common, with their number, left to right after the first column: what
            is published and what was measured stand apart.
        ruled: the rows below which there is a line: sums, and the ends of parts.
        remarks: sentences on the whole table.
    """

    title: str
    head: tuple[Entry, ...]
    rows: tuple[tuple[Entry, ...], ...]
    spans: tuple[tuple[str, int], ...] = ()
    ruled: frozenset[int] = frozenset()
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        title: str,
        head: Sequence[str | Entry],
        rows: Iterable[Sequence[str | Entry]],
        *,
        spans: Sequence[tuple[str, int]] = (),
        ruled: Iterable[int] = (),
        remarks: Sequence[str] = (),
    ) -> "Table":
        """A table of entries and plain text."""
        entries = tuple(tuple(map(Entry.of, row)) for row in rows)
        return cls(title, tuple(map(Entry.of, head)), entries, tuple(spans), frozenset(ruled), tuple(remarks))

    @property
    def marks(self) -> dict[str, str]:
        """Each note of the entries, in the order in which they are read, with its letter."""
        entries = [*self.head, *(entry for row in self.rows for entry in row)]
        notes = dict.fromkeys(note for entry in entries for note in entry.notes)
        return {note: _letter(i) for i, note in enumerate(notes)}


def parted(table: Table) -> list[Table]:
    """A table for each span, since a line holds no more; the remarks stand below the first."""
    if not table.spans:
        return [table]
    found, first = [], 1
    for name, count in table.spans:
        columns = [0, *range(first, first + count)]
        lines = tuple(tuple(row[i] for i in columns) for row in (table.head, *table.rows))
        title = f"{table.title}: {name}" if table.title else name
        found.append(replace(table, title=title, head=lines[0], rows=lines[1:], spans=()))
        first += count
    return [found[0], *(replace(part, remarks=()) for part in found[1:])]


Block = Table | Figure | str | tuple[str, ...]
"""Of a section: a table, a figure, a paragraph, or a list."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it. level: 1 for a part of the report, 2 for a part of that, and so on."""

    title: str
    blocks: tuple[Block, ...]
    level: int = 1


def ranked(entries: Sequence[Entry], *, lowest: bool = False) -> list[Entry]:
    """Entries that compare with one another: in each piece the best number is bold, the second underlined.

    The best is the highest, or the lowest. Equal as printed is equal in rank; fewer than two numbers compare nothing.
    """
    longest = max((len(entry.pieces) for entry in entries), default=0)
    texts = [[entry.pieces[i].text if i < len(entry.pieces) else "" for entry in entries] for i in range(longest)]
    columns = [_ranked(column, lowest=lowest) for column in texts]
    return [
        replace(entry, pieces=tuple(columns[i][place] for i in range(len(entry.pieces))))
        for place, entry in enumerate(entries)
    ]


def _ranked(texts: Sequence[str], *, lowest: bool) -> list[Piece]:
    numbers = [_number(text) for text in texts]
    there = sorted({number for number in numbers if number is not None}, reverse=not lowest)
    best, second = [*there, None, None][:2] if sum(number is not None for number in numbers) > 1 else (None, None)
    return [
        Piece(text, bold=number is not None and number == best, underlined=number is not None and number == second)
        for text, number in zip(texts, numbers, strict=True)
    ]


def _number(text: str) -> float | None:
    """The number that a printed value begins with, as 98.7 of "98.7 ± 0.2"."""
    try:
        return float(text.split(maxsplit=1)[0])
    except (ValueError, IndexError):
        return None


def _letter(number: int) -> str:
    more, rest = divmod(number, len(_LETTERS))
    return (_letter(more - 1) if more else "") + _LETTERS[rest]


def points(fraction: float) -> str:
    """A difference in points of a percentage, with its sign."""
    told = f"{100 * fraction:+.2f}"
    return "0.00" if float(told) == 0 else told
