"""Published and measured values of the same methods: differences, tolerances, and commands for missing runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.evaluation.summary import METRICS, Group
from bench.report_format import Block, Section, Table, TableCell, TextRun

from .paper_tables import MethodColumn, TableRow, build_table, method_columns, published_table_rows
from .published import (
    AVERAGES,
    LEVELS,
    RELEASED,
    SAME_WEIGHTS,
    TABLES,
    PublishedTable,
    Tolerance,
    averaged_categories,
    find_tolerance,
    has_image_auroc,
    printed_values,
    published_rows,
)
from .tables import NO_VALUE

STATUS: dict[bool | None, str] = {True: "agrees", False: "differs", None: "not verified"}

_WITHIN = {True: "yes", False: "no", None: NO_VALUE}
_RELEASED_METRICS = ("image_auroc", "pixel_auroc", "image_ap", "pixel_ap")


# --- Checks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """An expected value and the measured value, in percent.

    Attributes:
        table: published table, or dataset and protocol.
        method: title of the method.
        category: title of the row.
        metric: name of the metric.
        expected: the published value, or the value of an earlier run.
        measured: the measured value, or None.
        tolerance: tolerance in percentage points; None if there is no basis for one.
        reason: why the value is not verified; "" if it is.
    """

    table: str
    method: str
    category: str
    metric: str
    expected: float
    measured: float | None
    tolerance: float | None
    reason: str = ""

    @property
    def difference(self) -> float | None:
        """Measured - expected in percentage points, from the values as printed."""
        return None if self.measured is None else round(self.measured - self.expected, 6)

    @property
    def agrees(self) -> bool | None:
        """Whether the difference is within the tolerance; None if it cannot be verified."""
        if self.difference is None or self.tolerance is None or self.reason:
            return None
        return abs(self.difference) <= self.tolerance + 1e-9


def published_checks(
    published: PublishedTable, rows: Sequence[TableRow], columns: Iterable[MethodColumn]
) -> Iterator[Check]:
    """Yield a check of every published value in these rows of the methods in these columns."""
    for column in columns:
        if column.published:
            for row in rows:
                for level in LEVELS:
                    yield from _published_check(published, column, row, level)


def _published_check(published: PublishedTable, column: MethodColumn, row: TableRow, level: str) -> Iterator[Check]:
    published_value = printed_values(published.file).get((column.published, row.k, row.category), {}).get(level)
    if not published_value:
        return
    value, group = column.value(row, level), column.groups.get(row.k)
    tolerance = find_tolerance(column.published, published.name, column.selection)
    yield Check(
        table=published.number,
        method=column.title,
        category=row.title,
        metric=LEVELS[level],
        expected=float(published_value),
        measured=round(100 * value.mean, 1) if value else None,
        tolerance=round(tolerance.for_mean_over(len(row.averaged)), 2) if tolerance else None,
        reason=_reason(published, column, tolerance, group, level) if value else "missing",
    )


def _reason(
    published: PublishedTable, column: MethodColumn, tolerance: Tolerance | None, group: Group | None, level: str
) -> str:
    """Return why a value cannot be verified; "" if it can."""
    run = group.first.run if group else None
    reduced = run and (run.synthetic or run.limit or run.profile_note or "random" in run.file_hashes.values())
    no_auroc = level == "image" and not has_image_auroc(published.number, column.published)
    last_epoch = column.published.startswith("AMI-Net") and column.selection == "last"
    released = run and run.is_released_checkpoint
    reasons = (
        (reduced, "reduced settings, limited images, synthetic data or random weights do not reproduce the paper"),
        (no_auroc, "the published value is not an AUROC"),
        (released, "the released checkpoint is not from the run of the table and is compared in a separate table"),
        (tolerance, ""),
        (
            last_epoch,
            "the paper chooses the epoch on the test set; there is no basis for a tolerance of the last epoch",
        ),
        (published.ks != (0,), "the paper's draw of the images is not published; the effect of another is unknown"),
        (True, f"there is no basis for a tolerance of {column.published}"),
    )
    return next(reason for applies, reason in reasons if applies)


def released_checks(groups: Iterable[Group]) -> Iterator[Check]:
    """Yield a check of every value in the authors' README, for runs with the released checkpoints."""
    published = TABLES["1"]
    for group in groups:
        run = group.first.run
        if run.is_released_checkpoint and published.contains(run) and run.method == "aminet":
            for row in published_rows(RELEASED):
                categories = averaged_categories(row["category"], published.file)
                for metric in _RELEASED_METRICS:
                    value = group.mean_std_over(categories, metric)
                    yield Check(
                        table="Released checkpoints, values of their README",
                        method=run.title,
                        category=AVERAGES.get(row["category"], row["category"].replace("_", " ")),
                        metric=metric,
                        expected=float(row[metric]),
                        measured=round(100 * value.mean, 1) if value else None,
                        tolerance=round(SAME_WEIGHTS.for_mean_over(len(categories)), 2),
                        reason="" if value else "missing",
                    )


def all_agree(checks: Sequence[Check]) -> bool | None:
    """Return whether all verified values agree; None if none could be verified."""
    verified = [check.agrees for check in checks if check.agrees is not None]
    return all(verified) if verified else None


def check_tables(checks: Sequence[Check]) -> Iterator[Table]:
    """Yield one table per method and published table, or per method and benchmark."""
    by_method: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        by_method.setdefault((check.table, check.method), []).append(check)
    header = ("row", "metric", "expected", "measured", "difference", "tolerance", "status")
    for (table, method), members in by_method.items():
        yield Table.from_rows(f"{table}: {method}", header, [_check_row(check) for check in members])


