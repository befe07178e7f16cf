"""The contents of reports: what `bench.report_format.ReportContent` declares, for any format."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.evaluation.group_names import benchmark_name, by_benchmark, groups_by_unique_name
from bench.evaluation.summary import LATENCY, MEAN, Group, groups, latency_conditions, table_metrics
from bench.record import Record
from bench.report_format import Block, Figure, Gallery, ImageSource, Report, Section, Table, TableCell
from bench.store import Store

from . import comparison_figures, curve_figures
from .ablations import ablation_tables, figure9_section
from .audit import audit, audit_values
from .benchmark_tables import calibration_table, overview_table, resource_tables
from .few_shot import by_few_shot_dataset, few_shot_figure, few_shot_rows, few_shot_table
from .gallery import make_galleries
from .paper_tables import build_table, dataset_rows, figure8_section, method_columns
from .picture_figures import example_sheets, mask_figure
from .prediction_data import bootstrap_by_category, collect_figure_data
from .published import TABLES, averaged_categories, get_table, published_timings, records_for_table, tables_of_runs
from .published_comparison import compare_with_published
from .run_comparison import comparison, comparison_values
from .statistics_tables import Samples, interval_table, selection_gap, statistics_section
from .style import method_styles
from .tables import value_cell
from .unified_drop import by_unified_dataset, unified_drop_blocks, unified_drop_figure
from .verification import verification, verification_values

__all__ = [
    "audit",
    "audit_values",
    "comparison",
    "comparison_values",
    "draw_figures",
    "figures_only",
    "list_galleries",
    "overview",
    "results",
    "verification",
    "verification_values",
]

MAX_PIXEL_BOOTSTRAP = 24
"""Largest number of records with bootstrapped pixel metrics, which take about a second per record."""

_TITLE = "maskbench"
_NO_RECORDS = "There are no records yet. `bench run` creates some."
_INTRODUCTION = "All values are in percent, averaged over categories; ± is the standard deviation over seeds."
_TEXTURES = {"mvtec": averaged_categories("average_texture", TABLES["1"].file)}
"""The categories that the papers call textures, by dataset."""

_FIGURE_KINDS = {"4": "k", "fig8": "speed", "fig9": "ablation"}
"""The `Figure.kind` that belongs to a table or figure of the paper."""


# --- Figures ---------------------------------------------------------------------------------------------------------


def draw_figures(records: Sequence[Record], store: Store, table: str) -> list[Figure]:
    """Draw every figure of the records; a figure that cannot be drawn has no files and states the reason."""
    return list(_with_unique_names(_figures(groups(records_for_table(records, table)), store, table)))


def _figures(members: Sequence[Group], store: Store, table: str) -> Iterator[Figure]:
    benchmarks = by_benchmark(members)
    few_shot = by_few_shot_dataset(members)
    styles = method_styles(
        (
            *(name for benchmark_groups in benchmarks.values() for name in groups_by_unique_name(benchmark_groups)),
            *(row.name for dataset_groups in few_shot.values() for row in few_shot_rows(dataset_groups)),
        )
    )
    for dataset, dataset_groups in few_shot.items():
        yield few_shot_figure(dataset, dataset_groups, styles)
    for dataset, dataset_groups in by_unified_dataset(members).items():
        yield unified_drop_figure(dataset, dataset_groups)
    for benchmark, benchmark_groups in benchmarks.items():
        data = collect_figure_data(benchmark_groups, store)
        is_figure8 = table == "fig8" or TABLES["1"].has_protocol_of(benchmark_groups[0].first.run)
        published = published_timings() if is_figure8 else []
        yield comparison_figures.speed_figure(benchmark, benchmark_groups, styles, published)
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
        masks = mask_figure(benchmark, benchmark_groups, data, store)
        yield from [masks] if masks else []
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
    rendered_figures = [figure for figure in figures if figure.files and figure.kind != "examples"]
    sheets = [figure for figure in figures if figure.files and figure.kind == "examples"]
    missing = [figure for figure in figures if not figure.files]
    sections = [Section(figure.title, (figure,), level) for figure in rendered_figures]
    sections += [Section("Example images", tuple(sheets), level)] if sheets else []
    return [*sections, *([Section("Figures without data", tuple(missing), level)] if missing else [])]


# --- Results ---------------------------------------------------------------------------------------------------------


def overview(records: Sequence[Record]) -> Report:
    """Build the table of means per dataset and protocol, and name the commands that print more."""
    members = groups(records)
    if not members:
        return Report("report", _TITLE, (Section("", (_NO_RECORDS,)),), ())
    few_shot = {dataset: few_shot_table(in_dataset) for dataset, in_dataset in by_few_shot_dataset(members).items()}
    over_k = [Section(f"{dataset} · k-shot", (table,)) for dataset, table in few_shot.items() if table]
    others = [group for group in members if not (group.first.run.k and few_shot[group.dataset])]
    sections = [Section("", (_INTRODUCTION,)), *over_k]
    for name, in_benchmark in by_benchmark(others).items():
        seeds = ", ".join(map(str, sorted({seed for group in in_benchmark for seed in group.seeds})))
        sections.append(Section(name, (overview_table(in_benchmark), f"Seeds: {seeds}.")))
    sections += _unified_sections(members, [])
    more = (
        "`bench report --full` prints categories, speed, intervals and tests;",
        "`bench report --format html --out report` writes a page with figures and images.",
    )
    return Report("report", _TITLE, (*sections, Section("", (" ".join(more),))), tuple(records))


def list_galleries(records: Sequence[Record], store: Store, images: ImageSource, table: str) -> list[Gallery]:
    """List the test images of each category; nothing is read before `Gallery.read`."""
    return make_galleries(groups(records_for_table(records, table)), store, images)


def results(
    records: Sequence[Record],
    store: Store,
    figures: Sequence[Figure],
    table: str,
    galleries: Sequence[Gallery] = (),
) -> Report:
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
        sections = [Section("", (_NO_RECORDS,))]
    name = f"table{table}" if table.isdigit() else table or "report"
    return Report(name, _TITLE, tuple(sections), tuple(selected), tuple(figures), tuple(galleries))


def _paper_section(table: str, members: Sequence[Group]) -> Section:
    if table == "fig8":
        return figure8_section(members)
    return figure9_section(members) if table == "fig9" else compare_with_published(get_table(table), members)


def _all_sections(members: Sequence[Group], store: Store, figures: Sequence[Figure]) -> list[Section]:
    pixels = sum(len(group.records) for group in members) <= MAX_PIXEL_BOOTSTRAP
    introduction = [_INTRODUCTION]
    if not pixels:
        introduction.append(
            f"With more than {MAX_PIXEL_BOOTSTRAP} records, pixel metrics have no intervals over test images."
        )
    sections = [Section("", tuple(introduction))]
    tables_with_records = tables_of_runs(group.first.run for group in members)
    sections += [compare_with_published(published, members) for published in tables_with_records]
    for dataset, dataset_groups in by_few_shot_dataset(members).items():
        if over_k := few_shot_table(dataset_groups):
            sections.append(Section(f"{dataset} · k-shot", (over_k,)))
            sections += _drawn_sections("k", dataset, figures)
    sections += _unified_sections(members, figures)
    benchmarks = by_benchmark(members)
    for benchmark, benchmark_groups in benchmarks.items():
        groups_by_name = groups_by_unique_name(benchmark_groups)
        samples = {name: bootstrap_by_category(group, store, pixels=pixels) for name, group in groups_by_name.items()}
        sections.append(Section(benchmark, _benchmark_tables(benchmark_groups)))
        sections += [*statistics_section(benchmark_groups, samples), *selection_gap(benchmark_groups)]
        sections += _figure_sections([figure for figure in figures if figure.benchmark == benchmark])
        sections += [_category_section(name, group, samples[name]) for name, group in groups_by_name.items()]
    across = [figure for figure in figures if figure.benchmark not in benchmarks and not figure.files]
    return [*sections, *([Section("Across protocols", ()), *_figure_sections(across)] if across else [])]


def _unified_sections(members: Sequence[Group], figures: Sequence[Figure]) -> list[Section]:
    """Return the table and the figure of the drop of unified models for each dataset that has both protocols."""
    sections = []
    for dataset, dataset_groups in by_unified_dataset(members).items():
        if blocks := unified_drop_blocks(dataset_groups):
            sections.append(Section(f"{dataset} · unified against one-for-one", tuple(blocks)))
            sections += _drawn_sections("unified", dataset, figures)
    return sections


def _drawn_sections(kind: str, dataset: str, figures: Sequence[Figure]) -> list[Section]:
    """Return the section of the figure over several protocols of a dataset; empty if it is not drawn."""
    drawn = [figure for figure in figures if (figure.kind, figure.benchmark) == (kind, dataset) and figure.files]
    return _figure_sections(drawn)


def _benchmark_tables(members: Sequence[Group]) -> tuple[Block, ...]:
    """Return the tables that compare the methods of one dataset and protocol."""
    run = members[0].first.run
    is_published = any(published.contains(run) and published.ks == (0,) for published in TABLES.values())
    rows = dataset_rows(members, _TEXTURES.get(run.dataset, ()))
    by_category = [] if is_published or len(rows) <= 2 else [build_table("By category", rows, method_columns(members))]
    calibration = calibration_table(groups_by_unique_name(members))
    return (overview_table(members), *by_category, *calibration, *resource_tables(members), *ablation_tables(members))


def _category_section(name: str, group: Group, samples: Samples) -> Section:
    metrics = table_metrics(group) | {LATENCY: LATENCY}
    has_mean = len(group.categories) > 1
    rows: list[tuple[str | TableCell, ...]] = [
        (category, *(value_cell(group, category, metric) for metric in metrics))
        for category in (*group.categories, *([MEAN] if has_mean else []))
    ]
    run = group.first.run
    settings = ", ".join(f"{name}={value}" for name, value in run.settings.items())
    sentences = [
        f"Seeds: {', '.join(map(str, group.seeds))}. Profile: {run.profile}. Latency: {latency_conditions(group)}.",
        f"Settings: `{settings}`.",
        *(f"Failed: {record.category}, seed {record.run.seed}: {record.failure}" for record in group.failed),
        f"Command: `{group.first.command}`",
    ]
    rules_after = [len(rows) - 2] if has_mean else []
    table = Table.from_rows("", ("category", *metrics.values()), rows, rules_after=rules_after)
    return Section(f"{name} · {benchmark_name(group)}", (table, *interval_table(group, samples), tuple(sentences)), 2)
