"""How long a report takes and how much memory: 15 categories x 6 methods x 3 seeds, simulated.

    python benchmarks/report.py --side 64 --format markdown,latex,csv

Each record has 115 test images (MVTec AD's mean) with scores and, where --side is above 0, maps and masks of that side.
The report is made by the command in a process of its own; its peak memory is the operating system's count.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.evaluation.metric_variants import exact
from bench.record import Predictions, Record, Run
from bench.store import Store

CATEGORIES = [
    "carpet", "grid", "leather", "tile", "wood", "bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw",
    "toothbrush", "transistor", "zipper",
]  # fmt: skip
METHODS = {
    "aminet": ("aminet", "AMI-Net", {"jitter": False}),
    "aminet_jitter": ("aminet", "AMI-Net‡", {"jitter": True}),
    "patchcore": ("patchcore", "PatchCore", {}),
    "riad": ("riad", "RIAD", {}),
    "ae_ssim": ("autoencoder", "AE-SSIM", {"loss": "ssim"}),
    "meanmap": ("meanmap", "Mean map (floor)", {}),
}
IMAGES = 115


def simulated(side: int, merit: float, seed: list[int]) -> Predictions:
    """A third good; noise, and on defects `merit` more of it."""
    random = np.random.default_rng(seed)
    bad = np.arange(IMAGES) % 3 > 0
    masks = np.zeros((IMAGES, side, side), dtype=bool)
    masks[bad, side // 4 : side // 2, side // 4 : side // 2] = True
    maps = random.standard_normal(masks.shape, dtype=np.float32) + np.float32(merit) * masks
    return Predictions(
        files=tuple(f"{i:03}.png" for i in range(IMAGES)),
        defects=tuple("dent" if each else "good" for each in bad),
        scores=random.normal(0, 1, IMAGES) + merit * bad,
        maps=maps,
        masks=masks,
        has_pixel_labels=np.full(IMAGES, True),
    )


def fill(store: Store, side: int) -> int:
    count = 0
    for number, (name, (method, title, settings)) in enumerate(METHODS.items()):
        for category in CATEGORIES:
            for seed in range(3):
                run = Run(
                    dataset="mvtec", synthetic=False, protocol="one-for-one", k=0, seed=seed, limit=0, name=name,
                    method=method, title=title, settings=settings, preprocessing={}, precision="float32", file_hashes={},
                    profile="code", profile_note="", group_hash="simulated",
                )  # fmt: skip
                given = simulated(side or 8, 1 + number / 3, [number, seed, *category.encode()]).rounded("float16")
                record = Record(
                    run=run, category=category, data_digest=category, epoch=300, metrics=exact(given), losses=[0.5] * 300,
                    seconds={"fit": 100.0, "predict": 2.0}, latency={"median_ms": 10.0, "p5_ms": 9.0, "p95_ms": 12.0},
                    memory={"host": 2 * 10**9, "device": 10**9}, environment={"device": "none", "threads": 1},
                    train_files=[f"{i}.png" for i in range(240)], test_files=list(given.files), command="simulated",
                )  # fmt: skip
                store.save(record, given if side else replace(given, maps=None))
                count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="of maps and masks; 0 keeps no maps")
    parser.add_argument("--format", default="markdown,latex,csv")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        start = time.perf_counter()
        count = fill(Store(runs), asked.side)
        size = sum(path.stat().st_size for path in runs.rglob("*") if path.is_file())
        print(f"{count} records, {size / 1e6:.0f} MB, made in {time.perf_counter() - start:.0f} s")
        words = [sys.executable, "-m", "bench", "report", "--runs", str(runs)]
        for form in asked.format.split(","):
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([*words, "--format", form], check=True, stdout=subprocess.DEVNULL)
            after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
            busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(
                f"{form}: {wall:.1f} s ({busy:.1f} s of processor time), peak so far {after.ru_maxrss / 1024:.0f} MiB"
            )


if __name__ == "__main__":
    main()