def _check_row(check: Check) -> list[str | TableCell]:
    status = TextRun(STATUS[check.agrees], bold=check.agrees is False)
    return [
        check.category,
        METRICS[check.metric],
        _format(check.expected),
        NO_VALUE if check.measured is None else _format(check.measured),
        NO_VALUE if check.difference is None else "+" * (check.difference > 0) + _format(check.difference),
        NO_VALUE if check.tolerance is None else f"±{check.tolerance:g}",
        TableCell((status,), (check.reason,) if check.reason else ()),
    ]


def _format(value: float) -> str:
    return f"{value:.1f}" if round(value, 1) == value else f"{value:.2f}"


# --- Section ---------------------------------------------------------------------------------------------------------


def compare_with_published(published: PublishedTable, groups: Iterable[Group]) -> Section:
    """Build the section of a published table: its values, the measured ones, differences and missing runs.

    groups: groups of any dataset and protocol; those that belong to the table are used.
    """
    members = [group for group in groups if published.contains(group.first.run)]
    columns = method_columns(members)
    blocks: list[Block] = [build_table(published.content, published_table_rows(published), columns, published)]
    blocks += [table for column in columns if (table := _difference_table(published, column))]
    blocks += check_tables(list(released_checks(members))) if published.name == "1" else []
    commands = missing_commands(published, members)
    if commands:
        blocks.append("Missing runs. Add the `--data` and `--runs` of your other commands to these:")
        blocks.append(tuple(f"`{command}`" for command in commands))
    return Section(published.title, tuple(blocks))


def _difference_table(published: PublishedTable, column: MethodColumn) -> Table | None:
    """Return a method next to its published values, for the rows that have both; None if there is no such row."""
    by_row: dict[str, dict[str, Check]] = {}
    for check in published_checks(published, published_table_rows(published), [column]):
        if check.measured is not None:
            by_row.setdefault(check.category, {})[check.metric] = check
    rows = []
    for row in published_table_rows(published):
        checks = by_row.get(row.title, {})
        if checks:
            cells = (_check_cell(checks, text_run) for text_run in (_expected, _difference, _within))
            expected, difference, within = cells
            rows.append((row.title, expected, column.cell(row), difference, within))
    if not rows:
        return None
    reasons = dict.fromkeys(check.reason for checks in by_row.values() for check in checks.values() if check.reason)
    notes = [*_tolerance_note(published, column), *reasons]
    header = ("", "published", "measured", "difference", TableCell.from_text("within tolerance", *notes))
    title = f"{column.title}: measured minus published {column.published}, in percentage points"
    return Table.from_rows(title, header, rows)


def _check_cell(checks: dict[str, Check], text_run: Callable[[Check], TextRun]) -> TableCell:
    metrics = LEVELS.values()
    return TableCell(tuple(text_run(checks[name]) if name in checks else TextRun(NO_VALUE) for name in metrics))


def _expected(check: Check) -> TextRun:
    return TextRun(f"{check.expected:.1f}")


def _difference(check: Check) -> TextRun:
    return TextRun(f"{check.difference:+.1f}" if check.difference else "0.0")


def _within(check: Check) -> TextRun:
    return TextRun(_WITHIN[check.agrees], bold=check.agrees is False)


def _tolerance_note(published: PublishedTable, column: MethodColumn) -> list[str]:
    tolerance = find_tolerance(column.published, published.name, column.selection)
    if tolerance is None:
        return []
    return [f"Tolerance: {tolerance.explanation}"]


def missing_commands(published: PublishedTable, groups: Sequence[Group]) -> list[str]:
    """Return the commands that produce the missing runs of a published table's campaign."""
    categories = averaged_categories("average_all", published.category_file)
    methods: dict[tuple[tuple[str, ...], tuple[int, ...]], list[str]] = {}  # by (categories, ks) of missing runs
    for name in published.methods:
        ks_by_categories: dict[tuple[str, ...], list[int]] = {}
        for k in published.ks:
            members = [group for group in groups if (group.first.run.name, group.first.run.k) == (name, k)]
            finished = {category for group in members for category, _ in group.records}
            unfinished = tuple(category for category in categories if category not in finished)
            if unfinished:
                ks_by_categories.setdefault(unfinished, []).append(k)
        for unfinished, missing_ks in ks_by_categories.items():
            methods.setdefault((unfinished, tuple(missing_ks)), []).append(name)
    commands = []
    for (unfinished, ks), names in methods.items():
        words = ["bench", "run", published.campaign]
        words += ["--method", ",".join(names)] if tuple(names) != published.methods else []
        words += ["--k", ",".join(map(str, ks))] if ks != published.ks else []
        words += ["--category", ",".join(unfinished)] if unfinished != categories else []
        commands.append(" ".join(words))
    with_oracle = {group.first.run.name for group in groups if group.selection == "oracle"}
    without = [name for name in published.methods if name not in with_oracle and _has_epochs(name, groups)]
    oracle = [f"bench run {published.campaign} --method {','.join(without)} --selection both"] if without else []
    return commands + oracle


def _has_epochs(name: str, groups: Sequence[Group]) -> bool:
    """Return whether the method trains in epochs, so that an oracle epoch exists."""
    return any(record.epoch for group in groups if group.first.run.name == name for record in group.records.values())
