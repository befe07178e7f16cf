"""What Markdown reports share: tables, text that stays text, and the answers behind a record."""

import logging
from collections.abc import Iterable, Sequence

from bench.errors import BenchError
from bench.record import Answers, Record
from bench.store import Store
from bench.summary import Group

_log = logging.getLogger(__name__)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of plain text; the first row is its head."""
    lines = ["| " + " | ".join(escape(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def bullets(lines: Iterable[str]) -> str:
    """A Markdown list of plain text."""
    return "\n".join(f"- {escape(line)}" for line in lines)


def escape(text: str) -> str:
    """One line that holds no HTML, whatever a name holds."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def topics(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """The groups by what their methods can be compared on, as "mvtec · kshot k=4"."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        run = group.first.run
        found.setdefault(f"{run.dataset} · {run.protocol}{f' k={run.k}' if run.k else ''}", []).append(group)
    return found


def points(fraction: float) -> str:
    """A difference in points of a percentage, with its sign."""
    told = f"{100 * fraction:+.2f}"
    return "0.00" if float(told) == 0 else told


def answers(store: Store, record: Record) -> Answers | None:
    """The raw answers of a record; None where none were kept, or where they can't be read, which is told."""
    if "sha256" not in record.stored:
        return None
    try:
        return store.answers(record)
    except BenchError as error:
        _log.warning("%s", error)
        return None
