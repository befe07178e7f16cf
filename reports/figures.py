"""All figures of the records with their captions, and which commands would give the others."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.evaluation.summary import groups, topics, unique_names
from bench.record import Record
from bench.report import Figure, FigurePlacement
from bench.store import Store

from .parts import cases, comparisons, curves
from .parts.evidence import gathered
from .parts.gallery import gallery
from .parts.markup import markdown
from .parts.papers import narrowed
from .parts.style import looks
from .parts.tables import Section

SUFFIX = "md"
FIGURES: FigurePlacement = "beside"


def render(records: Sequence[Record], store: Store, figures: Sequence[Figure] = (), table: str = "") -> str:  # noqa: ARG001  the contract
    """A gallery."""
    none = [] if figures else [Section("", ("`bench report --out DIR` draws figures.",))]
    return markdown("maskbench: figures", [*gallery(figures, 1), *none])


def draw(records: Sequence[Record], store: Store, table: str = "") -> list[Figure]:
    """Every figure that the records allow, and a word for every other; of those of one table where it is named."""
    return list(_unlike(_drawn(narrowed(records, table), store)))


def _drawn(records: Sequence[Record], store: Store) -> Iterator[Figure]:
    found = groups(records)
    own = looks(name for members in topics(found).values() for name in unique_names(members))
    for dataset, members in comparisons.datasets(found).items():
        yield comparisons.shots(dataset, members, own)
    for topic, members in topics(found).items():
        evidence = gathered(members, store)
        yield comparisons.speed(topic, members, own)
        yield comparisons.heat(topic, members)
        yield comparisons.critical(topic, members)
        yield comparisons.ablations(topic, members)
        yield curves.epochs(topic, members)
        yield curves.roc(topic, members, evidence, own)
        yield curves.overlap(topic, members, evidence, own)
        for name, group in unique_names(members).items():
            figure = curves.histogram(name, topic, group, evidence) if group.selection == "last" else None
            if figure:
                yield figure
        yield from cases.sheets(topic, members, evidence, store)


def _unlike(figures: Iterator[Figure]) -> Iterator[Figure]:
    """The figures, each under a file name of its own."""
    taken: dict[str, int] = {}
    for figure in figures:
        taken[figure.name] = taken.get(figure.name, 0) + 1
        number = taken[figure.name]
        yield replace(figure, name=f"{figure.name}-{number}") if number > 1 else figure
