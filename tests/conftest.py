"""What all tests share: repeatable randomness, a tiny data set, and real data beside the checkout."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from bench.evaluation.metrics import evaluate
from bench.execution.fit import representative_images
from bench.record import Predictions, Record, Run
from bench.store import Store

os.environ["OMP_NUM_THREADS"] = "1"  # also of programs that tests start: threads on a busy core wait long
os.environ.pop("COLUMNS", None)  # a worker's, which rich would take for the width of every test's terminal
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
    return ROOT / "tests" / "reference_data"


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


@pytest.fixture
def simulate(tmp_path: Path) -> Callable[..., Store]:
    """A store of simulated records, as runs leave them: with answers, losses, latencies and pictures of the first seed.

    `simulate(categories, methods, seeds, **changed)`: a method is a name; later ones are worse. `changed` are fields
    of the run.
    """
    store = Store(tmp_path / "runs")

    def made(categories: Sequence[str], methods: Sequence[str], seeds: Sequence[int] = (0,), **changed: Any) -> Store:
        for place, method in enumerate(methods):
            for category in categories:
                for seed in seeds:
                    _simulated(store, method, category, seed, 3 / (place + 1), changed)
        return store

    return made


def _simulated(store: Store, method: str, category: str, seed: int, merit: float, changed: dict[str, Any]) -> None:
    given = _answers([*category.encode(), seed], merit).rounded("float16")
    run = Run(
        **{
            "dataset": "parts",
            "synthetic": True,
            "protocol": "one-for-one",
            "k": 0,
            "seed": seed,
            "limit": 0,
            "name": method.lower(),
            "method": method.lower(),
            "title": method,
            "settings": {"width": 8},
            "preprocessing": {"height": 24, "width": 24},
            "precision": "float32",
            "file_hashes": {},
            "profile": "code",
            "profile_note": "",
            "group_hash": "v",
            **changed,
        }
    )
    found = evaluate(given.scores, given.is_anomalous, list(given.maps), list(given.masks))  # type: ignore[arg-type]
    curve = [{"epoch": float(epoch), **found.values} for epoch in (5, 10, 15, 20)]
    curve[1] |= {"image_auroc": 1.0, "pixel_auroc": 1.0}  # epoch 10 is the oracle's
    record = Record(
        run=run,
        category=category,
        data_digest=category,
        epoch=20,
        metrics=found.values,
        losses=[10 / epoch for epoch in range(1, 21)],
        metrics_by_epoch=curve,
        seconds={"fit": 1.5},
        latency={"median_ms": 10 * merit + seed},
        environment={"device": "cpu", "threads": 1},
        artifacts={"views": {case: given.files[index] for case, index in representative_images(given).items()}},
        train_files=[f"{category}/train/good/{i:03}.png" for i in range(4)],
        test_files=list(given.files),
        command=f"bench run --method {method.lower()} --dataset parts",
        started="2026-01-02T03:04:05+00:00",
    )
    views = {}
    if seed == 0:
        random = np.random.default_rng(seed)
        for case in representative_images(given):
            views[f"{case}.image"] = random.integers(0, 255, (24, 24, 3), dtype=np.uint8)
            views[f"{case}.distance"] = random.integers(0, 255, (24, 24), dtype=np.uint8)
    store.save(record, given, views=views)


def _answers(seed: list[int], merit: float, count: int = 20) -> Predictions:
    """Half good, half defective, all of 24 x 24 pixels; `merit` parts the classes."""
    random = np.random.default_rng(seed)
    bad = np.arange(count) % 2 == 1
    masks = np.zeros((count, 24, 24), dtype=bool)
    masks[bad, 6:12, 8:14] = True
    return Predictions(
        files=tuple(f"{i:03}.png" for i in range(count)),
        defects=tuple("dent" if each else "good" for each in bad),
        scores=random.normal(0, 1, count) + merit * bad,
        maps=(random.normal(0, 1, masks.shape) + merit * masks).astype(np.float32),
        masks=masks,
        has_pixel_labels=np.ones(count, dtype=bool),
    )
