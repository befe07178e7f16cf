"""How fast AMI-Net is beside a plain port of it: `python benchmarks/aminet.py predict|fit`.

Both hold the same weights, drawn at random at the paper's size, and take turns. `predict` asks for one image; the plain
port records no gradients, which the authors' test does. `fit` takes one step on a batch of 8: the plain port computes
the backbone and its gradients in each step, as the authors' code does (`--frozen` adds it without them); ours takes
its features from memory, where the first epoch has put them. The answers are compared as well.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from interleaved import compared, interleave, told, write
from reference.aminet import AMINet as Plain
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.method import Setup
from bench.methods.aminet import AMINet, Settings, AMINet.from_checkpoint

TAG = "wide_resnet50_2.tv_in1k"
SMALL = {"width": 96, "depth": 2, "clusters": 4}


def models(size: int, small: bool, precision: str) -> tuple[Plain, AMINet]:
    """The plain port and ours, with the same weights."""
    torch.manual_seed(0)
    backbone = timm.create_model("wide_resnet50_2", features_only=True, out_indices=(1, 2, 3)).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after a training
            module.running_var.uniform_(0.8, 1.2)
            module.running_mean.uniform_(-0.1, 0.1)
            if not module.weight.any():
                nn.init.constant_(module.weight, 0.3)
    shape = SMALL if small else {}
    plain = Plain(backbone, side=size // 16, **shape).eval()
    with tempfile.TemporaryDirectory() as folder:
        weights = {name: value.contiguous() for name, value in backbone.state_dict().items()}
        save_file(weights, Path(folder) / f"{TAG}.safetensors")
        own = {f"Roncon_model.{key}": value for key, value in plain.state_dict().items() if "backbone" not in key}
        torch.save({"state_dict": own}, Path(folder) / "AMAE.pth")
        setup = Setup((size, size), torch.device("cpu"), 0, weights=Path(folder), precision=precision)  # type: ignore[arg-type]
        ours = AMINet.from_checkpoint(Path(folder) / "AMAE.pth", replace(Settings(), **shape), setup)
    return plain, ours


def predict(options: argparse.Namespace) -> dict[str, Any]:
    """One image at a time; answers apart by at most so much of the largest value."""
    plain, ours = models(options.size, options.small, options.precision)
    images = torch.rand(1, 3, options.size, options.size)
    with torch.no_grad():
        scores, maps = plain.predict(images)
    found = ours.predict(images)
    calls: dict[str, Callable[[], Any]] = {
        "plain port": torch.no_grad()(lambda: plain.predict(images)),
        f"maskbench, {options.precision}": lambda: ours.predict(images),
    }
    comparison = compared(interleave(calls, options.rounds), "plain port")
    apart = {
        "maps": float((found.maps - torch.from_numpy(maps)).abs().max() / abs(maps).max()),
        "scores": float((found.scores - torch.from_numpy(scores)).abs().max() / abs(scores).max()),
    }
    return {"what": "AMI-Net predict, batch 1", "comparison": comparison, "largest_relative_difference": apart}


def fit(options: argparse.Namespace) -> dict[str, Any]:
    """A training step: forward, backward, optimiser."""
    plain, ours = models(options.size, options.small, options.precision)
    tokens = (options.size // 16) ** 2
    images = torch.rand(options.batch, 3, options.size, options.size)
    mask = torch.rand(options.batch, tokens).argsort(dim=1) < tokens // 2
    stages = ours._extract(images)
    network = ours._network
    assert network is not None
    network.requires_grad_()
    own = ours._optimizer(network)
    theirs = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], 1e-4, (0.9, 0.95))
    losses: dict[str, list[dict[str, float]]] = {"plain port": [], "maskbench": [], "plain port, frozen": []}

    def step(name: str, optimizer: torch.optim.Optimizer, ask: Callable[[], dict[str, Tensor]]) -> None:
        loss = ask()
        optimizer.zero_grad()
        loss["total"].backward()
        optimizer.step()
        losses[name].append({part: float(value.detach()) for part, value in loss.items()})

    def theirs_step(name: str, frozen: bool) -> None:
        plain.backbone.requires_grad_(not frozen)
        step(name, theirs, lambda: plain.losses(images, mask))

    with torch.no_grad():
        first = plain.losses(images, mask)
        same = ours.losses(network, ours._patches(stages), mask)
    apart = {name: float((first[name] - same[name]).abs() / first[name].abs()) for name in first}
    calls: dict[str, Callable[[], Any]] = {
        "plain port": lambda: theirs_step("plain port", frozen=False),
        "maskbench": lambda: step("maskbench", own, lambda: ours.losses(network, ours._patches(stages), mask)),
    }
    if options.frozen:
        calls["plain port, frozen"] = lambda: theirs_step("plain port, frozen", frozen=True)
    comparison = compared(interleave(calls, options.rounds, warmups=0), "plain port")
    what = f"AMI-Net, a training step at batch {options.batch}"
    return {"what": what, "comparison": comparison, "relative_difference_of_losses": apart, "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("predict", "fit"))
    parser.add_argument("--rounds", type=int, default=5, help="how often each takes its turn (default: 5)")
    parser.add_argument("--size", type=int, default=256, help="pixels on a side (default: 256, the paper's)")
    parser.add_argument("--batch", type=int, default=8, help="images a training step (default: 8, the paper's)")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--frozen", action="store_true", help="fit: also the plain port without backbone gradients")
    parser.add_argument("--small", action="store_true", help="a network of width 96 and depth 2, for a quick look")
    parser.add_argument("--json", type=Path, help="where to write the result (default: benchmarks/results/)")
    options = parser.parse_args()
    found = {"predict": predict, "fit": fit}[options.what](options)
    settings = {"size": options.size, "precision": options.precision, "small": options.small}
    print(told(found["comparison"]))
    print({key: value for key, value in found.items() if "difference" in key})
    write(f"aminet_{options.what}", {"settings": settings, **found}, "timm", json_path=options.json)


if __name__ == "__main__":
    main()
