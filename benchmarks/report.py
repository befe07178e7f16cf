"""Time and memory of a report: 15 categories x 6 methods x 3 seeds of simulated records.

    python benchmarks/report.py --side 64 --format html,markdown,latex,csv

Each record has scores of 115 test images (the mean of MVTec AD) and, unless --side is 0, maps and masks of this side.
The report command runs in a child process, which reads its peak memory from /proc (Linux) when it ends: `ru_maxrss` of
a child is at least that of the process that starts it.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import write_result

from bench.evaluation.metric_variants import exact_metrics
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
    "meanmap": ("meanmap", "Mean map (baseline)", {}),
}
IMAGES = 115


def simulate(category: str, side: int, effect_size: float, seed: list[int]) -> Predictions:
    """Return predictions of noise, to which `effect_size` is added for defects; a third of the images is good."""
    rng = np.random.default_rng(seed)
    is_anomalous = np.arange(IMAGES) % 3 > 0
    defects = tuple("dent" if anomalous else "good" for anomalous in is_anomalous)
    masks = np.zeros((IMAGES, side, side), dtype=bool)
    masks[is_anomalous, side // 4 : side // 2, side // 4 : side // 2] = True
    maps = rng.standard_normal(masks.shape, dtype=np.float32) + np.float32(effect_size) * masks
    return Predictions(
        files=tuple(f"{category}/test/{defect}/{i:03}.png" for i, defect in enumerate(defects)),
        defects=defects,
        scores=rng.normal(0, 1, IMAGES) + effect_size * is_anomalous,
        maps=maps,
        masks=masks,
        has_pixel_labels=np.full(IMAGES, True),
    )


def save_simulated_records(store: Store, side: int) -> None:
    """Save the simulated records."""
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
                    data_hash=category,
                    epoch=300,
                    metrics=exact_metrics(predictions),
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


def main() -> None:
    """Time all formats; write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="side of maps and masks in pixels; 0 stores no maps")
    parser.add_argument("--format", default="html,markdown,latex,csv")
    parser.add_argument("--json", type=Path, help="file of the result (default: in benchmarks/results/)")
    options = parser.parse_args()
    formats: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        save_simulated_records(Store(runs), options.side)
        size = sum(path.stat().st_size for path in runs.rglob("*") if path.is_file())
        for name in options.format.split(","):
            formats[name] = measure(["--runs", str(runs), "--format", name, "--out", str(Path(folder) / name)])
            print(name, formats[name], flush=True)
    count = len(METHODS) * len(CATEGORIES) * 3
    description = f"reports of {count} records, {size / 1e6:.0f} MB, maps of {options.side} x {options.side}"
    write_result("report", {"description": description, "formats": formats}, "matplotlib", json_path=options.json)


REPORT_WITH_PEAK = """
import atexit, runpy, sys
from pathlib import Path

output, *sys.argv = sys.argv[1:]
atexit.register(lambda: Path(output).write_text(Path("/proc/self/status").read_text("utf-8"), "utf-8"))
runpy.run_module("bench", run_name="__main__")
"""


def measure(arguments: Sequence[str]) -> dict[str, float]:
    """Run `bench report` in a child process; return its seconds, CPU seconds and peak memory in MiB."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as output:
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", REPORT_WITH_PEAK, output.name, "bench", "report", *arguments]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = time.perf_counter() - start
        (peak,) = (int(line.split()[1]) for line in output if line.startswith("VmHWM:"))  # KiB
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mib": round(peak / 1024)}


if __name__ == "__main__":
    main()
