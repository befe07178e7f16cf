"""A record as one CSV row, and a CSV report read back."""

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.record import Record

KEY_COLUMNS = ("dataset", "protocol", "k", "name", "group_hash", "data_digest", "selection", "seed", "category")
"""The columns that identify a row: method, settings, images, selection rule and seed."""

_FORMULA_START = ("=", "+", "-", "@", "\t", "\r")
_HOW_TO_MAKE = "Make one with `bench report --format csv --out DIR`."


def flatten(record: Record) -> dict[str, Any]:
    """Return the values of a record by the column names of `Store.to_frame`: `dataset`, `settings.epochs`, ..."""
    values = asdict(record)
    return dict(_flatten("", values.pop("run") | values))


def _flatten(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [pair for key, part in value.items() for pair in _flatten(f"{name}.{key}" if name else key, part)]
    return [(name, value)]


def escape_formula(value: Any) -> Any:
    """Prefix text that a spreadsheet would evaluate as a formula with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_START) else value


def read_rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV report. Raises BenchError if the file is not a CSV report."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"--against must be an earlier CSV report; {file} cannot be read ({error}).") from error
    csv.field_size_limit(2**31 - 1)  # lists of losses are longer than the default limit
    rows = list(csv.DictReader(io.StringIO(text)))
    missing = [name for name in KEY_COLUMNS if not rows or name not in rows[0]]
    if missing:
        problem = f"lacks {', '.join(missing)}" if rows else "has no rows"
        raise BenchError(
            f"--against must be an earlier CSV report with the columns {', '.join(KEY_COLUMNS)}; {file} {problem}. "
            + _HOW_TO_MAKE
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
