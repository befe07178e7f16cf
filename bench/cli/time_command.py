"""`bench time`: measure time and memory of fitted methods."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from bench import registry
from bench.cli.console import (
    Json,
    Quiet,
    Verbose,
    load_configuration,
    out,
    parse_key_values,
    print_json,
    spinner,
    status,
)
from bench.cli.option_parameters import COMMAND_PANEL, Data, Profile, Runs, Set, Weights, with_options
from bench.config.plan import make_plan

if TYPE_CHECKING:
    from bench.record import Record

commands = typer.Typer()

OPTIONS_OF_TIME = (
    "method", "dataset", "protocol", "k", "category", "limit", "device", "precision", "compile", "threads",
    "preprocessing",
)  # fmt: skip

UNSTABLE = " *"
"""Mark of a time whose warm-up ended before the times were stable."""

EXAMPLES = """
Examples:

    bench time --method aminet,patchcore,riad

    bench time --method aminet --profile code --data ~/mvtec --category bottle --device cuda --precision bfloat16
"""


@commands.command(epilog=EXAMPLES)
@with_options(OPTIONS_OF_TIME)
def time(
    *,
    options: dict[str, Any],
    profile: Profile = None,
    settings: Set = None,
    data: Data = None,
    weights: Weights = None,
    runs: Runs = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Fit and measure again methods whose times are stored.", rich_help_panel=COMMAND_PANEL
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,  # noqa: ARG001  handled by its callback
    verbose: Verbose = False,  # noqa: ARG001  handled by its callback
) -> None:
    """Measure one fitted model per method: latency, throughput, memory, FLOPs and parameters.

    A method without a saved model (bench run --keep-model) is fitted first. The times are stored in its record.
    """
    plan = make_plan(
        load_configuration(),
        registry.names("methods"),
        options=options | {"time": True},
        settings=parse_key_values("--set", settings or []),
        profile=profile,
        paths={"data": data, "weights": weights, "runs": runs},
        command=shlex.join(["bench", *sys.argv[1:]]),
    )
    with spinner("Listing the data and the existing records ..."):
        from bench.cli import progress_display
        from bench.execution.schedule import make_schedule

        schedule = make_schedule(plan, force=force, full_timing=True)
    progress_display.print_header(status, plan, schedule)
    records = [*schedule.existing, *progress_display.run_with_progress(status, plan, schedule)]
    timed = [record for record in records if "network" in record.latency]
    if as_json:
        print_json([{"title": record.run.title, "category": record.category, **record.latency} for record in timed])
    elif timed:
        out.print(_build_table(timed))
    if len(timed) < len(records) or schedule.skipped:
        raise typer.Exit(2)


def _build_table(records: Sequence["Record"]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left")
    table.add_column("median ms\n(p5 to p95)", vertical="bottom")
    for record in records:
        heading = record.run.title + (f"\n{record.run.sweep_label}" if record.run.sweep_label else "")
        table.add_column(escape(heading), justify="right", vertical="bottom")
    rows: dict[str, list[str]] = {}
    for record in records:
        for name, cell in _cells(record.latency).items():
            rows.setdefault(name, []).append(cell)
    for name, cells in rows.items():
        table.add_row(escape(name), *cells)
    captions = {record.run.title: _caption(record) for record in records}
    caption = [
        line if all(line in lines for lines in captions.values()) else f"{title}: {line}"
        for title, lines in captions.items()
        for line in lines
    ]
    caption = list(dict.fromkeys(caption))
    if any(cell.endswith(UNSTABLE) for cells in rows.values() for cell in cells):
        caption.append(f"{UNSTABLE.strip()}: the times were not stable at the end of the warm-up")
    table.caption = escape("\n".join(caption))
    return table


def _cells(latency: dict[str, Any]) -> dict[str, str]:
    batches = latency["throughput"]["batches"]
    fastest = max(batches, key=lambda row: row["images_per_second"])
    marks = {name: "" if latency[name]["is_stable"] else UNSTABLE for name in ("network", "loader", "end_to_end")}
    memory = {f"peak {location} memory": f"{count / 1e6:,.0f} MB" for location, count in latency["memory"].items()}
    return {
        **{name.replace("_", " "): _percentiles(latency[name]) + mark for name, mark in marks.items()},
        "throughput": f"{fastest['images_per_second']:.4g} images/s\nat batch size {fastest['batch']}",
        "largest batch measured": f"{batches[-1]['batch']} ({latency['throughput']['stopped_by']})",
        **memory,
        "parameters": f"{latency['parameters'] / 1e6:,.2f} M",
        "state values": f"{latency['state'] / 1e6:,.2f} M",
        "FLOPs per image": f"{latency['flops'] / 1e9:,.2f} G",
    }


def _percentiles(times: dict[str, Any]) -> str:
    return f"{times['median_ms']:.4g} ({times['p5_ms']:.4g} to {times['p95_ms']:.4g})"


def _caption(record: "Record") -> list[str]:
    from bench.evaluation.timing import STAGES

    latency, machine = record.latency, record.latency["environment"]
    plural = "" if machine["threads"] == 1 else "s"
    details = f", {machine['threads']} thread{plural}" if "cuda" not in machine else f", driver {machine['driver']}"
    clocks = f", clocks {machine['clocks']}" if "clocks" in machine else ""
    flags = f"TF32 {machine['tf32']}, cudnn.benchmark {machine['cudnn_benchmark']}"
    n_passes = len(latency["samples_ms"])
    compiled = ", compiled" if record.run.compile else ""
    return [
        f"batch size 1, {n_passes} passes, {record.run.precision}{compiled}",
        f"{machine['device']}{details}{clocks}; {flags}",
        *(f"{name.replace('_', ' ')}: {stage}" for name, stage in STAGES.items()),
        "throughput: images per second of the network; FLOPs as counted by torch, a multiply-add is two",
        "state values: learned and stored numbers; peak memory at batch size 1: of the process, or of torch on a GPU",
    ]
