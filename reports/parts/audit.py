"""Audit: how much other implementations of the metrics change the means of the records."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.evaluation.metric_variants import AUDITED, METRIC_VARIANTS, VariantResult
from bench.evaluation.metric_variants import audit as audit_predictions
from bench.evaluation.summary import METRICS, Group, groups, heading, table_notes
from bench.record import Record
from bench.report import Report, Section, Table
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


@dataclass(frozen=True, slots=True)
class _Difference:
    """One metric of one category by one variant, as means over seeds."""

    category: str
    exact: float
    variant: float

    @property
    def value(self) -> float:
        return self.variant - self.exact


def _section(group: Group, store: Store) -> Section:
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
    notes = table_notes(group)
    if without_predictions:
        notes.append(f"No stored predictions: {'; '.join(without_predictions)}.")
    if without_soft_masks:
        notes.append(f"No bilinearly resized masks are stored for: {'; '.join(without_soft_masks)}.")
    if group.first.run.resolution == "original":
        notes.append(
            "Exact values are at input size in this table, because maps are stored so; the record is at original size."
        )
    return Section(heading(group), (Table.from_rows("", _HEADER, rows), tuple(notes)))


def _row(variant: str, metric: str, by_category: dict[str, list[VariantResult]], n_evaluated: int) -> tuple[str, ...]:
    differences = [
        _Difference(
            category,
            float(np.mean([result.exact for result in results])),
            float(np.mean([result.value for result in results])),
        )
        for category, results in by_category.items()
    ]
    exact = float(np.mean([difference.exact for difference in differences]))
    value = float(np.mean([difference.variant for difference in differences]))
    largest = max(differences, key=lambda difference: abs(difference.value))
    is_zero = format_points(largest.value) == format_points(0)
    n_values = len(differences)
    fewer = f" (defined in {n_values} of {n_evaluated} categories)" if n_values < n_evaluated else ""
    return (
        variant,
        METRICS[metric] + fewer,
        f"{100 * exact:.2f}",
        f"{100 * value:.2f}",
        format_points(value - exact),
        format_points(0) if is_zero else f"{format_points(largest.value)} ({largest.category})",
    )
