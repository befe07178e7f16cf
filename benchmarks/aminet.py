"""Speed of AMI-Net relative to a plain port: `python benchmarks/aminet.py predict|fit`.

Both have the same random weights at the paper's size and run alternately. `predict` predicts one image; the port
computes no gradients there, unlike the authors' test. `fit` is one training step at batch 8: the port computes the
backbone and its gradients in each step, as the authors' code does (`--frozen` adds the port without these gradients);
maskbench takes the features from memory, where the first epoch stored them. The outputs are compared as well.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from interleaved import compare, format_comparison, run_interleaved, write_result
from reference.aminet import AMINet as PlainAMINet
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.method import Setup
from bench.methods.aminet import AMINet, Settings
from bench.training import TrainingStep

TAG = "wide_resnet50_2.tv_in1k"
SMALL = {"width": 96, "depth": 2, "clusters": 4}


def build_models(size: int, small: bool, precision: str) -> tuple[PlainAMINet, AMINet]:
    """Return the plain port and the method with the same weights."""
    torch.manual_seed(0)
    backbone = timm.create_model("wide_resnet50_2", features_only=True, out_indices=(1, 2, 3)).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics as after training
            module.running_var.uniform_(0.8, 1.2)
            module.running_mean.uniform_(-0.1, 0.1)
            if not module.weight.any():
                nn.init.constant_(module.weight, 0.3)
    sizes = SMALL if small else {}
    plain = PlainAMINet(backbone, side=size // 16, **sizes).eval()
    with tempfile.TemporaryDirectory() as folder:
        weights = {name: value.contiguous() for name, value in backbone.state_dict().items()}
        save_file(weights, Path(folder) / f"{TAG}.safetensors")
        state = {f"Roncon_model.{key}": value for key, value in plain.state_dict().items() if "backbone" not in key}
        torch.save({"state_dict": state}, Path(folder) / "AMAE.pth")
        setup = Setup((size, size), torch.device("cpu"), 0, weights=Path(folder), precision=precision)  # type: ignore[arg-type]
        method = AMINet.from_checkpoint(Path(folder) / "AMAE.pth", replace(Settings(), **sizes), setup)
    return plain, method


def predict(options: argparse.Namespace) -> dict[str, Any]:
    """Time the prediction of one image and compare the outputs."""
    plain, method = build_models(options.size, options.small, options.precision)
    images = torch.rand(1, 3, options.size, options.size)
    with torch.no_grad():
        scores, maps = plain.predict(images)
    prediction = method.predict(images)
    candidates: dict[str, Callable[[], Any]] = {
        "plain port": torch.no_grad()(lambda: plain.predict(images)),
        f"maskbench, {options.precision}": lambda: method.predict(images),
    }
    differences = {
        "maps": float((prediction.maps - torch.from_numpy(maps)).abs().max() / abs(maps).max()),
        "scores": float((prediction.scores - torch.from_numpy(scores)).abs().max() / abs(scores).max()),
    }
    return {
        "description": "AMI-Net predict, batch 1",
        "comparison": compare(run_interleaved(candidates, options.rounds), "plain port"),
        "largest_relative_difference": differences,
    }


def fit(options: argparse.Namespace) -> dict[str, Any]:
    """Time a training step (forward, backward, optimizer) and compare the losses."""
    plain, method = build_models(options.size, options.small, options.precision)
    n_tokens = (options.size // 16) ** 2
    images = torch.rand(options.batch, 3, options.size, options.size)
    mask = torch.rand(options.batch, n_tokens).argsort(dim=1) < n_tokens // 2
    stages = method.extract(images)
    network = method.network
    network.requires_grad_()
    settings = method.settings
    training = TrainingStep(
        method.setup, torch.optim.AdamW, network.parameters(), lr=settings.lr, betas=settings.betas,
        weight_decay=settings.weight_decay,
    )  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], 1e-4, (0.9, 0.95))
    losses: dict[str, list[dict[str, float]]] = {"plain port": [], "maskbench": [], "plain port, frozen": []}

    def record(name: str, values: dict[str, Tensor]) -> None:
        losses[name].append({part: float(value.detach()) for part, value in values.items()})

    def step_of_method() -> None:
        values = method.losses(network, method.to_patches(stages), mask)
        training.minimize(values["total"], len(images))
        record("maskbench", values)

    def step_of_port(name: str, frozen: bool) -> None:
        plain.backbone.requires_grad_(not frozen)
        values = plain.losses(images, mask)
        optimizer.zero_grad()
        values["total"].backward()
        optimizer.step()
        record(name, values)

    with torch.no_grad():
        expected = plain.losses(images, mask)
        actual = method.losses(network, method.to_patches(stages), mask)
    differences = {name: float((expected[name] - actual[name]).abs() / expected[name].abs()) for name in expected}
    candidates: dict[str, Callable[[], Any]] = {
        "plain port": lambda: step_of_port("plain port", frozen=False),
        "maskbench": step_of_method,
    }
    if options.frozen:
        candidates["plain port, frozen"] = lambda: step_of_port("plain port, frozen", frozen=True)
    return {
        "description": f"AMI-Net, a training step at batch {options.batch}",
        "comparison": compare(run_interleaved(candidates, options.rounds, warmups=0), "plain port"),
        "relative_difference_of_losses": differences,
        "losses": losses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("predict", "fit"))
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--size", type=int, default=256, help="side of the image in pixels (default: 256, the paper's)")
    parser.add_argument("--batch", type=int, default=8, help="images per training step (default: 8, the paper's)")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--frozen", action="store_true", help="fit: also the plain port without backbone gradients")
    parser.add_argument("--small", action="store_true", help="a network of width 96 and depth 2, for a quick test")
    parser.add_argument("--json", type=Path, help="file of the result (default: in benchmarks/results/)")
    options = parser.parse_args()
    measurement = {"predict": predict, "fit": fit}[options.what](options)
    settings = {"size": options.size, "precision": options.precision, "small": options.small}
    print(format_comparison(measurement["comparison"]))
    print({key: value for key, value in measurement.items() if "difference" in key})
    write_result(f"aminet_{options.what}", {"settings": settings, **measurement}, "timm", json_path=options.json)


if __name__ == "__main__":
    main()
