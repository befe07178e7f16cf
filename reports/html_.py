"""The report as one HTML page: no network, no server, embedded images, and all text from the data escaped."""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from bench.evaluation.summary import (
    LATENCY,
    METRICS,
    Group,
    by_benchmark,
    caveats,
    groups,
    groups_by_unique_name,
    table_metrics,
)
from bench.record import Record
from bench.report import Figure, FigurePlacement, Report, Section, Table, TableCell, TextRun

from .parts.example_sheets import LEGEND, SELECTION_RULE
from .parts.tables import leading_number, value_cell

SUFFIX = "html"
FIGURES: FigurePlacement = "embedded"

MAX_SHEET_BYTES = 12_000_000
"""Largest total size of the example sheets in a page; if they are larger, they are scaled down."""

MIN_SCALE = 0.4
"""Smallest scale of an example sheet; instead of a smaller scale, sheets are omitted."""

_MIME_TYPES = {"svg": "image/svg+xml", "png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
_MAX_LISTED_IMAGES = 16
"""Largest number of training images that are listed by name."""


def render(report: Report) -> str:
    """Return the page: results, figures, tables, examples of each category, details of the runs, explanations."""
    views = _group_views(report.records)
    page, style, script = (_read_part(f"page.{suffix}") for suffix in ("html", "css", "js"))
    images, size_note = embed_figures(report.figures)
    sheets = [figure for figure in report.figures if figure.kind == "examples"]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"sort_value": sort_value, "runs": _runs_with_separators, "code": _split_code}
    return environment.from_string(page).render(
        title=report.title,
        style=style,
        script=script,
        policy=_content_security_policy(style, script),
        facts=_facts(report.records, views),
        caveats=[note for note in (views[0].caveats if views else []) if all(note in view.caveats for view in views)],
        results=_results_table(views),
        benchmarks=list(dict.fromkeys(view.benchmark for view in views)),
        figures=[(figure, images.get(figure.name, "")) for figure in report.figures if figure.kind != "examples"],
        parts=_parts(report.sections),
        views=views,
        images=images,
        sheet_names={(figure.benchmark, figure.title): figure.name for figure in sheets},
        max_listed_images=_MAX_LISTED_IMAGES,
        selection_rule=SELECTION_RULE,
        image_notes=[LEGEND, size_note],
    )


def _read_part(name: str) -> str:
    return (files("bench.reports") / "parts" / name).read_text("utf-8")


# --- Groups ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _GroupView:
    """A group with its unique name in its benchmark, and what the page shows of it."""

    name: str
    benchmark: str
    group: Group

    @property
    def run(self) -> Any:
        return self.group.first.run

    @property
    def caveats(self) -> list[str]:
        return caveats(self.group)

    @property
    def anchor(self) -> str:
        """The id of its details in the page."""
        run = self.run
        key = (self.group.dataset, run.protocol, run.k, run.name, run.group_hash, self.group.selection)
        return "m" + sha256(repr(key).encode()).hexdigest()[:10]

    @property
    def records(self) -> dict[str, list[Record]]:
        """All records by category, sorted by seed; failed ones included."""
        by_category: dict[str, list[Record]] = {category: [] for category in self.group.categories}
        for record in (*self.group.records.values(), *self.group.failed):
            by_category[record.category].append(record)
        return {
            category: sorted(records, key=lambda record: record.run.seed) for category, records in by_category.items()
        }

    @property
    def table_metrics(self) -> Mapping[str, str]:
        return table_metrics(self.group)

    @property
    def shared_info(self) -> list[tuple[str, str]]:
        """What all records of the group share."""
        first, run = self.group.first, self.run
        oracle = "best epoch on the test set (oracle)"
        info = {
            "method": f"methods/{run.method}.py, as {run.name}",
            "data set": self.group.dataset,
            "protocol": f"{run.protocol}{f', k = {run.k}' if run.k else ''}",
            "selection": "last epoch" if self.group.selection == "last" else oracle,
            "seeds": ", ".join(map(str, self.group.seeds)),
            "profile": f"{run.profile}{f' ({run.profile_note})' if run.profile_note else ''}",
            "precision": run.precision,
            "weights": ", ".join(f"{name} {value}" for name, value in run.file_hashes.items()) or "none",
            "commit": first.commit or "unknown",
            "started": first.started or "unknown",
        }
        details = {**first.environment, **first.method_info}
        return [*info.items(), *((name, _text(value)) for name, value in details.items())]

    @property
    def settings(self) -> list[tuple[str, str, str]]:
        """Every setting and preprocessing value, with its origin."""
        origin, run = self.group.first.origin, self.run
        rows = [(name, _text(value), origin.get(f"settings.{name}", "")) for name, value in run.settings.items()]
        preprocessing = origin.get("preprocessing", "")
        rows += [(f"preprocessing {name}", _text(value), preprocessing) for name, value in run.preprocessing.items()]
        return rows


