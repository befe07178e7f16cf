"""The records as Markdown tables: what was measured, on what, and what a reader must know beside it."""

from collections.abc import Sequence

from bench.record import Record
from bench.summary import LATENCY, MEAN, METRICS, Group, groups, heading, machine, marks, milliseconds, percent

SUFFIX = "md"


def render(records: Sequence[Record]) -> str:
    """A comparison for each data set and protocol, then a table by category for each method."""
    found = groups(records)
    if not found:
        return "# maskbench\n\nThere are no records yet. `bench run` makes some.\n"
    parts = ["# maskbench", "All values in percent, the plain mean over categories; ± is the spread over seeds."]
    topics: dict[str, list[Group]] = {}
    for group in found:
        topics.setdefault(heading(group).split(" · ", 1)[1], []).append(group)
    for topic, members in topics.items():
        parts += [f"## {_escape(topic)}", _comparison(members)]
        for group in members:
            parts += [f"### {_escape(heading(group))}", _by_category(group)]
    return "\n\n".join(parts) + "\n"


def _comparison(members: Sequence[Group]) -> str:
    rows = [("method", *METRICS.values(), "latency", "remarks")]
    for group in members:
        oracle = " (oracle)" if group.selection == "oracle" else ""
        cells = [percent(group.cell(MEAN, metric)) if group.records else "failed" for metric in METRICS]
        speed = milliseconds(group.cell(MEAN, LATENCY)) if group.records else "failed"
        failed = [f"{len(group.failed)} failed"] if group.failed else []
        rows.append((group.first.run.title + oracle, *cells, speed, "; ".join([*marks(group), *failed])))
    return _table(rows)


def _by_category(group: Group) -> str:
    rows = [("category", *METRICS.values(), "latency")]
    for category in (*group.categories, MEAN):
        cells = [percent(group.cell(category, metric)) for metric in METRICS]
        rows.append((category, *cells, milliseconds(group.cell(category, LATENCY))))
    run = group.first.run
    seeds = ", ".join(str(seed) for seed in sorted({seed for _, seed in group.records}))
    settings = ", ".join(f"{name}={value}" for name, value in run.settings.items())
    told = [
        f"Seeds: {seeds}. Profile: {run.profile}. {machine(group)}.",
        f"Settings: `{settings}`.",
        *(f"**{mark}**" for mark in marks(group)),
        *(f"Failed: {record.category}, seed {record.run.seed}: {record.failure}" for record in group.failed),
        f"Command: `{group.first.command}`",
    ]
    return _table(rows) + "\n\n" + "\n".join(f"- {_escape(line.replace(chr(10), ' '))}" for line in told)


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(_escape(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _escape(text: str) -> str:
    """Keeps names from becoming HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
