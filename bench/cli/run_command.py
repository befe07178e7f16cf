"""`bench run`: fit and evaluate methods."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import registry
from bench.cli.console import (
    Json,
    Quiet,
    Verbose,
    completer,
    err,
    load_configuration,
    out,
    parse_key_values,
    print_json,
    spinner,
    status,
)
from bench.cli.option_parameters import CALL_PANEL, FILES_PANEL, Data, Profile, Runs, Set, Sweep, Weights, with_options
from bench.config.options import OPTIONS
from bench.config.plan import make_plan

commands = typer.Typer()

INTERRUPTED = "Interrupted. Finished records are saved; the same command continues from there."

EXAMPLES = """
Examples:

    bench run --method aminet --protocol kshot --k 4

    bench run --method aminet,patchcore --dataset mvtec --data ~/mvtec --profile paper --protocol one-for-one

    bench run table1 --category bottle,cable --seed 0,1,2

    bench run --method all --protocol kshot --k 2 --set aminet.epochs=50 --dry-run

    bench run --method aminet --sweep clusters=2,4,8 --sweep depth=2,4 --one-at-a-time

    bench run --method aminet_jitter --profile code --checkpoint ~/released

    bench run table1 --executor ray --address auto --gpus-per-task 0.5 --timeout 7200
"""


@commands.command(epilog=EXAMPLES)
@with_options(OPTIONS)
def run(
    campaign: Annotated[
        str | None,
        typer.Argument(
            help="Campaign of bench.toml, for example table1; see `bench list campaigns`.",
            autocompletion=completer("campaigns"),
        ),
    ] = None,
    *,
    options: dict[str, Any],
    profile: Profile = None,
    settings: Set = None,
    sweep: Sweep = None,
    data: Data = None,
    weights: Weights = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint of the authors to evaluate without a fit: a file, or a folder with one per category, "
            "CATEGORY/FILE.",
            metavar="PATH",
            rich_help_panel=FILES_PANEL,
        ),
    ] = None,
    runs: Runs = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run only what failed before.", rich_help_panel=CALL_PANEL)
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Run again what is in the store.", rich_help_panel=CALL_PANEL)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the plan with the origin of every value; run nothing.", rich_help_panel=CALL_PANEL
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,  # noqa: ARG001  handled by its callback
) -> None:
    """Fit methods, evaluate them, and store a record per category. Records that exist are not computed again."""
    config = load_configuration()
    plan = make_plan(
        config,
        registry.names("methods"),
        options=options,
        settings=parse_key_values("--set", settings or []),
        sweep=parse_key_values("--sweep", sweep or []),
        profile=profile,
        campaign=campaign,
        paths={"data": data, "weights": weights, "runs": runs, "checkpoint": checkpoint},
        command=shlex.join(["bench", *sys.argv[1:]]),
    )
    try:
        with spinner("Listing the data and the existing records ..."):
            from bench.cli import plan_display, progress_display
            from bench.evaluation import summary
            from bench.execution.schedule import make_schedule

            schedule = make_schedule(plan, force=force, retry=retry_failed)
        if dry_run:
            if as_json:
                print_json(plan_display.plan_dict(plan, schedule))
            else:
                plan_display.print_plan(out, config, plan, schedule)
            return
        progress_display.print_header(status, plan, schedule)
        if retry_failed and not schedule.jobs:
            status.print("No run of this plan has failed. Without --retry-failed, missing runs are computed.")
        records = [*schedule.existing, *progress_display.run_with_progress(status, plan, schedule)]
    except KeyboardInterrupt:
        err.print(INTERRUPTED)
        raise typer.Exit(130) from None
    if as_json:
        print_json([summary.to_dict(record) for record in records])
    else:
        progress_display.print_results(out, records)
    if quiet:
        progress_display.print_failures(err, records)
    if not progress_display.print_summary(status, plan, schedule, records):
        raise typer.Exit(2)
