"""What all tests share: repeatable randomness, a tiny data set, and real data beside the checkout."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

settings.register_profile("bench", deadline=None)  # a busy machine is no failure
settings.load_profile("bench")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    torch.manual_seed(0)
    np.random.seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    yield
    torch.use_deterministic_algorithms(mode=False)


@pytest.fixture
def data() -> Path:
    """The reference answers that are committed with the tests."""
    return ROOT / "tests" / "data"


@pytest.fixture
def shared() -> Path:
    """Real images and weights, which are never committed; they lie in `shared/` beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder 'shared' (real images and weights) beside the checkout")
    return folder


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder data set of two categories, grey noise with a bright square as the defect.

    Each has 5 training images, 3 good and 3 defective test images of 64 x 64 pixels.
    """
    root, size = tmp_path / "parts", 64
    for number, category in enumerate(("bolt", "plate")):
        generator = np.random.default_rng(number)
        for i in range(5):
            _save(_noise(generator, size), root / category / "train" / "good" / f"{i:03}.png")
        for i in range(3):
            _save(_noise(generator, size), root / category / "test" / "good" / f"{i:03}.png")
            pixels, mask = _noise(generator, size), np.zeros((size, size), np.uint8)
            pixels[20:30, 20 + i : 30 + i], mask[20:30, 20 + i : 30 + i] = 250, 255
            _save(pixels, root / category / "test" / "spot" / f"{i:03}.png")
            _save(mask, root / category / "ground_truth" / "spot" / f"{i:03}_mask.png")
    return root


def _noise(generator: np.random.Generator, size: int) -> np.ndarray:
    return generator.integers(90, 110, (size, size, 3)).astype(np.uint8)


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
