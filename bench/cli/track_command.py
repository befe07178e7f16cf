"""`bench track`: write stored records to an experiment tracker."""

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from bench.cli.console import Json, Quiet, Verbose, err, load_configuration, out, print_json, progress_bar, runs_folder
from bench.cli.option_parameters import FILES_PANEL, Runs, with_criteria
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.tracking.tracked_run import Tracker

commands = typer.Typer()

EXAMPLES = """
Examples:

    bench track --to mlflow --out mlruns

    bench track --to tensorboard --method aminet,patchcore

    bench track --to wandb-offline --dataset demo
"""


class TrackerName(StrEnum):
    """The trackers."""

    mlflow = "mlflow"
    tensorboard = "tensorboard"
    wandb_offline = "wandb-offline"


@commands.command(epilog=EXAMPLES)
@with_criteria(["method", "dataset", "protocol", "category", "seed", "k"])
def track(
    *,
    name: Annotated[TrackerName, typer.Option("--to", help="Tracker; each needs the extra of its name.")],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder to write to.",
            metavar="DIR",
            show_default="mlruns, or MLFLOW_TRACKING_URI if it is set; tensorboard; wandb in the working folder",
            rich_help_panel=FILES_PANEL,
        ),
    ] = None,
    criteria: dict[str, str],
    runs: Runs = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,  # noqa: ARG001  handled by its callback
) -> None:
    """Write stored records to a tracker: parameters, metrics, curves, files. Later calls add what is new.

    Exit code 2 if a record cannot be written, because one of its files is damaged; the others are written.
    """
    from bench.evaluation.summary import caveats, groups, select_records
    from bench.store import Store
    from bench.tracking.tracked_run import tracked_runs

    store = Store(runs_folder(runs, load_configuration()))
    selection = {key: [value.strip() for value in text.split(",")] for key, text in criteria.items()}
    records = select_records(list(store.records()), selection)
    tracker = _open(name, folder)
    tracked = tracked_runs(
        store, records, lambda record: [note for group in groups([record]) for note in caveats(group)]
    )
    new = [run for run in tracked if not tracker.has(run)]
    problems: list[str] = []
    with progress_bar(f"Writing to {name.value}") as progress:
        for done, run in enumerate(new, start=1):
            try:
                tracker.write(run)
            except BenchError as error:  # the others can be written
                problems.append(f"{run.name}: {error}")
            progress(done, len(new))
    n_written, n_existing = len(new) - len(problems), len(tracked) - len(new)
    if as_json:
        print_json({"tracker": name.value, "n_written": n_written, "n_existing": n_existing, "problems": problems})
    elif not quiet:
        label = "1 record" if n_written == 1 else f"{n_written} records"
        out.print(f"{label} written to {name.value}, {n_existing} already existed.")
    for problem in problems:
        err.print(f"[red]{escape(problem)}[/red]", soft_wrap=True)
    if problems:
        raise typer.Exit(2)


def _open(name: TrackerName, folder: Path | None) -> "Tracker":
    """Return the tracker. Raises BenchError if its package is not installed or it cannot be opened."""
    openers: dict[TrackerName, Callable[[], Tracker]] = {
        TrackerName.mlflow: lambda: _mlflow(folder),
        TrackerName.tensorboard: lambda: _tensorboard(folder or Path("tensorboard")),
        TrackerName.wandb_offline: lambda: _wandb(folder or Path()),
    }
    try:
        return openers[name]()
    except ModuleNotFoundError as error:
        extra = name.value.partition("-")[0]
        raise BenchError(
            f"--to {name.value} needs the package {error.name}, which is not installed: "
            f"pip install 'maskbench[{extra}]'."
        ) from error


def _mlflow(folder: Path | None) -> "Tracker":
    from bench.tracking.mlflow_tracker import MlflowTracker

    return MlflowTracker(folder or (None if os.environ.get("MLFLOW_TRACKING_URI") else Path("mlruns")))


def _tensorboard(folder: Path) -> "Tracker":
    from bench.tracking.tensorboard_tracker import TensorboardTracker

    return TensorboardTracker(folder)


def _wandb(folder: Path) -> "Tracker":
    from bench.tracking.wandb_tracker import WandbOfflineTracker

    return WandbOfflineTracker(folder)
