"""`bench merge`: join the stores of several machines."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from bench.cli.console import Json, Quiet, Verbose, load_configuration, out, print_json, spinner
from bench.cli.option_parameters import FILES_PANEL

if TYPE_CHECKING:
    from bench.merge import MergeResult

commands = typer.Typer()

MAX_DIFFERENCES = 6
"""Largest number of differences of a record that are printed; --json has all."""

EXAMPLES = """
Examples:

    bench merge machine1/runs machine2/runs --to merged

    bench merge ~/from-a-colleague/runs
"""


@commands.command(epilog=EXAMPLES)
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of records to read.", metavar="DIR...")],
    *,
    target: Annotated[
        Path | None,
        typer.Option(
            "--to",
            help="Folder of records to write to; it is created if it does not exist.",
            metavar="DIR",
            show_default="[paths] runs",
            rich_help_panel=FILES_PANEL,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,  # noqa: ARG001  handled by its callback
    verbose: Verbose = False,  # noqa: ARG001  handled by its callback
) -> None:
    """Copy the records of other folders into one. Records with different numbers are reported, not overwritten.

    Exit code 0 if all records were copied or are equal, 1 if numbers differ, 2 if a record is damaged.
    """
    from bench.merge import merge_stores

    config = load_configuration()
    destination = target or config.path("runs") or Path("runs")
    with spinner("Merging ..."):
        result = merge_stores(folders, destination)
    if as_json:
        print_json(_to_dict(result))
    else:
        _print_result(result, destination)
    if result.damaged or result.conflicts:
        raise typer.Exit(2 if result.damaged else 1)


def _print_result(result: "MergeResult", destination: Path) -> None:
    for path, folder, differences in result.conflicts:
        out.print(f"[red]different[/red] {escape(str(path))} of {escape(str(folder))}", soft_wrap=True)
        for difference in differences[:MAX_DIFFERENCES]:
            values = f"{_short(difference.recorded)} is kept, {_short(difference.other)} is not copied"
            out.print(f"    {escape(f'{difference.name}: {values}')}", soft_wrap=True)
        if len(differences) > MAX_DIFFERENCES:
            out.print(f"    and {len(differences) - MAX_DIFFERENCES} more; --json prints all")
    for path, reason in result.damaged:
        out.print(f"[red]damaged[/red]   {escape(f'{path}: {reason}')}", soft_wrap=True)
    replaced = f", {result.replaced} failed ones replaced" if result.replaced else ""
    out.print(
        f"{result.added} records added{replaced}, {result.equal} equal, {len(result.conflicts)} different, "
        f"{len(result.damaged)} damaged: {escape(str(destination))}"
    )


def _to_dict(result: "MergeResult") -> dict[str, Any]:
    return {
        "added": result.added,
        "replaced": result.replaced,
        "equal": result.equal,
        "conflicts": [
            {
                "record": str(path),
                "folder": str(folder),
                "differences": [
                    {"name": each.name, "kept": each.recorded, "not_copied": each.other} for each in differences
                ],
            }
            for path, folder, differences in result.conflicts
        ],
        "damaged": [{"record": str(path), "reason": reason} for path, reason in result.damaged],
    }


def _short(value: Any) -> str:
    text = "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
