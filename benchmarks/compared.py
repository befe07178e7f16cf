"""Speed of our methods relative to anomalib's versions of them: `python benchmarks/compared.py`.

Needs `pip install 'maskbench[anomalib]'`. Both have the same backbone with random weights, images, batch size and
number of epochs, and run alternately in one process, at the size of the paper except for the backbone (ResNet18) and
the number of images and epochs. `fit` is everything from the images to a model that can predict. anomalib's training
step and optimizer run in a plain loop, without Lightning, its data loader and its metrics, so its complete run is
slower than this. `predict` is the network, the map and the score of one image. With these few epochs, the features that
our methods store in the first one are used again only in the others. anomalib's CFA learns no radius; the work of a
step is the same. DRAEM's textures are random images for both.
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from interleaved import compare, format_comparison, run_interleaved, write_result
from PIL import Image
from torch import Tensor, nn

from bench import registry
from bench.config.settings import resolve
from bench.execution.method_checks import SyntheticImages
from bench.method import Method, Setup


@dataclass(frozen=True)
class Pair:
    """One method in both projects.

    Attributes:
        settings: settings of our method.
        model: name of anomalib's model.
        arguments: its arguments.
        batch_size: images per training step of both.
        trains: whether it is trained in epochs.
    """

    settings: Mapping[str, Any]
    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 8
    trains: bool = True


BACKBONE = {"backbone": "random:resnet18"}
PAIRS = {
    "patchcore": Pair({**BACKBONE, "coreset": 0.1}, "Patchcore", {"backbone": "resnet18", "pre_trained": False,
                      "layers": ["layer2", "layer3"], "coreset_sampling_ratio": 0.1}, trains=False),
    "padim": Pair({**BACKBONE, "dimensions": 100}, "Padim", {"backbone": "resnet18", "pre_trained": False,
                  "layers": ["layer1", "layer2", "layer3"], "n_features": 100}, trains=False),
    "fastflow": Pair(BACKBONE, "Fastflow", {"backbone": "resnet18", "pre_trained": False}),
    "cfa": Pair({**BACKBONE, "features": "stage"}, "Cfa", {"backbone": "resnet18"}, batch_size=4),
    "rd4ad": Pair({**BACKBONE, "block": "basic", "decoder_blocks": "2,2,2", "bottleneck_blocks": 2},
                  "ReverseDistillation", {"backbone": "resnet18", "pre_trained": False,
                                          "layers": ["layer1", "layer2", "layer3"]}),
    "draem": Pair({}, "Draem", batch_size=4),
}  # fmt: skip


def build_method(name: str, pair: Pair, epochs: int, size: int) -> Method:
    """Return our method, not fitted."""
    module = registry.load("methods", name)
    settings = {**pair.settings, **({"epochs": epochs, "batch_size": pair.batch_size} if pair.trains else {})}
    resolved, _ = resolve(module.Settings, {key: (value, "compared.py") for key, value in settings.items()}, name)
    method: Method = module.METHOD(resolved, Setup((size, size), torch.device("cpu"), 0))
    return method


def build_model(pair: Pair, size: int) -> nn.Module:
    """Return anomalib's model with random weights, not fitted."""
    import torchvision
    from anomalib import models
    from anomalib.models.image.cfa import torch_model as cfa
    from torchvision.models.feature_extraction import create_feature_extractor

    def random_backbone(backbone: str, return_nodes: list[str]) -> nn.Module:
        return create_feature_extractor(getattr(torchvision.models, backbone)(), return_nodes).eval()

    cfa.get_feature_extractor = random_backbone  # it would download weights
    options = {"pre_processor": False, "post_processor": False, "evaluator": False, "visualizer": False}
    if pair.model in {"Fastflow", "ReverseDistillation"}:  # they build the network for one size of images
        options["pre_processor"] = getattr(models, pair.model).configure_pre_processor((size, size))
    model: nn.Module = getattr(models, pair.model)(**pair.arguments, **options)
    return model


def write_textures(folder: Path, size: int) -> None:
    """Write random images, which DRAEM blends into the training images."""
    for number in range(8):
        image = torch.rand(size, size, 3, generator=torch.Generator().manual_seed(number)).mul(255).byte().numpy()
        Image.fromarray(image).save(folder / f"{number}.png")


