"""Fixtures of the tests of the store: a store, a run, a record and predictions."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.record import Predictions, Record, Run
from bench.store import SEQUENCE_FILE, Store


@pytest.fixture
def run(make_run: Callable[..., Run]) -> Run:
    return make_run(dataset="real", protocol="kshot", k=4, seed=2, name="jittered", settings={"lr": 1e-3})


@pytest.fixture
def record(make_record: Callable[..., Record], run: Run) -> Record:
    return make_record(run, metrics={"image_auroc": 0.5}, artifacts={})


@pytest.fixture
def predict(make_predictions: Callable[..., Predictions]) -> Callable[..., Predictions]:
    """Return a function that makes random predictions of two images of 3 x 5 pixels: `predict(seed, maps=False)`."""

    def make(seed: int = 0, *, maps: bool = True) -> Predictions:
        generator = np.random.default_rng(seed)
        return make_predictions(
            count=2,
            files=("bolt/test/good/000.png", "bolt/test/crack/sch\udcf6n ‡.png"),
            defects=("good", "crack"),
            scores=generator.normal(size=2),
            maps=generator.normal(size=(2, 3, 5)).astype(np.float32) if maps else None,
            masks=generator.random((2, 3, 5)) > 0.5,
            has_pixel_labels=np.array([True, False]),
        )

    return make


@pytest.fixture
def are_equal() -> Callable[[Predictions, Predictions], bool]:
    """Return a function that compares two predictions bit by bit."""

    def compare(one: Predictions, other: Predictions) -> bool:
        arrays = ("scores", "masks", "has_pixel_labels", *(() if one.maps is None or other.maps is None else ("maps",)))
        return (one.files, one.defects, one.maps is None) == (other.files, other.defects, other.maps is None) and all(
            np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
        )

    return compare


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a result that cannot be written is saved there
    return Store(tmp_path / "runs")


@pytest.fixture
def file_names(store: Store) -> Callable[[], list[str]]:
    """Return a function that returns the names of all files of the store except its sequence number, sorted."""
    return lambda: sorted(path.name for path in store.root.rglob("*") if path.is_file() and path.name != SEQUENCE_FILE)
