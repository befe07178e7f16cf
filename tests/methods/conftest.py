"""Fixtures that the tests of methods share: images in memory, the reference data, and weights by its formula."""

from collections.abc import Callable, Iterator, Sequence
from math import prod
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
