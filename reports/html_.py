"""The report as one HTML page: no network, no server, embedded images, and all text from the data escaped."""

import io
from base64 import b64encode
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from itertools import islice
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from PIL import Image

from bench.evaluation.group_names import by_benchmark, groups_by_unique_name
from bench.evaluation.summary import LATENCY, METRICS, Group, caveats, format_significant, groups, table_metrics
from bench.record import Record
from bench.report_format import Figure, FigurePlacement, Gallery, Report, Section, Table, TableCell, TextRun

from .parts.benchmark_tables import LEADERBOARD_FILTERS, N_LEADERBOARD_TEXTS, leaderboard_table, overview_table
from .parts.gallery import to_script
from .parts.picture_figures import LEGEND, SELECTION_RULE
from .parts.prediction_data import N_READERS
from .parts.style import with_dark_mode
from .parts.tables import leading_number, value_cell

SUFFIX = "html"
FIGURES: FigurePlacement = "embedded"

MAX_SHEET_BYTES = 12_000_000
"""Largest total size of the example sheets in a page; if they are larger, they are scaled down."""

MIN_SCALE = 0.4
"""Smallest scale of an example sheet; instead of a smaller scale, sheets are omitted."""

MAX_PAGE_BYTES = 50_000_000
"""Largest size of the page; if its galleries do not fit, each except the first has a separate page."""

TEXT_BYTES = 4_000_000
"""Bytes of the page that are reserved for its text."""

MAX_FIRST_BYTES = 10_000_000
"""Largest size of the first gallery if the others have separate pages."""

IMAGES_FOLDER = "images"
"""Folder of the pages of galleries, relative to the page."""

