"""`bench predict`: predict new images with a saved model."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from bench.cli.option_parameters import FILES_PANEL, Category, Run, Runs, Weights, value_or_default, with_options
from bench.config.bench_toml import cache_folder

if TYPE_CHECKING:
    from bench.deploy.predict import ImagePrediction
    from bench.deploy.saved_model import SavedModel

commands = typer.Typer()

MAX_ROWS = 40
"""Largest number of images in the printed table, those with the highest scores; scores.csv has all."""

EXAMPLES = """
Examples:

    bench run --method patchcore --dataset folder --data ~/parts --protocol one-for-one --calibrate 0.05 --keep-model

    bench predict folder-parts/one-for-one/patchcore/bolt ~/new/bolts --out predictions
"""


@commands.command(epilog=EXAMPLES)
@with_options(["device"])
def predict(
    run: Run,
    paths: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", metavar="IMAGE|FOLDER...")],
    *,
    options: dict[str, Any],
    folder: Annotated[
        Path,
        typer.Option(
            "--out", help="Folder for scores.csv, maps/ and overlays/.", metavar="DIR", rich_help_panel=FILES_PANEL
        ),
    ] = Path("predictions"),
    category: Category = None,
    weights: Weights = None,
    runs: Runs = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,  # noqa: ARG001  handled by its callback
) -> None:
    """Predict new images with a model saved by `bench run --keep-model`: scores, anomaly maps and overlays."""
    saved = load_model(run, category, device=value_or_default(options, "device"), weights=weights, runs=runs)
    from bench.deploy.predict import predict_images
    from bench.deploy.saved_model import list_images

    images = list_images(paths, folder)
    with progress_bar(f"Predicting {len(images)} images") as progress:
        predictions = predict_images(saved, images, folder, progress)
    if as_json:
        print_json([asdict(prediction) for prediction in predictions])
    elif not quiet:
        names = [str(name) for _, name in images]
        _print_predictions(saved, dict(zip(names, predictions, strict=True)))
    for prediction in predictions:
        if prediction.error:
            err.print(f"[red]{escape(prediction.error)}[/red]", soft_wrap=True)
    files = ", ".join(escape(str(folder / name)) for name in ("scores.csv", "maps", "overlays"))
    status.print(f"Wrote {files}")
    if any(prediction.error for prediction in predictions):
        raise typer.Exit(2)


def load_model(run: str, category: str | None, *, device: str, weights: Path | None, runs: Path | None) -> "SavedModel":
    """Return the saved model that the arguments of a command name."""
    with spinner("Loading the saved model ..."):
        from bench.deploy import saved_model

        config = load_configuration()
        path = saved_model.find(run, runs or config.path("runs") or Path("runs"), category)
        return saved_model.load(path, device=device, weights=config.weights(weights), cache=cache_folder(config))


def _print_predictions(saved: "SavedModel", predictions: "dict[str, ImagePrediction]") -> None:
    scored = [(name, each) for name, each in predictions.items() if each.score is not None]
    scored.sort(key=lambda item: -(item[1].score or 0))
    record = saved.record
    rate = record.run.calibrate
    table = Table(title=f"{escape(record.run.title)} · {escape(record.category)}", title_justify="left", box=None)
    for heading in ("image", "score", *(("prediction", "anomalous pixels") if rate else ())):
        table.add_column(heading, justify="left" if heading == "image" else "right")
    for name, prediction in scored[:MAX_ROWS]:
        label = "[red]anomalous[/red]" if prediction.is_anomalous else "normal"
        decision = (label, f"{100 * (prediction.anomalous_fraction or 0):.2f} %") if rate else ()
        table.add_row(escape(name), f"{prediction.score:.4g}", *decision)
    out.print(table)
    if len(scored) > MAX_ROWS:
        out.print(f"... and {len(scored) - MAX_ROWS} images with lower scores")
    if rate:
        out.print(
            f"Threshold {record.threshold:.4g}: at most {100 * rate:g} % of the good calibration images have a higher "
            f"score."
        )
    else:
        out.print("No threshold: the run was not calibrated (--calibrate), so the scores only rank the images.")
