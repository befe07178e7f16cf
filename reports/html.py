"""The report as one page for a browser: no network, no server, pictures within it, text from data never markup."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from bench.evaluation.summary import LATENCY, METRICS, Group, caveats, groups, table_metrics, topics, unique_names
from bench.record import Record
from bench.report import Figure, FigurePlacement
from bench.store import Store

from .parts.cases import READING, RULE
from .parts.document import TITLE, document
from .parts.embedding import embedded
from .parts.measured import measured
from .parts.papers import narrowed
from .parts.tables import Entry, Piece, Section, Table

SUFFIX = "html"
FIGURES: FigurePlacement = "inside"


def render(records: Sequence[Record], store: Store, figures: Sequence[Figure] = (), table: str = "") -> str:
    """A page: overview, figures, tables, every category of every method, the runs, how to read it."""
    records = narrowed(records, table)
    found = groups(records)
    by_topic = {topic: unique_names(members) for topic, members in topics(found).items()}
    own = [_Own(name, topic, group) for topic, members in by_topic.items() for name, group in members.items()]
    page, style, script = (_part(f"page.{kind}") for kind in ("html", "css", "js"))
    pictures, told = embedded(figures)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"sortable": _sortable, "pieces": _pieces, "code": _code}
    return environment.from_string(page).render(
        title=TITLE,
        style=style,
        script=script,
        policy=_policy(style, script),
        facts=_facts(records, own),
        caveats=[mark for mark in (own[0].caveats if own else []) if all(mark in each.caveats for each in own)],
        results=_results(own),
        topics=list(topics(found)),
        figures=[(figure, pictures.get(figure.name, "")) for figure in figures if figure.kind != "sheet"],
        sections=_nested(document(records, store, table=table)),
        methods=own,
        sheets={figure.name: pictures[figure.name] for figure in figures if figure.name in pictures},
        sheet_of=_sheet_of(figures),
        metrics=METRICS,
        reading=[RULE, READING, told],
    )


def _part(name: str) -> str:
    return (files("bench.reports") / "parts" / name).read_text("utf-8")


@dataclass(frozen=True, slots=True)
class _Own:
    """A group with the name that it has in its topic, and what the page tells of it."""

    name: str
    topic: str
    group: Group

    @property
    def run(self) -> Any:
        return self.group.first.run

    @property
    def caveats(self) -> list[str]:
        return caveats(self.group)

    @property
    def place(self) -> str:
        """The anchor of its part of the page."""
        run = self.run
        asked = (run.dataset, run.protocol, run.k, run.name, run.variant, self.group.selection)
        return "m" + sha256(repr(asked).encode()).hexdigest()[:10]

    @property
    def records(self) -> dict[str, list[Record]]:
        """By category, by seed; failed ones among them."""
        found: dict[str, list[Record]] = {category: [] for category in self.group.categories}
        for record in (*self.group.records.values(), *self.group.failed):
            found[record.category].append(record)
        return {category: sorted(own, key=lambda record: record.run.seed) for category, own in found.items()}

    @property
    def table_metrics(self) -> Mapping[str, str]:
        return table_metrics(self.group)

    @property
    def once(self) -> list[tuple[str, str]]:
        """What all its records share, in words."""
        first, run = self.group.first, self.run
        chosen = "the last epoch" if self.group.selection == "last" else "the best epoch on the test set (oracle)"
        told = {
            "method": f"methods/{run.method}.py, as {run.name}",
            "protocol": f"{run.protocol}{f', k = {run.k}' if run.k else ''}",
            "selection": chosen,
            "seeds": ", ".join(map(str, self.group.seeds)),
            "profile": f"{run.profile}{f' ({run.note})' if run.note else ''}",
            "precision": run.precision,
            "weights": ", ".join(f"{name} {value}" for name, value in run.inputs.items()) or "none",
            "commit": first.commit or "unknown",
            "started": first.started or "unknown",
        }
        return [
            *told.items(),
            *((name, _plain(value)) for name, value in {**first.environment, **first.method_info}.items()),
        ]

    @property
    def settings(self) -> list[tuple[str, str, str]]:
        """Every setting and value of the preprocessing, and where it came from."""
        origin = self.group.first.origin
        told = [(name, _plain(value), origin.get(f"settings.{name}", "")) for name, value in self.run.settings.items()]
        prepared = self.run.preprocessing.items()
        return told + [
            (f"preprocessing {name}", _plain(value), origin.get("preprocessing", "")) for name, value in prepared
        ]


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _facts(records: Sequence[Record], own: Sequence[_Own]) -> list[tuple[str, str]]:
    """What the page is about, in a line."""
    days = sorted({record.started[:10] for record in records if record.started})
    failed = sum(bool(record.failure) for record in records)
    counts = {
        ("record", "records"): len(records),
        ("method", "methods"): len({each.run.title for each in own}),
        ("category", "categories"): len({(record.run.dataset, record.category) for record in records}),
        ("seed", "seeds"): len({record.run.seed for record in records}),
    }
    return [
        *((str(count), one if count == 1 else many) for (one, many), count in counts.items()),
        (str(failed), "failed"),
        *([(days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}", "measured")] if days else []),
    ]


def _results(own: Sequence[_Own]) -> Table:
    """A row a method and category, to be sorted and filtered, each leading to its details; caveats are at the name."""
    rows: list[tuple[str | Entry, ...]] = []
    for each in own:
        for category in each.group.categories:
            seeds = ", ".join(str(record.run.seed) for record in each.records[category])
            values = [measured(each.group, category, metric) for metric in (*METRICS, LATENCY)]
            bare = [Entry(v.pieces, tuple(note for note in v.notes if note not in each.caveats)) for v in values]
            rows.append((each.topic, Entry.of(each.name, *each.caveats), category, seeds, *bare))
    return Table.of("", ("data · protocol", "method", "category", "seeds", *METRICS.values(), LATENCY), rows)


def _nested(sections: Sequence[Section]) -> list[tuple[Section, list[Section]]]:
    """Each part of the report with what stands below it."""
    parts: list[tuple[Section, list[Section]]] = []
    for section in sections:
        if section.level == 1 or not parts:
            parts.append((section, []))
        else:
            parts[-1][1].append(section)
    return parts


def _sheet_of(figures: Sequence[Figure]) -> dict[tuple[str, str], str]:
    """The sheet of pictures by topic and title, which names method and category."""
    return {(figure.topic, figure.title): figure.name for figure in figures if figure.kind == "sheet" and figure.files}


def _sortable(entry: Entry) -> str:
    """The number that an entry begins with, or its text: what a column is sorted by."""
    first = entry.text.replace("/", " ").split(maxsplit=1)[:1]
    try:
        return repr(float(first[0].replace("−", "-").lstrip("+"))) if first else ""
    except ValueError:
        return entry.text


def _pieces(entry: Entry) -> list[tuple[Piece, str]]:
    """The pieces of an entry, each with what stands before it."""
    return [(piece, entry.joint if place else "") for place, piece in enumerate(entry.pieces)]


def _code(text: str) -> list[tuple[str, bool]]:
    """The text in parts, and whether each is a command or settings: what a pair of backticks encloses."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return [(text, False)]
    return [(part, place % 2 == 1) for place, part in enumerate(parts) if part]


def _policy(style: str, script: str) -> str:
    """What a browser may do with the page: its own style and script, pictures within it, and nothing else."""
    hashes = [b64encode(sha256(text.encode()).digest()).decode() for text in (style, script)]
    return f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
