"""Fill table cells with values, rank them, and divide wide tables."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace

from bench.evaluation.summary import LATENCY, MEAN, Group, caveats, format_latency, format_percent, missing_reasons
from bench.identity import comparison_key
from bench.report_format import Table, TableCell, TextRun

NO_VALUE = "–"
"""Text of a cell whose value does not exist."""

MISSING = "missing"
"""Text of a cell whose run does not exist."""

FAILED = "failed"
"""Text of a cell whose runs failed."""


# --- Fill ------------------------------------------------------------------------------------------------------------


def value_cell(group: Group, category: str, metric: str) -> TableCell:
    """Return a metric of a category, or of the mean: mean ± standard deviation over seeds.

    The notes of the cell are the caveats of the group; those of an empty cell are the reasons.
    """
    value = group.mean_std(category, metric)
    if value is None:
        categories = group.categories if category == MEAN else [category]
        text = FAILED if group.failed and not group.records else NO_VALUE
        return TableCell.from_text(text, *missing_reasons(group, categories, metric))
    text = format_latency(value) if metric == LATENCY else format_percent(value)
    fewer_seeds = [f"{value.n_seeds} of {len(group.seeds)} seeds"] if value.n_seeds < len(group.seeds) else []
    return TableCell.from_text(text, *caveats(group), *fewer_seeds)


def format_points(fraction: float) -> str:
    """Format a difference of fractions in percentage points with its sign."""
    text = f"{100 * fraction:+.2f}"
    return "0.00" if float(text) == 0 else text


def divide_caveats(caveats_by_name: Mapping[str, Sequence[str]]) -> tuple[list[str], dict[str, list[str]]]:
    """Divide the caveats of several methods into remarks about all of them and notes on single methods.

    Returns:
        The remarks: one sentence of the caveats that all methods share, or none. The notes of each method, which name
        all methods with the same caveat.
    """
    all_caveats = list(caveats_by_name.values())
    shared = [note for note in (all_caveats[0] if all_caveats else ()) if all(note in notes for notes in all_caveats)]
    names_by_note: dict[str, list[str]] = {}
    for name, notes in caveats_by_name.items():
        for note in notes:
            names_by_note.setdefault(note, []).append(name)
    notes_by_name = {
        name: [f"{'; '.join(names_by_note[note])}: {note}" for note in notes if note not in shared]
        for name, notes in caveats_by_name.items()
    }
    return (["; ".join(shared).capitalize() + "."] if shared else []), notes_by_name


# --- Rank ------------------------------------------------------------------------------------------------------------


def rank_cells(cells: Sequence[TableCell], *, lowest: bool = False) -> list[TableCell]:
    """Return comparable cells with the best value bold and the second best underlined, for each text run.

    The best is the highest value, or the lowest. Values with the same printed text have the same rank; fewer than two
    values are not ranked.
    """
    longest = max((len(cell.runs) for cell in cells), default=0)
    texts = [[cell.runs[i].text if i < len(cell.runs) else "" for cell in cells] for i in range(longest)]
    columns = [_rank_texts(column, lowest=lowest) for column in texts]
    return [
        replace(cell, runs=tuple(columns[i][index] for i in range(len(cell.runs)))) for index, cell in enumerate(cells)
    ]


def rank_comparable(cells: Sequence[TableCell], keys: Sequence[Hashable], *, lowest: bool = False) -> list[TableCell]:
    """Return cells that are ranked as `rank_cells` does, each among those with the same key."""
    ranked = list(cells)
    for key in dict.fromkeys(keys):
        indices = [index for index, each in enumerate(keys) if each == key]
        for index, cell in zip(indices, rank_cells([cells[i] for i in indices], lowest=lowest), strict=True):
            ranked[index] = cell
    return ranked


def ranking_key(group: Group, categories: Sequence[str]) -> Hashable:
    """Return what must be equal for a ranking over these categories: protocol, evaluation, images and selection."""
    fingerprints = group.first.run.data_fingerprints
    images = tuple((category, fingerprints.get(category)) for category in categories)
    return comparison_key(group.first.run), group.dataset, group.selection, images


def _rank_texts(texts: Sequence[str], *, lowest: bool) -> list[TextRun]:
    numbers = [leading_number(text) for text in texts]
    distinct = sorted({number for number in numbers if number is not None}, reverse=not lowest)
    best, second = [*distinct, None, None][:2] if sum(number is not None for number in numbers) > 1 else (None, None)
    return [
        TextRun(text, bold=number is not None and number == best, underlined=number is not None and number == second)
        for text, number in zip(texts, numbers, strict=True)
    ]


def leading_number(text: str) -> float | None:
    """Return the number at the start of a printed value, for example 98.7 of "98.7 ± 0.2"; None if there is none."""
    try:
        return float(text.split(maxsplit=1)[0].replace("−", "-"))
    except (ValueError, IndexError):
        return None


# --- Divide ----------------------------------------------------------------------------------------------------------


def split_by_column_group(table: Table) -> list[Table]:
    """Return one table per column group, each with the first column; the remarks follow the first table."""
    if not table.column_groups:
        return [table]
    parts: list[Table] = []
    start = 1
    for name, count in table.column_groups:
        title = f"{table.title}: {name}" if table.title else name
        part = replace(table, title=title, column_groups=(), remarks=() if parts else table.remarks)
        parts.append(select_columns(part, range(start, start + count)))
        start += count
    return parts


def select_columns(table: Table, columns: Iterable[int]) -> Table:
    """Return the table with its first column and these columns only."""
    indices = (0, *columns)
    header, *rows = (tuple(row[i] for i in indices) for row in (table.header, *table.rows))
    return replace(table, header=header, rows=tuple(rows))


def columns_per_line(widths: Sequence[int], max_width: int) -> list[range]:
    """Divide the columns after the first into as few parts of about equal size as possible, each fitting a line.

    widths: characters of each column, the first one included, which every part repeats.
    """

    def divide(size: int) -> list[range]:
        return [range(i, min(i + size, len(widths))) for i in range(1, len(widths), size)]

    def fits(parts: list[range]) -> bool:
        return all(sum(widths[i] + 3 for i in (0, *part)) < max_width for part in parts)

    size = next((size for size in range(len(widths) - 1, 1, -1) if fits(divide(size))), 1)
    balanced = -(-(len(widths) - 1) // len(divide(size)))
    return divide(balanced) if fits(divide(balanced)) else divide(size)
