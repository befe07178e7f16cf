"""A record as one row of plain values, and a table of rows read back."""

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.record import Record

PLACE = ("dataset", "protocol", "k", "name", "variant", "data", "selection", "seed", "category")
"""What tells one row from another: the same method and settings, on the same images, by the same rule and seed."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def flat(record: Record) -> dict[str, Any]:
    """The record's values by the names of `Store.frame`: `dataset`, `settings.epochs`, `metrics.image_auroc`."""
    found = asdict(record)
    return dict(_flat("", found.pop("run") | found))


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [pair for key, each in value.items() for pair in _flat(f"{name}.{key}" if name else key, each)]
    return [(name, value)]


def guarded(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula, behind an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV report. Raises BenchError where the file is none."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"--against takes the CSV of an earlier report; {file} can't be read ({error}).") from error
    csv.field_size_limit(2**31 - 1)  # a list of losses is long
    rows = list(csv.DictReader(io.StringIO(text)))
    lacking = [name for name in PLACE if not rows or name not in rows[0]]
    if lacking:
        raise BenchError(
            f"--against takes the CSV of an earlier report, with the columns {', '.join(PLACE)}; {file} "
            + (f"lacks {', '.join(lacking)}." if rows else "has no rows.")
            + " Make one with bench report --format csv --out DIR."
        )
    for name, value in ((name, value) for row in rows for name, value in row.items() if _metric(name) and value):
        try:
            float(value)
        except ValueError as error:
            told = f"{file} has '{value}' as {name}. Write it as 0.98, or take the file that bench report made."
            raise BenchError(
                f"--against takes the CSV of an earlier report, whose metrics are numbers; {told}"
            ) from error
    return rows


def _metric(name: str | None) -> bool:
    """Whether a column holds a metric; cells beyond the head have no name."""
    return name is not None and name.startswith("metrics.")
