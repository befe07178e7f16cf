"""The commands that use a kept run: `bench predict` and `bench export`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from bench.cli.console import (
    Json,
    Quiet,
    Verbose,
    err,
    load_configuration,
    out,
    print_json,
    progress_bar,
    spinner,
    status,
)
from bench.config.bench_toml import cache_folder
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.deploy.predict import ImagePrediction
    from bench.deploy.saved_model import SavedModel

commands = typer.Typer()

MAX_ROWS = 40
"""The table shows so many images at most, those of highest score; scores.csv has all."""

Run = Annotated[str, typer.Argument(help="A record, its folder, or where it lies in runs/: demo/kshot-4/aminet/gear.")]
Category = Annotated[str | None, typer.Option(help="Which of the run's categories.")]
Runs = Annotated[Path | None, typer.Option(help="Folder of the records.")]
Weights = Annotated[Path | None, typer.Option(help="Folder with backbone weights.")]

PREDICT_EXAMPLES = """
Examples:

    bench run --method patchcore --dataset folder --data ~/parts --protocol one-for-one --calibrate 0.05 --keep-model

    bench predict folder-parts/one-for-one/patchcore/bolt ~/new/bolts --out judged
"""


@commands.command(epilog=PREDICT_EXAMPLES)
def predict(  # noqa: PLR0917  typer makes the options from these
    run: Run,
    places: Annotated[list[Path], typer.Argument(help="Images, or folders of them.", metavar="IMAGE|FOLDER...")],
    to: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("predictions"),
    category: Category = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    weights: Weights = None,
    runs: Runs = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,  # noqa: ARG001  its callback acts
) -> None:
    """Judge new images by a run that was made with --keep-model: scores, maps, and pictures of them."""
    kept = _kept(run, category, device=device, weights=weights, runs=runs)
    from bench.deploy import predict as judging
    from bench.deploy import saved_model

    named = saved_model.images(places)
    with progress_bar(f"Judging {len(named)} images") as watch:
        found = judging.predict(kept, named, to, watch)
    if as_json:
        print_json([asdict(verdict) for verdict in found])
    elif not quiet:
        _show(kept, {str(place): verdict for (_, place), verdict in zip(named, found, strict=True)})
    for verdict in found:
        if verdict.error:
            err.print(f"[red]{escape(verdict.error)}[/red]", soft_wrap=True)
    status.print(
        f"Written: {escape(str(to / 'scores.csv'))}, {escape(str(to / 'maps'))}, {escape(str(to / 'pictures'))}"
    )
    if any(verdict.error for verdict in found):
        raise typer.Exit(2)


EXPORT_EXAMPLES = """
Examples:

    bench export demo/kshot-4/patchcore/gear --out gear.onnx

    bench export folder-parts/one-for-one/patchcore/bolt --images ~/parts/bolt/test
"""


@commands.command(epilog=EXPORT_EXAMPLES)
def export(  # noqa: PLR0917  typer makes the options from these
    run: Run,
    to: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("model.onnx"),
    images: Annotated[
        list[Path] | None, typer.Option(help="Images to compare answers on; without: the pictures of the run's record.")
    ] = None,
    category: Category = None,
    weights: Weights = None,
    runs: Runs = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,  # noqa: ARG001  its callback acts
) -> None:
    """Write a kept run as ONNX, its preprocessing inside, and compare the answers with the method's own."""
    kept = _kept(run, category, device="cpu", weights=weights, runs=runs)
    with spinner("Writing the graph and comparing its answers ..."):
        from bench.deploy import saved_model

        try:
            from bench.deploy import export as writing
        except ImportError as error:
            raise BenchError(f"bench export needs {error.name}, not here: pip install 'maskbench[export]'") from error
        compared = [path for path, _ in saved_model.images(images)] if images else saved_model.pictures(kept)
        done = writing.export(kept, to, compared)
    if as_json:
        print_json(asdict(done))
    elif not quiet:
        out.print(f"Written: {escape(str(done.path))}, input image (H, W, 3) uint8 RGB, outputs score and map")
        out.print(
            f"Compared in ONNX Runtime on {done.images} images: the method differs by at most {done.network:.1e} "
            f"of its largest value, resize and method together by {done.whole:.1e}.",
            soft_wrap=True,
        )


def _kept(run: str, category: str | None, *, device: str, weights: Path | None, runs: Path | None) -> "SavedModel":
    with spinner("Loading the kept run ..."):
        from bench.deploy import saved_model

        known = load_configuration()
        path = saved_model.find(run, runs or known.path("runs") or Path("runs"), category)
        weights = weights or known.path("weights")
        return saved_model.load(path, device=device, weights=weights, cache=cache_folder(known))


def _show(kept: "SavedModel", found: "dict[str, ImagePrediction]") -> None:
    scored = {place: verdict for place, verdict in found.items() if verdict.score is not None}
    judged = sorted(scored.items(), key=lambda item: -(item[1].score or 0))
    record = kept.record
    rate = record.run.calibrate
    table = Table(title=f"{escape(record.run.title)} · {escape(record.category)}", title_justify="left", box=None)
    for heading in ("image", "score", *(("verdict", "area") if rate else ())):
        table.add_column(heading, justify="left" if heading == "image" else "right")
    for place, verdict in judged[:MAX_ROWS]:
        called = "[red]defective[/red]" if verdict.defective else "good"
        calibrated = (called, f"{100 * (verdict.anomalous_fraction or 0):.2f} %") if rate else ()
        table.add_row(escape(place), f"{verdict.score:.4g}", *calibrated)
    out.print(table)
    if len(judged) > MAX_ROWS:
        out.print(f"... and {len(judged) - MAX_ROWS} of lower score")
    if rate:
        out.print(f"Above {record.threshold:.4g} an image is called defective: at most {rate:.0%} of good ones were.")
    else:
        out.print("No threshold: the run was made without --calibrate, so scores only rank the images.")
