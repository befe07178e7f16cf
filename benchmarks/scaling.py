"""Growth of time and memory with the size of the data: `python benchmarks/scaling.py`.

Fit, predict and metrics of a small PatchCore with 1, 4 and 16 times as many images; predict with 1, 4 and 16 times as
many pixels; the search with 1, 4 and 16 times as many rows in the memory bank. Time is CPU time, the minimum of
the rounds, because disturbances only increase it. The exponent is the slope in a log-log plot; 1 is proportional. The
expected exponent is 1, except for the coreset, which compares each selection with each patch: 2 in the number of
images.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import write_result

from bench.evaluation.metrics import evaluate
from bench.execution.method_checks import SyntheticImages
from bench.method import Setup
from bench.methods.parts.bank import MemoryBank, nearest_neighbors
from bench.methods.patchcore import PatchCore, Settings, greedy_coreset

FACTORS = (1, 4, 16)
SETTINGS = Settings("tf_efficientnet_lite0", (2, 3), pretrain_dim=64, target_dim=64, coreset=0.1, projection=32)


def measure_growth(
    name: str, expected: float, build: Callable[[int], Callable[[], Any]], rounds: int
) -> dict[str, Any]:
    """Return the seconds at each size and the exponent."""
    seconds = []
    for factor in FACTORS:
        call = build(factor)
        call()
        samples = []
        for _ in range(rounds):
            start = time.process_time()
            call()
            samples.append(time.process_time() - start)
        seconds.append(min(samples))
    exponent = float(np.polyfit(np.log(FACTORS), np.log(seconds), 1)[0])
    columns = " ".join(f"{value:9.4f}" for value in seconds)
    print(f"{name:<44}{columns} s   exponent {exponent:.2f}, expected {expected:.0f}", flush=True)
    return {"seconds": seconds, "exponent": exponent, "theory": expected}


def unfitted_method(side: int = 64) -> PatchCore:
    return PatchCore(SETTINGS, Setup((side, side), torch.device("cpu"), 0))


def fit(count: int) -> Callable[[], Any]:
    method, images = unfitted_method(), SyntheticImages((64, 64), count)
    return lambda: method.fit(images, lambda *_: None)


def predict(count: int, side: int) -> Callable[[], Any]:
    method, pixels = unfitted_method(side), SyntheticImages((side, side), count).pixels
    method.fit(SyntheticImages((side, side), 4), lambda *_: None)
    return lambda: [method.predict(batch) for batch in pixels.split(8)]


def metrics(count: int) -> Callable[[], Any]:
    rng = np.random.default_rng(0)
    maps, masks = rng.random((count, 128, 128), np.float32), np.zeros((count, 128, 128), bool)
    masks[::2, 40:60, 50:70] = True
    return lambda: evaluate(maps.max(axis=(1, 2)), masks.any(axis=(1, 2)), list(maps), list(masks))


def search(rows: int) -> Callable[[], Any]:
    bank, queries = MemoryBank.from_rows(torch.randn(rows, 64), torch.zeros(64)), torch.randn(256, 64)
    return lambda: nearest_neighbors(queries, bank, 1)


def coreset(n_patches: int) -> Callable[[], Any]:
    features = torch.randn(n_patches, 32)
    return lambda: greedy_coreset(features, n_patches // 10, torch.arange(10))


def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the peak memory of NumPy arrays during the call; memory of torch is not included."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--rounds", type=int, default=3, help="runs at each size, of which the fastest counts (default: 3)"
    )
    parser.add_argument("--json", type=Path, help="file of the result (default: in benchmarks/results/)")
    options = parser.parse_args()
    rounds, sides = options.rounds, {1: 64, 4: 128, 16: 256}
    growth: dict[str, Any] = {
        "fit, images": measure_growth("PatchCore fit, images", 2, lambda n: fit(8 * n), rounds),
        "coreset, patches": measure_growth("coreset, patches", 2, lambda n: coreset(2000 * n), rounds),
        "predict, images": measure_growth("predict, images", 1, lambda n: predict(4 * n, 64), rounds),
        "predict, pixels": measure_growth(
            "predict, pixels; the bank grows too", 2, lambda n: predict(2, sides[n]), rounds
        ),
        "search, rows": measure_growth("search, rows of the bank", 1, lambda n: search(4096 * n), rounds),
        "metrics, images": measure_growth("metrics, images", 1, lambda n: metrics(8 * n), rounds),
    }
    peaks = [peak_bytes(metrics(8 * n)) for n in FACTORS]
    exponent = float(np.polyfit(np.log(FACTORS), np.log(peaks), 1)[0])
    growth["metrics, memory"] = {"bytes": peaks, "exponent": exponent, "theory": 1}
    estimates = [PatchCore.estimate_memory(SETTINGS, (64, 64), 4 * n) for n in FACTORS]
    growth["PatchCore memory estimate"] = {"bytes": estimates, "theory": 1}
    write_result("scaling", {"factors": FACTORS, "growth": growth}, "numpy", json_path=options.json)


if __name__ == "__main__":
    main()
