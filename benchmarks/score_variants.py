"""Image AUROC of other image scores from stored anomaly maps: `python benchmarks/score_variants.py --runs runs`.

AMI-Net's image score is the standard deviation of the map (authors' code). Stored maps are scored in four ways:
their standard deviation, maximum, mean of the highest 1 %, and mean; each with and without a border of 16 pixels. This
shows why an image score may lag behind the maps; **nothing is selected by it**, because it uses the test set.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import write_result
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from bench.record import Record
from bench.store import Store

BORDER = 16
Maps = NDArray[np.float32]  # (n, h, w)
SCORES: dict[str, Callable[[Maps], NDArray[Any]]] = {
    "standard deviation": lambda maps: maps.std(axis=(1, 2)),
    "maximum": lambda maps: maps.max(axis=(1, 2)),
    "mean of the highest 1 %": lambda maps: np.sort(maps.reshape(len(maps), -1))[:, -maps[0].size // 100 :].mean(
        axis=1
    ),
    "mean": lambda maps: maps.mean(axis=(1, 2)),
}


def image_aurocs(store: Store, record: Record) -> dict[str, float]:
    """Return the image AUROC in percent of each score of one record."""
    predictions = store.predictions(record)
    if predictions.maps is None:
        raise SystemExit(
            f"{record.run.label(record.category)} has no maps. Repeat the run without --map-precision none."
        )
    maps = predictions.maps.astype(np.float64)
    inner = maps[:, BORDER:-BORDER, BORDER:-BORDER]
    variants = {"whole map": maps, f"without {BORDER} pixels": inner}
    return {
        f"{score}, {part}": round(100 * float(roc_auc_score(predictions.is_anomalous, compute(values))), 1)
        for score, compute in SCORES.items()
        for part, values in variants.items()
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Score the maps of all selected records; write and return the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, nargs="+", default=[Path("runs")], help="folders of records")
    parser.add_argument("--method", nargs="+", default=["aminet"], help="names of runs")
    parser.add_argument("--json", type=Path, help="file of the result (default: in benchmarks/results/)")
    options = parser.parse_args(arguments)
    results: dict[str, dict[str, Any]] = {}
    for store in map(Store, options.runs):
        for record in store.records():
            run = record.run
            is_selected = run.name in options.method and record.selection == "last" and not run.sweep_keys
            if is_selected and not record.failure:
                width = f"width {run.settings['width']}"
                label = f"{run.dataset} {run.protocol} k={run.k} {run.name} {record.category} seed {run.seed} {width}"
                results[label] = image_aurocs(store, record)
                print(label, results[label], flush=True)
    measurement = {"description": "image AUROC in percent of several image scores of the same maps", "results": results}
    write_result("score_variants", measurement, "numpy", "scikit-learn", json_path=options.json)
    return measurement


if __name__ == "__main__":
    main()
