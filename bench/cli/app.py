"""The command line `bench`: assembles the commands; each has one file."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape

from bench.cli import (
    check_command,
    compare_command,
    data_command,
    export_command,
    list_command,
    merge_command,
    predict_command,
    report_command,
    run_command,
    time_command,
    track_command,
)
from bench.cli.console import err, out, reset, set_trust, status
from bench.config.bench_toml import expand_user
from bench.errors import BenchError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
for module in (
    run_command,
    report_command,
    compare_command,
    merge_command,
    list_command,
    data_command,
    check_command,
    time_command,
    predict_command,
    export_command,
    track_command,
):
    app.add_typer(module.commands)


def main() -> None:
    """Run the command line.

    A BenchError is printed in red and ends with exit code 2, Ctrl-C with 130. If results cannot be printed, for
    example on a full disk, the command continues and ends with 2.
    """
    reset()
    stdout = sys.stdout
    try:
        _check_arguments(sys.argv[1:])
        app(args=[_with_home(argument) for argument in sys.argv[1:]])
    except BenchError as error:
        err.print(f"[red]{escape(str(error))}[/red]", soft_wrap=True)  # paths stay whole
        sys.exit(2)
    except OSError as error:
        err.print(f"[red]{escape(_describe(error))}[/red]", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print(run_command.INTERRUPTED)
        sys.exit(130)
    except SystemExit:
        failure = out.failure or status.failure
        if failure is None:
            raise
        err.print(f"[red]stdout must be writable; printing failed: {failure.strerror}. Nothing else is lost.[/red]")
        sys.exit(2)
    finally:
        sys.stdout = stdout  # --json replaces it


def _check_arguments(arguments: Sequence[str]) -> None:
    """Raise BenchError for an argument with a NUL character, or an empty one: an empty path is the working folder."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if "\0" in argument:
            raise BenchError(f"Arguments must have no NUL character, got {argument!r}. Correct it.")
        if not argument or (name.startswith("--") and equals and not value):
            position = name if argument else f"the one after {arguments[index - 1]}" if index else "the first one"
            raise BenchError(f"Arguments must not be empty; {position} is. Is a shell variable unset? Leave it out.")


def _with_home(argument: str) -> str:
    """Return the argument with ~/ at its start or after --option= replaced, which a shell does only at the start."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{equals}{expand_user(value)}" if value == "~" or value.startswith("~/") else argument


def _describe(error: OSError) -> str:
    """Return one sentence about an error of the system, for example for a folder that may be listed but not entered."""
    path = f"{error.filename} must be accessible" if error.filename else "The system must permit the operation"
    return f"{path}: {error.strerror or error}. Change its name or permissions, or name another path."


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
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Trust the plug-ins that bench.toml names, now and later.", callback=set_trust),
    ] = False,
) -> None:
    """Benchmark industrial anomaly detection: fit methods, evaluate them, and compare with published results."""
