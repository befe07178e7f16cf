"""All records as CSV, one row per record, for `pandas.read_csv`, a spreadsheet, or `--verify --against`."""

import csv
import io
import json

from bench.errors import BenchError
from bench.report_format import FigurePlacement, Report, escape_formula
from bench.store import to_row

SUFFIX = "csv"
FIGURES: FigurePlacement = "none"


def render(report: Report) -> str:
    """Return one column per value, named as in `Store.to_frame`; lists are JSON, units are fractions, s and bytes.

    Raises: BenchError if the report is an audit or a verification, whose values are not records.
    """
    if report.name in {"audit", "verification"}:
        raise BenchError(
            f"csv writes the records, which excludes --{'audit' if report.name == 'audit' else 'verify'}. "
            "Use --format markdown, html or latex."
        )
    rows = [to_row(record) for record in report.records]
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns) or ["dataset"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: escape_formula(json.dumps(v) if isinstance(v, list) else v) for name, v in row.items()})
    return text.getvalue()