def _group_views(records: Sequence[Record]) -> list[_GroupView]:
    return [
        _GroupView(name, benchmark, group)
        for benchmark, members in by_benchmark(groups(records)).items()
        for name, group in groups_by_unique_name(members).items()
    ]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _facts(records: Sequence[Record], views: Sequence[_GroupView]) -> list[tuple[str, str]]:
    """Return (value, name) of the numbers in the header."""
    days = sorted({record.started[:10] for record in records if record.started})
    categories = {(view.group.dataset, category) for view in views for category in view.records}
    counts = {
        ("record", "records"): len(records),
        ("method", "methods"): len({view.run.title for view in views}),
        ("category", "categories"): len(categories),
        ("seed", "seeds"): len({record.run.seed for record in records}),
    }
    return [
        *((str(count), singular if count == 1 else plural) for (singular, plural), count in counts.items()),
        (str(sum(bool(record.failure) for record in records)), "failed"),
        *([(days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}", "measured")] if days else []),
    ]


def _results_table(views: Sequence[_GroupView]) -> Table:
    """Return one row per method and category; the caveats are notes of the method's name."""
    rows: list[tuple[str | TableCell, ...]] = []
    for view in views:
        for category, records in view.records.items():
            seeds = ", ".join(str(record.run.seed) for record in records)
            cells = [value_cell(view.group, category, metric) for metric in (*METRICS, LATENCY)]
            cells = [TableCell(cell.runs, tuple(n for n in cell.notes if n not in view.caveats)) for cell in cells]
            rows.append((view.benchmark, TableCell.from_text(view.name, *view.caveats), category, seeds, *cells))
    header = ("data set · protocol", "method", "category", "seeds", *METRICS.values(), LATENCY)
    return Table.from_rows("", header, rows)


# --- Figures ---------------------------------------------------------------------------------------------------------


def embed_figures(figures: Sequence[Figure]) -> tuple[dict[str, str], str]:
    """Return the data URI of each figure by its name, and a note about sheets that were scaled down or omitted."""
    sheets = {figure.name: figure.files["jpg"] for figure in figures if "jpg" in figure.files}
    plots = [figure for figure in figures if figure.kind != "examples" and figure.files]
    uris = {figure.name: _plot_uri(figure.files) for figure in plots}
    total = sum(map(len, sheets.values()))
    if total <= MAX_SHEET_BYTES:
        sheet_uris = {name: _data_uri("jpg", content) for name, content in sheets.items()}
        return uris | sheet_uris, "Images are shown at their stored size."
    scale = max((MAX_SHEET_BYTES / total) ** 0.5, MIN_SCALE)
    remaining, n_omitted = MAX_SHEET_BYTES, 0
    for name, content in sheets.items():
        scaled = _scaled(content, scale)
        if len(scaled) > remaining:
            n_omitted += 1
            continue
        remaining -= len(scaled)
        uris[name] = _data_uri("webp", scaled)
    note = f"Example sheets are shown at {scale:.0%} of their size, which limits the size of this page. "
    note += f"{n_omitted} of {len(sheets)} sheets are omitted. " if n_omitted else ""
    return uris, note + "With --out, figures/ contains them at full size."


def _plot_uri(content_by_suffix: Mapping[str, bytes]) -> str:
    suffix = next(suffix for suffix in _MIME_TYPES if suffix in content_by_suffix)
    return _data_uri(suffix, content_by_suffix[suffix])


def _data_uri(suffix: str, content: bytes) -> str:
    return f"data:{_MIME_TYPES[suffix]};base64,{b64encode(content).decode()}"


def _scaled(content: bytes, scale: float) -> bytes:
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        file = io.BytesIO()
        image.resize(size, Image.Resampling.BOX, reducing_gap=2).save(file, "WEBP", quality=70, method=1)
    return file.getvalue()


# --- Template --------------------------------------------------------------------------------------------------------


def _parts(sections: Sequence[Section]) -> list[tuple[Section, list[Section]]]:
    """Return each part of the report with its sections; the page shows figures elsewhere, so they are left out."""
    parts: list[tuple[Section, list[Section]]] = []
    for section in sections:
        if section.blocks and all(isinstance(block, Figure) for block in section.blocks):
            continue
        if section.level == 1 or not parts:
            parts.append((section, []))
        else:
            parts[-1][1].append(section)
    return [part for part in parts if part[0].blocks or part[1]]


def sort_value(cell: TableCell) -> str:
    """Return what a column is sorted by: the number at the start of the cell, or its text."""
    number = leading_number(cell.text.replace("/", " "))
    return cell.text if number is None else repr(number)


def _runs_with_separators(cell: TableCell) -> list[tuple[TextRun, str]]:
    """Return the runs of a cell, each with the separator before it."""
    return [(run, cell.separator if index else "") for index, run in enumerate(cell.runs)]


def _split_code(text: str) -> list[tuple[str, bool]]:
    """Return the text in parts, each with whether it is code, which a pair of backticks encloses."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return [(text, False)]
    return [(part, index % 2 == 1) for index, part in enumerate(parts) if part]


def _content_security_policy(style: str, script: str) -> str:
    """Return a policy that allows the page's own style and script and embedded images only."""
    hashes = [b64encode(sha256(text.encode()).digest()).decode() for text in (style, script)]
    return f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
