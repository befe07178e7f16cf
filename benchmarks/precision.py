"""What half precision moves: `python benchmarks/precision.py --method aminet --category fabric`.

A method is fitted in float32, by the profile demo; `--dataset folder --data FOLDER` takes images of your own. Its state
is given to a twin that answers in bfloat16 (or float16), and both judge the same test images. Told are all metrics of
the two, how far they moved, how much of a mask differs that the method shows of itself, and seconds an image. A
processor without instructions for bfloat16 emulates it: the values are the same, the time says nothing.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from interleaved import write

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.data.images import FileImages
from bench.evaluation.metrics import evaluate
from bench.execution import schedule
from bench.execution.job import build_method
from bench.method import Method, Preprocessing


def answers(method: Method, images: FileImages) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Scores (n,), maps (n, h, w), and seconds an image."""
    begin = time.perf_counter()
    with torch.no_grad():
        found = [method.predict(batch.to(method.setup.device)) for batch in images.batches(1)]
    scores, maps = (torch.cat(part).cpu() for part in zip(*((one.scores, one.maps) for one in found), strict=True))
    return scores, maps, (time.perf_counter() - begin) / len(images)


def masks_moved(one: Method, other: Method, images: FileImages) -> dict[str, float]:
    """Of each mask that the two show of themselves, the percentage of pixels that differ."""
    moved: dict[str, list[float]] = {}
    for batch in images.batches(1):
        shown = [method.explain(batch.to(method.setup.device)) for method in (one, other)]
        for name in shown[0]:
            if name.endswith("mask"):
                moved.setdefault(name, []).append(float((shown[0][name] != shown[1][name]).float().mean()))
    return {name: 100 * sum(shares) / len(shares) for name, shares in moved.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--method", default="aminet")
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--data", type=Path, help="where the data set lies")
    parser.add_argument("--category", default="fabric")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float16"))
    parser.add_argument("--limit", type=int, default=20, help="test images of either kind at most (default: 20)")
    parser.add_argument("--json", type=Path, help="where to write the result (default: benchmarks/results/)")
    options = parser.parse_args()
    said = {"method": (options.method,), "category": (options.category,), "limit": options.limit}
    said |= {"dataset": options.dataset}
    plan = make_plan(load_config(), registry.names("methods"), options=said, paths={"data": options.data})
    (job,) = schedule.make_schedule(plan, force=True).jobs
    run, preprocessing = job.run, Preprocessing(**job.run.preprocessing)
    exact = build_method(job)[2]()
    exact.fit(FileImages(job.task.train, preprocessing), lambda *_: None)
    half = type(exact)(exact.settings, replace(exact.setup, precision=options.precision))
    half.restore(exact.state())

    images = FileImages(job.task.tests[options.category], preprocessing)
    anomalous = torch.tensor([sample.is_anomalous for sample in images.samples]).numpy()
    found: dict[str, Any] = {}
    for name, method in (("float32", exact), (options.precision, half)):
        scores, maps, seconds = answers(method, images)
        judged = evaluate(scores.numpy(), anomalous, list(maps.numpy()), images.masks())
        found[name] = {"percent": {key: 100 * value for key, value in judged.values.items()}, "seconds": seconds}
    one, other = (found[name]["percent"] for name in found)
    moved = {key: other[key] - one[key] for key in one}
    for key, points in moved.items():
        print(f"{key:<16}{one[key]:8.2f}{other[key]:8.2f}{points:+8.3f} points")
    masks = masks_moved(exact, half, images)
    print("\n".join(f"{name}: {share:.2f} % of its pixels differ" for name, share in masks.items()))
    what = f"{run.title} on {options.category} of {run.dataset}, {len(images)} test images"
    measured = {"what": what, "answers": found, "moved": moved, "masks_differ_percent": masks}
    write(f"{options.precision}_{options.method}_{options.category}", measured, json_path=options.json)


if __name__ == "__main__":
    main()
