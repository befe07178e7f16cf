"""Each file of a record is used only if it is the one that the record names: damage is an error or a warning."""

import io
import logging
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import registry
from bench.deploy import saved_model
from bench.deploy.predict import predict_images
from bench.errors import BenchError
from bench.execution.schedule import make_schedule, run_schedule
from bench.record import Record
from bench.store import Store


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def read_everything(store: Store) -> list[Any]:
    """Read the records and each of their files, as the commands do."""
    read: list[Any] = []
    for record in store.records():
        read.append(record)
        predictions = store.predictions(record)
        read += [predictions.scores, predictions.maps, predictions.masks, *store.pictures(record).values()]
    return read


@pytest.mark.parametrize("suffix", ["json", "npz", "png"])
def test_a_flipped_bit_anywhere_in_a_file_of_a_record_is_one_line(
    store: Store, record: Record, predict, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    store.save(record, predict(), pictures={"best.image": np.full((4, 4), 7, np.uint8)})
    (path,) = store.root.rglob(f"*.{suffix}")
    original = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in sorted({0, len(original) - 1, *generator.integers(0, len(original), 200).tolist()}):
        caplog.clear()
        flip_bit(path, position, int(generator.integers(8)))
        messages = []
        try:
            assert read_everything(store) == []  # the record is skipped with a warning
        except BenchError as error:
            messages = [str(error)]
        messages += caplog.messages
        assert len(messages) == 1, position
        assert str(path) in messages[0]
        assert "\n" not in messages[0]
        path.write_bytes(original)
    assert len(read_everything(store)) == 5


def test_a_picture_that_is_missing_is_an_error_and_one_that_the_record_does_not_name_is_not_used(
    store: Store, record: Record, predict
) -> None:
    saved = store.save(record, predict(), pictures={"best.image": np.zeros((4, 4), np.uint8)})
    (path,) = store.pictures(saved).values()
    path.with_name("foreign.image.png").write_bytes(path.read_bytes())
    assert list(store.pictures(saved)) == ["best.image"]
    path.unlink()
    with pytest.raises(BenchError, match=r"best\.image\.png cannot be read"):
        store.pictures(saved)


# ---- predictions with the right hash and wrong content


def npz(**changes: Any) -> bytes:
    arrays = {
        "files": np.array(["a", "b"]),
        "defects": np.array(["good", "crack"]),
        "scores": np.array([0.0, 1.0]),
        "has_pixel_labels": np.array([True, True]),
        "shape": np.array([2, 3, 5]),
        "masks": np.packbits(np.zeros((2, 3, 5), np.bool_)),
        "maps": np.zeros((2, 3, 5), np.float32),
    }
    file = io.BytesIO()
    np.savez(file, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return file.getvalue()


def compressed_npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, maps=np.zeros((100, 100, 100)))
    return file.getvalue()


WRONG = {
    "no archive": b"PK\x03\x04 no archive",
    "a compressed archive": compressed_npz(),
    "scores that are NaN": npz(scores=np.array([0.0, np.nan])),
    "complex scores": npz(scores=np.array([0.0, 1.0j])),
    "too few scores": npz(scores=np.array([0.0])),
    "scores as text": npz(scores=np.array(["0", "1"])),
    "objects": npz(scores=np.array([0.0, None], dtype=object)),
    "too few names": npz(files=np.array(["a"])),
    "too few defect types": npz(defects=np.array(["good"])),
    "maps of another shape": npz(maps=np.zeros((2, 3, 4), np.float32)),
    "infinite maps": npz(maps=np.full((2, 3, 5), np.inf, np.float32)),
    "maps of another type": npz(maps=np.zeros((2, 3, 5), np.int64)),
    "a huge shape": npz(shape=np.array([2, 10**9, 10**9])),
    "a negative shape": npz(shape=np.array([2, -3, -5])),
    "a flat shape": npz(shape=np.array([30])),
    "no masks": npz(masks=None),
    "labels as numbers": npz(has_pixel_labels=np.array([1, 1])),
    "places outside the masks": npz(soft_values=np.array([9], np.uint8), soft_places=np.array([10**6])),
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_predictions_with_the_right_hash_and_wrong_content_are_one_line(
    store: Store, record: Record, predict, content: bytes
) -> None:
    saved = store.save(record, predict())
    store.path_of(saved).with_suffix(".npz").write_bytes(content)
    named = store.update(replace(saved, artifacts=saved.artifacts | {"sha256": sha256(content).hexdigest()}))
    with pytest.raises(BenchError, match=r"bolt\.npz must hold valid predictions: .*--force\.$") as error:
        store.predictions(named)
    assert "\n" not in str(error.value)


def test_the_content_of_the_tests_of_wrong_predictions_is_valid_without_a_change(
    store: Store, record: Record, predict
) -> None:
    saved = store.save(record, predict())
    store.path_of(saved).with_suffix(".npz").write_bytes(npz())
    named = store.update(replace(saved, artifacts=saved.artifacts | {"sha256": sha256(npz()).hexdigest()}))
    assert store.predictions(named).scores.tolist() == [0.0, 1.0]


# ---- every command that uses an artifact


@pytest.fixture
def saved_run(plan_parts, run_plan, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Store, Record, Record]]:
    """Run both categories with saved models and return the store and the records of bolt and plate."""

    def run() -> tuple[Store, Record, Record]:
        plan = plan_parts(keep_model=True)
        bolt, plate = run_plan(plan)
        return Store(plan.runs), bolt, plate

    return run


def model_file(store: Store, record: Record) -> Path:
    return store.path_of(record).with_suffix(".safetensors")


def load(store: Store, record: Record, tmp_path: Path) -> saved_model.SavedModel:
    return saved_model.load(store.path_of(record), device="cpu", weights=None, cache=tmp_path / "cache")


def damage_model(store: Store, bolt: Record, plate: Record, damage: str) -> None:
    path = model_file(store, bolt)
    if damage == "a flipped bit":
        flip_bit(path, path.stat().st_size - 1)
    elif damage == "the model of another category":
        path.write_bytes(model_file(store, plate).read_bytes())
    else:
        path.unlink()


@pytest.mark.parametrize("damage", ["a flipped bit", "the model of another category", "a missing file"])
def test_predict_and_export_reject_a_model_that_is_not_the_one_of_the_record(
    saved_run, tmp_path: Path, damage: str
) -> None:
    store, bolt, plate = saved_run()
    assert load(store, bolt, tmp_path).record == bolt
    damage_model(store, bolt, plate, damage)
    with pytest.raises(BenchError, match=r"bolt\.safetensors (is not the file that its record names|cannot be read)"):
        load(store, bolt, tmp_path)


@pytest.mark.parametrize("damage", ["a flipped bit", "the model of another category", "a missing file"])
def test_time_rejects_a_model_that_is_not_the_one_of_the_record(saved_run, plan_parts, damage: str) -> None:
    store, bolt, plate = saved_run()
    damage_model(store, bolt, plate, damage)
    plan = plan_parts(category="bolt", keep_model=True, time=True)
    (failed,) = run_schedule(plan, make_schedule(plan, full_timing=True), lambda *_: None)
    assert "bolt.safetensors" in failed.failure
    assert "\n" not in failed.failure
    assert next(store.records(store.path_of(bolt))) == bolt  # the record with metrics stays


def test_export_rejects_a_damaged_picture(saved_run, tmp_path: Path) -> None:
    store, bolt, _ = saved_run()
    saved = load(store, bolt, tmp_path)
    assert saved_model.example_images(saved)
    flip_bit(next(iter(store.pictures(bolt).values())), 100)
    with pytest.raises(BenchError, match=r"\.png is not the file that its record names"):
        saved_model.example_images(saved)


def test_predict_warns_that_damaged_predictions_change_the_range_of_its_colors(
    saved_run, parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, bolt, _ = saved_run()
    image = parts / "bolt" / "test" / "spot" / "000.png"
    saved = load(store, bolt, tmp_path)
    flip_bit(store.path_of(bolt).with_suffix(".npz"), 100)
    with caplog.at_level(logging.WARNING):
        predict_images(saved, [(image, Path(image.name))], tmp_path / "out", lambda *_: None)
    message = caplog.messages[-1]
    assert "bolt.npz is not the file that its record names" in message
    assert "The colors have the range of the new images." in message


@pytest.mark.parametrize("suffix", ["json", "npz", "png", "safetensors"])
def test_a_report_of_a_store_with_a_damaged_file_is_complete_for_the_others_and_names_the_file(
    saved_run, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    store, _, plate = saved_run()
    path = min(path for path in store.root.rglob(f"*.{suffix}") if "bolt" in str(path.relative_to(store.root)))
    flip_bit(path, path.stat().st_size // 2)
    content = registry.report_content()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        records = list(store.records())
        figures = content.draw_figures(records, store, "")
        content.results(records, store, figures, "")
    assert plate in records
    assert any("plate" in figure.name for figure in figures)
    named = [message for message in caplog.messages if str(path) in message]
    assert bool(named) == (suffix != "safetensors")  # a report does not use models
    assert not any("\n" in message for message in caplog.messages)
