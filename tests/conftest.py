"""Fixtures of all tests: seeded generators, a tiny dataset, plans on it, and builders of runs and records."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import Plan, make_plan
from bench.evaluation.metrics import evaluate
from bench.execution.fit import representative_images
from bench.execution.schedule import make_schedule, run_schedule
from bench.record import Predictions, Record, Run
from bench.store import Store

os.environ["OMP_NUM_THREADS"] = "1"  # processes that tests start inherit it; threads that share a core are slow
_config_home = tempfile.TemporaryDirectory(prefix="maskbench-tests-")
os.environ["XDG_CONFIG_HOME"] = _config_home.name  # the folders that tests trust are not the user's
os.environ.pop("COLUMNS", None)  # set by pytest-xdist; rich would use it as the terminal's width
settings.register_profile("bench", deadline=None)  # a test must not fail because the machine is busy
settings.load_profile("bench")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    torch.manual_seed(0)
    np.random.seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    yield
    torch.use_deterministic_algorithms(mode=False)


@pytest.fixture
def data() -> Path:
    """The folder of the reference values that are committed with the tests."""
    return ROOT / "tests" / "reference_data"


@pytest.fixture
def shared() -> Path:
    """The folder of real images and weights, `shared/` next to the checkout; they are never committed."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder 'shared' (real images and weights) next to the checkout")
    return folder


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder dataset of two categories, gray noise with a bright square as the defect.

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


@pytest.fixture
def plan_parts(parts: Path) -> Callable[..., Plan]:
    """Return a function that plans a call on `parts`: `plan_parts(method="patchcore", settings={"coreset": "1"})`.

    Keyword arguments are options of the call, except `settings` and `sweep` (as --set and --sweep), `profile`, `runs`
    (name of the folder of records) and `checkpoint`.
    """

    def plan(
        *,
        settings: dict[str, str] | None = None,
        sweep: dict[str, str] | None = None,
        profile: str = "check",
        runs: str = "runs",
        checkpoint: Path | None = None,
        **options: Any,
    ) -> Plan:
        defaults = {"dataset": "folder", "protocol": "one-for-one", "method": "meanmap", "threads": 1, "time": False}
        folders = {"data": parts, "runs": parts.parent / runs, "cache": parts.parent / "cache"}
        return make_plan(
            load_config(),
            registry.names("methods"),
            options=defaults | options,
            settings=settings,
            sweep=sweep,
            profile=profile,
            paths=folders | {"checkpoint": checkpoint},
            command="bench run",
        )

    return plan


@pytest.fixture
def run_plan() -> Callable[..., list[Record]]:
    """Return a function that runs a plan in this process: `run_plan(plan, force=True)`."""

    def run(plan: Plan, **options: bool) -> list[Record]:
        return list(run_schedule(plan, make_schedule(plan, **options), lambda *_: None))

    return run


@pytest.fixture
def plugin_methods() -> Iterator[Path]:
    """Add the methods of tests/plugins, and remove them after the test."""
    methods = import_module("bench.methods")
    folders = [*methods.__path__]
    registry.add_folder("methods", ROOT / "tests" / "plugins")
    yield ROOT / "tests" / "plugins"
    methods.__path__ = folders


def _noise(generator: np.random.Generator, size: int) -> np.ndarray:
    return generator.integers(90, 110, (size, size, 3)).astype(np.uint8)


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


RUN: dict[str, Any] = {
    "dataset": "parts",
    "synthetic": True,
    "data_fingerprints": {"bolt": "f1", "plate": "f2"},
    "protocol": "one-for-one",
    "k": 0,
    "seed": 0,
    "name": "simulated",
    "method": "simulated",
    "title": "Simulated",
    "settings": {"width": 8},
    "preprocessing": {"height": 24, "width": 24, "resample": "bilinear", "keep_aspect": False, "crop": None},
    "file_hashes": {},
    "profile": "code",
    "profile_note": "",
    "group_hash": "v",
    "sweep_keys": [],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "tasks": {"limit": 0},
    "evaluation": {"calibrate": 0.0, "resolution": "input"},
    "compute": {"precision": "float32", "compile": False},
}


_RECORD_FIELDS = {field.name for field in fields(Record)}


def build_run(**changes: Any) -> Run:
    """Return a run of a simulated method; a change of an option (`limit=5`) goes to its group."""
    options = {
        group: {name: changes.pop(name, value) for name, value in values.items()} for group, values in OPTIONS.items()
    }
    return Run(**(RUN | {"options": options} | changes))


