"""Effect of the masks at test time on stored models: `python benchmarks/mask_seeds.py --runs runs`.

Every stored model (`bench run --keep-model`) with the setting `mask_at_test` or `test_seed` is restored with each value
of `mask_at_test` and, if these masks are random, with each of several values of `test_seed`; neither changes anything
that was trained. It is evaluated on all test images of its category. `--method` and `--category` select models.

The result has, by method and category: the metrics of each seed in percent, their range over the seeds, and the mean
change of an image's score from one seed to another, relative to the standard deviation of the scores over images.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from interleaved import write_result
from numpy.typing import NDArray

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.data.images import FileImages
from bench.deploy import saved_model
from bench.deploy.saved_model import SavedModel
from bench.evaluation.metrics import evaluate
from bench.execution.schedule import make_schedule
from bench.method import Method
from bench.record import Predictions, Record
from bench.store import Store

METRICS = ("image_auroc", "pixel_auroc", "aupro_30")
SEEDED_MASKS = ("random", "complementary")
"""Values of `mask_at_test` that depend on `test_seed`. In a method without this setting the masks are always random."""


def mask_variants(record: Record) -> list[tuple[dict[str, Any], bool]]:
    """Return the settings of the masks at test time and whether they depend on `test_seed`; none if nothing varies."""
    types = get_type_hints(registry.load("methods", record.run.method).Settings)
    if "mask_at_test" in types:
        return [({"mask_at_test": value}, value in SEEDED_MASKS) for value in get_args(types["mask_at_test"])]
    is_random = "test_seed" in types and record.run.method != "differnet"  # its seed is that of rotations
    return [({}, True)] if is_random else []


def with_settings(method: Method, changes: dict[str, Any]) -> Method:
    """Return the same fitted method with other settings of the test."""
    changed = type(method)(replace(method.settings, **changes), method.setup)
    changed.load_state_dict(method.state_dict())
    return changed


@torch.no_grad()
def predict_all(method: Method, images: FileImages) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return scores (n,) and maps (n, h, w) of all images, one at a time."""
    predictions = [method.predict(batch.to(method.setup.device)) for batch in images.batches(1)]
    scores = torch.cat([prediction.scores for prediction in predictions]).cpu().numpy()
    return scores.astype(np.float64), torch.cat([prediction.maps for prediction in predictions]).cpu().numpy()


def relative_score_change(scores: Sequence[NDArray[np.float64]]) -> float | None:
    """Return the mean change of a score between two seeds, relative to the mean deviation of the scores over images."""
    if len(scores) < 2:
        return None
    changes = [np.abs(first - second).mean() for first, second in combinations(scores, 2)]
    return round(float(np.mean(changes) / max(np.mean([values.std() for values in scores]), 1e-12)), 4)


def compare_seeds(
    method: Method, images: FileImages, stored: Predictions, changes: dict[str, Any], seeds: Sequence[int]
) -> dict[str, Any]:
    """Return the metrics by seed, their range, and the change of scores; `stored` has the labels and masks."""
    labeled = np.flatnonzero(stored.has_pixel_labels)
    scores, percent = [], []
    for seed in seeds:
        image_scores, maps = predict_all(with_settings(method, changes | {"test_seed": seed}), images)
        evaluation = evaluate(image_scores, stored.is_anomalous, list(maps[labeled]), list(stored.masks[labeled]))
        scores.append(image_scores)
        percent.append({name: 100 * evaluation.values[name] for name in METRICS if name in evaluation.values})
    values = {name: [round(metrics[name], 2) for metrics in percent] for name in percent[0]}
    return {
        "settings": changes,
        "percent_by_seed": values,
        "range": {name: round(max(each) - min(each), 2) for name, each in values.items()},
        "relative_score_change": relative_score_change(scores),
    }


def images_of(saved: SavedModel, data: Path | None) -> FileImages:
    """Return the test images of a record with its preprocessing and range of values."""
    record, run = saved.record, saved.record.run
    # The images do not depend on the method, and the mean map needs no weights.
    options = {"method": ("meanmap",), "dataset": run.dataset, "category": (record.category,), "limit": run.limit}
    plan = make_plan(
        load_config(), registry.names("methods"), options=options, profile=run.profile, paths={"data": data}
    )
    (job,) = make_schedule(plan, force=True).jobs
    images = FileImages(job.task.tests[record.category], saved.preprocessing)
    if [sample.id for sample in images.samples] != record.test_files:
        raise SystemExit(f"The test images of {run.label(record.category)} have changed. Repeat the run.")
    return images


def stored_models(options: argparse.Namespace) -> Iterator[tuple[Path, Record]]:
    """Yield the path of each selected record that has a model."""
    store = Store(options.runs)
    for record in store.records():
        is_selected = not options.method or record.run.method in options.method
        is_selected &= not options.category or record.category in options.category
        if is_selected and record.artifacts.get("model") and record.selection == "last":
            yield store.path_of(record), record


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Evaluate all stored models with all seeds; write and return the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the records (default: runs)")
    parser.add_argument("--method", nargs="*", default=[], help="only these methods")
    parser.add_argument("--category", nargs="*", default=[], help="only these categories")
    parser.add_argument("--data", type=Path, help="folder of the dataset (default: of bench.toml)")
    parser.add_argument("--weights", type=Path, help="folder of backbone weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="values of test_seed")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder for cached features")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file of the result (default: in benchmarks/results/)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    results: dict[str, dict[str, Any]] = {}
    for path, record in stored_models(options):
        for changes, is_random in mask_variants(record):
            saved = saved_model.load(path, device="cpu", weights=options.weights, cache=options.cache)
            run = record.run
            label = [run.dataset, run.protocol, f"k={run.k}", run.name, f"seed {run.seed}"]
            name = " ".join([*label, *(f"{key}={value}" for key, value in changes.items())])
            stored = Store(options.runs).predictions(record, maps=False)
            seeds = options.seeds if is_random else options.seeds[:1]
            result = compare_seeds(saved.method, images_of(saved, options.data), stored, changes, seeds)
            results.setdefault(name, {})[record.category] = result
            print(name, record.category, result["percent_by_seed"], result["relative_score_change"], flush=True)
    measurement = {
        "description": "masks at test time of stored models of "
        + ", ".join(sorted({r.run.dataset for _, r in stored_models(options)})),
        "seeds": options.seeds,
        "results": results,
    }
    write_result("mask_seeds", measurement, json_path=options.json)
    return measurement


if __name__ == "__main__":
    main()
