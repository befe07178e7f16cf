"""What all tests share: repeatable randomness, two threads, and the data that lies beside a developer's checkout."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    torch.manual_seed(0)
    np.random.seed(0)
    torch.set_num_threads(2)
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
