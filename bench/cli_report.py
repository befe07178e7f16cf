"""The commands that read what is stored: `bench report`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from bench import registry
from bench.console import Json, configured, dump, err, out
from bench.errors import BenchError
from bench.report import FOLDER

commands = typer.Typer()


@commands.command(epilog="Examples:\n\n    bench report --out report\n\n    bench report --audit")
def report(
    runs: Annotated[Path | None, typer.Option(help="Folder of the records.")] = None,
    form: Annotated[str, typer.Option("--format", help="A file in reports/: markdown, audit.")] = "markdown",
    to: Annotated[Path | None, typer.Option("--out", help="Folder to write to; none: print.")] = None,
    audit: Annotated[bool, typer.Option("--audit", help="Instead: how far the field's habits move each mean.")] = False,
    as_json: Json = False,
) -> None:
    """Make tables of the records in the store."""
    from bench.store import Store
    from bench.summary import groups, rows

    if as_json and (audit or to is not None or form != "markdown"):
        raise BenchError("--json prints the cells of all tables, for scripts; it goes with --runs only.")
    if audit and form != "markdown":
        raise BenchError(f"--audit is a report of its own, in Markdown; --format {form} is another. Give one of them.")
    form = "audit" if audit else form
    folder = runs or configured().path("runs") or Path("runs")
    module = registry.load("reports", form)
    store = Store(folder)
    if as_json:
        dump(rows(groups(store.walk())))
        return
    with err.status("Reading the records ...") as status:
        records, drawn = list(store.walk()), []
        if module.FIGURES == "inside" or (module.FIGURES == "beside" and to):
            status.update("Drawing the figures ...")
            drawn = registry.load("reports", "figures").draw(records, store)
        status.update("Judging again ..." if audit else "Writing ...")
        text = module.render(records, store, drawn)
    if to is None:
        out.print(text, markup=False, soft_wrap=True)
        return
    path = to / f"{'audit' if form == 'audit' else 'report'}.{module.SUFFIX}"
    _write(to, {path: text.encode()})
    out.print(f"Written: {escape(str(path))}")
    files = [(f"{figure.name}.{kind}", content) for figure in drawn for kind, content in figure.files.items()]
    _write(to, {to / FOLDER / name: content for name, content in files})
    if files:
        out.print(f"Written: {len(files)} files of figures below {escape(str(to / FOLDER))}")


def _write(to: Path, files: dict[Path, bytes]) -> None:
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise BenchError(f"--out names a folder that can be written to; {to} is none ({error.strerror}).") from error
