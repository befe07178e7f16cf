"""Audit: how much other implementations of the metrics change the means of the records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.evaluation.group_names import heading
from bench.evaluation.metric_variants import AUDITED, METRIC_VARIANTS, VariantResult
from bench.evaluation.metric_variants import audit as audit_predictions
from bench.evaluation.summary import METRICS, Group, groups, table_notes
from bench.record import Record
from bench.report_format import Report, Section, Table
from bench.store import Store

from .prediction_data import load_predictions
from .published import records_for_table
from .tables import format_points

_HEADER = ("metric variant", "metric", "exact", "variant", "difference", "largest in a category")


def audit(records: Sequence[Record], store: Store, table: str) -> Report:
    """Build one table per method and benchmark, after a table of the metric variants."""
    selected = records_for_table(records, table)
    introduction = (
        "The metrics of the stored predictions as other implementations compute them. Means over categories are in "
        "percent, differences in percentage points. Each variant changes one step; the others are exact."
    )
    variants = [(variant.name, variant.meaning, variant.used_by) for variant in METRIC_VARIANTS]
    list_of_variants = Table.from_rows("", ("metric variant", "definition", "used by"), variants)
    empty = () if selected else ("There are no records yet. `bench run` creates some.",)
    sections = [_section(group, store) for group in groups(selected)]
    first = Section("", (introduction, list_of_variants, *empty))
    return Report("audit", "maskbench: metric variants", (first, *sections), tuple(selected))


def audit_values(records: Sequence[Record], store: Store, table: str) -> list[dict[str, Any]]:
    """Return the numbers of `audit` as plain values: a row per run, metric variant and metric, as fractions."""
    return [
        {
            "name": group.first.run.store_name,
            "group_hash": group.first.run.group_hash,
            "title": group.first.run.title,
            "selection": group.selection,
            "variant": row.variant,
            "metric": row.metric,
            "exact": row.exact,
            "value": row.value,
            "difference": row.value - row.exact,
            "largest_difference": row.largest_difference,
            "category_of_largest": row.category_of_largest,
            "n_categories": row.n_categories,
            "n_evaluated": row.n_evaluated,
        }
        for group in groups(records_for_table(records, table))
        for row in _audit_group(group, store).rows
    ]


@dataclass(frozen=True, slots=True)
class _Row:
    """A metric by a variant, as fractions.

    Attributes:
        variant, metric: names of both.
        exact, value: means over categories of the metric and of its variant.
        largest_difference, category_of_largest: the largest difference of one category.
        n_categories, n_evaluated: number of categories in which the variant is defined, and of all.
    """

    variant: str
    metric: str
    exact: float
    value: float
    largest_difference: float
    category_of_largest: str
    n_categories: int
    n_evaluated: int


@dataclass(frozen=True, slots=True)
class _GroupAudit:
    """The rows of a group, and its records without stored predictions and without bilinearly resized masks."""

    rows: list[_Row]
    without_predictions: list[str]
    without_soft_masks: list[str]


def _audit_group(group: Group, store: Store) -> _GroupAudit:
    results: dict[tuple[str, str], dict[str, list[VariantResult]]] = {}
    evaluated, without_predictions, without_soft_masks = set(), [], []
    for (category, seed), record in sorted(group.records.items()):
        predictions = load_predictions(store, record)
        if predictions is None:
            without_predictions.append(f"{category}, seed {seed}")
            continue
        evaluated.add(category)
        if predictions.soft_masks is None:
            without_soft_masks.append(f"{category}, seed {seed}")
        for result in audit_predictions(predictions):
            results.setdefault((result.variant, result.metric), {}).setdefault(category, []).append(result)
    rows = [
        _row(variant.name, metric, results[variant.name, metric], len(evaluated))
        for variant in METRIC_VARIANTS
        for metric in AUDITED
        if (variant.name, metric) in results
    ]
    return _GroupAudit(rows, without_predictions, without_soft_masks)


def _row(variant: str, metric: str, by_category: dict[str, list[VariantResult]], n_evaluated: int) -> _Row:
    exact = {name: float(np.mean([result.exact for result in results])) for name, results in by_category.items()}
    value = {name: float(np.mean([result.value for result in results])) for name, results in by_category.items()}
    category = max(by_category, key=lambda name: abs(value[name] - exact[name]))
    return _Row(
        variant,
        metric,
        exact=float(np.mean(list(exact.values()))),
        value=float(np.mean(list(value.values()))),
        largest_difference=value[category] - exact[category],
        category_of_largest=category,
        n_categories=len(by_category),
        n_evaluated=n_evaluated,
    )


def _section(group: Group, store: Store) -> Section:
    audited, notes = _audit_group(group, store), table_notes(group)
    if audited.without_predictions:
        notes.append(f"No stored predictions: {'; '.join(audited.without_predictions)}.")
    if audited.without_soft_masks:
        notes.append(f"No bilinearly resized masks are stored for: {'; '.join(audited.without_soft_masks)}.")
    if group.first.run.resolution == "original":
        notes.append(
            "Exact values are at input size in this table, because maps are stored so; the record is at original size."
        )
    rows = [_cells(row) for row in audited.rows]
    return Section(heading(group), (Table.from_rows("", _HEADER, rows), tuple(notes)))


def _cells(row: _Row) -> tuple[str, ...]:
    is_zero = format_points(row.largest_difference) == format_points(0)
    is_partial = row.n_categories < row.n_evaluated
    fewer = f" (defined in {row.n_categories} of {row.n_evaluated} categories)" if is_partial else ""
    return (
        row.variant,
        METRICS[row.metric] + fewer,
        f"{100 * row.exact:.2f}",
        f"{100 * row.value:.2f}",
        format_points(row.value - row.exact),
        format_points(0) if is_zero else f"{format_points(row.largest_difference)} ({row.category_of_largest})",
    )