def build_record(run: Run | None = None, **changes: Any) -> Record:
    """Return a record without failure, by default of category bolt; without `run`, fields of a run go to its run."""
    run_changes = {} if run else {name: changes.pop(name) for name in list(changes) if name not in _RECORD_FIELDS}
    values: dict[str, Any] = {
        "run": run or build_run(**run_changes),
        "category": "bolt",
        "data_hash": "d1",
        "epoch": 20,
        "metrics": {"image_auroc": 0.9, "pixel_auroc": 0.8},
        "seconds": {"fit": 1.5, "predict": 0.2, "evaluate": 0.1},
        "environment": {"device": "cpu", "threads": 1},
        "artifacts": {"map_precision": "float16", "model": False, "pictures": {}},
        "train_files": [f"bolt/train/good/{i:03}.png" for i in range(4)],
        "command": "bench run --method simulated --dataset parts",
        "started": "2026-01-02T03:04:05+00:00",
    }
    return Record(**(values | changes))


def build_predictions(
    seed: Sequence[int] = (0,), effect_size: float = 1.0, count: int = 20, **changes: Any
) -> Predictions:
    """Return predictions of 24 x 24 pixels, every second image defective; `effect_size` separates the two classes."""
    random = np.random.default_rng(list(seed))
    is_anomalous = np.arange(count) % 2 == 1
    masks = np.zeros((count, 24, 24), dtype=bool)
    masks[is_anomalous, 6:12, 8:14] = True
    defects = tuple("dent" if each else "good" for each in is_anomalous)
    values: dict[str, Any] = {
        "files": tuple(f"bolt/test/{defect}/{i:03}.png" for i, defect in enumerate(defects)),
        "defects": defects,
        "scores": random.normal(0, 1, count) + effect_size * is_anomalous,
        "maps": (random.normal(0, 1, masks.shape) + effect_size * masks).astype(np.float32),
        "masks": masks,
        "has_pixel_labels": np.ones(count, dtype=bool),
    }
    return Predictions(**(values | changes))


@pytest.fixture
def make_run() -> Callable[..., Run]:
    return build_run


@pytest.fixture
def make_record() -> Callable[..., Record]:
    return build_record


@pytest.fixture
def make_predictions() -> Callable[..., Predictions]:
    return build_predictions


@pytest.fixture
def simulate(tmp_path: Path) -> Callable[..., Store]:
    """Return a function that fills a store with simulated records, with predictions, losses, latencies and pictures.

    `simulate(categories, methods, seeds, **changes)`: a method is a name; later ones are worse. `changes` are fields or
    options of the run. Only the first seed has pictures.
    """
    store = Store(tmp_path / "runs")

    def save_all(
        categories: Sequence[str], methods: Sequence[str], seeds: Sequence[int] = (0,), **changes: Any
    ) -> Store:
        for rank, method in enumerate(methods):
            for category in categories:
                for seed in seeds:
                    _save_simulated(store, method, category, seed, 3 / (rank + 1), changes)
        return store

    return save_all


def _save_simulated(
    store: Store, method: str, category: str, seed: int, effect_size: float, changes: dict[str, Any]
) -> None:
    names = {"seed": seed, "name": method.lower(), "method": method.lower(), "title": method}
    predictions = build_predictions([*category.encode(), seed], effect_size).rounded("float16")
    assert predictions.maps is not None
    evaluation = evaluate(predictions.scores, predictions.is_anomalous, list(predictions.maps), list(predictions.masks))
    by_epoch = [{"epoch": float(epoch), **evaluation.values} for epoch in (5, 10, 15, 20)]
    by_epoch[1] |= {"image_auroc": 1.0, "pixel_auroc": 1.0}  # epoch 10 is the oracle's
    picture_indices = representative_images(predictions)
    record = build_record(
        build_run(**(names | changes)),
        category=category,
        data_hash=category,
        metrics=evaluation.values,
        losses=[10 / epoch for epoch in range(1, 21)],
        metrics_by_epoch=by_epoch,
        seconds={"fit": 1.5},
        latency={"median_ms": 10 * effect_size + seed},
        artifacts={"pictures": {name: predictions.files[index] for name, index in picture_indices.items()}},
        train_files=[f"{category}/train/good/{i:03}.png" for i in range(4)],
        test_files=list(predictions.files),
        command=f"bench run --method {method.lower()} --dataset parts",
    )
    pictures = {}
    if seed == 0:
        random = np.random.default_rng(seed)
        for name in picture_indices:
            pictures[f"{name}.image"] = random.integers(0, 255, (24, 24, 3), dtype=np.uint8)
            pictures[f"{name}.distance"] = random.integers(0, 255, (24, 24), dtype=np.uint8)
    store.save(record, predictions, pictures=pictures)
