"""Time and memory of a report: 15 categories x 6 methods x 3 seeds of simulated records.

    python benchmarks/report.py --side 64 --format markdown,latex,csv

Each record has scores of 115 test images (the mean of MVTec AD) and, unless --side is 0, maps and masks of this side.
The report command runs in a child process; its peak memory is reported by the operating system.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.evaluation.metric_variants import exact
from bench.record import Predictions, Record, Run
from bench.store import Store

CATEGORIES = [
    "carpet", "grid", "leather", "tile", "wood", "bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw",
    "toothbrush", "transistor", "zipper",
]  # fmt: skip
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "aminet": ("aminet", "AMI-Net", {"jitter": False}),
    "aminet_jitter": ("aminet", "AMI-Net‡", {"jitter": True}),
    "patchcore": ("patchcore", "PatchCore", {}),
    "riad": ("riad", "RIAD", {}),
    "ae_ssim": ("autoencoder", "AE-SSIM", {"loss": "ssim"}),
    "meanmap": ("meanmap", "Mean map (floor)", {}),
}
IMAGES = 115


def simulate(category: str, side: int, merit: float, seed: list[int]) -> Predictions:
    """Return predictions of noise, to which `merit` is added on defects; a third of the images is good."""
    rng = np.random.default_rng(seed)
    is_defective = np.arange(IMAGES) % 3 > 0
    defects = tuple("dent" if defective else "good" for defective in is_defective)
    masks = np.zeros((IMAGES, side, side), dtype=bool)
    masks[is_defective, side // 4 : side // 2, side // 4 : side // 2] = True
    maps = rng.standard_normal(masks.shape, dtype=np.float32) + np.float32(merit) * masks
    return Predictions(
        files=tuple(f"{category}/test/{defect}/{i:03}.png" for i, defect in enumerate(defects)),
        defects=defects,
        scores=rng.normal(0, 1, IMAGES) + merit * is_defective,
        maps=maps,
        masks=masks,
        has_pixel_labels=np.full(IMAGES, True),
    )


def fill(store: Store, side: int) -> int:
    """Save the simulated records; return their number."""
    count = 0
    for number, (name, (method, title, settings)) in enumerate(METHODS.items()):
        for category in CATEGORIES:
            for seed in range(3):
                run = Run(
                    dataset="mvtec",
                    synthetic=False,
                    data_fingerprints=dict.fromkeys(CATEGORIES, "simulated"),
                    protocol="one-for-one",
                    k=0,
                    seed=seed,
                    name=name,
                    method=method,
                    title=title,
                    settings=settings,
                    preprocessing={},
                    file_hashes={},
                    options={
                        "tasks": {"limit": 0},
                        "evaluation": {"calibrate": 0.0, "resolution": "input"},
                        "compute": {"precision": "float32", "compile": False},
                    },
                    profile="code",
                    profile_note="",
                    group_hash="simulated",
                )
                values = [number, seed, *category.encode()]
                predictions = simulate(category, side or 8, 1 + number / 3, values).rounded("float16")
                record = Record(
                    run=run,
                    category=category,
                    data_digest=category,
                    epoch=300,
                    metrics=exact(predictions),
                    losses=[0.5] * 300,
                    seconds={"fit": 100.0, "predict": 2.0},
                    latency={"median_ms": 10.0, "p5_ms": 9.0, "p95_ms": 12.0},
                    memory={"host": 2 * 10**9, "device": 10**9},
                    environment={"device": "none", "threads": 1},
                    train_files=[f"{category}/train/good/{i:03}.png" for i in range(240)],
                    test_files=list(predictions.files),
                    command="simulated",
                )
                store.save(record, predictions if side else replace(predictions, maps=None))
                count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="side of maps and masks in pixels; 0 stores no maps")
    parser.add_argument("--format", default="markdown,latex,csv")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        start = time.perf_counter()
        count = fill(Store(runs), options.side)
        size = sum(path.stat().st_size for path in runs.rglob("*") if path.is_file())
        print(f"{count} records, {size / 1e6:.0f} MB, simulated in {time.perf_counter() - start:.0f} s")
        command = [sys.executable, "-m", "bench", "report", "--runs", str(runs)]
        for name in options.format.split(","):
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([*command, "--format", name], check=True, stdout=subprocess.DEVNULL)
            after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"{name}: {wall:.1f} s ({cpu:.1f} s of processor time), peak so far {after.ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
