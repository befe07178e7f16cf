"""The records as Markdown tables: what was measured, on what, and what a reader must know beside it."""

from collections.abc import Sequence

from bench.record import Record
from bench.report import Figure, Use
from bench.store import Store
from bench.summary import (
    LATENCY,
    MEAN,
    METRICS,
    Group,
    columns,
    groups,
    heading,
    machine,
    marks,
    milliseconds,
    percent,
)

from .parts.differences import statistics
from .parts.gallery import gallery
from .parts.selection import gaps
from .parts.tables import bullets, escape, table, topics

SUFFIX = "md"
FIGURES: Use = "beside"


def render(records: Sequence[Record], store: Store, figures: Sequence[Figure] = ()) -> str:
    """For each data set and protocol a comparison, its statistics, the selection gap, then each method by category.

    `store` holds the raw answers of the records, of which the statistics are made; `figures` lie beside the text.
    """
    found = groups(records)
    if not found:
        return "# maskbench\n\nThere are no records yet. `bench run` makes some.\n"
    parts = ["# maskbench", "All values in percent, the plain mean over categories; ± is the spread over seeds."]
    for topic, members in topics(found).items():
        parts += [f"## {escape(topic)}", _comparison(members)]
        shown = gallery([figure for figure in figures if figure.topic == topic])
        parts += [section for section in (statistics(members, store), gaps(members), shown) if section]
        for group in members:
            parts += [f"### {escape(heading(group))}", _by_category(group)]
    return "\n\n".join(parts) + "\n"


def _comparison(members: Sequence[Group]) -> str:
    rows = [("method", *METRICS.values(), "latency", "remarks")]
    for group in members:
        oracle = " (oracle)" if group.selection == "oracle" else ""
        cells = [percent(group.cell(MEAN, metric)) if group.records else "failed" for metric in METRICS]
        speed = milliseconds(group.cell(MEAN, LATENCY)) if group.records else "failed"
        failed = [f"{len(group.failed)} failed"] if group.failed else []
        rows.append((group.first.run.title + oracle, *cells, speed, "; ".join([*marks(group), *failed])))
    return table(rows)


def _by_category(group: Group) -> str:
    shown = columns(group)
    rows = [("category", *shown.values(), "latency")]
    for category in (*group.categories, MEAN):
        cells = [percent(group.cell(category, metric)) for metric in shown]
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
    return f"{table(rows)}\n\n{bullets(told)}"
