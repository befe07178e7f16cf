"""Speed on one GPU, with targets and lower bounds: `python benchmarks/gpu.py --json out.json`.

AMI-Net at the paper's size: latency at batch 1, and the fit of one category, 209 images, 200 epochs at batch 8.
PatchCore: the fit of a 10 % memory bank of the same images, and latency. The images are MVTec AD's bottle if `--data`
has it, or else synthetic images of its size, 900 x 900; times do not depend on the content. In the same way, the
backbone has random weights if its weights are missing. The result states both.

The lower bound of a time is the larger of two: its FLOPs divided by the speed of a large matrix product, and the bytes
that must be moved (weights once per pass; weights, gradients and Adam moments once per step; the projected patches once
per selection) divided by the speed of a large copy. Both speeds are measured first. `--small` is a size that runs in
seconds on a CPU, to test the script.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from bench import environment, registry
from bench.data.images import FileImages
from bench.dataset import Sample
from bench.errors import BenchError
from bench.evaluation.timing import Clock, latency, parameters, time_call
from bench.method import Method, Preprocessing, Setup
from bench.methods import aminet, patchcore
from bench.weights import find_weights

PAPER_BACKBONE = "wide_resnet50_2.tv_in1k"
TARGETS = {"aminet_latency_ms": 2.5, "aminet_fit_s": 60.0, "patchcore_fit_s": 20.0, "patchcore_latency_ms": 5.0}
"""Targets for one GPU like the H200."""

BYTES_PER_STEP = 4 * (2 + 7)
"""Bytes per parameter and step: float32 weights read in forward and backward; AdamW reads four values, writes three."""


Costs = Callable[[Method], dict[str, float]]
"""Function of a fitted method: the minimum of "flops" and "bytes" of its fit."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = _parse(arguments)
    device = environment.device(options.device)
    size = 64 if options.small else 256
    backbone = "random:resnet18" if options.small else _available_backbone(options.weights)
    setup = Setup((size, size), device, seed=0, weights=options.weights, precision=options.precision)
    small = {"width": 32, "heads": 2, "depth": 1, "patch": 2} if options.small else {}
    aminet_settings = aminet.Settings(backbone=backbone, epochs=options.epochs, batch_size=8, jitter=True, **small)
    patchcore_settings = patchcore.Settings(backbone=backbone, coreset=0.1)
    side = 90 if options.small else 900
    with tempfile.TemporaryDirectory() as folder:
        real = _real_samples(options)
        images = FileImages(real or _synthetic_samples(Path(folder), options.images, side), Preprocessing(size, size))
        ceilings = measure_ceilings(device, 256 if options.small else 8192, setup.precision)
        aminet_costs = _aminet_costs(aminet_settings, setup, images)
        patchcore_costs = _patchcore_costs(patchcore_settings, setup, images)
        rows = {
            **measure_method("aminet", aminet.AMINet(aminet_settings, setup), images, ceilings, aminet_costs),
            **measure_method(
                "patchcore", patchcore.PatchCore(patchcore_settings, setup), images, ceilings, patchcore_costs
            ),
        }
        result = {
            "description": "small: only a test of the script" if options.small else "paper size",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": environment.describe(device),
            "precision": setup.precision,
            "images": {"count": len(images), "source": "MVTec AD" if real else f"synthetic, {side} x {side}"},
            "backbone": {"tag": backbone, "weights": find_weights(backbone, options.weights).source},
            "epochs": options.epochs,
            "ceilings": ceilings,
            "results": rows,
        }
    _print_result(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def measure_method(
    name: str, method: Method, images: FileImages, ceilings: dict[str, float], costs_of: Costs
) -> dict[str, dict[str, Any]]:
    """Return the seconds of a fit and the latency of the fitted method, with lower bounds and peak memory."""
    device, clock = method.setup.device, Clock(method.setup.device)
    environment.reset_peak(device)
    with clock("fit"):
        method.fit(images, lambda *_: None)
    fit_memory = environment.peak_memory(device)
    batch = torch.cat(list(images.batches(1, torch.arange(min(8, len(images)))))).to(device)
    environment.reset_peak(device)
    with torch.no_grad():
        times = latency(method, batch, warmup=30, passes=100)
        with FlopCounterMode(display=False) as counter:
            method.predict(batch[:1])
    n_frozen = parameters(method) - int(method.info()["trainable_parameters"])
    bytes_per_pass = 4 * (n_frozen + sum(value.numel() for value in method.state_dict().values()))
    costs = costs_of(method)
    latency_bound = lower_bound(counter.get_total_flops(), bytes_per_pass, ceilings)
    fit_bound = lower_bound(costs["flops"], costs["bytes"], ceilings)
    return {
        f"{name}_fit_s": _row(clock.seconds["fit"], fit_bound, costs["flops"], costs["bytes"], fit_memory),
        f"{name}_latency_ms": {
            **_row(times["median_ms"], 1000 * latency_bound, counter.get_total_flops(), bytes_per_pass,
                   environment.peak_memory(device)),
            **times,
        },
    }  # fmt: skip


def _row(reached: Any, floor: float, flops: float, moved: float, memory: dict[str, int]) -> dict[str, Any]:
    return {"reached": reached, "floor": floor, "flops": flops, "bytes": moved, "peak_memory": memory}


def lower_bound(flops: float, moved: float, ceilings: dict[str, float]) -> float:
    """Return the minimum seconds for these FLOPs and moved bytes."""
    return max(flops / ceilings["flops_per_second"], moved / ceilings["bytes_per_second"])


def measure_ceilings(device: torch.device, side: int, precision: str) -> dict[str, float]:
    """Return the speed of a large square matrix product and of a large copy, the best of ten."""
    dtype = getattr(torch, precision)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(side * side * 4, device=device, dtype=torch.float32)
    target = torch.empty_like(source)
    product = min(time_call(lambda: left @ right, device) for _ in range(10)) / 1000
    copy = min(time_call(lambda: target.copy_(source), device) for _ in range(10)) / 1000
    return {"flops_per_second": 2 * side**3 / product, "bytes_per_second": 2 * source.nbytes / copy, "side": side}


def _aminet_costs(settings: aminet.Settings, setup: Setup, images: FileImages) -> Costs:
    """Return the costs of AMI-Net's fit: features once per image, then steps of 8 images."""

    def costs(method: Method) -> dict[str, float]:
        batch = FileImages(images.samples[: settings.batch_size], images.preprocessing)

        def count_flops(epochs: int) -> int:
            with FlopCounterMode(display=False) as counter:
                aminet.AMINet(replace(settings, epochs=epochs), setup).fit(batch, lambda *_: None)
            return counter.get_total_flops()

        one_epoch, two_epochs = count_flops(1), count_flops(2)
        step, features = two_epochs - one_epoch, 2 * one_epoch - two_epochs
        n_steps = settings.epochs * len(images) / settings.batch_size
        n_trainable = int(method.info()["trainable_parameters"])
        flops = features * len(images) / len(batch) + step * n_steps
        return {"flops": flops, "bytes": BYTES_PER_STEP * n_trainable * n_steps}

    return costs


def _patchcore_costs(settings: patchcore.Settings, setup: Setup, images: FileImages) -> Costs:
    """Return the costs of PatchCore's fit: features once per image, then all projected patches per selection."""

    def costs(method: Method) -> dict[str, float]:
        image = next(iter(images.batches(1))).to(setup.device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            method.backbone(image)  # type: ignore[attr-defined]
        n_selected = int(method.info()["bank_rows"])
        n_patches, dimensions = n_selected / settings.coreset, settings.projection or settings.target_dim
        selection = 2 * n_patches * dimensions * (settings.target_dim + n_selected)
        flops = counter.get_total_flops() * len(images) + selection
        return {"flops": flops, "bytes": 4 * n_patches * dimensions * n_selected}

    return costs


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--data", type=Path, help="folder of MVTec AD")
    parser.add_argument("--weights", type=Path, help="folder of backbone weights")
    parser.add_argument("--images", type=int, help="default: 209, one category; with --small 9")
    parser.add_argument("--epochs", type=int, help="default: 200; with --small 2")
    parser.add_argument("--small", action="store_true", help="a small size, to test the script on a CPU")
    parser.add_argument("--json", type=Path, help="file of the result")
    options = parser.parse_args(arguments)
    options.images = options.images or (9 if options.small else 209)
    options.epochs = options.epochs or (2 if options.small else 200)
    return options


def _real_samples(options: argparse.Namespace) -> list[Sample]:
    if not options.data:
        return []
    samples = registry.load("datasets", "mvtec").samples(options.data)
    return [sample for sample in samples if sample.category == "bottle" and sample.split == "train"][: options.images]


def _synthetic_samples(folder: Path, count: int, side: int) -> list[Sample]:
    """Write smooth random images as PNG files."""
    rng, samples = np.random.default_rng(0), []
    for i in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        path = folder / f"{i:03}.png"
        noise.resize((side, side), Image.Resampling.BICUBIC).save(path)
        samples.append(Sample(path, "noise", "train"))
    return samples


def _available_backbone(weights: Path | None) -> str:
    try:
        find_weights(PAPER_BACKBONE, weights)
    except BenchError:
        return f"random:{PAPER_BACKBONE.partition('.')[0]}"
    return PAPER_BACKBONE


def _print_result(result: dict[str, Any]) -> None:
    images, backbone, ceilings = result["images"], result["backbone"], result["ceilings"]
    print(f"{result['machine']['device']}, {result['precision']}, {result['description']}")
    print(f"{images['count']} images, {images['source']}")
    print(f"backbone {backbone['tag']}, weights: {backbone['weights']}; {result['epochs']} epochs")
    print(f"ceilings {ceilings['flops_per_second'] / 1e12:.3g} TFLOP/s, {ceilings['bytes_per_second'] / 1e9:.4g} GB/s")
    print(f"{'':22}{'reached':>12}{'floor':>12}{'target':>12}")
    for name, row in result["results"].items():
        target = "–" if result["description"].startswith("small") else f"{TARGETS[name]:.4g}"
        print(f"{name:22}{row['reached']:12.4g}{row['floor']:12.4g}{target:>12}")


if __name__ == "__main__":
    main()
