"""`bench export`: write a saved model as ONNX."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from bench.cli.console import Json, Quiet, Verbose, out, print_json, spinner
from bench.cli.option_parameters import FILES_PANEL, Category, Run, Runs, Weights
from bench.cli.predict_command import load_model

commands = typer.Typer()

EXAMPLES = """
Examples:

    bench export demo/kshot-4/patchcore/gear --out gear.onnx

    bench export folder-parts/one-for-one/patchcore/bolt --images ~/parts/bolt/test
"""


@commands.command(epilog=EXAMPLES)
def export(
    run: Run,
    *,
    to: Annotated[
        Path, typer.Option("--out", help="File to write.", metavar="FILE", rich_help_panel=FILES_PANEL)
    ] = Path("model.onnx"),
    images: Annotated[
        list[Path] | None,
        typer.Option(
            help="Images for the comparison of predictions, repeatable.",
            metavar="IMAGE|FOLDER",
            show_default="the stored images of the record",
            rich_help_panel=FILES_PANEL,
        ),
    ] = None,
    category: Category = None,
    weights: Weights = None,
    runs: Runs = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,  # noqa: ARG001  handled by its callback
) -> None:
    """Write a saved model as ONNX, preprocessing included, after a comparison with the method in ONNX Runtime."""
    saved = load_model(run, category, device="cpu", weights=weights, runs=runs)
    with spinner("Exporting and comparing ..."):
        from bench.deploy.loaded_model import LoadedModel

        result = LoadedModel(saved).export(to, images or ())
    if as_json:
        print_json(asdict(result))
    elif not quiet:
        out.print(f"Wrote {escape(str(result.path))}: input image (H, W, 3) uint8 RGB, outputs score and map")
        out.print(
            f"Compared in ONNX Runtime on {result.n_images} images: largest difference, relative to the largest value, "
            f"{result.network_difference:.1e} for the network and {result.total_difference:.1e} with the resize.",
            soft_wrap=True,
        )
