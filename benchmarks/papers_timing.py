"""The timing procedure of AMI-Net's authors: an untrained network, one random input, the forward pass only.

    python benchmarks/papers_timing.py --device cuda --json out.json

Their `computer_time.py` runs the network 10 times as a warm-up and 300 times between two CUDA events, on one image of
normal noise, 1 x 3 x 256 x 256. This includes backbone, mask and restoration, but not decoding, the map, its smoothing
and the score. The mask depends on weights and input, so the result hardly applies to a trained model on real images,
which `bench time` measures. It serves to compare the *ratio* of Fig. 8, 11.48 ms for AMI-Net to 49.14 ms for PatchCore
= 1 : 4.3 on an RTX 4090, with the same procedure on another device. The paper does not state the size of its memory
bank; here it is 10 % of the patches of 209 images, drawn from a normal distribution.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import environment
from bench.errors import BenchError
from bench.evaluation.timing import percentiles, time_call
from bench.method import Setup
from bench.methods import aminet, patchcore
from bench.weights import find_weights

PUBLISHED = {"aminet_ms": 11.48, "patchcore_ms": 49.14, "ratio": 49.14 / 11.48, "source": "Fig. 8, RTX 4090"}
PAPER_BACKBONE = "wide_resnet50_2.tv_in1k"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--passes", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--size", type=int, default=256, help="side of the image in pixels")
    parser.add_argument("--backbone", default="", help=f"tag; default: {PAPER_BACKBONE}, random without its weights")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--images", type=int, default=209, help="images whose patches fill PatchCore's bank by 10 %%")
    parser.add_argument("--weights", type=Path, help="folder of backbone weights")
    parser.add_argument("--json", type=Path, help="file of the result")
    options = parser.parse_args(arguments)
    device = environment.device(options.device)
    backbone = options.backbone or _available_backbone(options.weights)
    setup = Setup((options.size, options.size), device, seed=0, weights=options.weights)
    sizes = {"width": options.width, "heads": options.heads, "depth": options.depth}
    image = torch.randn(1, 3, options.size, options.size, generator=torch.Generator().manual_seed(0)).to(device)
    forwards = {
        "aminet": untrained_aminet(aminet.Settings(backbone=backbone, **sizes), setup),
        "patchcore": random_patchcore(patchcore.Settings(backbone=backbone), setup, options.images),
    }
    with torch.no_grad():
        times = {
            name: time_forward(forward, image, warmup=options.warmup, passes=options.passes)
            for name, forward in forwards.items()
        }
    ratio = times["patchcore"]["median_ms"] / times["aminet"]["median_ms"]
    result = {
        "description": "random input, untrained weights, batch 1: the procedure of the authors, not `bench time`",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": environment.describe(device),
        "settings": {name: value for name, value in vars(options).items() if name not in {"json", "weights"}},
        "backbone": {"tag": backbone, "weights": find_weights(backbone, options.weights).source},
        **times,
        "ratio": ratio,
        "published": PUBLISHED,
    }
    aminet_ms, patchcore_ms = times["aminet"]["median_ms"], times["patchcore"]["median_ms"]
    print(f"Backbone {backbone}, {result['machine']['device']}, {options.passes} passes, the authors' procedure:")
    print(f"  measured   AMI-Net {aminet_ms:.2f} ms : PatchCore {patchcore_ms:.2f} ms = 1 : {ratio:.1f}")
    print(f"  published  AMI-Net {11.48} ms : PatchCore {49.14} ms = 1 : {PUBLISHED['ratio']:.1f} (RTX 4090)")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def untrained_aminet(settings: aminet.Settings, setup: Setup) -> Callable[[Tensor], object]:
    """Return the forward pass without the map: features, centers, mask and restored features."""
    method = aminet.AMINet(settings, setup)
    method.network = method.build_network().to(setup.device).eval()
    return method.restore_images


def random_patchcore(settings: patchcore.Settings, setup: Setup, n_images: int) -> Callable[[Tensor], object]:
    """Return the extraction of features and the search in a memory bank of random rows."""
    method = patchcore.PatchCore(settings, setup)
    stride = method.backbone.strides[0]
    n_patches = -(-setup.size[0] // stride) * -(-setup.size[1] // stride)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(max(1, int(n_images * n_patches * settings.coreset)), settings.target_dim, generator=generator)
    method.load_state_dict({"bank": rows, "center": torch.zeros(settings.target_dim)})
    return method.score_patches


def time_forward(forward: Callable[[Tensor], object], image: Tensor, *, warmup: int, passes: int) -> dict[str, Any]:
    """Return mean and standard deviation, which the authors print, percentiles and all samples, in milliseconds."""
    for _ in range(warmup):
        forward(image)
    samples = [time_call(lambda: forward(image), image.device) for _ in range(passes)]
    values = torch.tensor(samples, dtype=torch.float64)
    return {"mean_ms": float(values.mean()), "std_ms": float(values.std(correction=0)), **percentiles(samples)}


def _available_backbone(weights: Path | None) -> str:
    """Return the paper's backbone, or the same with random weights if there are none; the time is the same."""
    try:
        find_weights(PAPER_BACKBONE, weights)
    except BenchError:
        return f"random:{PAPER_BACKBONE.partition('.')[0]}"
    return PAPER_BACKBONE


if __name__ == "__main__":
    main()
