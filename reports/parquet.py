"""All records as a Parquet table, one row per record, for `pandas.read_parquet`, Polars, DuckDB or Spark."""

import io
import json
from collections.abc import Sequence
from typing import Any

from bench.errors import BenchError
from bench.report_format import FigurePlacement, Report
from bench.store import to_row

SUFFIX = "parquet"
FIGURES: FigurePlacement = "none"

_MAX_EXACT_INTEGER = 2**53
"""Largest integer up to which float64 represents every integer."""


def render(report: Report) -> bytes:
    r"""Return one column per value, named as in `Store.to_frame`; units are fractions, seconds and bytes.

    Columns of numbers, strings, and lists of numbers or of strings have these types. Others, such as settings that are
    a number in one method and a string in another, are JSON strings. Bytes of file names that are not UTF-8 are
    escaped as in CSV: "\udcff".

    Raises: BenchError if the report is an audit or a verification, whose values are not records, or if pyarrow is not
        installed.
    """
    if report.name in {"audit", "verification"}:
        raise BenchError("parquet writes the records, which excludes --audit and --verify. Use another format.")
    try:  # an optional dependency: this module must be importable without it
        import pyarrow as pa
        from pyarrow.parquet import write_table
    except ModuleNotFoundError as error:
        raise BenchError("--format parquet needs pyarrow: pip install 'maskbench[parquet]'.") from error
    rows = [to_row(record) for record in report.records]
    columns = dict.fromkeys(name for row in rows for name in row) or ["dataset"]
    table = pa.table({name: pa.array(_column([row.get(name) for row in rows])) for name in columns})
    file = io.BytesIO()
    write_table(table, file)
    return file.getvalue()


def _column(values: Sequence[Any]) -> Sequence[Any]:
    """Return the values if a Parquet column can have their type, else as JSON strings."""
    present = [value for value in values if value is not None]
    lists = [value for value in present if isinstance(value, list)]
    items = [item for value in lists for item in value]
    if _have_one_type(present) or (len(lists) == len(present) and _have_one_type(items)):
        return [_encodable(value) for value in values]
    return [None if value is None else json.dumps(value) for value in values]


def _have_one_type(values: Sequence[Any]) -> bool:
    """Return whether all values are booleans, all are strings, or all are numbers that one type represents exactly."""
    types = {type(value) for value in values}
    if types == {int, float}:
        return all(abs(value) <= _MAX_EXACT_INTEGER for value in values if type(value) is int)
    return len(types) <= 1 and types <= {bool, int, float, str}


def _encodable(value: Any) -> Any:
    """Return a string, or the strings of a list, with characters that UTF-8 cannot encode as escapes."""
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
