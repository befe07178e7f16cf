"""Fixtures that the tests of methods share: images in memory, the reference data, and weights by its formula."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

DATA = Path(__file__).resolve().parents[1] / "reference_data"
Reference = dict[str, Tensor]


class ImagesInMemory:
    """Training images (n, 3, h, w) with the interface of `bench.method.Images`."""

    digest = "images in memory"

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        yield from (self.images if order is None else self.images[order]).split(size)


@pytest.fixture(scope="session")
def in_memory() -> Callable[[Tensor], ImagesInMemory]:
    return ImagesInMemory


@pytest.fixture(scope="session")
def load_reference() -> Callable[[str], Reference]:
    """Read the numbers of tests/reference_data/<name>_reference.npz; uint8 images become (n, 3, h, w) in [0, 1]."""

    def load(name: str) -> Reference:
        with np.load(DATA / f"{name}_reference.npz") as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file if file[key].dtype.kind not in "US"}
        is_image = lambda value: value.dtype == torch.uint8 and value.ndim == 4
        return {
            key: value.permute(0, 3, 1, 2).float().div(255) if is_image(value) else value
            for key, value in arrays.items()
        }

    return load


@pytest.fixture(scope="session")
def load_shapes() -> Callable[[str, str], list[tuple[str, tuple[int, ...]]]]:
    """Read the names and shapes of a reference network's tensors, in the order of its state dict."""

    def load(name: str, prefix: str) -> list[tuple[str, tuple[int, ...]]]:
        with np.load(DATA / f"{name}_reference.npz") as file:
            names, shapes = file[f"{prefix}_names"], file[f"{prefix}_shapes"]
            return [(str(key), tuple(json.loads(str(shape)))) for key, shape in zip(names, shapes, strict=True)]

    return load


def tensor_by_rule(name: str, shape: Iterable[int], seed: int) -> Tensor:
    """Return the tensor that the formula of the feature-based reference data gives for a name, a shape and a seed."""
    shape = tuple(shape)
    uniform = np.random.RandomState(seed).uniform(-1, 1, int(np.prod(shape))).reshape(shape)
    if name.endswith("running_var"):
        values = 1 + 0.5 * uniform
    elif name.endswith(("running_mean", "bias")):
        values = 0.1 * uniform
    elif len(shape) == 1:
        values = 1 + 0.2 * uniform
    else:
        values = uniform * np.sqrt(6 / np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(scope="session")
def by_rule() -> Callable[[str, Iterable[int], int], Tensor]:
    return tensor_by_rule


@pytest.fixture(scope="session")
def assert_relative() -> Callable[..., None]:
    """Assert that the largest difference is at most `tolerance` times the largest expected value."""

    def check(values: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
        assert values.shape == expected.shape
        difference = (values.detach().double() - expected.double()).abs().max()
        assert difference <= tolerance * expected.double().abs().max(), f"{difference} of {expected.abs().max()}"

    return check
