"""`bench report`: create tables and figures from the stored records."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from bench import registry
from bench.cli.console import Json, Quiet, Verbose, load_configuration, out, print_json, runs_folder, spinner, status
from bench.cli.option_parameters import FILES_PANEL, Runs, with_criteria
from bench.config.bench_toml import Config, cache_folder
from bench.errors import BenchError
from bench.files import files_below, write_files
from bench.report_format import FIGURES_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import ModuleType

    from bench.record import Record
    from bench.report_format import Figure, ImageSource, Report
    from bench.store import Store

commands = typer.Typer()

CONTENT_PANEL = "Content"

EXAMPLES = """
Examples:

    bench report --method aminet,patchcore --dataset mvtec

    bench report --format html --out report

    bench report --table 1 --format markdown,latex,csv --out report

    bench report --table 1 --verify

    bench report --verify --against earlier/report.csv

    bench report --audit
"""


@commands.command(epilog=EXAMPLES)
@with_criteria(["method", "dataset", "protocol", "category", "seed", "k"])
def report(
    *,
    table: Annotated[
        str,
        typer.Option(
            help="One table or figure of the AMI-Net paper, with measured values: 1, 2, 3, 4, fig8, fig9.",
            metavar="NAME",
            show_default="all results",
            rich_help_panel=CONTENT_PANEL,
        ),
    ] = "",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare with published values; exit code 0 if all agree, 1 if not, 2 if no value could be compared.",
            rich_help_panel=CONTENT_PANEL,
        ),
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            help="With --verify: compare with an earlier report.csv instead.",
            metavar="FILE",
            rich_help_panel=CONTENT_PANEL,
        ),
    ] = None,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit",
            help="Compare the metrics with other implementations of the same metrics.",
            rich_help_panel=CONTENT_PANEL,
        ),
    ] = False,
    figures: Annotated[
        bool,
        typer.Option(
            "--figures", help="Only the figures and their captions; needs --out.", rich_help_panel=CONTENT_PANEL
        ),
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Print all tables: categories, speed, intervals, tests. --out always writes them.",
            rich_help_panel=CONTENT_PANEL,
        ),
    ] = False,
    criteria: dict[str, str],
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            help="Formats, separated by commas: markdown, html, latex, csv, parquet, or a plug-in.",
            metavar="NAME,...",
            rich_help_panel=FILES_PANEL,
        ),
    ] = "markdown",
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder to write to.",
            metavar="DIR",
            show_default="print the report",
            rich_help_panel=FILES_PANEL,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="With --format html: folder of the dataset of these records, whose test images the page shows.",
            metavar="DIR",
            show_default="[paths.data]",
            rich_help_panel=FILES_PANEL,
        ),
    ] = None,
    runs: Runs = None,
    as_json: Json = False,
    quiet: Quiet = False,  # noqa: ARG001  handled by its callback
    verbose: Verbose = False,  # noqa: ARG001  handled by its callback
) -> None:
    """Create tables and figures from the stored records."""
    from bench.evaluation.summary import groups, rows, select_records
    from bench.store import Store

    _check_exclusive_options({"--audit": audit, "--verify": verify, "--figures": figures})
    _check_requirements(
        {
            "--json prints all values. Remove --out, --format, --figures and --full.": as_json
            and (folder is not None or formats != "markdown" or figures or full),
            "--json with --table needs --verify or --audit. Add one of them, or remove --table.": as_json
            and bool(table)
            and not (verify or audit),
            "--against requires --verify. Add --verify.": against is not None and not verify,
        }
    )
    config = load_configuration()  # also adds the plug-in folders of bench.toml
    store = Store(runs_folder(runs, config))
    selection = {name: [value.strip() for value in text.split(",")] for name, text in criteria.items()}
    if as_json:
        records = select_records(_read_records(store), selection)
        if verify:
            verified = registry.report_content().verification_values(records, table, against, selection)
            print_json(verified)
            _exit_unless(verified["agrees"])
        else:
            print_json(
                registry.report_content().audit_values(records, store, table) if audit else rows(groups(records))
            )
        return
    modules = _load_formats(formats, folder)
    shows_images = any(module.FIGURES == "embedded" for module in modules.values())
    _check_requirements(
        {"--data is for the images of a page. Add --format html, or remove it.": data is not None and not shows_images}
    )
    content = registry.report_content()
    is_overview = folder is None and formats == "markdown" and not (full or table or figures)
    with spinner("Reading the records ...") as update_text:
        records = select_records(_read_records(store), selection)
        agrees: bool | None = True
        if verify:
            report, agrees = content.verification(records, table, against, selection)
        elif audit:
            report = content.audit(records, store, table)
        elif is_overview:
            report = content.overview(records)
        else:
            images = _image_source(config, records, data) if shows_images else None
            needs_figures = _needs_figures(modules, folder)
            update_text("Drawing the figures and building the tables ...")
            report = _results(records, store, table, images, needs_figures=needs_figures, only_figures=figures)
            update_text("Writing the report ...")
        texts, paths, errors = _render(report, modules, folder)
    _print(texts, paths)
    if folder is not None:
        _write_figures(folder, modules, report.figures)
    if errors:
        raise BenchError("\n".join(errors))
    _exit_unless(agrees)


def _read_records(store: "Store") -> "list[Record]":
    """Return all records. Raises BenchError if there are files of records and none can be read."""
    records = list(store.records())
    n_files = 0 if records else sum(1 for _ in files_below(store.root, ".json"))
    if n_files:
        raise BenchError(
            f"A report needs a readable record; {store.root} has {n_files} files of records, and none can be read. The "
            f"warnings give the reasons. Pass another --runs, or run bench run again."
        )
    return records


def _exit_unless(agrees: bool | None) -> None:
    """Exit with 1 if values differ, and with 2 if none could be compared."""
    if not agrees:
        raise typer.Exit(2 if agrees is None else 1)


def _print(texts: "Sequence[str]", paths: "Sequence[Path]") -> None:
    for text in texts:
        out.write(text.removesuffix("\n"))
    for path in paths:
        status.print(f"Wrote {escape(str(path))}")


def _results(
    records: "Sequence[Record]",
    store: "Store",
    table: str,
    images: "ImageSource | None",
    *,
    needs_figures: bool,
    only_figures: bool,
) -> "Report":
    """Build the report of all results; images: the reader of test images of a format that shows them."""
    content = registry.report_content()
    rendered_figures = content.draw_figures(records, store, table) if needs_figures else []
    if only_figures:
        return content.figures_only(records, rendered_figures, table)
    galleries = content.list_galleries(records, store, images, table) if images else []
    return content.results(records, store, rendered_figures, table, galleries)


def _check_exclusive_options(options: dict[str, bool]) -> None:
    """Raise BenchError if more than one of the mutually exclusive options is set."""
    set_options = [option for option, is_set in options.items() if is_set]
    if len(set_options) > 1:
        raise BenchError(f"{set_options[0]} and {set_options[1]} cannot be combined. Use one of them.")


def _check_requirements(problems: dict[str, bool]) -> None:
    """Raise BenchError with the first message whose problem exists."""
    for message, exists in problems.items():
        if exists:
            raise BenchError(message)


def _load_formats(formats: str, folder: Path | None) -> "dict[str, ModuleType]":
    names = list(dict.fromkeys(name.strip() for name in formats.split(",")))
    if folder is None and len(names) > 1:
        raise BenchError(f"Only one format can be printed, got {len(names)}. Add --out DIR, or name one format.")
    return {name: registry.load("reports", name) for name in names}


def _image_source(config: Config, records: "Sequence[Record]", data: Path | None) -> "ImageSource":
    """Return the reader of the test images: in `data`, the folders of bench.toml, or the generated demo images.

    Raises BenchError if `data` is not a folder, or if the records belong to several datasets.
    """
    from bench.cli.dataset_images import OWN_IMAGES, DatasetImages

    names = sorted({record.run.dataset for record in records})
    if data is not None and not data.is_dir():
        raise BenchError(f"--data must be the folder of the dataset; {data} does not exist. Name another folder.")
    if data is not None and len(names) > 1:
        raise BenchError(f"--data is the folder of one dataset; the records have {', '.join(names)}. Add --dataset.")
    folders: dict[str, Path] = {}
    for name in names:
        folder = data or config.data(name)
        if folder is None and name.startswith(f"{OWN_IMAGES}-"):
            own_images_folder = config.data(OWN_IMAGES)
            folder = (
                own_images_folder
                if own_images_folder and own_images_folder.resolve().name == name.removeprefix(f"{OWN_IMAGES}-")
                else None
            )
        folders[name] = folder or cache_folder(config) / name
    layout = str(config.tables.get("dataset", {}).get(OWN_IMAGES, {}).get("layout", ""))
    return DatasetImages(folders, layout)


def _needs_figures(modules: "dict[str, ModuleType]", folder: Path | None) -> bool:
    figure_placements = {module.FIGURES for module in modules.values()}
    return "embedded" in figure_placements or ("files" in figure_placements and folder is not None)


def _render(
    report: "Report", modules: "Mapping[str, ModuleType]", folder: Path | None
) -> tuple[list[str], list[Path], list[str]]:
    """Render the report in each format, into files if there is a folder.

    Returns:
        The text to print without a folder, the paths of the files, and the errors of formats that failed.
    """
    texts: list[str] = []
    paths: list[Path] = []
    errors: list[str] = []
    for name, module in modules.items():
        try:
            with registry.plugin_call("reports", name):
                if folder is None:
                    texts.append(_printable(name, module.render(report)))
                    continue
                for path, content in _files(report, module):
                    data = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
                    _write(folder, {folder / path: data})
                    paths.append(folder / path)
        except BenchError as error:
            errors.append(str(error))
    return texts, paths, errors


def _printable(name: str, content: str | bytes) -> str:
    """Return the content of a format as text. Raises BenchError if it is binary."""
    if isinstance(content, bytes):
        raise BenchError(f"--format {name} cannot be printed, because it is not text. Add --out DIR.")
    return str(content)


def _files(report: "Report", module: "ModuleType") -> "Iterator[tuple[str, str | bytes]]":
    """Yield the relative path and the content of each file of a format."""
    if hasattr(module, "render_files"):
        yield from module.render_files(report)
    else:
        content = module.render(report)
        yield f"{report.name}.{module.SUFFIX}", content if isinstance(content, bytes) else str(content)


def _write_figures(folder: Path, modules: "dict[str, ModuleType]", figures: "Sequence[Figure]") -> None:
    """Write the image files that the formats link to; example sheets always, because HTML embeds smaller copies."""
    as_files = any(module.FIGURES == "files" for module in modules.values())
    linked_figures = [figure for figure in figures if as_files or figure.kind == "examples"]
    paths = {
        folder / FIGURES_FOLDER / f"{figure.name}.{suffix}": figure.files[suffix]
        for figure in linked_figures
        for suffix in figure.files
    }
    _write(folder, paths)
    if paths:
        status.print(f"Wrote {len(paths)} figure files to {escape(str(folder / FIGURES_FOLDER))}")


def _write(folder: Path, files: dict[Path, bytes]) -> None:
    try:
        for path, content in files.items():
            write_files({path: content})
    except OSError as error:
        raise BenchError(
            f"--out must be a writable folder, got {folder} ({error.strerror}). Choose another folder."
        ) from error
