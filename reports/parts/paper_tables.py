"""Tables in the form of the paper: one row per category or k, one column per method, image and pixel AUROC together.

A published table is followed by the results of this store, their differences, and the commands for missing runs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bench.evaluation.summary import (
    Group,
    MeanStd,
    caveats,
    format_percent,
    groups_by_unique_name,
    missing_reasons,
    missing_summary,
    name_suffix,
)
from bench.record import Selection
from bench.report import Table, TableCell, TextRun

from .published import (
    AVERAGES,
    LEVELS,
    PublishedTable,
    averaged_categories,
    known_errata,
    printed_values,
    published_name,
    row_names,
)
from .tables import FAILED, MISSING, NO_VALUE, rank_cells

COLUMN_GROUPS: dict[Selection, str] = {
    "last": "measured, last epoch",
    "oracle": "measured, best epoch on the test set (oracle)",
}


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a table.

    Attributes:
        title: first cell.
        k: training images per category; 0 for all.
        category: category or average, by its name in reports/published/.
        averaged: categories that the row is the mean of.
    """

    title: str
    k: int
    category: str
    averaged: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MethodColumn:
    """A method with one set of settings and one selection rule.

    Attributes:
        title: unique name of the method, with the selection rule.
        heading: unique name without the selection rule, for a table that states the rule above the column.
        selection: "last" or "oracle".
        groups: its groups by k.
        published: its name in the paper, or "".
    """

    title: str
    heading: str
    selection: Selection
    groups: dict[int, Group]
    published: str

    def value(self, row: TableRow, level: str) -> MeanStd | None:
        """Return the image or pixel AUROC of a row."""
        group = self.groups.get(row.k)
        return group.mean_std_over(row.averaged, LEVELS[level]) if group else None

    def cell(self, row: TableRow) -> TableCell:
        """Return image and pixel AUROC of a row with the notes that a reader needs."""
        group = self.groups.get(row.k)
        if group is None or not set(row.averaged) & set(group.categories):
            return TableCell.from_text(MISSING)
        if len(row.averaged) == 1 and not any(category in row.averaged for category, _ in group.records):
            reasons = missing_reasons(group, row.averaged, LEVELS["image"])
            return TableCell.from_text(FAILED, *caveats(group), *reasons)
        values = {level: self.value(row, level) for level in LEVELS}
        n_seeds = len(group.seeds)
        notes = caveats(group)
        notes += [f"{mean.n_seeds} of {n_seeds} seeds" for mean in values.values() if mean and mean.n_seeds != n_seeds]
        for level, value in values.items():
            notes += missing_summary(group, row.averaged, LEVELS[level]) if value is None else []
        return TableCell(
            tuple(TextRun(format_percent(value)) for value in values.values()), tuple(dict.fromkeys(notes))
        )


def method_columns(groups: Iterable[Group]) -> list[MethodColumn]:
    """Return the groups of one data set and protocol as columns; a method with several k is one column."""
    by_k: dict[int, list[Group]] = {}
    for group in groups:
        by_k.setdefault(group.first.run.k, []).append(group)
    columns: dict[tuple[str, str], MethodColumn] = {}
    for k, members in sorted(by_k.items()):
        for title, group in groups_by_unique_name(members).items():
            heading = group.first.run.title + name_suffix(group, members)
            empty = MethodColumn(title, heading, group.selection, {}, published_name(group.first.run))
            column = columns.get((title, group.selection), empty)
            columns[title, group.selection] = replace(column, groups=column.groups | {k: group})
    return sorted(columns.values(), key=lambda column: (column.selection != "last", column.title))


def published_table_rows(published: PublishedTable) -> list[TableRow]:
    """Return the rows of a published table."""
    rows = []
    for k in published.ks:
        for category in row_names(published.file):
            title = f"k = {k}" if k else AVERAGES.get(category, category.replace("_", " "))
            rows.append(TableRow(title, k, category, averaged_categories(category, published.category_file)))
    return rows


def dataset_rows(groups: Sequence[Group], textures: Sequence[str] = ()) -> list[TableRow]:
    """Return the same rows for any data set: its categories and their average, with the textures first if known."""
    names = sorted({category for group in groups for category in group.categories})
    k = groups[0].first.run.k
    texture_names = [name for name in names if name in textures]
    object_names = [name for name in names if name not in textures]
    rows = []
    for average, members in (("average_texture", texture_names), ("average_object", object_names)):
        rows += [TableRow(name.replace("_", " "), k, name, (name,)) for name in members]
        if members and texture_names:
            rows.append(TableRow(AVERAGES[average], k, average, tuple(members)))
    return [*rows, TableRow(AVERAGES["average_all"], k, "average_all", tuple(names))]


def build_table(
    title: str, rows: Sequence[TableRow], columns: Sequence[MethodColumn], published: PublishedTable | None = None
) -> Table:
    """Build a table; published values, last epochs and oracle epochs are each ranked separately."""
    names = tuple(dict.fromkeys(method for method, _, _ in printed_values(published.file))) if published else ()
    column_groups = [(f"published ({published.number})", len(names))] if published else []
    first = "category" if rows[0].title == rows[0].category.replace("_", " ") else ""
    header: list[str | TableCell] = [first, *names]
    parts = [[[_published_cell(published, name, row) for name in names] for row in rows]] if published else []
    for selection, group_title in COLUMN_GROUPS.items():
        members = [column for column in columns if column.selection == selection]
        if members:
            column_groups.append((group_title, len(members)))
            header += [column.heading for column in members]
            parts.append([[column.cell(row) for column in members] for row in rows])
    cells = [
        [TableCell.from_text(row.title), *(cell for part in parts for cell in rank_cells(part[i]))]
        for i, row in enumerate(rows)
    ]
    averages = [i for i, row in enumerate(rows) if row.category in AVERAGES]
    rules = {*averages, *(i - 1 for i in averages if i)} if len(averages) < len(rows) else set()
    remark = (
        "Image AUROC/pixel AUROC in percent, measured values ± standard deviation over seeds. Best and second best are "
        "marked within each group of columns, not across groups."
    )
    remarks = [remark, *(published.remarks if published else ())]
    return Table.from_rows(title, header, cells, column_groups=column_groups, rules_after=rules, remarks=remarks)


def _published_cell(published: PublishedTable, method: str, row: TableRow) -> TableCell:
    printed = printed_values(published.file).get((method, row.k, row.category), {})
    notes = tuple(known_errata(published.number, method, row.category))
    return TableCell(tuple(TextRun(printed.get(level) or NO_VALUE) for level in LEVELS), notes)
