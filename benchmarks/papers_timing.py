"""How AMI-Net's authors time, repeated: an untrained network, one random input, forward only.

    python benchmarks/papers_timing.py --device cuda --json out.json

Their `computer_time.py` asks the network 10 times to warm up and then 300 times, always for the same image of normal
noise, 1 x 3 x 256 x 256, each pass between two CUDA events. Backbone, mask and inpainting are in it; decoding, the map,
its smoothing and the score are not. The mask depends on weights and input, so this says little of a trained model on
real images, which `bench time` measures. It is here so that the *ratio* of Fig. 8, 11.48 ms for AMI-Net to 49.14 ms for
PatchCore = 1 : 4.3 on an RTX 4090, can be held against the same habit elsewhere. The paper does not say how large its
PatchCore's bank was; here it is 10 % of the patches of 209 images, drawn from a normal distribution.
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
from bench.evaluation.timing import milliseconds, percentiles
from bench.method import Setup
from bench.methods import aminet, patchcore
from bench.methods.parts.backbone import find
from bench.methods.parts.inpainting import Inpainter

PUBLISHED = {"aminet_ms": 11.48, "patchcore_ms": 49.14, "ratio": 49.14 / 11.48, "source": "Fig. 8, RTX 4090"}
PAPERS = "wide_resnet50_2.tv_in1k"


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--passes", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--size", type=int, default=256, help="pixels on a side")
    parser.add_argument("--backbone", default="", help=f"a tag; {PAPERS} where its weights are found, else random")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--images", type=int, default=209, help="of whose patches PatchCore's bank is 10 %%")
    parser.add_argument("--weights", type=Path, help="folder with backbone weights")
    parser.add_argument("--json", type=Path, help="write the result there")
    asked = parser.parse_args(words)
    device = environment.device(asked.device)
    backbone = asked.backbone or _backbone(asked.weights)
    setup = Setup((asked.size, asked.size), device, seed=0, weights=asked.weights)
    sizes = {"width": asked.width, "heads": asked.heads, "depth": asked.depth}
    image = torch.randn(1, 3, asked.size, asked.size, generator=torch.Generator().manual_seed(0)).to(device)
    forwards = {
        "aminet": untrained_aminet(aminet.Settings(backbone=backbone, **sizes), setup),
        "patchcore": random_patchcore(patchcore.Settings(backbone=backbone), setup, asked.images),
    }
    with torch.no_grad():
        found = {name: timed(act, image, warmup=asked.warmup, passes=asked.passes) for name, act in forwards.items()}
    ratio = found["patchcore"]["median_ms"] / found["aminet"]["median_ms"]
    told = {
        "what": "random input, untrained weights, forward only, batch 1: the authors' habit, not `bench time`",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": environment.describe(device),
        "settings": {name: value for name, value in vars(asked).items() if name not in {"json", "weights"}},
        "backbone": {"tag": backbone, "weights": find(backbone, asked.weights).source},
        **found,
        "ratio": ratio,
        "published": PUBLISHED,
    }
    ours, theirs = found["aminet"]["median_ms"], found["patchcore"]["median_ms"]
    print(f"Backbone {backbone}, {told['machine']['device']}, {asked.passes} passes. The habit of the authors:")
    print(f"  here       AMI-Net {ours:.2f} ms : PatchCore {theirs:.2f} ms = 1 : {ratio:.1f}")
    print(f"  published  AMI-Net {11.48} ms : PatchCore {49.14} ms = 1 : {PUBLISHED['ratio']:.1f} (RTX 4090)")
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return told


def untrained_aminet(settings: aminet.Settings, setup: Setup) -> Callable[[Tensor], object]:
    """The forward pass without the map: features, centres, mask, and what is restored."""
    method = aminet.AMINet(settings, setup)
    facts = method.info()
    side = int(int(facts["tokens"]) ** 0.5)
    network = Inpainter(
        int(facts["feature_channels"]) * settings.patch**2, (side, side), width=settings.width, depth=settings.depth,
        heads=settings.heads, aggregation_depth=settings.aggregation_depth, clusters=settings.clusters,
    )  # fmt: skip
    method.restore(network.state_dict())
    return method._inpainted  # what the authors' script times has no public name


def random_patchcore(settings: patchcore.Settings, setup: Setup, images: int) -> Callable[[Tensor], object]:
    """The features of an image and the search for their nearest rows in a bank of noise."""
    method = patchcore.PatchCore(settings, setup)
    places = prod_of_grid(setup, method.backbone.strides[0])
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(max(1, int(images * places * settings.coreset)), settings.target_dim, generator=generator)
    method.restore({"bank": rows, "centre": torch.zeros(settings.target_dim)})
    return method._judged


def prod_of_grid(setup: Setup, stride: int) -> int:
    return -(-setup.size[0] // stride) * -(-setup.size[1] // stride)


def timed(forward: Callable[[Tensor], object], image: Tensor, *, warmup: int, passes: int) -> dict[str, Any]:
    """Median, mean and standard deviation, which the authors print, percentiles and every sample; in milliseconds."""
    for _ in range(warmup):
        forward(image)
    samples = [milliseconds(lambda: forward(image), image.device) for _ in range(passes)]
    values = torch.tensor(samples, dtype=torch.float64)
    return {"mean_ms": float(values.mean()), "std_ms": float(values.std(correction=0)), **percentiles(samples)}


def _backbone(weights: Path | None) -> str:
    """The papers' backbone with its weights, or, told in the result, with random ones: a pass costs the same."""
    try:
        find(PAPERS, weights)
    except BenchError:
        return f"random:{PAPERS.partition('.')[0]}"
    return PAPERS


if __name__ == "__main__":
    main()
