"""Speed of batched passes at test time relative to a plain loop: `python benchmarks/batched_passes.py`.

InTra restores the patches of an image from one window each, SCADN masks stripes in 12 passes, SSM masks cells in 18.
All passes of the images go through the network in batches, with convolutions on channels last tensors; the plain loop
calls the network for each pass and image, with contiguous tensors.
Both use the same method, at the sizes of the profile demo with untrained weights, alternately in one process. The
outputs are compared as well.

`bound_seconds` is the CPU time of the network's floating point operations at the speed of a large matrix product: an
estimate of what is possible, because a convolution may need fewer operations than are counted.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from interleaved import compare, format_comparison, run_interleaved, write_result
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench import registry
from bench.config.settings import resolve
from bench.method import Method, Prediction, Setup

METHODS = ("intra", "scadn", "ssm")


def build_method(name: str, profile: str, size: int) -> Method:
    """Return the method with untrained weights, and neutral values of what else a fit learns."""
    module = registry.load("methods", name)
    values = {key: (value, "profile") for key, value in module.PROFILES[profile].items()}
    settings, _ = resolve(module.Settings, values, name)
    method: Method = module.METHOD(settings, Setup((size, size), torch.device("cpu"), 0))
    side = size // settings.downsample
    learned: dict[str, dict[str, Any]] = {
        "intra": {"normal_map": torch.zeros(side, side), "best_epoch": torch.tensor(1)},
        "scadn": {"normal_errors": torch.zeros(len(getattr(settings, "scales", ())))},
        "ssm": {"threshold": torch.tensor(0.5)},
    }
    for attribute, value in learned[name].items():
        setattr(method, attribute, value)
    method.network = method.initialize(method.build_network).eval()  # type: ignore[attr-defined]
    return method


def predict_in_loop(method: Method, images: Tensor) -> Prediction:
    """Predict each image alone, with one pass per call of the network, on contiguous tensors."""
    module = registry.load("methods", type(method).__module__.rpartition(".")[2])
    with ExitStack() as replaced:
        replaced.enter_context(patch.object(module, "passes_per_batch", lambda *_: 1))
        if hasattr(module, "convolution_format"):  # InTra has no convolutions
            replaced.enter_context(patch.object(module, "convolution_format", lambda _: torch.contiguous_format))
        predictions = [method.predict(image[None]) for image in images]
    scores, maps = (torch.cat([getattr(each, name) for each in predictions]) for name in ("scores", "maps"))
    return Prediction(scores, maps)


def bound_seconds(predict: Callable[[], Prediction], side: int = 1536) -> float:
    """Return the CPU time of the operations of `predict` at the speed of the best of five products of (side, side)."""
    with FlopCounterMode(display=False) as counter:
        predict()
    matrix = torch.rand(side, side)
    product = {"product": lambda: matrix @ matrix}
    seconds = min(cpu for _, cpu in run_interleaved(product, 5)["product"])
    return counter.get_total_flops() * seconds / (2 * side**3)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time both forms of one method and compare their maps."""
    method = build_method(name, options.profile, options.size)
    images = torch.rand(options.images, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    candidates: dict[str, Callable[[], Prediction]] = {
        "plain loop": lambda: predict_in_loop(method, images),
        "batched": lambda: method.predict(images),
    }
    print(name)
    comparison = compare(run_interleaved(candidates, options.rounds), "plain loop")
    print(format_comparison(comparison))
    maps = [predict().maps for predict in candidates.values()]
    difference = float((maps[0] - maps[1]).abs().max() / maps[0].abs().max().clamp(min=1e-12))
    bound = bound_seconds(candidates["plain loop"])
    print(f"bound: {bound:.4f} s")
    return {
        "passes_per_image": method.info()["passes"],
        "comparison": comparison,
        "bound_seconds": bound,
        "largest_relative_difference": difference,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Time all methods; write and return the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--profile", default="demo", choices=("demo", "check"))
    parser.add_argument("--size", type=int, default=256, help="side of the images (default: 256)")
    parser.add_argument("--images", type=int, default=2, help="images per call of predict (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file of the result (default: in benchmarks/results/)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    measurement = {
        "description": f"predict of {options.images} images, {options.size} x {options.size}, {options.profile}",
        "results": {name: measure(name, options) for name in options.method},
    }
    write_result("batched_passes", measurement, json_path=options.json)
    return measurement


if __name__ == "__main__":
    main()
