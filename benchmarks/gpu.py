"""What one GPU reaches, beside the targets and what arithmetic allows: `python benchmarks/gpu.py --json out.json`.

AMI-Net at paper size: latency at batch 1, and the fit of one category, 209 images, 200 epochs at batch 8. PatchCore:
the fit of a 10 % bank of the same images, and latency. The images are MVTec AD's bottle where `--data` has it, else
drawn at its size, 900 x 900; a time does not depend on what they show. So it is with the backbone's weights: random
ones where none are found. Both are told in the result.

The floor of each is the larger of two times: its FLOPs over the speed of a large matrix product, and the bytes that it
can't avoid to move (weights once a pass; weights, gradients and moments once a step; the reduced patches once a pick)
over the speed of a large copy. Both ceilings are measured here first. `--small` is a size that shows in seconds, on any
CPU, that the script works, and nothing else.
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
from bench.evaluation.timing import Clock, latency, milliseconds, parameters
from bench.method import Method, Preprocessing, Setup
from bench.methods import aminet, patchcore
from bench.methods.parts.backbone import find

PAPERS = "wide_resnet50_2.tv_in1k"
TARGETS = {"aminet_latency_ms": 2.5, "aminet_fit_s": 60.0, "patchcore_fit_s": 20.0, "patchcore_latency_ms": 5.0}
"""For one GPU of the H200's class."""

MOVED_A_STEP = 4 * (2 + 7)
"""Bytes a trained number: float32 weights read forward and backward; AdamW reads four numbers and writes three."""


Costs = Callable[[Method], dict[str, float]]
"""A fitted method -> the "flops" and "bytes" that its fit needs at least."""


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    asked = _asked(words)
    device = environment.device(asked.device)
    size = 64 if asked.small else 256
    backbone = "random:resnet18" if asked.small else _backbone(asked.weights)
    setup = Setup((size, size), device, seed=0, weights=asked.weights, precision=asked.precision)
    small = {"width": 32, "heads": 2, "depth": 1, "patch": 2} if asked.small else {}
    network = aminet.Settings(backbone=backbone, epochs=asked.epochs, batch=8, jitter=True, **small)
    bank = patchcore.Settings(backbone=backbone, coreset=0.1)
    side = 90 if asked.small else 900
    with tempfile.TemporaryDirectory() as folder:
        samples = _official(asked) or _drawn(Path(folder), asked.images, side)
        images = FileImages(samples, Preprocessing(size, size))
        ceilings = measured_ceilings(device, 256 if asked.small else 8192, setup.precision)
        rows = {
            **fitted("aminet", aminet.AMINet(network, setup), images, ceilings, _network_floor(network, setup, images)),
            **fitted("patchcore", patchcore.PatchCore(bank, setup), images, ceilings, _bank_floor(bank, setup, images)),
        }
        told = {
            "what": "small: shows only that the script works" if asked.small else "paper size",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": environment.describe(device),
            "precision": setup.precision,
            "images": {"count": len(images), "source": "MVTec AD" if _official(asked) else f"drawn, {side} x {side}"},
            "backbone": {"tag": backbone, "weights": find(backbone, asked.weights).source},
            "epochs": asked.epochs,
            "ceilings": ceilings,
            "results": rows,
        }
    _show(told)
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return told


def fitted(
    name: str, method: Method, images: FileImages, ceilings: dict[str, float], costs_of: Costs
) -> dict[str, dict[str, Any]]:
    """The seconds of a fit and the latency of what it fitted, each with its floor and its peak memory."""
    device, clock = method.setup.device, Clock(method.setup.device)
    environment.reset_peak(device)
    with clock("fit"):
        method.fit(images, lambda *_: None)
    fit_memory = environment.peak_memory(device)
    some = torch.cat(list(images.batches(1, torch.arange(min(8, len(images)))))).to(device)
    environment.reset_peak(device)
    with torch.no_grad():
        found = latency(method, some, warmup=30, passes=100)
        with FlopCounterMode(display=False) as counter:
            method.predict(some[:1])
    frozen = parameters(method) - int(method.info()["trainable_parameters"])
    bytes_a_pass = 4 * (frozen + sum(value.numel() for value in method.state().values()))
    costs = costs_of(method)
    pass_floor = _floor(counter.get_total_flops(), bytes_a_pass, ceilings)
    fit_floor = _floor(costs["flops"], costs["bytes"], ceilings)
    return {
        f"{name}_fit_s": _row(clock.seconds["fit"], fit_floor, costs["flops"], costs["bytes"], fit_memory),
        f"{name}_latency_ms": {
            **_row(found["median_ms"], 1000 * pass_floor, counter.get_total_flops(), bytes_a_pass,
                   environment.peak_memory(device)),
            **found,
        },
    }  # fmt: skip


def _row(reached: Any, floor: float, flops: float, moved: float, memory: dict[str, int]) -> dict[str, Any]:
    return {"reached": reached, "floor": floor, "flops": flops, "bytes": moved, "peak_memory": memory}


