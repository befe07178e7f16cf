"""Speed of the pixel metrics relative to scikit-learn: `python benchmarks/metrics.py`.

The same synthetic maps are evaluated by `bench.evaluation.metrics.evaluate` (AUROC, AP, F1-max and AUPRO in one call)
and by scikit-learn's `roc_auc_score`, `average_precision_score` and `precision_recall_curve` plus an AUPRO that sorts
all pixels, as MVTec's evaluation does. Both run alternately (A B A B), and medians are reported. The lower bound is
NumPy's sort of as many numbers as there are pixels, which any method that sorts all pixels needs. Memory is the peak
above the inputs as measured by tracemalloc, in a run that is not timed. The values are compared as well.
"""

import argparse
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import compare, format_comparison, run_interleaved, write_result
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from bench.evaluation.metrics import evaluate

Maps = NDArray[Any]  # (n, h, w)
FPR_LIMIT = 0.3
REFERENCE = "scikit-learn x 3 + AUPRO"


def synthetic_maps(count: int, size: int = 256) -> tuple[Maps, Maps]:
    """Return smooth float32 maps and masks: of 83 images, 20 are good, the others 128 defects (2.9 % of pixels)."""
    rng = np.random.default_rng(0)
    maps, masks = np.empty((count, size, size), np.float32), np.zeros((count, size, size), bool)
    y, x = np.ogrid[:size, :size]
    for number in range(count):
        index = number % 83 - 20  # negative: a good image
        for region in range(0 if index < 0 else 3 if index in (0, 1) else 2):
            center_y, center_x = rng.integers(30, size - 30), (60, 128, 196)[region] + rng.integers(-8, 8)
            height, width = rng.integers(12, 29, 2)
            masks[number] |= ((y - center_y) / height) ** 2 + ((x - center_x) / width) ** 2 < 1
        noise = ndimage.gaussian_filter(rng.standard_normal((size, size)), 4) * 4
        signal = ndimage.gaussian_filter(masks[number].astype(float), 5) * rng.uniform(0.5, 2)
        maps[number] = (noise + signal) * rng.uniform(0.9, 1.1)  # a different range for each image
    return maps, masks


def evaluate_with_maskbench(maps: Maps, masks: Maps) -> list[float]:
    """Return AUROC, AP, F1-max and AUPRO."""
    is_anomalous = np.asarray(masks.any(axis=(1, 2)))
    evaluation = evaluate(maps.max(axis=(1, 2)), is_anomalous, list(maps), list(masks), fpr_limits=(FPR_LIMIT,))
    return [value for name, value in evaluation.values.items() if not name.startswith("image")]


def evaluate_with_scikit_learn(maps: Maps, masks: Maps) -> list[float]:
    """Return the same metrics from scikit-learn and `sorted_aupro`."""
    labels, scores = masks.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1_max = np.max(2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny))
    return [
        float(roc_auc_score(labels, scores)),
        float(average_precision_score(labels, scores)),
        float(f1_max),
        sorted_aupro(maps, masks),
    ]


def sorted_aupro(maps: Maps, masks: Maps) -> float:
    """Return AUPRO from all pixels, sorted by score; each is a step of the curve: right if normal, up if defective."""
    steps_up = np.zeros(maps.shape)
    n_regions = 0
    for mask, steps in zip(masks, steps_up, strict=True):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        steps[mask] = (1 / np.maximum(np.bincount(labels[mask]), 1))[labels[mask]]
        n_regions += count
    order = np.argsort(-maps, axis=None, kind="stable")
    ranked = maps.ravel()[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), ranked.size - 1)  # last pixel of each group of ties
    fpr = np.append(0, np.cumsum(~masks.ravel()[order])[last] / np.count_nonzero(~masks))
    overlap = np.append(0, np.cumsum(steps_up.ravel()[order])[last] / n_regions)
    is_inside = fpr < FPR_LIMIT
    limit_overlap = np.interp(FPR_LIMIT, fpr, overlap)
    return float(np.trapezoid([*overlap[is_inside], limit_overlap], [*fpr[is_inside], FPR_LIMIT])) / FPR_LIMIT


def measure(count: int, rounds: int) -> dict[str, Any]:
    """Return seconds, peak bytes above the inputs, and the largest difference of the values."""
    maps, masks = synthetic_maps(count)
    half_precision = maps.astype(np.float16)
    candidates: dict[str, Callable[[], Any]] = {
        "maskbench": lambda: evaluate_with_maskbench(maps, masks),
        "maskbench, float16 maps": lambda: evaluate_with_maskbench(half_precision, masks),
        REFERENCE: lambda: evaluate_with_scikit_learn(maps, masks),
        "floor: np.sort": lambda: np.sort(maps, axis=None),
    }
    peaks, values = {}, {}
    for name, call in candidates.items():  # not timed; also the warm-up
        tracemalloc.start()
        values[name] = call()
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return {
        "images": count,
        "pixels": maps.size,
        "input_bytes": maps.nbytes + masks.nbytes,
        "defect_share": float(masks.mean()),
        "regions": sum(int(ndimage.label(mask, np.ones((3, 3)))[1]) for mask in masks),
        "comparison": compare(run_interleaved(candidates, rounds, warmups=0), REFERENCE),
        "peak_bytes": peaks,
        "largest_difference": float(np.max(np.abs(np.subtract(values["maskbench"], values[REFERENCE])))),
    }


def format_measurement(measurement: dict[str, Any]) -> str:
    """Return the measurement for a terminal."""
    peaks = ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in measurement["peak_bytes"].items())
    return (
        f"{measurement['images']} maps of 256 x 256: {measurement['pixels']:,} pixels, "
        f"{measurement['defect_share']:.1%} defective in {measurement['regions']} regions; "
        f"inputs {measurement['input_bytes'] / 1e6:.0f} MB\n{format_comparison(measurement['comparison'])}\n"
        f"peak memory above the inputs: {peaks}; largest difference {measurement['largest_difference']:.1e}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, nargs="+", default=[83, 830], help="number of maps (default: 83 830)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--json", type=Path, help="file of the result (default: in benchmarks/results/)")
    options = parser.parse_args()
    measurements = []
    for count in options.images:
        measurements.append(measure(count, options.rounds))
        print(format_measurement(measurements[-1]), flush=True)
    write_result("metrics", {"measurements": measurements}, "numpy", "scipy", "scikit-learn", json_path=options.json)


if __name__ == "__main__":
    main()
