"""The command that measures what fitted methods cost: `bench time`."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from bench import registry
from bench.cli.console import (
    Json,
    Quiet,
    completer,
    load_configuration,
    out,
    parse_key_values,
    print_json,
    spinner,
    status,
)
from bench.config.plan import make_plan

if TYPE_CHECKING:
    from bench.record import Record

commands = typer.Typer()

UNSTEADY = " *"
"""Behind a time whose warm-up ended before it was steady."""

EXAMPLES = """
Examples:

    bench time --method aminet,patchcore,riad

    bench time --method aminet --profile code --data ~/mvtec --category bottle --device cuda --precision bfloat16
"""


@commands.command(epilog=EXAMPLES)
def time(  # noqa: PLR0917  typer makes the options from these
    method: Annotated[
        str | None,
        typer.Option(help="Methods or aliases, separated by commas, or all.", autocompletion=completer("methods")),
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="one-for-one, unified or kshot.")] = None,
    k: Annotated[str | None, typer.Option(help="Training images a category under kshot.")] = None,
    dataset: Annotated[str | None, typer.Option(help="A data set; folder is your own tree of images.")] = None,
    data: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    category: Annotated[str | None, typer.Option(help="Of which a model is timed; the first is the default.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many images a kind.")] = None,
    profile: Annotated[str | None, typer.Option(help="demo, code, paper, or one of yours.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="epochs=50, or aminet.epochs=50.")] = None,
    preprocessing: Annotated[
        str | None, typer.Option(help="shared (the profile's, for all methods) or paper (of each method's paper).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    compiled: Annotated[bool | None, typer.Option("--compile", help="Compile networks for predictions.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch on the CPU; 0 is torch's own choice.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder with backbone weights.")] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of the records.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Fit and measure again what stands in the store.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,  # noqa: ARG001  its callback acts
) -> None:
    """Time one fitted model a method: network, loader, end to end, throughput; memory, FLOPs, parameters.

    It is fitted first where no --keep-model run holds it, and its times are stored in its record.
    """
    said = {"method": method, "protocol": protocol, "k": k, "dataset": dataset, "category": category, "limit": limit}
    said |= {"preprocessing": preprocessing, "device": device, "precision": precision, "threads": threads, "time": True}
    said |= {"compile": compiled}
    plan = make_plan(
        load_configuration(),
        registry.names("methods"),
        options=said,
        settings=parse_key_values("--set", settings or []),
        profile=profile,
        paths={"data": data, "weights": weights, "runs": runs},
        command=shlex.join(["bench", *sys.argv[1:]]),
    )
    with spinner("Listing the data and looking up what is done ..."):
        from bench.cli import progress_display
        from bench.execution import schedule as walk

        survey = walk.make_schedule(plan, force=force, full_timing=True)
    progress_display.print_header(status, plan, survey)
    records = [*survey.existing, *progress_display.run_with_progress(status, plan, survey)]
    timed = [record for record in records if "network" in record.latency]
    if as_json:
        print_json([{"title": record.run.title, "category": record.category, **record.latency} for record in timed])
    elif timed:
        out.print(_table(timed))
    if len(timed) < len(records) or survey.skipped:
        raise typer.Exit(2)


def _table(records: Sequence["Record"]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left")
    table.add_column("median ms\n(p5 to p95)", vertical="bottom")
    for record in records:
        told = record.run.title + (f"\n{record.run.sweep_label}" if record.run.sweep_label else "")
        table.add_column(escape(told), justify="right", vertical="bottom")
    rows: dict[str, list[str]] = {}
    for record in records:
        for name, cell in _cells(record.latency).items():
            rows.setdefault(name, []).append(cell)
    for name, cells in rows.items():
        table.add_row(escape(name), *cells)
    caption = _caption(records[0])
    if any(cell.endswith(UNSTEADY) for cells in rows.values() for cell in cells):
        caption.append(f"{UNSTEADY.strip()}: passes were still unsteady when the warm-up ended")
    table.caption = escape("\n".join(caption))
    return table


def _cells(told: dict[str, Any]) -> dict[str, str]:
    best = max(told["throughput"]["batches"], key=lambda row: row["images_per_second"])
    steady = {name: "" if told[name]["settled"] else UNSTEADY for name in ("network", "loader", "end_to_end")}
    memory = {f"peak {place} memory": f"{count / 1e6:,.0f} MB" for place, count in told["memory"].items()}
    return {
        **{name.replace("_", " "): _spread(told[name]) + mark for name, mark in steady.items()},
        "throughput": f"{best['images_per_second']:.4g} images/s\nat batch {best['batch']}",
        "largest batch tried": f"{told['throughput']['batches'][-1]['batch']} ({told['throughput']['ended']})",
        **memory,
        "parameters": f"{told['parameters'] / 1e6:,.2f} M",
        "learned or kept": f"{told['state'] / 1e6:,.2f} M",
        "FLOPs an image": f"{told['flops'] / 1e9:,.2f} G",
    }


def _spread(told: dict[str, Any]) -> str:
    return f"{told['median_ms']:.4g} ({told['p5_ms']:.4g} to {told['p95_ms']:.4g})"


def _caption(record: "Record") -> list[str]:
    from bench.evaluation.timing import PARTS

    where, told = record.latency["machine"], record.latency
    many = "" if where["threads"] == 1 else "s"
    threads = f", {where['threads']} thread{many}" if "cuda" not in where else f", driver {where['driver']}"
    switches = f"TF32 {where['tf32']}, cudnn.benchmark {where['cudnn_benchmark']}"
    clocks = f", clocks {where['clocks']}" if "clocks" in where else ""
    passes = f"batch 1, {len(told['samples_ms'])} passes, {record.run.precision}" + ", compiled" * record.run.compile
    return [
        f"{passes}, {where['device']}{threads}{clocks}; {switches}",
        *(f"{name.replace('_', ' ')}: {what}" for name, what in PARTS.items()),
        "throughput: the network's; FLOPs as torch counts them, a multiply-add as two",
        "peak memory: of the whole process at batch 1, on the device of torch's tensors",
    ]
