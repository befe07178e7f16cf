"""`bench run`: fit and evaluate methods."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

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
from bench.cli.option_parameters import (
    COMMAND_PANEL,
    FILES_PANEL,
    Data,
    Profile,
    Runs,
    Set,
    Sweep,
    Weights,
    with_options,
)
from bench.config.bench_toml import Config
from bench.config.options import OPTIONS
from bench.config.plan import Plan, make_plan
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.execution.schedule import Schedule

commands = typer.Typer()

INTERRUPTED = (
    "Interrupted. The records so far are saved; the same command continues from there, and an interrupted fit from its "
    "last checkpoint."
)
INTERRUPTED_FORCED = (
    "Interrupted. The records so far are saved; with --force, the same command computes all of them again."
)

EXAMPLES = """
Examples:

    bench run --method aminet --protocol kshot --k 4

    bench run --method aminet,patchcore --dataset mvtec --data ~/mvtec --profile paper --protocol one-for-one

    bench run table1 --category bottle,cable --seed 0,1,2

    bench run --method all --protocol kshot --k 2 --set aminet.epochs=50 --dry-run

    bench run --method aminet --sweep clusters=2,4,8 --sweep depth=2,4 --one-at-a-time

    bench run --method aminet_jitter --profile code --checkpoint ~/released

    bench run table1 --executor ray --address auto --gpus-per-task 0.5 --timeout 7200

    bench run --reproduce gear.json --data ~/mvtec
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
        bool, typer.Option("--retry-failed", help="Run only what failed before.", rich_help_panel=COMMAND_PANEL)
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Compute again the runs whose records are in the store.", rich_help_panel=COMMAND_PANEL
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the plan with the origin of every value; run nothing.",
            rich_help_panel=COMMAND_PANEL,
        ),
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(
            "--reproduce",
            help="Repeat this record, or all of a folder, and compare: exit code 0 if the metrics agree, 1 if not. "
            "The new records are kept only with --runs.",
            metavar="PATH",
            rich_help_panel=COMMAND_PANEL,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,  # noqa: ARG001  handled by its callback
) -> None:
    """Fit methods, evaluate them, and store a record per category. Records that exist are not computed again."""
    config = load_configuration()
    paths = {"data": data, "weights": weights, "runs": runs, "checkpoint": checkpoint}
    command = shlex.join(["bench", *sys.argv[1:]])
    if record is not None:
        _check_only_reproduces({"a campaign": campaign, "--profile": profile, "--set": settings, "--sweep": sweep})
        _check_only_reproduces({"--dry-run": dry_run, "--retry-failed": retry_failed})
        _reproduce(config, record, options=options, paths=paths, command=command, force=force, as_json=as_json)
    plan = make_plan(
        config,
        registry.names("methods"),
        options=options,
        settings=parse_key_values("--set", settings or []),
        sweep=parse_key_values("--sweep", sweep or []),
        profile=profile,
        campaign=campaign,
        paths=paths,
        command=command,
    )
    try:
        with spinner("Listing the data and the existing records ..."):
            from bench.cli import progress_display
            from bench.evaluation import summary
            from bench.execution.schedule import make_schedule

            schedule, problem = None, ""
            try:
                schedule = make_schedule(plan, force=force, retry=retry_failed)
            except BenchError as error:
                if not dry_run:
                    raise
                problem = str(error)
        if dry_run:
            _print_plan(config, plan, schedule, problem, as_json=as_json)
            return
        assert schedule is not None
        progress_display.print_header(status, plan, schedule)
        if retry_failed and not schedule.jobs:
            status.print("No run of this plan has failed. Without --retry-failed, missing runs are computed.")
        records = [*schedule.existing, *progress_display.run_with_progress(status, plan, schedule)]
    except KeyboardInterrupt:
        err.print(INTERRUPTED_FORCED if force else INTERRUPTED)
        raise typer.Exit(130) from None
    if as_json:
        print_json([summary.to_dict(record) for record in records])
    else:
        progress_display.print_results(out, records)
    if quiet:
        progress_display.print_failures(err, records)
    if not progress_display.print_summary(status, plan, schedule, records):
        raise typer.Exit(2)


def _print_plan(config: Config, plan: Plan, schedule: "Schedule | None", problem: str, *, as_json: bool) -> None:
    from bench.cli import plan_display

    if as_json:
        print_json(plan_display.plan_dict(plan, schedule, problem))
    else:
        plan_display.print_plan(out, config, plan, schedule, problem)


def _check_only_reproduces(values: dict[str, Any]) -> None:
    """Raise BenchError for what cannot be combined with --reproduce: the record determines it."""
    for name, value in values.items():
        if value:
            raise BenchError(f"--reproduce cannot be combined with {name}: the record determines the run. Remove it.")


def _reproduce(config: Config, record: Path, **arguments: Any) -> NoReturn:
    """Repeat the record and exit: with 0 if the numbers agree, with 1 if not."""
    from bench.cli.reproduction_display import reproduce

    raise typer.Exit(0 if reproduce(config, record, **arguments) else 1)
