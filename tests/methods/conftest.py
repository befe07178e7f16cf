"""Fixtures that the tests of methods share: images in memory, the reference data, and weights by its formula."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

DATA = Path(__file__).resolve().parents[1] / "reference_data"
Reference = dict[str, Tensor]


class ImagesInMemory:
    """Training images (n, 3, h, w) with the interface of `bench.method.Images`."""

    content_hash = "images in memory"

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
def random_images() -> Callable[..., Tensor]:
    """Return the function that draws images (n, 3, h, w), uniform in [0, 1)."""

    def draw(count: int = 3, size: tuple[int, int] = (32, 32), seed: int = 1) -> Tensor:
        return torch.rand(count, 3, *size, generator=Generator().manual_seed(seed))

    return draw


@pytest.fixture(scope="session")
def load_reference() -> Callable[[str], Reference]:
    """Read the numbers of tests/reference_data/<name>_reference.npz; uint8 images become (n, 3, h, w) in [0, 1]."""

    def load(name: str) -> Reference:
        with np.load(DATA / f"{name}_reference.npz") as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file if file[key].dtype.kind not in "US"}
        is_image = lambda value: value.dtype == torch.uint8 and value.ndim == 4 and value.shape[3] == 3
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
    elif name.endswith(("running_mean", "bias", "global_offset")):
        values = 0.1 * uniform
    elif name.endswith("global_scale"):
        values = 2 * np.log(np.exp(5) - 1) * (1 + 0.2 * uniform)
    elif len(shape) == 1 or name.startswith("norms."):
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


@pytest.fixture
def fill_by_rule(
    load_shapes: Callable[..., list[tuple[str, tuple[int, ...]]]],
) -> Callable[[nn.Module, str, str], None]:
    """Fill a network, whose tensors have the order of the reference network's, by the formula of `tensor_by_rule`."""

    def fill(network: nn.Module, name: str, prefix: str) -> None:
        ours = {key: value for key, value in network.state_dict().items() if value.is_floating_point()}
        theirs = load_shapes(name, prefix)
        for seed, (value, (key, shape)) in enumerate(zip(ours.values(), theirs, strict=True)):
            value.copy_(tensor_by_rule(key, shape, seed).reshape(value.shape))

    return fill


def uniform_by_hash(count: int, seed: int) -> Tensor:
    """Return (count,) numbers in [-1, 1), float64: the formula of the reference data of the other methods."""
    mask = np.uint64(0xFFFFFFFF)
    x = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed * 40503 + 1)) & mask
    for _ in range(2):
        x ^= x >> np.uint64(16)
        x = (x * np.uint64(73244475)) & mask
    x ^= x >> np.uint64(16)
    return torch.from_numpy(2 * x.astype(np.float64) / 2**32 - 1)


@pytest.fixture(scope="session")
def by_hash() -> Callable[[int, int], Tensor]:
    return uniform_by_hash


@pytest.fixture(scope="session")
def fill_by_hash() -> Callable[..., None]:
    """Fill all tensors of a network, in the order of its state dict, by the formula of `uniform_by_hash`."""

    def fill(network: nn.Module, offset: int = 0) -> None:
        for position, (name, value) in enumerate(network.state_dict().items()):
            uniform = uniform_by_hash(value.numel(), position + offset).reshape(value.shape)
            if not value.is_floating_point():
                value.zero_()
            elif name.endswith("running_var"):
                value.copy_(1 + 0.2 * uniform)
            elif name.endswith("running_mean"):
                value.copy_(0.1 * uniform)
            elif value.ndim >= 2:
                value.copy_(uniform * np.sqrt(6 / np.prod(value.shape[1:])))
            else:
                value.copy_(1 + 0.1 * uniform if name.endswith("weight") else 0.1 * uniform)

    return fill


@pytest.fixture(scope="session")
def contiguous_reference(load_reference: Callable[[str], Reference]) -> Callable[[str], Reference]:
    """Read as `load_reference` does, float16 as float32 and all tensors contiguous: batch norm is exact only then."""
    float32 = lambda value: value.float() if value.dtype == torch.float16 else value
    return lambda name: {key: float32(value).contiguous() for key, value in load_reference(name).items()}


def uniform_by_number(count: int, number: int) -> Tensor:
    """Return (count,) numbers in [-1, 1), float64: the formula of the mask-based reference data for tensor `number`."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32((number + 1) * 40503)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(2246822519)
    x ^= x >> np.uint32(13)
    return torch.from_numpy(x.astype(np.float64) / 2**31 - 1)


@pytest.fixture(scope="session")
def uniform() -> Callable[[int, int], Tensor]:
    return uniform_by_number


@pytest.fixture(scope="session")
def formula_weights() -> Callable[..., Reference]:
    """Return the function that gives the values of named tensors, numbered from `first`, in float32."""

    def weights(shapes: Sequence[tuple[str, tuple[int, ...]]], gain: float, first: int = 0) -> Reference:
        tensors: Reference = {}
        for number, (name, shape) in enumerate(shapes, start=first):
            values = uniform_by_number(prod(shape), number).view(shape)
            if len(shape) >= 2:
                values = gain * (3 * shape[0] / prod(shape)) ** 0.5 * values
            else:
                values = 1 + 0.1 * values if name.endswith("weight") else 0.05 * values
            tensors[name] = values.float()
        return tensors

    return weights


@pytest.fixture(scope="session")
def unpack_bits() -> Callable[[Tensor], Tensor]:
    """Return the function that unpacks masks stored as bits along the last axis."""
    return lambda bits: torch.from_numpy(np.unpackbits(bits.numpy(), axis=-1)).bool()
