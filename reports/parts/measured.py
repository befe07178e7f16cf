"""Our own numbers as entries of a table: each says what a reader must know with it, and an empty one says why."""

from bench.evaluation.summary import LATENCY, MEAN, Group, caveats, milliseconds, missing_reasons, percent

from .tables import NONE, Entry

FAILED = "failed"


def measured(group: Group, category: str, metric: str) -> Entry:
    """A metric of a category (or the mean) as mean ± spread over seeds, with the group's caveats as notes."""
    cell = group.cell(category, metric)
    if cell is None:
        whole = group.categories if category == MEAN else [category]
        return Entry.of(FAILED if group.failed and not group.records else NONE, *missing_reasons(group, whole, metric))
    text = milliseconds(cell) if metric == LATENCY else percent(cell)
    fewer = [f"{cell.seeds} of {len(group.seeds)} seeds"] if cell.seeds < len(group.seeds) else []
    return Entry.of(text, *caveats(group), *fewer)
