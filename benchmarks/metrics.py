"""How fast the pixel metrics are beside what one would otherwise run: `python benchmarks/metrics.py`.

The same drawn maps go through `bench.evaluation.metrics.judge` (AUROC, AP, F1-max and AUPRO in one call) and through
scikit-learn's `roc_auc_score`, `average_precision_score` and `precision_recall_curve` plus an AUPRO by sorting all
pixels, which is how MVTec's own evaluation goes about it. Both take turns (A B A B), and medians are told. The floor is
numpy's sort of as many numbers as there are pixels: what any way that sorts them all must pay at least. Memory is the
peak above the inputs as tracemalloc sees it, in a run that is not timed. The values are compared as well.
"""

import argparse
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import compared, interleave, told, write
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from bench.evaluation.metrics import evaluate

Maps = NDArray[Any]  # (n, h, w)
LIMIT = 0.3
THEIRS = "scikit-learn x 3 + AUPRO"


def draw(images: int, size: int = 256) -> tuple[Maps, Maps]:
    """Smooth float32 maps and their masks: of 83 images 20 are good, the others hold 128 defects on 2.9 % of pixels."""
    random = np.random.default_rng(0)
    maps, masks = np.empty((images, size, size), np.float32), np.zeros((images, size, size), bool)
    y, x = np.ogrid[:size, :size]
    for number in range(images):
        place = number % 83 - 20  # below 0: a good image
        for region in range(0 if place < 0 else 3 if place in (0, 1) else 2):
            centre_y, centre_x = random.integers(30, size - 30), (60, 128, 196)[region] + random.integers(-8, 8)
            height, width = random.integers(12, 29, 2)
            masks[number] |= ((y - centre_y) / height) ** 2 + ((x - centre_x) / width) ** 2 < 1
        noise = ndimage.gaussian_filter(random.standard_normal((size, size)), 4) * 4
        glow = ndimage.gaussian_filter(masks[number].astype(float), 5) * random.uniform(0.5, 2)
        maps[number] = (noise + glow) * random.uniform(0.9, 1.1)  # no two images alike
    return maps, masks


def ours(maps: Maps, masks: Maps) -> list[float]:
    """AUROC, AP, F1-max, AUPRO."""
    anomalous = np.asarray(masks.any(axis=(1, 2)))
    found = evaluate(maps.max(axis=(1, 2)), anomalous, list(maps), list(masks), fpr_limits=(LIMIT,))
    return [value for name, value in found.values.items() if not name.startswith("image")]


def theirs(maps: Maps, masks: Maps) -> list[float]:
    """The same four by scikit-learn and `sorted_aupro`."""
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
    """Every pixel is a step, to the right if normal and up if not; all of them are sorted by score."""
    rises = np.zeros(maps.shape)
    regions = 0
    for mask, rise in zip(masks, rises, strict=True):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        rise[mask] = (1 / np.maximum(np.bincount(labels[mask]), 1))[labels[mask]]
        regions += count
    order = np.argsort(-maps, axis=None, kind="stable")
    ranked = maps.ravel()[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), ranked.size - 1)  # of each run of ties
    rate = np.append(0, np.cumsum(~masks.ravel()[order])[last] / np.count_nonzero(~masks))
    overlap = np.append(0, np.cumsum(rises.ravel()[order])[last] / regions)
    inside = rate < LIMIT
    cut = np.interp(LIMIT, rate, overlap)
    return float(np.trapezoid([*overlap[inside], cut], [*rate[inside], LIMIT])) / LIMIT


def floor(maps: Maps) -> Maps:
    """What any way that sorts all pixels pays at least."""
    return np.sort(maps, axis=None)


def measure(images: int, rounds: int) -> dict[str, Any]:
    """Seconds in turn, peak bytes above the inputs, and the largest difference of the values."""
    maps, masks = draw(images)
    half = maps.astype(np.float16)
    runs: dict[str, Callable[[], Any]] = {
        "maskbench": lambda: ours(maps, masks),
        "maskbench, float16 maps": lambda: ours(half, masks),
        THEIRS: lambda: theirs(maps, masks),
        "floor: np.sort": lambda: floor(maps),
    }
    peaks, values = {}, {}
    for name, call in runs.items():  # the untimed run warms up as well
        tracemalloc.start()
        values[name] = call()
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return {
        "images": images,
        "pixels": maps.size,
        "input_bytes": maps.nbytes + masks.nbytes,
        "defect_share": float(masks.mean()),
        "regions": sum(int(ndimage.label(mask, np.ones((3, 3)))[1]) for mask in masks),
        "comparison": compared(interleave(runs, rounds, warmups=0), THEIRS),
        "peak_bytes": peaks,
        "largest_difference": float(np.max(np.abs(np.subtract(values["maskbench"], values[THEIRS])))),
    }


def table(found: dict[str, Any]) -> str:
    """The measurement for a terminal."""
    peaks = ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in found["peak_bytes"].items())
    return (
        f"{found['images']} maps of 256 x 256: {found['pixels']:,} pixels, {found['defect_share']:.1%} of them defects "
        f"in {found['regions']} regions; inputs {found['input_bytes'] / 1e6:.0f} MB\n{told(found['comparison'])}\n"
        f"peak memory above the inputs: {peaks}; values differ by {found['largest_difference']:.1e} at most\n"
    )


def main() -> None:
    """Reads the options, measures, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, nargs="+", default=[83, 830], help="how many maps (default: 83 830)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each takes its turn (default: 5)")
    parser.add_argument("--json", type=Path, help="where to write the result (default: benchmarks/results/)")
    options = parser.parse_args()
    found = []
    for images in options.images:
        found.append(measure(images, options.rounds))
        print(table(found[-1]), flush=True)
    write("metrics", {"measurements": found}, "numpy", "scipy", "scikit-learn", json_path=options.json)


if __name__ == "__main__":
    main()
