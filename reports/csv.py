"""All records flat, a row each, for people's own analysis: `pandas.read_csv`, a spreadsheet, or `--against`."""

import csv
import io
import json
from collections.abc import Sequence

from bench.record import Record
from bench.report import Figure, FigurePlacement
from bench.store import Store

from .parts.flat import flat, guarded
from .parts.papers import narrowed

SUFFIX = "csv"
FIGURES: FigurePlacement = "never"


def render(records: Sequence[Record], store: Store, figures: Sequence[Figure] = (), table: str = "") -> str:  # noqa: ARG001  the contract
    """A column a value, by the names of `Store.frame`; lists are JSON. Values are fractions, seconds and bytes."""
    rows = [flat(record) for record in narrowed(records, table)]
    names = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names) or ["dataset"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: guarded(json.dumps(v) if isinstance(v, list) else v) for name, v in row.items()})
    return text.getvalue()
