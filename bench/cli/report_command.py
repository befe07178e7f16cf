"""`bench report`: create tables and figures from the stored records."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from bench import registry
from bench.cli.console import Json, err, load_configuration, out, print_json
from bench.cli.option_parameters import FILES_PANEL, Runs
from bench.errors import BenchError
from bench.report import FIGURES_FOLDER

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from bench.report import Figure, Report

commands = typer.Typer()

CONTENT_PANEL = "Content"

EXAMPLES = """
Examples:

    bench report --out report

    bench report --table 1 --format markdown,latex,csv --out report

    bench report --table 1 --verify

    bench report --verify --against earlier/report.csv

    bench report --audit
"""


@commands.command(epilog=EXAMPLES)
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
            help="Compare with published values; exit code 0 if all agree, 1 if not, 2 if there are none.",
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
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            help="Formats, separated by commas: markdown, html, latex, csv, or a plug-in.",
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
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Create tables and figures from the stored records."""
    from bench.evaluation.summary import groups, rows
    from bench.store import Store

    _check_exclusive_options({"--json": as_json, "--audit": audit, "--verify": verify, "--figures": figures})
    if as_json and (folder is not None or table or formats != "markdown"):
        raise BenchError("--json prints the values of all tables and combines with --runs only. Remove other options.")
    if against and not verify:
        raise BenchError("--against is the file that --verify compares with, and --verify is missing. Add --verify.")
    config = load_configuration()  # also adds the plug-in folders of bench.toml
    store = Store(runs or config.path("runs") or Path("runs"))
    if as_json:
        print_json(rows(groups(store.records())))
        return
    modules = _load_formats(formats, folder)
    content = registry.report_content()
    with err.status("Reading the records ...") as status:
        records, drawn = list(store.records()), []
        if verify:
            document, agrees = content.verification(records, table, against)
        elif audit:
            document, agrees = content.audit(records, store, table), True
        else:
            if _needs_figures(modules, folder):
                status.update("Drawing the figures ...")
                drawn = content.draw_figures(records, store, table)
            status.update("Building the tables ...")
            only_figures = content.figures_only(records, drawn, table) if figures else None
            document, agrees = only_figures or content.results(records, store, drawn, table), True
        texts = {name: module.render(document) for name, module in modules.items()}
    if folder is None:
        typer.echo(next(iter(texts.values())), nl=False)
    else:
        _write_texts(folder, document, modules, texts)
        _write_figures(folder, modules, drawn)
    if not agrees:
        raise typer.Exit(2 if agrees is None else 1)


def _check_exclusive_options(options: dict[str, bool]) -> None:
    """Raise BenchError if several options are given that each replace the report."""
    chosen = [option for option, is_set in options.items() if is_set]
    if len(chosen) > 1:
        raise BenchError(f"{chosen[0]} and {chosen[1]} cannot be combined. Use one of them.")


def _load_formats(formats: str, folder: Path | None) -> "dict[str, ModuleType]":
    names = list(dict.fromkeys(name.strip() for name in formats.split(",")))
    if folder is None and len(names) > 1:
        raise BenchError(f"Only one format can be printed, got {len(names)}. Add --out DIR, or name one format.")
    return {name: registry.load("reports", name) for name in names}


def _needs_figures(modules: "dict[str, ModuleType]", folder: Path | None) -> bool:
    placements = {module.FIGURES for module in modules.values()}
    return "embedded" in placements or ("files" in placements and folder is not None)


def _write_texts(folder: Path, document: "Report", modules: "dict[str, ModuleType]", texts: dict[str, str]) -> None:
    for name, text in texts.items():
        path = folder / f"{document.name}.{modules[name].SUFFIX}"
        _write(folder, {path: text.encode()})
        out.print(f"Written: {escape(str(path))}")


def _write_figures(folder: Path, modules: "dict[str, ModuleType]", figures: "Sequence[Figure]") -> None:
    """Write the image files that the formats link to; example sheets always, because HTML embeds smaller copies."""
    as_files = any(module.FIGURES == "files" for module in modules.values())
    chosen = [figure for figure in figures if as_files or figure.kind == "examples"]
    paths = {
        folder / FIGURES_FOLDER / f"{figure.name}.{suffix}": figure.files[suffix]
        for figure in chosen
        for suffix in figure.files
    }
    _write(folder, paths)
    if paths:
        out.print(f"Written: {len(paths)} figure files in {escape(str(folder / FIGURES_FOLDER))}")


def _write(folder: Path, files: dict[Path, bytes]) -> None:
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise BenchError(
            f"--out must be a writable folder, got {folder} ({error.strerror}). Choose another folder."
        ) from error
