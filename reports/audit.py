"""Why two papers' numbers differ for one model: how far each habit of the field moves the means of these records."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.evaluation.metric_variants import AUDITED, METRIC_VARIANTS, VariantResult, audit
from bench.evaluation.summary import METRICS, Group, groups, heading, table_notes
from bench.record import Record
from bench.report import Figure, FigurePlacement
from bench.store import Store

from .parts.markup import markdown
from .parts.papers import narrowed
from .parts.stored import answers
from .parts.tables import Section, Table, points

SUFFIX = "md"
FIGURES: FigurePlacement = "never"

HEAD = ("dialect", "metric", "ours", "theirs", "moves by", "most in a category")


def render(records: Sequence[Record], store: Store, figures: Sequence[Figure] = (), table: str = "") -> str:  # noqa: ARG001  the contract
    """A table for each method under each protocol, after what the dialects mean and where they occur."""
    meanings = [(dialect.name, dialect.meaning, dialect.used_by) for dialect in METRIC_VARIANTS]
    told = (
        "The same answers, judged as other code would. Means over categories in percent, moves in points. "
        "Each habit is applied alone; ours is the exact value."
    )
    listed = Table.of("", ("dialect", "what it does", "where it occurs"), meanings)
    none = () if records else ("There are no records yet. `bench run` makes some.",)
    parts = [_section(group, store) for group in groups(narrowed(records, table))]
    return markdown("maskbench: dialects", [Section("", (told, listed, *none)), *parts])


@dataclass(frozen=True, slots=True)
class _Move:
    """One metric of one category in one dialect, as means over seeds."""

    category: str
    ours: float
    theirs: float

    @property
    def by(self) -> float:
        return self.theirs - self.ours


def _section(group: Group, store: Store) -> Section:
    found: dict[tuple[str, str], dict[str, list[VariantResult]]] = {}
    judged, without, hard = set(), [], []
    for (category, seed), record in sorted(group.records.items()):
        given = answers(store, record)
        if given is None:
            without.append(f"{category}, seed {seed}")
            continue
        judged.add(category)
        if given.soft_masks is None:
            hard.append(f"{category}, seed {seed}")
        for finding in audit(given):
            found.setdefault((finding.dialect, finding.metric), {}).setdefault(category, []).append(finding)
    rows: list[tuple[str, ...]] = []
    for dialect in METRIC_VARIANTS:
        rows += [
            _row(dialect.name, metric, found[dialect.name, metric], len(judged))
            for metric in AUDITED
            if (dialect.name, metric) in found
        ]
    told = [*table_notes(group), *([f"No raw answers: {'; '.join(without)}."] if without else [])]
    if hard:
        told.append(f"An earlier version kept no masks by another filter; --force keeps them: {'; '.join(hard)}.")
    if group.first.run.resolution == "original":
        told.append("Ours is at input size here, as the maps are stored; the record's own is at original resolution.")
    return Section(heading(group), (Table.of("", HEAD, rows), tuple(told)))


def _row(dialect: str, metric: str, categories: dict[str, list[VariantResult]], judged: int) -> tuple[str, ...]:
    moves = [
        _Move(category, float(np.mean([each.ours for each in found])), float(np.mean([each.theirs for each in found])))
        for category, found in categories.items()
    ]
    ours, theirs = (float(np.mean(values)) for values in ([m.ours for m in moves], [m.theirs for m in moves]))
    largest = max(moves, key=lambda move: abs(move.by))
    told = f"{points(largest.by)} ({largest.category})" if points(largest.by) != points(0) else points(0)
    return (
        dialect,
        METRICS[metric] + (f" ({len(moves)} of {judged} categories have it)" if len(moves) < judged else ""),
        f"{100 * ours:.2f}",
        f"{100 * theirs:.2f}",
        points(theirs - ours),
        told,
    )
