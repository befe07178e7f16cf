"""Measured against published, or against an earlier CSV of ours, row by row: the reproduction's own test."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.evaluation.summary import METRICS, groups, topics
from bench.record import Record
from bench.report import Figure, FigurePlacement
from bench.store import Store

from .parts.beside import missing
from .parts.checks import VERDICTS, Check, published_checks, released_checks, tabled, verified
from .parts.columns import columns
from .parts.flat import PLACE, flat, guarded, read
from .parts.markup import markdown
from .parts.papers import SAME_WEIGHTS, TABLES, TOLERANCES, asked, narrowed
from .parts.tables import Block, Section

SUFFIX = "md"
FIGURES: FigurePlacement = "never"

AGAINST = 0.5
"""Points that a metric of the same run may move: the settings, images and seed are the same, but training on another
machine rounds otherwise and ends as another seed would (TOLERANCES in parts/papers.py tells what that does)."""


def render(records: Sequence[Record], store: Store, figures: Sequence[Figure] = (), table: str = "") -> str:  # noqa: ARG001  the contract
    """Every published value of a method that ran, beside ours."""
    return verify(records, table)[0]


def verify(records: Sequence[Record], table: str = "", against: Path | None = None) -> tuple[str, bool | None]:
    """The page, and whether all that could be verified agrees; None where nothing could be.

    table: only this one of the paper. against: the CSV of an earlier report instead of what is published.
    """
    if table in {"fig8", "fig9"}:
        return markdown(
            "maskbench: verification", [Section("", (f"{table} has no published values to verify.",))]
        ), None
    own = narrowed(records, table)
    checks = list(_against(own, against) if against else _published(own, table))
    told = Counter(VERDICTS[check.agrees] for check in checks)
    summed = ", ".join(f"{verdict}: {told[verdict]}" for verdict in VERDICTS.values())
    blocks: list[Block] = [*tabled(checks), *([f"Of {len(checks)} rows: {summed}."] if checks else [])]
    if verified(checks) is None:
        none = "no record here is of a method and table of which something is published"
        blocks.append("Nothing could be verified" + ("." if checks else f": {none}."))
    if not against:
        blocks += [tuple(_stated())] if checks else []
        blocks += _unverified(own, table)
    return markdown("maskbench: verification", [Section("", tuple(blocks))]), verified(checks)


def _published(records: Sequence[Record], table: str) -> Iterator[Check]:
    found = groups(records)
    for paper in [asked(table)] if table else TABLES.values():
        own = [group for group in found if paper.holds(group.first.run)]
        yield from published_checks(paper, columns(own))
    if table in {"", "1"}:
        yield from released_checks(found)


def _against(records: Sequence[Record], file: Path) -> Iterator[Check]:
    """Each metric of each earlier row against the record of the same run."""
    now = {tuple(str(guarded(flat(record)[name])) for name in PLACE): record for record in records}
    for row in read(file):
        record = now.get(tuple(row[name] for name in PLACE))
        k = f" k={row['k']}" if row["k"] != "0" else ""
        oracle = " (oracle)" if row["selection"] == "oracle" else ""
        for metric in METRICS:
            earlier = row.get(f"metrics.{metric}")
            if earlier:
                value = record.metrics.get(metric) if record else None
                failed = "it failed" if record and record.failure else ""
                gone = "" if record else "no such run here: not done, or its settings or images are others"
                yield Check(
                    what=f"{row['dataset']} {row['protocol']}{k}",
                    method=row.get("title", row["name"]) + oracle,
                    category=f"{row['category']}, seed {row['seed']}",
                    metric=metric,
                    expected=round(100 * float(earlier), 2),
                    found=None if value is None else round(100 * value, 2),
                    tolerance=AGAINST,
                    why=failed or gone or ("" if value is not None else "this metric is not there"),
                )


def _stated() -> Iterator[str]:
    for known in (*TOLERANCES, SAME_WEIGHTS):
        yield (
            f"Tolerance of {' and '.join(known.methods)} ({known.selection}), tables {', '.join(known.tables)}: "
            f"{known.category:g} points in a category, {known.mean:g} in the mean over 15. "
            f"Our choice, since the paper states none: {known.source}."
        )


def _unverified(records: Sequence[Record], table: str) -> list[Block]:
    """What ran and has nothing published beside it, and what is published and did not run."""
    found = groups(records)
    ran = [paper for paper in TABLES.values() if any(paper.holds(group.first.run) for group in found)]
    papers = [asked(table)] if table else ran
    lines = []
    for paper in papers:
        own = [group for group in found if paper.holds(group.first.run)]
        alone = [column.title for column in columns(own) if not column.published]
        lines += [f"{paper.number} has no values of {', '.join(alone)}."] if alone else []
        lines += [f"Missing in {paper.number}: `{command}`" for command in missing(paper, own)]
    other = [name for name, members in topics(found).items() if not any(p.holds(members[0].first.run) for p in ran)]
    lines += [f"Nothing is published of {', '.join(other)}."] if other else []
    return [tuple(lines)] if lines else []
