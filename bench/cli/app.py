"""The command line `bench`: assembles the commands, each of which has a file of its own."""

import sys
from typing import Annotated

import typer
from rich.markup import escape

from bench.cli import (
    check_command,
    export_command,
    list_command,
    predict_command,
    report_command,
    run_command,
    time_command,
)
from bench.cli.console import err, out, reset
from bench.errors import BenchError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
for module in (
    run_command,
    report_command,
    list_command,
    check_command,
    time_command,
    predict_command,
    export_command,
):
    app.add_typer(module.commands)


def main() -> None:
    """Run the command line. A BenchError is printed in red and ends with exit code 2, Ctrl-C with 130."""
    reset()
    try:
        app()
    except BenchError as error:
        err.print(f"[red]{escape(str(error))}[/red]")
        sys.exit(2)
    except KeyboardInterrupt:
        err.print(run_command.INTERRUPTED)
        sys.exit(130)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        out.print(version("maskbench"))
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version)
    ] = False,
) -> None:
    """Benchmark industrial anomaly detection: fit methods, evaluate them, and compare with published results."""
