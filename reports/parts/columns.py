"""Tables of the papers' form: a row a category or k, a column a method, image and pixel AUROC side by side."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bench.evaluation.summary import Cell, Group, caveats, missing_reasons, percent, unique_names
from bench.record import Selection

from .measured import FAILED
from .papers import AVERAGES, LEVELS, Paper, categories, members, published_name, slips, values
from .tables import MISSING, NONE, Entry, Piece, Table, ranked

SPANS: dict[Selection, str] = {
    "last": "measured here, last epoch",
    "oracle": "measured here, best epoch on the test set (oracle)",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A row: what it shows the mean of. category: as published, "" where nothing is."""

    title: str
    k: int
    category: str
    of: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A method in one setting and selection: its groups by k. published: its name in the papers, or ""."""

    title: str
    selection: Selection
    groups: dict[int, Group]
    published: str

    def mean(self, row: Row, level: str) -> Cell | None:
        """The row's mean of the image or pixel AUROC."""
        group = self.groups.get(row.k)
        return group.mean(LEVELS[level], row.of) if group else None

    def entry(self, row: Row) -> Entry:
        """Image and pixel AUROC, with what a reader must know with them."""
        group = self.groups.get(row.k)
        if group is None or not set(row.of) & set(group.categories):
            return Entry.of(MISSING)
        if len(row.of) == 1 and not any(category in row.of for category, _ in group.records):
            return Entry.of(FAILED, *caveats(group), *missing_reasons(group, row.of, LEVELS["image"]))
        cells = {level: self.mean(row, level) for level in LEVELS}
        notes = [
            note for level, cell in cells.items() if cell is None for note in lacking(group, row.of, LEVELS[level])
        ]
        fewer = [f"{cell.seeds} of {len(group.seeds)} seeds" for cell in cells.values() if cell]
        fewer = [note for note in fewer if not note.startswith(f"{len(group.seeds)} of")]
        pieces = tuple(Piece(percent(cell)) for cell in cells.values())
        return Entry(pieces, tuple(dict.fromkeys([*caveats(group), *fewer, *notes])))


def lacking(group: Group, of: Sequence[str], metric: str) -> list[str]:
    """Why there is no mean over these; of what is not done only how much, since the commands tell the rest."""
    told = missing_reasons(group, of, metric)
    done = [note for note in told if not note.endswith("is not done")]
    undone = len(told) - len(done)
    return [*done, *([f"{undone} of {len(of)} categories are not done"] if undone else [])]


def columns(groups: Iterable[Group]) -> list[Column]:
    """The groups of one data set and protocol as columns; those of a method under several k are one."""
    by_k: dict[int, list[Group]] = {}
    for group in groups:
        by_k.setdefault(group.first.run.k, []).append(group)
    found: dict[tuple[str, str], Column] = {}
    for k, own in sorted(by_k.items()):
        for title, group in unique_names(own).items():
            place = (title, group.selection)
            column = found.get(place) or Column(title, group.selection, {}, published_name(group.first.run))
            found[place] = replace(column, groups=column.groups | {k: group})
    return sorted(found.values(), key=lambda column: (column.selection != "last", column.title))


def paper_rows(paper: Paper) -> list[Row]:
    """The rows of a paper's table."""
    found = []
    for k in paper.ks:
        for category in categories(paper.file):
            title = f"k = {k}" if k else AVERAGES.get(category, category.replace("_", " "))
            found.append(Row(title, k, category, members(category, paper.file_of_rows)))
    return found


def own_rows(groups: Sequence[Group], textures: Sequence[str] = ()) -> list[Row]:
    """The same form for any data set: its categories, and their average; textures apart where they are known."""
    names = sorted({category for group in groups for category in group.categories})
    k = groups[0].first.run.k
    first = [name for name in names if name in textures]
    rest = [name for name in names if name not in textures]
    rows = []
    for average, own in (("average_texture", first), ("average_object", rest)):
        rows += [Row(name.replace("_", " "), k, name, (name,)) for name in own]
        rows += [Row(AVERAGES[average], k, average, tuple(own))] if own and first else []
    return [*rows, Row(AVERAGES["average_all"], k, "average_all", tuple(names))]


def form(title: str, rows: Sequence[Row], own: Sequence[Column], paper: Paper | None = None) -> Table:
    """The table; what is published, our last epochs and our best on the test set are each ranked among themselves."""
    theirs = tuple(dict.fromkeys(method for method, _, _ in values(paper.file))) if paper else ()
    spans = [(f"as published ({paper.number})", len(theirs))] if paper else []
    head: list[str | Entry] = ["category" if rows[0].title == rows[0].category.replace("_", " ") else "", *theirs]
    parts = [[[_published(paper, method, row) for method in theirs] for row in rows]] if paper else []
    for selection, told in SPANS.items():
        chosen = [column for column in own if column.selection == selection]
        if chosen:
            spans.append((told, len(chosen)))
            head += [column.title.replace(" (oracle)", "") for column in chosen]
            parts.append([[column.entry(row) for column in chosen] for row in rows])
    lines = [
        [Entry.of(row.title), *(entry for part in parts for entry in ranked(part[i]))] for i, row in enumerate(rows)
    ]
    sums = [i for i, row in enumerate(rows) if row.category in AVERAGES]
    ruled = {*sums, *(i - 1 for i in sums if i)} if len(sums) < len(rows) else set()
    told = "Image AUROC/pixel AUROC in percent, ours ± the spread over seeds; "
    remarks = (told + "best and second best are marked among the columns of a part, and never across parts.",)
    return Table.of(title, head, lines, spans=spans, ruled=ruled, remarks=[*remarks, *(paper.remarks if paper else ())])


def _published(paper: Paper, method: str, row: Row) -> Entry:
    printed = values(paper.file).get((method, row.k, row.category), {})
    notes = tuple(slips(paper.number, method, row.category))
    return Entry(tuple(Piece(printed.get(level) or NONE) for level in LEVELS), notes)
