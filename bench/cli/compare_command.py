"""`bench compare`: two stored runs side by side."""

from typing import Annotated

import typer

from bench import registry
from bench.cli.console import (
    Json,
    Quiet,
    Verbose,
    complete_runs,
    load_configuration,
    out,
    print_json,
    runs_folder,
    spinner,
)
from bench.cli.option_parameters import Runs

commands = typer.Typer()

EXAMPLES = """
Examples:

    bench compare demo/kshot-4/patchcore demo/kshot-4/aminet
"""

_Run = Annotated[
    str,
    typer.Argument(
        help="Run as `bench list runs` prints it; add /HASH if several have the name.",
        metavar="RUN",
        autocompletion=complete_runs,
    ),
]


@commands.command(epilog=EXAMPLES)
def compare(
    first: _Run,
    second: _Run,
    *,
    runs: Runs = None,
    as_json: Json = False,
    quiet: Quiet = False,  # noqa: ARG001  handled by its callback
    verbose: Verbose = False,  # noqa: ARG001  handled by its callback
) -> None:
    """Compare two stored runs: settings, metrics per category, latency, and images on which they disagree."""
    from bench.store import Store

    store = Store(runs_folder(runs, load_configuration()))
    with spinner("Comparing ..."):
        content, records = registry.report_content(), list(store.records())
        if as_json:
            values, text = content.comparison_values(records, store, first, second), ""
        else:
            values, text = (
                {},
                registry.load("reports", "markdown").render(content.comparison(records, store, first, second)),
            )
    if as_json:
        print_json(values)
    else:
        out.write(text.removesuffix("\n"))
