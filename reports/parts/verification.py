"""Verification: measured values against published values, or against an earlier CSV report, row by row."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.evaluation.summary import METRICS, Group, by_benchmark, groups, title_with_selection
from bench.record import Record
from bench.report import Block, Report, Section

from .csv_rows import KEY_COLUMNS, escape_formula, flatten, read_rows
from .paper_tables import method_columns
from .published import SAME_WEIGHTS, TABLES, TOLERANCES, get_table, records_for_table, tables_of_runs
from .published_comparison import (
    STATUS,
    Check,
    all_agree,
    check_tables,
    missing_commands,
    published_checks,
    released_checks,
)

RERUN_TOLERANCE = 0.5
"""Percentage points that a metric of the same run may differ: settings, images and seed are the same, but training on
another machine rounds differently, with the same effect as another seed (see `published.TOLERANCES`)."""

_TITLE = "maskbench: verification"


def verification(records: Sequence[Record], table: str, against: Path | None) -> tuple[Report, bool | None]:
    """Build the verification; also return whether all verified values agree, None if none could be verified.

    Args:
        records: all records of the store.
        table: only this table of the paper; "" for all.
        against: an earlier CSV report to compare with instead of the published values.
    """
    if table in {"fig8", "fig9"}:
        section = Section("", (f"The paper prints no values for {table}, so there is nothing to verify.",))
        return Report("verification", _TITLE, (section,), tuple(records)), None
    selected = records_for_table(records, table)
    checks = list(_rerun_checks(selected, against) if against else _all_published_checks(selected, table))
    counts = Counter(STATUS[check.agrees] for check in checks)
    summary = ", ".join(f"{status}: {counts[status]}" for status in STATUS.values())
    blocks: list[Block] = [*check_tables(checks), *([f"Result of {len(checks)} rows: {summary}."] if checks else [])]
    if all_agree(checks) is None:
        reason = "." if checks else ": no record belongs to a published table with values of its method."
        blocks.append("Nothing could be verified" + reason)
    if not against:
        blocks += [tuple(_tolerance_sentences())] if checks else []
        blocks += _unverified(selected, table)
    return Report("verification", _TITLE, (Section("", tuple(blocks)),), tuple(selected)), all_agree(checks)


def _all_published_checks(records: Sequence[Record], table: str) -> Iterator[Check]:
    members = groups(records)
    for published in [get_table(table)] if table else TABLES.values():
        yield from published_checks(
            published, method_columns(group for group in members if published.contains(group.first.run))
        )
    if table in {"", "1"}:
        yield from released_checks(members)


def _rerun_checks(records: Sequence[Record], file: Path) -> Iterator[Check]:
    """Compare each metric of each row of an earlier CSV report with the record of the same run."""
    by_key = {tuple(str(escape_formula(flatten(record)[name])) for name in KEY_COLUMNS): record for record in records}
    for row in read_rows(file):
        record = by_key.get(tuple(row[name] for name in KEY_COLUMNS))
        k = f" k={row['k']}" if row["k"] != "0" else ""
        for metric in METRICS:
            earlier = row.get(f"metrics.{metric}")
            if earlier:
                value = record.metrics.get(metric) if record else None
                yield Check(
                    table=f"{row['dataset']} {row['protocol']}{k}",
                    method=title_with_selection(row.get("title", row["name"]), row["selection"]),
                    category=f"{row['category']}, seed {row['seed']}",
                    metric=metric,
                    expected=round(100 * float(earlier), 2),
                    measured=None if value is None else round(100 * value, 2),
                    tolerance=RERUN_TOLERANCE,
                    reason=_rerun_reason(record, metric),
                )


def _rerun_reason(record: Record | None, metric: str) -> str:
    """Return why an earlier value cannot be compared; "" if it can."""
    if record is None:
        return "this store has no such run: it did not run, or its settings or images differ"
    if record.failure:
        return "the run failed"
    return "" if metric in record.metrics else "the record does not have this metric"


def _tolerance_sentences() -> Iterator[str]:
    for tolerance in (*TOLERANCES, SAME_WEIGHTS):
        yield (
            f"Tolerance of {' and '.join(tolerance.methods)} ({tolerance.selection}), tables "
            f"{', '.join(tolerance.tables)}: {tolerance.explanation}."
        )


def _unverified(records: Sequence[Record], table: str) -> list[Block]:
    """Return which measured methods have no published values, and which published methods did not run."""
    members = groups(records)
    tables_with_records = tables_of_runs(group.first.run for group in members)
    sentences: list[str] = []
    for published in [get_table(table)] if table else tables_with_records:
        in_table: list[Group] = [group for group in members if published.contains(group.first.run)]
        unpublished = [column.title for column in method_columns(in_table) if not column.published]
        sentences += [f"{published.number} has no values of {', '.join(unpublished)}."] if unpublished else []
        sentences += [
            f"Missing in {published.number}: `{command}`" for command in missing_commands(published, in_table)
        ]
    without = [
        name
        for name, benchmark in by_benchmark(members).items()
        if not any(published.contains(benchmark[0].first.run) for published in tables_with_records)
    ]
    sentences += [f"There are no published values for {', '.join(without)}."] if without else []
    return [tuple(sentences)] if sentences else []
