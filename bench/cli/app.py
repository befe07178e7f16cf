"""The command line: options in, tables out. `run` is here, the rest in cli_*.py. Nothing heavy is imported."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from bench import registry
from bench.cli import list_command, model_commands, report_command, time_command
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
    reset,
    spinner,
    status,
)
from bench.config.plan import make_plan
from bench.errors import BenchError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")

RUN_EXAMPLES = """
Examples:

    bench run --method aminet --protocol kshot --k 4

    bench run --method aminet,patchcore --dataset mvtec --data ~/mvtec --profile paper --protocol one-for-one

    bench run table1 --category bottle,cable --seed 0,1,2

    bench run --method all --protocol kshot --k 2 --set aminet.epochs=50 --dry-run

    bench run --method aminet --over clusters=2,4,8 --over depth=2,4 --one-at-a-time

    bench run --method aminet_jitter --profile code --checkpoint ~/released

    bench run table1 --executor ray --address auto --gpus-per-task 0.5 --timeout 7200
"""


def main() -> None:
    """The console script: what a user can mend is one red line and exit code 2."""
    reset()
    try:
        app()
    except BenchError as error:
        err.print(f"[red]{escape(str(error))}[/red]")
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("Stopped. What was finished is kept: the same command goes on from here.")
        sys.exit(130)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        out.print(version("maskbench"))
        raise typer.Exit


@app.callback()
def _root(
    *, version_asked: Annotated[bool, typer.Option("--version", help="Print it.", callback=_version)] = False
) -> None:
    """maskbench: which industrial anomaly detector works, how fast, and whether the paper's table can be had again."""


@app.command(epilog=RUN_EXAMPLES)
def run(  # noqa: PLR0917  typer makes the options from these
    campaign: Annotated[
        str | None,
        typer.Argument(help="A campaign of bench.toml, as table1.", autocompletion=completer("campaigns")),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="Methods or aliases, separated by commas, or all.", autocompletion=completer("methods")),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="one-for-one, unified or kshot.", autocompletion=completer("protocols"))
    ] = None,
    k: Annotated[str | None, typer.Option(help="Training images a category under kshot: 4, or 2,4,8.")] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="A data set; folder is your own tree of images.", autocompletion=completer("datasets")),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    category: Annotated[str | None, typer.Option(help="Only these categories, separated by commas.")] = None,
    seed: Annotated[str | None, typer.Option(help="Seeds: 0, or 0,1,2. Each is a fit, and under kshot a draw.")] = None,
    limit: Annotated[int | None, typer.Option(help="A quick look: at most so many images a kind.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="demo, code, paper, or one of yours.", autocompletion=completer("profiles"))
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="epochs=50, or aminet.epochs=50.")] = None,
    over: Annotated[list[str] | None, typer.Option(help="Sweep: clusters=2,4, or aminet.stages='1,2;1,2,3'.")] = None,
    one_at_a_time: Annotated[
        bool | None, typer.Option("--one-at-a-time", help="Sweep a key at a time from the defaults, not the product.")
    ] = None,
    selection: Annotated[str | None, typer.Option(help="last, oracle (best on the test set) or both.")] = None,
    every: Annotated[int | None, typer.Option(help="The oracle looks every so many epochs.")] = None,
    preprocessing: Annotated[
        str | None, typer.Option(help="shared (the profile's, for all methods) or paper (of each method's paper).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    compiled: Annotated[bool | None, typer.Option("--compile", help="Compile networks for predictions.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch on the CPU; 0 is torch's own choice.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a predict call.")] = None,
    maps: Annotated[str | None, typer.Option(help="Keep anomaly maps as float16, float32 or none.")] = None,
    calibrate: Annotated[
        float | None, typer.Option(help="Hold good images out and set a threshold at this false positive rate: 0.1.")
    ] = None,
    resolution: Annotated[str | None, typer.Option(help="Judge pixels at input or at original resolution.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder with backbone weights.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Judge the authors' released models: DIR/<category>/AMAE.pth, or one file.")
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of the records.")] = None,
    keep_model: Annotated[bool | None, typer.Option("--keep-model", help="Store the fitted methods.")] = None,
    latency: Annotated[bool | None, typer.Option("--time/--no-time", help="Measure the latency of one image.")] = None,
    executor: Annotated[str | None, typer.Option(help="local, process (a child process) or ray (a cluster).")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds a fit may take; 0 is no limit.")] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster: auto, ray://head:10001; none: start one.")] = None,
    gpus_per_task: Annotated[float | None, typer.Option(help="GPUs a fit on Ray asks for, as 0.5.")] = None,
    ship_data: Annotated[bool | None, typer.Option("--ship-data", help="Send the images to a cluster's nodes.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Only what failed before.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Do again what stands in the store.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and do nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,  # noqa: ARG001  its callback acts
) -> None:
    """Fit methods, judge them, and store a record for each category."""
    known = load_configuration()
    plan = make_plan(
        known,
        registry.names("methods"),
        options={
            "method": method,
            "protocol": protocol,
            "k": k,
            "dataset": dataset,
            "category": category,
            "seed": seed,
            "limit": limit,
            "selection": selection,
            "eval_every": every,
            "preprocessing": preprocessing,
            "device": device,
            "precision": precision,
            "compile": compiled,
            "threads": threads,
            "batch": batch,
            "maps": maps,
            "calibrate": calibrate,
            "resolution": resolution,
            "keep_model": keep_model,
            "time": latency,
            "one_at_a_time": one_at_a_time,
            "executor": executor,
            "timeout": timeout,
            "address": address,
            "gpus_per_task": gpus_per_task,
            "ship_data": ship_data,
        },
        settings=parse_key_values("--set", settings or []),
        sweep=parse_key_values("--over", over or []),
        profile=profile,
        campaign=campaign,
        paths={"data": data, "weights": weights, "runs": runs, "checkpoint": checkpoint},
        command=shlex.join(["bench", *sys.argv[1:]]),
    )
    try:
        with spinner("Listing the data and looking up what is done ..."):
            from bench.cli import progress_display
            from bench.evaluation import summary
            from bench.execution import schedule as walk

            survey = walk.make_schedule(plan, force=force, retry=retry_failed)
        if dry_run:
            print_json(progress_display.plan_dict(plan, survey)) if as_json else progress_display.print_plan(
                out, known, plan, survey
            )
            return
        progress_display.print_header(status, plan, survey)
        if retry_failed and not survey.jobs:
            status.print("Nothing of this plan has failed; without --retry-failed what is missing is done.")
        records = [*survey.existing, *progress_display.run_with_progress(status, plan, survey)]
    except KeyboardInterrupt:
        err.print("Stopped. What was finished is kept: the same command goes on from here.")
        raise typer.Exit(130) from None
    if as_json:
        print_json([summary.to_dict(record) for record in records])
    else:
        progress_display.print_results(out, records)
    if quiet:
        progress_display.print_failures(err, records)
    if not progress_display.print_summary(status, plan, survey, records):
        raise typer.Exit(2)


for other in (list_command, model_commands, report_command, time_command):
    app.add_typer(other.commands)
