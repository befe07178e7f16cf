"""The contents of reports: what `bench.report.ReportContent` declares, for any format."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.evaluation.summary import (
    LATENCY,
    MEAN,
    METRICS,
    Group,
    by_benchmark,
    groups,
    groups_by_unique_name,
    heading,
    latency_conditions,
    table_metrics,
)
from bench.record import Record
from bench.report import Block, Figure, Report, Section, Table, TableCell
from bench.store import Store

from . import comparison_figures, curve_figures
from .ablations import ablation_tables, figure9_section
from .audit import audit
from .example_sheets import example_sheets
from .paper_tables import build_table, dataset_rows, method_columns
from .prediction_data import bootstrap_by_category, collect_figure_data
from .published import TABLES, averaged_categories, get_table, records_for_table, tables_of_runs
from .published_comparison import compare_with_published
from .resources import figure8_section, resource_tables
from .statistics_tables import Samples, interval_table, selection_gap, statistics_section
from .style import method_styles
from .tables import rank_cells, value_cell
from .verification import verification

__all__ = ["audit", "draw_figures", "figures_only", "results", "verification"]

MAX_PIXEL_BOOTSTRAP = 24
"""Largest number of records with bootstrapped pixel metrics, which take about a second per record."""

_TITLE = "maskbench"
_TEXTURES = {"mvtec": averaged_categories("average_texture", TABLES["1"].file)}
"""The categories that the papers call textures, by data set."""

_FIGURE_KINDS = {"4": "k", "fig8": "speed", "fig9": "ablation"}
"""The kind of figure that belongs to a table or figure of the paper."""


# --- Figures ---------------------------------------------------------------------------------------------------------


def draw_figures(records: Sequence[Record], store: Store, table: str) -> list[Figure]:
    """Draw every figure of the records; a figure that cannot be drawn has no files and states the reason."""
    return list(_with_unique_names(_figures(groups(records_for_table(records, table)), store)))


def _figures(members: Sequence[Group], store: Store) -> Iterator[Figure]:
    benchmarks = by_benchmark(members)
    styles = method_styles(
        name for benchmark_groups in benchmarks.values() for name in groups_by_unique_name(benchmark_groups)
    )
    for dataset in dict.fromkeys(group.dataset for group in members if group.first.run.k):
        kshot_groups = [group for group in members if group.first.run.k and group.dataset == dataset]
        yield comparison_figures.kshot_figure(dataset, kshot_groups, styles)
    for benchmark, benchmark_groups in benchmarks.items():
        data = collect_figure_data(benchmark_groups, store)
        yield comparison_figures.speed_figure(benchmark, benchmark_groups, styles)
        yield comparison_figures.category_heatmap(benchmark, benchmark_groups)
        yield comparison_figures.critical_difference_diagram(benchmark, benchmark_groups)
        yield comparison_figures.ablation_figure(benchmark, benchmark_groups)
        yield curve_figures.epochs_figure(benchmark, benchmark_groups)
        yield curve_figures.roc_figure(benchmark, benchmark_groups, data, styles)
        yield curve_figures.pro_figure(benchmark, benchmark_groups, data, styles)
        for name, group in groups_by_unique_name(benchmark_groups).items():
            if group.selection == "last":
                figure = curve_figures.score_histogram(name, benchmark, group, data)
                yield from [figure] if figure else []
        yield from example_sheets(benchmark, benchmark_groups, data, store)


def _with_unique_names(figures: Iterator[Figure]) -> Iterator[Figure]:
    counts: dict[str, int] = {}
    for figure in figures:
        counts[figure.name] = counts.get(figure.name, 0) + 1
        count = counts[figure.name]
        yield replace(figure, name=f"{figure.name}-{count}") if count > 1 else figure


def figures_only(records: Sequence[Record], figures: Sequence[Figure], table: str) -> Report:
    """Build a report of all figures and their captions."""
    hint = [] if figures else [Section("", ("Figures are drawn with `--out DIR`.",))]
    selected = tuple(records_for_table(records, table))
    sections = (*_figure_sections(figures, level=1), *hint)
    return Report("figures", f"{_TITLE}: figures", sections, selected, tuple(figures))


def _figure_sections(figures: Sequence[Figure], level: int = 2) -> list[Section]:
    """Return one section per figure, one for all example sheets, and one for the figures that cannot be drawn."""
    drawn = [figure for figure in figures if figure.files and figure.kind != "examples"]
    sheets = [figure for figure in figures if figure.files and figure.kind == "examples"]
    missing = [figure for figure in figures if not figure.files]
    sections = [Section(figure.title, (figure,), level) for figure in drawn]
    sections += [Section("Example images", tuple(sheets), level)] if sheets else []
    return [*sections, *([Section("Figures without data", tuple(missing), level)] if missing else [])]


# --- Results ---------------------------------------------------------------------------------------------------------


def results(records: Sequence[Record], store: Store, figures: Sequence[Figure], table: str) -> Report:
    """Build the tables, statistics and figures of all records, or one table or figure of the paper."""
    selected = records_for_table(records, table)
    members = groups(selected)
    if table:
        kind = _FIGURE_KINDS.get(table)
        sections = [
            _paper_section(table, members),
            *_figure_sections([figure for figure in figures if figure.kind == kind]),
        ]
    elif members:
        sections = _all_sections(members, store, figures)
    else:
        sections = [Section("", ("There are no records yet. `bench run` creates some.",))]
    name = f"table{table}" if table.isdigit() else table or "report"
    return Report(name, _TITLE, tuple(sections), tuple(selected), tuple(figures))


def _paper_section(table: str, members: Sequence[Group]) -> Section:
    if table == "fig8":
        return figure8_section(members)
    return figure9_section(members) if table == "fig9" else compare_with_published(get_table(table), members)


def _all_sections(members: Sequence[Group], store: Store, figures: Sequence[Figure]) -> list[Section]:
    pixels = sum(len(group.records) for group in members) <= MAX_PIXEL_BOOTSTRAP
    introduction = ["All values are in percent, averaged over categories; ± is the standard deviation over seeds."]
    if not pixels:
        introduction.append(
            f"With more than {MAX_PIXEL_BOOTSTRAP} records, pixel metrics have no intervals over test images."
        )
    sections = [Section("", tuple(introduction))]
    tables_with_records = tables_of_runs(group.first.run for group in members)
    sections += [compare_with_published(published, members) for published in tables_with_records]
    benchmarks = by_benchmark(members)
    for benchmark, benchmark_groups in benchmarks.items():
        groups_by_name = groups_by_unique_name(benchmark_groups)
        samples = {name: bootstrap_by_category(group, store, pixels=pixels) for name, group in groups_by_name.items()}
        sections.append(Section(benchmark, _benchmark_tables(benchmark_groups)))
        sections += [*statistics_section(benchmark_groups, samples), *selection_gap(benchmark_groups)]
        sections += _figure_sections([figure for figure in figures if figure.benchmark == benchmark])
        sections += [_category_section(group, samples[name]) for name, group in groups_by_name.items()]
    across = _figure_sections([figure for figure in figures if figure.benchmark not in benchmarks])
    return [*sections, *([Section("Across protocols", ()), *across] if across else [])]


def _benchmark_tables(members: Sequence[Group]) -> tuple[Block, ...]:
    """Return the tables that compare the methods of one data set and protocol."""
    run = members[0].first.run
    is_published = any(published.contains(run) and published.ks == (0,) for published in TABLES.values())
    rows = dataset_rows(members, _TEXTURES.get(run.dataset, ()))
    by_category = [] if is_published or len(rows) <= 2 else [build_table("By category", rows, method_columns(members))]
    return (_comparison_table(members), *by_category, *resource_tables(members), *ablation_tables(members))


def _comparison_table(members: Sequence[Group]) -> Table:
    """Return one row per method; last epochs and oracle epochs are ranked separately."""
    rows: list[tuple[str | TableCell, ...]] = []
    rules_after = []
    for selection in ("last", "oracle"):
        groups_by_name = {
            name: group for name, group in groups_by_unique_name(members).items() if group.selection == selection
        }
        columns = [
            rank_cells([value_cell(group, MEAN, metric) for group in groups_by_name.values()]) for metric in METRICS
        ]
        columns.append(rank_cells([value_cell(group, MEAN, LATENCY) for group in groups_by_name.values()], lowest=True))
        rows += [(name, *(column[i] for column in columns)) for i, name in enumerate(groups_by_name)]
        rules_after.append(len(rows) - 1)
    return Table.from_rows("", ("method", *METRICS.values(), "latency"), rows, rules_after=rules_after)


def _category_section(group: Group, samples: Samples) -> Section:
    metrics = table_metrics(group) | {LATENCY: LATENCY}
    rows: list[tuple[str | TableCell, ...]] = [
        (category, *(value_cell(group, category, metric) for metric in metrics))
        for category in (*group.categories, MEAN)
    ]
    run = group.first.run
    settings = ", ".join(f"{name}={value}" for name, value in run.settings.items())
    sentences = [
        f"Seeds: {', '.join(map(str, group.seeds))}. Profile: {run.profile}. Latency: {latency_conditions(group)}.",
        f"Settings: `{settings}`.",
        *(f"Failed: {record.category}, seed {record.run.seed}: {record.failure}" for record in group.failed),
        f"Command: `{group.first.command}`",
    ]
    table = Table.from_rows("", ("category", *metrics.values()), rows, rules_after=[len(rows) - 2])
    return Section(heading(group), (table, *interval_table(group, samples), tuple(sentences)), 2)
