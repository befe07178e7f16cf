"""The plain ports of the benchmarks have the outputs of the authors' code; otherwise a speedup would be meaningless."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from bench.methods.parts.backbone import Backbone

REFERENCE = Path(__file__).resolve().parents[2] / "benchmarks" / "reference"


def reference(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reference_{name}", REFERENCE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def aminet() -> torch.nn.Module:
    backbone = Backbone("tf_efficientnet_lite0", (1, 2, 3), None, seed=0)
    mean, std = (values.flatten().tolist() for values in (backbone.mean, backbone.std))
    build = reference("aminet").AMINet
    network = build(backbone.network, 176, width=48, depth=2, clusters=4, mean=mean, std=std)
    released = torch.load(
        Path(__file__).resolve().parents[1] / "reference_data" / "aminet_released_form.pth", weights_only=True
    )["state_dict"]
    state = {key.removeprefix("Roncon_model."): value for key, value in released.items() if key.startswith("Roncon")}
    difference = network.load_state_dict(state, strict=False)
    assert not difference.unexpected_keys
    assert all(key.startswith("backbone.") for key in difference.missing_keys)
    return network.eval()


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Assert max|difference| / max|value| < 1e-4."""
    assert np.abs(actual - expected).max() / np.abs(expected).max() < 1e-4


def test_the_plain_port_of_aminet_equals_the_authors_code(aminet: torch.nn.Module, data: Path) -> None:
    with np.load(data / "aminet_reference.npz") as file:
        expected = dict(file)
    images = torch.from_numpy(expected["images"]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        scores, maps = aminet.predict(images)
        losses = aminet.losses(images, torch.from_numpy(expected["train_mask"]).flatten(1) == 0)
    assert_close(maps, expected["map"])
    assert_close(scores, expected["score"])
    for name, key in {"total": "total", "mse": "mse", "cosine": "cos", "intra": "intra", "inter": "inter"}.items():
        assert_close(losses[name].numpy(), expected[f"loss_{key}"])
