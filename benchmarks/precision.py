"""Effect of half precision on the metrics: `python benchmarks/precision.py --method aminet --category fabric`.

A method is fitted in float32 with the profile demo; `--dataset folder --data FOLDER` uses your own images. Its state is
restored in a second method with bfloat16 (or float16), and both are evaluated on the same test images. The result has
all metrics of both, their differences, the fraction of pixels in which the masks of the method differ, and seconds per
image. A CPU without bfloat16 instructions emulates them: the values are the same, the times are meaningless.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from interleaved import write_result

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.data.images import FileImages
from bench.evaluation.metrics import evaluate
from bench.execution.job import build_method
from bench.execution.schedule import make_schedule
from bench.method import Method


def predict_all(method: Method, images: FileImages) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return scores (n,), maps (n, h, w), and seconds per image."""
    start = time.perf_counter()
    with torch.no_grad():
        predictions = [method.predict(batch.to(method.setup.device)) for batch in images.batches(1)]
    scores = torch.cat([prediction.scores for prediction in predictions]).cpu()
    maps = torch.cat([prediction.maps for prediction in predictions]).cpu()
    return scores, maps, (time.perf_counter() - start) / len(images)


def mask_differences(first: Method, second: Method, images: FileImages) -> dict[str, float]:
    """Return the percentage of pixels in which the masks of `Method.explain` differ, by name of the mask."""
    differences: dict[str, list[float]] = {}
    for batch in images.batches(1):
        pictures = [method.explain(batch.to(method.setup.device)) for method in (first, second)]
        for name in pictures[0]:
            if name.endswith("mask"):
                different = pictures[0][name] != pictures[1][name]
                differences.setdefault(name, []).append(float(different.float().mean()))
    return {name: 100 * sum(fractions) / len(fractions) for name, fractions in differences.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--method", default="aminet")
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--data", type=Path, help="folder of the dataset")
    parser.add_argument("--category", default="fabric")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float16"))
    parser.add_argument(
        "--limit", type=int, default=20, help="maximum of good and of defective test images (default: 20)"
    )
    parser.add_argument("--json", type=Path, help="file of the result (default: in benchmarks/results/)")
    options = parser.parse_args()
    values = {"method": (options.method,), "category": (options.category,), "limit": options.limit}
    values |= {"dataset": options.dataset}
    plan = make_plan(load_config(), registry.names("methods"), options=values, paths={"data": options.data})
    (job,) = make_schedule(plan, force=True).jobs
    run, preprocessing = job.run, job.preprocessing
    _, full = build_method(job)
    full.fit(FileImages(job.task.train, preprocessing), lambda *_: None)
    half = type(full)(full.settings, replace(full.setup, precision=options.precision))
    half.load_state_dict(full.state_dict())

    images = FileImages(job.task.tests[options.category], preprocessing)
    is_anomalous = torch.tensor([sample.is_anomalous for sample in images.samples]).numpy()
    predictions: dict[str, Any] = {}
    for name, method in (("float32", full), (options.precision, half)):
        scores, maps, seconds = predict_all(method, images)
        evaluation = evaluate(scores.numpy(), is_anomalous, list(maps.numpy()), [each.mask for each in images.masks()])
        percent = {key: 100 * value for key, value in evaluation.values.items()}
        predictions[name] = {"percent": percent, "seconds": seconds}
    full_percent, half_percent = (values["percent"] for values in predictions.values())
    differences = {key: half_percent[key] - full_percent[key] for key in full_percent}
    for key, points in differences.items():
        print(f"{key:<16}{full_percent[key]:8.2f}{half_percent[key]:8.2f}{points:+8.3f} points")
    masks = mask_differences(full, half, images)
    print("\n".join(f"{name}: {percent:.2f} % of the pixels differ" for name, percent in masks.items()))
    measurement = {
        "description": f"{run.title} on {options.category} of {run.dataset}, {len(images)} test images",
        "predictions": predictions,
        "difference_points": differences,
        "masks_differ_percent": masks,
    }
    write_result(f"{options.precision}_{options.method}_{options.category}", measurement, json_path=options.json)


if __name__ == "__main__":
    main()