def _floor(flops: float, moved: float, ceilings: dict[str, float]) -> float:
    """Seconds."""
    return max(flops / ceilings["flops_per_second"], moved / ceilings["bytes_per_second"])


def measured_ceilings(device: torch.device, side: int, precision: str) -> dict[str, float]:
    """What a large square matrix product and a large copy reach here; the best of ten."""
    dtype = getattr(torch, precision)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(side * side * 4, device=device, dtype=torch.float32)
    target = torch.empty_like(source)
    product = min(milliseconds(lambda: a @ b, device) for _ in range(10)) / 1000
    copy = min(milliseconds(lambda: target.copy_(source), device) for _ in range(10)) / 1000
    return {"flops_per_second": 2 * side**3 / product, "bytes_per_second": 2 * source.nbytes / copy, "side": side}


def _network_floor(settings: aminet.Settings, setup: Setup, images: FileImages) -> Costs:
    """FLOPs and bytes of AMI-Net's fit: features once an image, then a step of 8 images again and again."""

    def costs(method: Method) -> dict[str, float]:
        batch = FileImages(images.samples[: settings.batch], images.preprocessing)

        def counted(epochs: int) -> int:
            with FlopCounterMode(display=False) as counter:
                aminet.AMINet(replace(settings, epochs=epochs), setup).fit(batch, lambda *_: None)
            return counter.get_total_flops()

        once, twice = counted(1), counted(2)
        step, features = twice - once, 2 * once - twice
        steps = settings.epochs * len(images) / settings.batch
        learned = int(method.info()["trainable_parameters"])
        return {"flops": features * len(images) / len(batch) + step * steps, "bytes": MOVED_A_STEP * learned * steps}

    return costs


def _bank_floor(settings: patchcore.Settings, setup: Setup, images: FileImages) -> Costs:
    """FLOPs and bytes of PatchCore's fit: features once an image, then each pick looks at every reduced patch."""

    def costs(method: Method) -> dict[str, float]:
        one = next(iter(images.batches(1))).to(setup.device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            method.backbone(one)  # type: ignore[attr-defined]
        picks = int(method.info()["bank_rows"])
        patches, reduced = picks / settings.coreset, settings.projection or settings.target_dim
        flops = counter.get_total_flops() * len(images) + 2 * patches * reduced * (settings.target_dim + picks)
        return {"flops": flops, "bytes": 4 * patches * reduced * picks}

    return costs


def _asked(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--data", type=Path, help="MVTec AD")
    parser.add_argument("--weights", type=Path, help="folder with backbone weights")
    parser.add_argument("--images", type=int, help="default: 209, a category; small 9")
    parser.add_argument("--epochs", type=int, help="default: 200; small 2")
    parser.add_argument("--small", action="store_true", help="a tiny size, to see the script work on a CPU")
    parser.add_argument("--json", type=Path, help="write the result there")
    asked = parser.parse_args(words)
    asked.images = asked.images or (9 if asked.small else 209)
    asked.epochs = asked.epochs or (2 if asked.small else 200)
    return asked


def _official(asked: argparse.Namespace) -> list[Sample]:
    if not asked.data:
        return []
    samples = registry.load("datasets", "mvtec").samples(asked.data)
    return [one for one in samples if one.category == "bottle" and one.split == "train"][: asked.images]


def _drawn(folder: Path, count: int, side: int) -> list[Sample]:
    """Clouds, as PNG files."""
    generator, samples = np.random.default_rng(0), []
    for i in range(count):
        clouds = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        path = folder / f"{i:03}.png"
        clouds.resize((side, side), Image.Resampling.BICUBIC).save(path)
        samples.append(Sample(path, "clouds", "train"))
    return samples


def _backbone(weights: Path | None) -> str:
    try:
        find(PAPERS, weights)
    except BenchError:
        return f"random:{PAPERS.partition('.')[0]}"
    return PAPERS


def _show(told: dict[str, Any]) -> None:
    source, backbone = told["images"], told["backbone"]
    print(f"{told['machine']['device']}, {told['precision']}, {told['what']}")
    print(f"{source['count']} images, {source['source']}")
    print(f"backbone {backbone['tag']}, weights: {backbone['weights']}; {told['epochs']} epochs")
    ceilings = told["ceilings"]
    print(f"ceilings {ceilings['flops_per_second'] / 1e12:.3g} TFLOP/s, {ceilings['bytes_per_second'] / 1e9:.4g} GB/s")
    print(f"{'':22}{'reached':>12}{'floor':>12}{'target':>12}")
    for name, row in told["results"].items():
        target = "–" if told["what"].startswith("small") else f"{TARGETS[name]:.4g}"
        print(f"{name:22}{row['reached']:12.4g}{row['floor']:12.4g}{target:>12}")


if __name__ == "__main__":
    main()