_MIME_TYPES = {"svg": "image/svg+xml", "png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
_MAX_LISTED_IMAGES = 16
"""Largest number of training images that are listed by name."""


def render(report: Report) -> str:
    """Return one page: results, images, figures, statistics, details of the runs, explanations.

    Galleries that do not fit into the page are omitted; `render_files` writes them as separate pages.
    """
    images = embed_figures(report.figures)
    remaining = _gallery_bytes(images[0])
    embedded: dict[str, str] = {}
    for gallery, data in _read_galleries(report.galleries):
        remaining -= len(data)
        if remaining < 0:
            break
        embedded[gallery.name] = data
    return _main_page(report, images, embedded)


def render_files(report: Report) -> Iterator[tuple[str, str]]:
    """Yield the page and, if its galleries are too large for one page, first a page for each except the first."""
    images = embed_figures(report.figures)
    remaining = _gallery_bytes(images[0])
    waiting: dict[str, str] = {}
    paths: dict[str, str] = {}
    by_name = {gallery.name: gallery for gallery in report.galleries}
    for gallery, data in _read_galleries(report.galleries):
        remaining -= len(data)
        waiting[gallery.name] = data
        if remaining < 0:
            first = report.galleries[0].name
            for name in [name for name in waiting if name != first or len(waiting[name]) > MAX_FIRST_BYTES]:
                paths[name] = f"{IMAGES_FOLDER}/{name}.{SUFFIX}"
                yield paths[name], _gallery_page(report, by_name[name], waiting.pop(name))
    yield f"{report.name}.{SUFFIX}", _main_page(report, images, waiting, paths)


def _gallery_bytes(images: Mapping[str, str]) -> int:
    """Return how many bytes of galleries a page with these images may have."""
    return MAX_PAGE_BYTES - TEXT_BYTES - sum(map(len, images.values()))


def _main_page(
    report: Report,
    images_and_note: tuple[Mapping[str, str], str],
    embedded: Mapping[str, str],
    gallery_pages: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the page with the galleries that are embedded, and links to the pages of the others."""
    views = _group_views(report.records)
    images, size_note = images_and_note
    sheets = [figure for figure in report.figures if figure.kind == "examples"]
    style, script = _style_and_script()
    is_statistics = report.name == "report"
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=report.title,
            style=style,
            script=script,
            policy=_content_security_policy(style, script),
            facts=_facts(report.records, views),
            caveats=[
                note for note in (views[0].caveats if views else []) if all(note in view.caveats for view in views)
            ],
            overviews={
                benchmark: overview_table([view.group for view in views if view.benchmark == benchmark])
                for benchmark in dict.fromkeys(view.benchmark for view in views)
            },
            results=_results_table(views),
            leaderboard=leaderboard_table([(view.name, view.group) for view in views if view.group.records]),
            leaderboard_filters=LEADERBOARD_FILTERS,
            n_leaderboard_texts=N_LEADERBOARD_TEXTS,
            benchmarks=list(dict.fromkeys(view.benchmark for view in views)),
            figures=[(figure, images.get(figure.name, "")) for figure in report.figures if figure.kind != "examples"],
            parts=_parts(report.sections),
            are_parts_open=not is_statistics,
            views=views,
            images=images,
            sheet_names={(figure.benchmark, figure.title): figure.name for figure in sheets},
            galleries=report.galleries,
            embedded=embedded,
            gallery_pages=gallery_pages,
            max_listed_images=_MAX_LISTED_IMAGES,
            selection_rule=SELECTION_RULE,
            image_notes=[LEGEND, size_note],
        )
    )


def _gallery_page(report: Report, gallery: Gallery, data: str) -> str:
    style, script = _style_and_script()
    return (
        _environment()
        .get_template("gallery_page.html")
        .render(
            gallery=gallery,
            data=data,
            style=style,
            script=script,
            policy=_content_security_policy(style, script),
            back=f"../{report.name}.{SUFFIX}",
        )
    )


def _read_galleries(galleries: Sequence[Gallery]) -> Iterator[tuple[Gallery, str]]:
    """Yield each gallery with its content as the text of a script element; the next ones are read in the meantime."""
    with ThreadPoolExecutor(N_READERS) as pool:  # decompression and compression release Python's global lock
        pending: deque[Future[str]] = deque()
        remaining = iter(galleries)
        for gallery in galleries:
            pending.extend(pool.submit(_read_gallery, each) for each in islice(remaining, N_READERS - len(pending)))
            yield gallery, pending.popleft().result()


def _read_gallery(gallery: Gallery) -> str:
    return to_script(gallery.read())


def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_read_part),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "sort_value": sort_value,
        "runs": _runs_with_separators,
        "code": _split_code,
        "significant": format_significant,
    }
    return environment


def _style_and_script() -> tuple[str, str]:
    style = _read_part("page.css") + _read_part("gallery.css")
    script = "".join(_read_part(name) for name in ("page.js", "gallery.js", "viewer.js"))
    return style, script


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
            "dataset": self.group.dataset,
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
        details = {name: value for name, value in details.items() if not isinstance(value, list)}  # by epoch
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
    header = ("dataset · protocol", "method", "category", "seeds", *METRICS.values(), LATENCY)
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
    remaining_bytes, n_omitted = MAX_SHEET_BYTES, 0
    for name, content in sheets.items():
        scaled = _scaled(content, scale)
        if len(scaled) > remaining_bytes:
            n_omitted += 1
            continue
        remaining_bytes -= len(scaled)
        uris[name] = _data_uri("webp", scaled)
    note = f"Example sheets are shown at {scale:.0%} of their size, which limits the size of this page. "
    note += f"{n_omitted} of {len(sheets)} sheets are omitted. " if n_omitted else ""
    return uris, note + "With --out, figures/ contains them at full size."


def _plot_uri(content_by_suffix: Mapping[str, bytes]) -> str:
    suffix = next(suffix for suffix in _MIME_TYPES if suffix in content_by_suffix)
    content = content_by_suffix[suffix]
    return _data_uri(suffix, with_dark_mode(content) if suffix == "svg" else content)


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
