"""Tables in the form of the paper: one row per category or k, one column per method, image and pixel AUROC together.

A published table is followed by the results of this store, their differences, and the commands for missing runs. Fig. 8
is a table of the published points and the measured methods, also of another dataset.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bench.evaluation.group_names import benchmark_name, groups_by_unique_name, name_suffix
from bench.evaluation.summary import (
    LATENCY,
    MEAN,
    Group,
    MeanStd,
    caveats,
    format_latency,
    format_percent,
    latency_note,
    missing_reasons,
    missing_summary,
    timed_devices,
)
from bench.record import Selection
from bench.report_format import Block, Section, Table, TableCell, TextRun

from .published import (
    AVERAGES,
    LEVELS,
    SELECTED_ON_TEST_SET,
    TABLES,
    PublishedTable,
    averaged_categories,
    known_errata,
    printed_values,
    published_name,
    published_timings,
    row_names,
)
from .style import rerun_command
from .tables import FAILED, MISSING, NO_VALUE, rank_cells, rank_comparable, ranking_key

COLUMN_GROUPS: dict[Selection, str] = {
    "last": "measured, last epoch",
    "oracle": "measured, best epoch on the test set (oracle)",
}

_PUBLISHED_REFERENCE = "AMI-Net‡"
_REFERENCES = (_PUBLISHED_REFERENCE, "AMI-Net")
"""Published names of the method that latencies are relative to, in order of preference."""


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
        groups: groups of the method by k.
        published: name of the method in the paper, or "".
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
    """Return the groups of one dataset and protocol as columns; a method with several k is one column."""
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
    """Return the same rows for any dataset: its categories and their average, with the textures first if known."""
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
    notes = {name: [note] for name, note in SELECTED_ON_TEST_SET.items()}
    header: list[str | TableCell] = [first, *(TableCell.from_text(name, *notes.get(name, [])) for name in names)]
    parts: list[list[list[TableCell]]] = []
    if published:
        parts.append([rank_cells([_published_cell(published, name, row) for name in names]) for row in rows])
    for selection, group_title in COLUMN_GROUPS.items():
        members = [column for column in columns if column.selection == selection]
        if members:
            column_groups.append((group_title, len(members)))
            header += [column.heading for column in members]
            parts.append([_ranked_row(members, row) for row in rows])
    cells = [
        [TableCell.from_text(row.title), *(cell for part in parts for cell in part[i])] for i, row in enumerate(rows)
    ]
    averages = [i for i, row in enumerate(rows) if row.category in AVERAGES]
    rules = {*averages, *(i - 1 for i in averages if i)} if len(averages) < len(rows) else set()
    remark = (
        "Image AUROC/pixel AUROC in percent, measured values ± standard deviation over seeds. Best and second best are "
        "marked within each group of columns, not across groups, and among comparable methods only."
    )
    remarks = [remark, *(published.remarks if published else ())]
    return Table.from_rows(title, header, cells, column_groups=column_groups, rules_after=rules, remarks=remarks)


def _ranked_row(columns: Sequence[MethodColumn], row: TableRow) -> list[TableCell]:
    """Return the cells of one row, ranked among methods with the same images, limit, calibration and resolution."""
    groups = [column.groups.get(row.k) for column in columns]
    keys = [ranking_key(group, row.averaged) if group else None for group in groups]
    return rank_comparable([column.cell(row) for column in columns], keys)


def _published_cell(published: PublishedTable, method: str, row: TableRow) -> TableCell:
    published_values = printed_values(published.file).get((method, row.k, row.category), {})
    notes = tuple(known_errata(published.number, method, row.category))
    return TableCell(tuple(TextRun(published_values.get(level) or NO_VALUE) for level in LEVELS), notes)


# --- Fig. 8 -----------------------------------------------------------------------------------------------------------


def figure8_section(groups: Iterable[Group]) -> Section:
    """Return the two points that the text of the paper gives for Fig. 8, with the measured methods.

    groups: groups of MVTec AD, one model per category, or of another dataset or protocol, which the section then names.
    """
    published = TABLES["1"]
    members = [group for group in groups if group.records]
    is_paper = all(published.contains(group.first.run) for group in members)
    references = [
        group
        for name in _REFERENCES
        for group in members
        if published_name(group.first.run) == name and group.selection == "last"
    ]
    reference = references[0] if references else None
    source = "measured" if is_paper else f"measured, {benchmark_name(members[0])}"
    names = groups_by_unique_name(members)
    ordered = names.items() if is_paper else sorted(names.items(), key=lambda item: _latency_or_infinity(item[1]))
    rows = _published_rows()
    n_published = len(rows)
    rows += [_measured_row(name, source, group, reference, members) for name, group in ordered]
    remarks = ["Times on different machines are not comparable; the ratio of two methods on one machine is."]
    if not is_paper:
        remarks.insert(0, _other_dataset_remark(members))
    reference_name = published_name(reference.first.run) if reference else _PUBLISHED_REFERENCE
    notes = [] if reference_name == _PUBLISHED_REFERENCE else [f"published: {_PUBLISHED_REFERENCE}"]
    header = (
        "method",
        "source",
        "latency",
        TableCell.from_text(f"relative to {reference_name}", *notes),
        "image AUROC",
    )
    table = Table.from_rows("", header, rows, rules_after=[n_published - 1], remarks=remarks)
    hint = "Missing runs. Add the `--data` and `--runs` of your other commands to this: `bench run figure8`"
    title = "MVTec AD" if is_paper else f"{benchmark_name(members[0])} instead of MVTec AD"
    blocks: list[Block] = [table]
    if not is_paper or not members:
        blocks.append(hint)
    untimed = [group for group in members if not group.mean_std(MEAN, LATENCY)]
    if untimed:
        command = rerun_command(untimed[0].first, "--time", "--force")
        blocks.append(f"Latencies are missing. This command measures that of {untimed[0].first.run.title}: {command}")
    return Section(f"Fig. 8: speed against image AUROC, {title}", tuple(blocks))


def _published_rows() -> list[Sequence[str | TableCell]]:
    timings = published_timings()
    fastest = min(timing.latency_ms for timing in timings)
    rows: list[Sequence[str | TableCell]] = []
    for timing in timings:
        note = f"{timing.conditions}; the authors' script times the network only, untrained, on a random image."
        latency = TableCell.from_text(f"{timing.latency_ms:.2f} ms", note)
        ratio = f"{timing.latency_ms / fastest:.1f}"
        rows.append((timing.method, "published", latency, ratio, f"{timing.image_auroc:.1f}"))
    return rows


def _other_dataset_remark(members: Sequence[Group]) -> str:
    profiles = sorted({group.first.run.profile for group in members})
    data = "synthetic images" if any(group.first.run.synthetic for group in members) else "images"
    plural = "s" if len(profiles) > 1 else ""
    return (
        f"There are no records of MVTec AD with one model per category. The measured values are of {data} of "
        f"{benchmark_name(members[0])}, profile{plural} {', '.join(profiles)}: neither their latencies nor their "
        "AUROCs are comparable with the published values."
    )


def _latency_or_infinity(group: Group) -> float:
    latency = group.mean_std(MEAN, LATENCY)
    return latency.mean if latency else float("inf")


def _measured_row(
    name: str, source: str, group: Group, reference: Group | None, members: Sequence[Group]
) -> Sequence[str | TableCell]:
    latency = group.mean_std(MEAN, LATENCY)
    reference_latency = reference.mean_std(MEAN, LATENCY) if reference else None
    ratio = NO_VALUE
    if latency and reference and reference_latency and timed_devices(reference) == timed_devices(group):
        ratio = f"{latency.mean / reference_latency.mean:.1f}"
    categories: Sequence[str] = averaged_categories("average_all", TABLES["1"].file)
    if not TABLES["1"].contains(group.first.run):
        categories = sorted({category for member in members for category in member.categories})
    auroc = group.mean_std_over(categories, "image_auroc")
    reasons = [] if auroc else missing_summary(group, categories, "image_auroc")
    latency_cell = TableCell.from_text(format_latency(latency), *caveats(group), latency_note(group))
    return name, source, latency_cell, ratio, TableCell.from_text(format_percent(auroc), *reasons)
