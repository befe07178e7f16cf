"""The whole report: what was measured, on what, and what a reader must know beside it, as sections for any format."""

from collections.abc import Mapping, Sequence

from bench.evaluation.statistics import BootstrapSamples
from bench.evaluation.summary import (
    LATENCY,
    MEAN,
    METRICS,
    Group,
    groups,
    heading,
    latency_device,
    table_metrics,
    topics,
    unique_names,
)
from bench.record import Record
from bench.report import Figure
from bench.store import Store

from .ablation import ablations, figure9
from .beside import beside
from .columns import columns as methods
from .columns import form, own_rows
from .differences import statistics
from .drawn import PIXELS, drawn, over_images
from .gallery import gallery
from .measured import measured
from .papers import TABLES, asked, members, narrowed
from .selection import gaps
from .speed import figure8, resources
from .tables import Block, Entry, Section, Table, ranked

TITLE = "maskbench"
TEXTURES = {"mvtec": members("average_texture", TABLES["1"].file)}
"""The categories that the papers call textures, by data set."""


SHOWN = {"4": "k", "fig8": "speed", "fig9": "ablation"}
"""The kind of figure that belongs to a table or figure of the paper."""


def document(records: Sequence[Record], store: Store, figures: Sequence[Figure] = (), table: str = "") -> list[Section]:
    """The papers' tables of which something ran, then for each data set and protocol all that was measured.

    `store` holds the raw answers of the records, of which the statistics are made. `table` is one table or figure of
    the paper; then the report is that alone.
    """
    found = groups(narrowed(records, table))
    if table:
        return [_asked(table, found), *gallery([figure for figure in figures if figure.kind == SHOWN.get(table)])]
    if not found:
        return [Section("", ("There are no records yet. `bench run` makes some.",))]
    pixels = sum(len(group.records) for group in found) <= PIXELS
    told = ["All values in percent, the plain mean over categories; ± is the spread over seeds."]
    if not pixels:
        told.append(f"Pixel metrics have no intervals over test images: they are drawn for {PIXELS} records at most.")
    sections = [Section("", tuple(told))]
    ran = [paper for paper in TABLES.values() if any(paper.holds(group.first.run) for group in found)]
    sections += [beside(paper, found) for paper in ran]
    for topic, own in topics(found).items():
        sections.append(Section(topic, _tables(own)))
        draws = {name: drawn(group, store, pixels=pixels) for name, group in unique_names(own).items()}
        sections += [*statistics(own, draws), *gaps(own)]
        sections += gallery([figure for figure in figures if figure.topic == topic])
        sections += [_by_category(group, draws[name]) for name, group in unique_names(own).items()]
    across = gallery([figure for figure in figures if figure.topic not in topics(found)])
    return [*sections, *([Section("Across protocols", ()), *across] if across else [])]


def _asked(table: str, found: Sequence[Group]) -> Section:
    if table == "fig8":
        return figure8(found)
    return figure9(found) if table == "fig9" else beside(asked(table), found)


def _tables(own: Sequence[Group]) -> tuple[Block, ...]:
    """The methods of one data set and protocol beside one another."""
    dataset = own[0].first.run.dataset
    paper = any(paper.holds(own[0].first.run) and paper.ks == (0,) for paper in TABLES.values())
    rows = own_rows(own, TEXTURES.get(dataset, ()))
    many = not paper and len(rows) > 2
    return (
        _comparison(own),
        *([form("By category", rows, methods(own))] if many else []),
        *resources(own),
        *ablations(own),
    )


def _comparison(members: Sequence[Group]) -> Table:
    """A row a method; the last epochs are ranked among themselves, and the best epochs on the test set too."""
    names = unique_names(members)
    rows: list[tuple[str | Entry, ...]] = []
    ruled = []
    for selection in ("last", "oracle"):
        own = {name: group for name, group in names.items() if group.selection == selection}
        found = [ranked([measured(group, MEAN, metric) for group in own.values()]) for metric in METRICS]
        found.append(ranked([measured(group, MEAN, LATENCY) for group in own.values()], lowest=True))
        rows += [(name, *(column[i] for column in found)) for i, name in enumerate(own)]
        ruled.append(len(rows) - 1)
    return Table.of("", ("method", *METRICS.values(), "latency"), rows, ruled=ruled)


def _by_category(group: Group, draws: Mapping[str, BootstrapSamples]) -> Section:
    shown = table_metrics(group) | {LATENCY: LATENCY}
    rows: list[tuple[str | Entry, ...]] = [
        (own, *(measured(group, own, metric) for metric in shown)) for own in (*group.categories, MEAN)
    ]
    run = group.first.run
    seeds = ", ".join(map(str, group.seeds))
    settings = ", ".join(f"{name}={value}" for name, value in run.settings.items())
    told = [
        f"Seeds: {seeds}. Profile: {run.profile}. {latency_device(group)}.",
        f"Settings: `{settings}`.",
        *(f"Failed: {record.category}, seed {record.run.seed}: {record.failure}" for record in group.failed),
        f"Command: `{group.first.command}`",
    ]
    table = Table.of("", ("category", *shown.values()), rows, ruled=[len(rows) - 2])
    return Section(heading(group), (table, *over_images(group, draws), tuple(told)), 2)