def fit_model(model: Any, images: Tensor, batch_size: int, epochs: int) -> None:
    """Fit anomalib's model as its training step and optimizer specify."""
    from anomalib.data import ImageBatch

    batches = [ImageBatch(image=batch) for batch in images.split(batch_size)]
    configured = model.configure_optimizers()
    optimizer = configured[0][0] if isinstance(configured, tuple) else configured
    model.train()
    if hasattr(model.model, "initialize_centroid"):
        model.model.initialize_centroid(batches)
    for _ in range(epochs):
        for number, batch in enumerate(batches):
            loss = model.training_step(batch, number)
            if optimizer is not None:
                optimizer.zero_grad()
                model.backward(loss["loss"])
                optimizer.step()
    if optimizer is None:
        model.fit()
    model.eval()


def measure(name: str, options: argparse.Namespace, textures: Path) -> dict[str, Any]:
    """Time fit and predict of one method in both projects."""
    pair = PAIRS[name]
    if name == "draem":
        pair = replace(pair, settings={"textures": str(textures)}, arguments={"dtd_dir": str(textures)})
    training_images = SyntheticImages((options.size, options.size), options.images)
    images = training_images.pixels
    epochs = options.epochs if pair.trains else 1
    fitted: dict[str, Any] = {}

    def fit_ours() -> None:
        fitted["maskbench"] = build_method(name, pair, epochs, options.size)
        fitted["maskbench"].fit(training_images, lambda *_: None)

    def fit_theirs() -> None:
        torch.manual_seed(0)
        fitted["anomalib"] = build_model(pair, options.size)
        fit_model(fitted["anomalib"], images, pair.batch_size, epochs)

    fits: dict[str, Callable[[], Any]] = {"anomalib": fit_theirs, "maskbench": fit_ours}
    timings = {"fit": run_interleaved(fits, options.fit_rounds)}
    image = images[:1]
    predicts: dict[str, Callable[[], Any]] = {
        "anomalib": torch.no_grad()(lambda: fitted["anomalib"].model(image)),
        "maskbench": torch.no_grad()(lambda: fitted["maskbench"].predict(image)),
    }
    timings["predict"] = run_interleaved(predicts, options.rounds, warmups=2)
    comparison = {phase: compare(values, "anomalib") for phase, values in timings.items()}
    for phase, values in comparison.items():
        print(f"{name}, {phase}\n{format_comparison(values)}", flush=True)
    return {
        "images": options.images,
        "epochs": epochs,
        "batch_size": pair.batch_size,
        "settings": {key: str(value) for key, value in PAIRS[name].settings.items()},
        "anomalib": {"model": pair.model, **PAIRS[name].arguments},
        "parameters": _n_parameters(fitted),
        "comparison": comparison,
    }


def _n_parameters(fitted: Mapping[str, Any]) -> dict[str, int]:
    """Return the numbers of trained parameters, to show that the networks have one size."""
    learned = [getattr(fitted["maskbench"], name) for name in type(fitted["maskbench"]).learned]
    ours = [parameter for module in learned if isinstance(module, nn.Module) for parameter in module.parameters()]
    # Those with gradients: anomalib's models contain unused layers, and fixed permutations as parameters.
    theirs = [parameter for parameter in fitted["anomalib"].model.parameters() if parameter.grad is not None]
    return {"maskbench": sum(map(torch.numel, ours)), "anomalib": sum(map(torch.numel, theirs))}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Time all methods; write and return the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--method", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels (default: 256)")
    parser.add_argument("--images", type=int, default=8, help="training images (default: 8)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of the methods that are trained (default: 2)")
    parser.add_argument("--fit-rounds", type=int, default=2, help="rounds of fits (default: 2)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of predictions (default: 15)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--json", type=Path, help="file of the result (default: in benchmarks/results/)")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")  # of anomalib and Lightning
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_textures(Path(folder), options.size)
        results = {name: measure(name, options, Path(folder)) for name in options.method}
    result = {"description": "fit and predict compared with anomalib", "size": options.size, "results": results}
    write_result("compared", result, "anomalib", "timm", json_path=options.json)
    return result


if __name__ == "__main__":
    main()
