"""Verification: measured values against published values, or against an earlier CSV report, row by row."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.evaluation.group_names import by_benchmark, title_with_selection
from bench.evaluation.reproduction import RERUN_TOLERANCE
from bench.evaluation.summary import METRICS, Group, groups
from bench.record import Record
from bench.report_format import Block, Report, Section, escape_formula
from bench.store import to_row

from .paper_tables import method_columns, published_table_rows
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

_TITLE = "maskbench: verification"

_WITHOUT_VALUES = {"fig8", "fig9"}
"""Figures of the paper that print no values."""

_KEY_COLUMNS = ("dataset", "protocol", "k", "name", "group_hash", "data_hash", "selection", "seed", "category")
"""The columns that identify a row: method, settings, images, selection rule and seed."""


def verification(
    records: Sequence[Record], table: str, against: Path | None, criteria: Mapping[str, Sequence[str]]
) -> tuple[Report, bool | None]:
    """Build the verification; also return whether all verified values agree, None if none could be verified.

    Args:
        records: the records of the store that match the criteria.
        table: name of a table of the paper; "" for all.
        against: an earlier CSV report to compare with instead of the published values.
        criteria: criteria, as for `select_records`; published rows of other categories and k are not missing, and are
            left out.
    """
    if table in _WITHOUT_VALUES:
        section = Section("", (f"The paper prints no values for {table}, so there is nothing to verify.",))
        return Report("verification", _TITLE, (section,), tuple(records)), None
    selected = records_for_table(records, table)
    checks = _checks(records, table, against, criteria)
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


def verification_values(
    records: Sequence[Record], table: str, against: Path | None, criteria: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return the numbers of `verification` as plain values: "agrees", as it returns it, and the rows, "checks"."""
    checks = [] if table in _WITHOUT_VALUES else _checks(records, table, against, criteria)
    rows = [
        {
            "table": check.table,
            "method": check.method,
            "category": check.category,
            "metric": check.metric,
            "expected_percent": check.expected,
            "measured_percent": check.measured,
            "difference_points": check.difference,
            "tolerance_points": check.tolerance,
            "agrees": check.agrees,
            "reason": check.reason,
        }
        for check in checks
    ]
    return {"agrees": all_agree(checks), "checks": rows}


def _checks(
    records: Sequence[Record], table: str, against: Path | None, criteria: Mapping[str, Sequence[str]]
) -> list[Check]:
    selected = records_for_table(records, table)
    return list(_rerun_checks(selected, against) if against else _all_published_checks(selected, table, criteria))


def _all_published_checks(
    records: Sequence[Record], table: str, criteria: Mapping[str, Sequence[str]]
) -> Iterator[Check]:
    members = groups(records)
    categories, ks = criteria.get("category", ()), criteria.get("k", ())
    for published in [get_table(table)] if table else TABLES.values():
        columns = method_columns(group for group in members if published.contains(group.first.run))
        rows = [
            row
            for row in published_table_rows(published)
            if (not categories or {*row.averaged} <= {*categories}) and (not ks or str(row.k) in ks)
        ]
        yield from published_checks(published, rows, columns)
    if table in {"", "1"}:
        yield from released_checks(members)


def _rerun_checks(records: Sequence[Record], file: Path) -> Iterator[Check]:
    """Compare each metric of each row of an earlier CSV report with the record of the same run."""
    by_key = {_key(record): record for record in records}
    for row in _read_rows(file):
        record = by_key.get(tuple(row[name] for name in _KEY_COLUMNS))
        k = f" k={row['k']}" if row["k"] != "0" else ""
        for metric in METRICS:
            previous_value = row.get(f"metrics.{metric}")
            if previous_value:
                value = record.metrics.get(metric) if record else None
                yield Check(
                    table=f"{row['dataset']} {row['protocol']}{k}",
                    method=title_with_selection(row.get("title", row["name"]), row["selection"]),
                    category=f"{row['category']}, seed {row['seed']}",
                    metric=metric,
                    expected=round(100 * float(previous_value), 2),
                    measured=None if value is None else round(100 * value, 2),
                    tolerance=RERUN_TOLERANCE,
                    reason=_rerun_reason(record, metric),
                )


def _key(record: Record) -> tuple[str, ...]:
    """Return the values of the key columns of a CSV report."""
    values = to_row(record)
    return tuple(str(escape_formula(values[name])) for name in _KEY_COLUMNS)


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


def _read_rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV report. Raises BenchError if the file is not a CSV report."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"--against must be an earlier CSV report; {file} cannot be read ({error}).") from error
    csv.field_size_limit(2**31 - 1)  # lists of losses are longer than the default limit
    rows = list(csv.DictReader(io.StringIO(text)))
    missing = [name for name in _KEY_COLUMNS if not rows or name not in rows[0]]
    if missing:
        problem = f"lacks {', '.join(missing)}" if rows else "has no rows"
        raise BenchError(
            f"--against must be an earlier CSV report with the columns {', '.join(_KEY_COLUMNS)}; {file} {problem}. "
            "Make one with `bench report --format csv --out DIR`."
        )
    for row in rows:
        for name, value in row.items():
            if _is_metric(name) and value:
                _check_number(file, name, value)
    return rows


def _is_metric(name: str | None) -> bool:
    return name is not None and name.startswith("metrics.")  # DictReader names surplus cells None


def _check_number(file: Path, name: str, value: str) -> None:
    try:
        float(value)
    except ValueError as error:
        raise BenchError(
            f"Metrics of the CSV report for --against must be numbers; {file} has '{value}' as {name}. "
            "Write it as 0.98, or use the original file of `bench report`."
        ) from error
