"""The commands that read what is stored: `bench report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from bench import registry
from bench.cli.console import Json, err, load_configuration, out, print_json
from bench.errors import BenchError
from bench.report import FIGURES_FOLDER

if TYPE_CHECKING:
    from bench.store import Store

commands = typer.Typer()

STANDALONE = {"audit", "figures", "verify"}
"""Reports that are files of their own, beside report.md."""


EXAMPLES = """
Examples:

    bench report --out report

    bench report --table 1 --format markdown,latex,csv --out report

    bench report --table 1 --verify

    bench report --verify --against earlier/report.csv

    bench report --audit
"""


@commands.command(epilog=EXAMPLES)
def report(  # noqa: PLR0917  typer makes the options from these
    runs: Annotated[Path | None, typer.Option(help="Folder of the records.")] = None,
    form: Annotated[
        str, typer.Option("--format", help="Of reports/: markdown, html, latex, csv, figures, audit. Several: a,b.")
    ] = "markdown",
    to: Annotated[Path | None, typer.Option("--out", help="Folder to write to; none: print.")] = None,
    table: Annotated[
        str,
        typer.Option(help="Only this table or figure of the AMI-Net paper, ours beside it: 1, 2, 3, 4, fig8, fig9."),
    ] = "",
    verify: Annotated[
        bool, typer.Option("--verify", help="Instead: measured against published; exit code 0 where all of it agrees.")
    ] = False,
    against: Annotated[
        Path | None, typer.Option(help="With --verify: an earlier report.csv in the place of what is published.")
    ] = None,
    audit: Annotated[bool, typer.Option("--audit", help="Instead: how far the field's habits move each mean.")] = False,
    as_json: Json = False,
) -> None:
    """Make tables of the records in the store."""
    from bench.evaluation.summary import groups, rows
    from bench.store import Store

    _alone({"--json": as_json, "--audit": audit, "--verify": verify}, form)
    if as_json and (to is not None or table):
        raise BenchError("--json prints the cells of all tables, for scripts; it goes with --runs only.")
    if against and not verify:
        raise BenchError("--against names what --verify compares with; there is no --verify. Add it.")
    store = Store(runs or load_configuration().path("runs") or Path("runs"))
    if as_json:
        print_json(rows(groups(store.records())))
        return
    if verify:
        _verify(store, table, against, to)
        return
    _render(store, ["audit"] if audit else form.split(","), table, to)


def _alone(asked: dict[str, bool], form: str) -> None:
    """Raises BenchError where two things are asked for that are reports of their own."""
    own = [option for option, given in asked.items() if given] + ([f"--format {form}"] if form != "markdown" else [])
    if len(own) > 1 and any(asked.values()):
        raise BenchError(f"{own[0]} is a report of its own; {own[1]} is another. Give one of them.")


def _render(store: "Store", asked: list[str], table: str, to: Path | None) -> None:
    """Prints the report in one format, or writes it in each into a folder, the figures beside it."""
    forms = list(dict.fromkeys(name.strip() for name in asked))
    if to is None and len(forms) > 1:
        raise BenchError(f"One format can be printed; --format names {len(forms)}. Add --out DIR, or name one.")
    modules = {name: registry.load("reports", name) for name in forms}
    uses = {module.FIGURES for module in modules.values()}
    with err.status("Reading the records ...") as status:
        records, drawn = list(store.records()), []
        if "inside" in uses or ("beside" in uses and to):
            status.update("Drawing the figures ...")
            drawn = registry.load("reports", "figures").draw(records, store, table)
        status.update("Writing ...")
        texts = {name: module.render(records, store, drawn, table) for name, module in modules.items()}
    if to is None:
        typer.echo(texts[forms[0]], nl=False)
        return
    stem = f"table{table}" if table.isdigit() else table or "report"
    for name, text in texts.items():
        path = to / f"{name if name in STANDALONE else stem}.{modules[name].SUFFIX}"
        _write(to, {path: text.encode()})
        out.print(f"Written: {escape(str(path))}")
    beside = [figure for figure in drawn if "beside" in uses or figure.kind == "sheet"]  # a page makes sheets smaller
    files = [(f"{figure.name}.{kind}", figure.files[kind]) for figure in beside for kind in figure.files]
    _write(to, {to / FIGURES_FOLDER / name: content for name, content in files})
    if files:
        out.print(f"Written: {len(files)} files of figures below {escape(str(to / FIGURES_FOLDER))}")


def _verify(store: "Store", table: str, against: Path | None, to: Path | None) -> None:
    """Exit code 1 where a value differs, 2 where nothing could be verified."""
    with err.status("Verifying ..."):
        text, agrees = registry.load("reports", "verify").verify(list(store.records()), table, against)
    if to is None:
        typer.echo(text, nl=False)
    else:
        path = to / "verify.md"
        _write(to, {path: text.encode()})
        out.print(f"Written: {escape(str(path))}")
    if not agrees:
        raise typer.Exit(2 if agrees is None else 1)


def _write(to: Path, files: dict[Path, bytes]) -> None:
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise BenchError(f"--out names a folder that can be written to; {to} is none ({error.strerror}).") from error
