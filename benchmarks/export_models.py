"""ONNX export of stored models, compared on images: `python benchmarks/export_models.py --runs runs --images DIR`.

Every stored model (`bench run --keep-model`) of the selected category is exported, preprocessing included, and compared
with the method in ONNX Runtime on all images of the folder. The result has, by run: the largest differences of scores
and maps relative to the largest value, the size of the file, and the reason if there is no export.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from interleaved import write_result

from bench.deploy import export, saved_model
from bench.errors import BenchError
from bench.record import Record
from bench.store import Store


def export_model(store: Store, record: Record, options: argparse.Namespace) -> dict[str, Any]:
    """Return the differences and the size, or the reason why there is no export."""
    images = sorted(options.images.iterdir())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            saved = saved_model.load(
                store.path_of(record), device="cpu", weights=options.weights, cache=Path(folder) / "cache"
            )
            result = export.export(saved, path, images)
        except BenchError as error:
            return {"error": str(error).splitlines()[0]}
        return {
            "images": result.n_images,
            "network_difference": result.network_difference,
            "total_difference": result.total_difference,
            "megabytes": round(path.stat().st_size / 1e6, 1),
        }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Export all selected models; write and return the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, nargs="+", default=[Path("runs")], help="folders of records")
    parser.add_argument("--category", nargs="+", default=["gear"], help="categories (default: gear)")
    parser.add_argument("--images", type=Path, required=True, help="folder of images to compare on")
    parser.add_argument("--weights", type=Path, help="folder of backbone weights")
    parser.add_argument("--json", type=Path, help="file of the result (default: in benchmarks/results/)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: dict[str, dict[str, Any]] = {}
    for store in map(Store, options.runs):
        for record in store.records():
            run = record.run
            if record.artifacts.get("model") and record.category in options.category and record.selection == "last":
                label = f"{run.dataset} {run.protocol} k={run.k} {run.name} {record.category} seed {run.seed}"
                results[label] = export_model(store, record, options)
                print(label, results[label], flush=True)
    measurement = {"description": "ONNX export compared with the method on the same images", "results": results}
    write_result("export_models", measurement, "onnx", "onnxruntime", json_path=options.json)
    return measurement


if __name__ == "__main__":
    main()
