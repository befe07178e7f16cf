"""How time and memory grow: `python benchmarks/scaling.py`.

Fit, predict and metrics of a small PatchCore with 1, 4 and 16 times as many images; predict with 1, 4 and 16 times as
many pixels; the search with 1, 4 and 16 times as many rows in the bank. Time is the processor's own, the least of the
rounds, for whatever disturbs only adds. An exponent is the slope of a line through the logarithms: 1 is proportional.
Theory: all of it 1, but for the coreset, which compares each pick with each patch: 2 in the images.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import write

from bench.evaluation.metrics import evaluate
from bench.execution.method_checks import SyntheticImages
from bench.method import Setup
from bench.methods.parts.bank import Bank, nearest
from bench.methods.patchcore import PatchCore, Settings, greedy_coreset

TIMES = (1, 4, 16)
SETTINGS = Settings("tf_efficientnet_lite0", (2, 3), pretrain_dim=64, target_dim=64, coreset=0.1, projection=32)


def grown(what: str, theory: float, make: Callable[[int], Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Seconds at each size, and the exponent."""
    seconds = []
    for factor in TIMES:
        call = make(factor)
        call()
        taken = []
        for _ in range(rounds):
            begun = time.process_time()
            call()
            taken.append(time.process_time() - begun)
        seconds.append(min(taken))
    slope = float(np.polyfit(np.log(TIMES), np.log(seconds), 1)[0])
    told = " ".join(f"{value:9.4f}" for value in seconds)
    print(f"{what:<44}{told} s   exponent {slope:.2f}, theory {theory:.0f}", flush=True)
    return {"seconds": seconds, "exponent": slope, "theory": theory}


def method(images: int, side: int = 64) -> PatchCore:
    made = PatchCore(SETTINGS, Setup((side, side), torch.device("cpu"), 0))
    made.fit(SyntheticImages((side, side), images), lambda *_: None)
    return made


def fitting(images: int) -> Callable[[], Any]:
    made, drawn = PatchCore(SETTINGS, Setup((64, 64), torch.device("cpu"), 0)), SyntheticImages((64, 64), images)
    return lambda: made.fit(drawn, lambda *_: None)


def predicting(images: int, side: int) -> Callable[[], Any]:
    fitted, asked = method(4, side), SyntheticImages((side, side), images).pixels
    return lambda: [fitted.predict(batch) for batch in asked.split(8)]


def judging(images: int) -> Callable[[], Any]:
    random = np.random.default_rng(0)
    maps, masks = random.random((images, 128, 128), np.float32), np.zeros((images, 128, 128), bool)
    masks[::2, 40:60, 50:70] = True
    return lambda: evaluate(maps.max(axis=(1, 2)), masks.any(axis=(1, 2)), list(maps), list(masks))


def seeking(rows: int) -> Callable[[], Any]:
    kept, asked = torch.randn(rows, 64), torch.randn(256, 64)
    bank = Bank.of(kept, torch.zeros(64))
    return lambda: nearest(asked, bank, 1)


def choosing(patches: int) -> Callable[[], Any]:
    features = torch.randn(patches, 32)
    return lambda: greedy_coreset(features, patches // 10, torch.arange(10))


def memory(call: Callable[[], Any]) -> int:
    """Peak bytes of numpy's arrays while it runs; torch's are not seen."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="runs at each size; the fastest counts (default: 3)")
    parser.add_argument("--json", type=Path, help="where to write the result (default: benchmarks/results/)")
    options = parser.parse_args()
    rounds, sides = options.rounds, {1: 64, 4: 128, 16: 256}
    found: dict[str, Any] = {
        "fit, images": grown("PatchCore fit, images", 2, lambda n: fitting(8 * n), rounds),
        "coreset, patches": grown("coreset, patches", 2, lambda n: choosing(2000 * n), rounds),
        "predict, images": grown("predict, images", 1, lambda n: predicting(4 * n, 64), rounds),
        "predict, pixels": grown("predict, pixels; the bank grows too", 2, lambda n: predicting(2, sides[n]), rounds),
        "search, rows": grown("search, rows of the bank", 1, lambda n: seeking(4096 * n), rounds),
        "metrics, images": grown("metrics, images", 1, lambda n: judging(8 * n), rounds),
    }
    peaks = [memory(judging(8 * n)) for n in TIMES]
    slope = float(np.polyfit(np.log(TIMES), np.log(peaks), 1)[0])
    found["metrics, memory"] = {"bytes": peaks, "exponent": slope, "theory": 1}
    estimates = [PatchCore.memory(SETTINGS, (64, 64), 4 * n) for n in TIMES]
    found["PatchCore's estimate of its memory"] = {"bytes": estimates, "theory": 1}
    write("scaling", {"factors": TIMES, "growth": found}, "numpy", json_path=options.json)


if __name__ == "__main__":
    main()
