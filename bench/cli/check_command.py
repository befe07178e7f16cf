"""`bench check`: check the installation, a method or a dataset."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from bench.cli.console import (
    Json,
    Quiet,
    Verbose,
    load_configuration,
    out,
    print_json,
    progress_bar,
    silence_warnings,
    spinner,
)
from bench.cli.option_parameters import Data

if TYPE_CHECKING:
    from bench.errors import CheckResult

commands = typer.Typer()

EXAMPLES = """
Examples:

    bench check

    bench check patchcore

    bench check mvtec --data ~/mvtec

    bench check ~/parts
"""


@commands.command(epilog=EXAMPLES)
def check(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Name or file of a method, name of a dataset, or folder of images. Default: the installation."
        ),
    ] = None,
    data: Data = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,  # noqa: ARG001  handled by its callback
) -> None:
    """Check the installation, a method against the contract, or a dataset for errors and leaks.

    Exit code 2 if a required check of a method or dataset fails.
    """
    with spinner("Loading ..."):
        from bench.execution import diagnostics

    config = load_configuration()
    if name is None:
        with spinner("Checking ..."):
            results = diagnostics.check_environment(config)
    else:
        silence_warnings()  # warnings are among the results
        with progress_bar(f"Checking {name}") as progress:
            results = diagnostics.check_target(config, name, data, progress)
    if as_json:
        print_json([asdict(result) for result in results])
    else:
        optional_label = "missing" if name is None else "warning"
        print_results(results, optional_label=optional_label, only_problems=quiet)
    if name is not None and any(result.problem and result.required for result in results):
        raise typer.Exit(2)


def print_results(results: "Iterable[CheckResult]", *, optional_label: str, only_problems: bool) -> None:
    """Print a line per check, and below it how to fix what is wrong."""
    for result in results:
        if only_problems and not result.problem:
            continue
        failure = "[red]failed [/red]" if result.required else f"[yellow]{optional_label}[/yellow]"
        label = failure if result.problem else "[green]ok     [/green]"
        out.print(f"{label} {escape(result.requirement)}", soft_wrap=True)
        if result.problem:
            out.print(f"        {escape(result.problem)}", soft_wrap=True)
