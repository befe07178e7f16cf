"""Prediction with a saved model: finding it by name, restoring it, and writing scores, maps and overlays."""

import csv
import os
import pickle
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import registry
from bench.cli import predict_command
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.deploy import predict, saved_model
from bench.errors import BenchError
from bench.execution import schedule
from bench.record import Record
from bench.store import Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with parts/ (one category of non-square images) and runs/ (one calibrated run with a saved model)."""
    root, generator = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    category = root / "parts" / "bolt"

    def save(name: str, *, spot: bool = False) -> None:
        pixels = generator.integers(90, 110, (60, 80, 3)).astype(np.uint8)
        if spot:
            pixels[20:30, 40:50] = 250
        (category / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(category / name)

    for i in range(12):
        save(f"train/good/{i:03}.png")
    for i in range(3):
        save(f"test/good/{i:03}.png")
        save(f"test/spot/{i:03}.png", spot=True)
    options = {"method": "meanmap", "dataset": "folder", "protocol": "one-for-one", "keep_model": True, "time": False,
               "calibrate": 0.2}  # fmt: skip
    paths = {"data": root / "parts", "runs": root / "runs", "cache": root / "cache"}
    plan = make_plan(load_config(), registry.names("methods"), options=options, profile="check", paths=paths)
    (record,) = schedule.run_schedule(plan, schedule.make_schedule(plan), lambda *_: None)
    assert record.failure == ""
    assert record.threshold is not None
    return root


@pytest.fixture
def saved(folder: Path) -> saved_model.SavedModel:
    path = saved_model.find("folder-parts/one-for-one/meanmap", folder / "runs")
    return saved_model.load(path, device="cpu", weights=None, cache=folder / "cache")


def test_a_saved_model_is_found_by_file_folder_and_end_of_the_path(folder: Path) -> None:
    runs = folder / "runs"
    (path,) = runs.rglob("bolt.json")
    names = ("folder-parts/one-for-one/meanmap", "folder-parts/one-for-one/meanmap/bolt", "folder-parts", str(path),
             str(path.parent), str(path.parent.parent))  # fmt: skip
    assert {saved_model.find(name, runs) for name in names} == {path}
    assert saved_model.find("folder-parts", runs, "bolt") == path


@pytest.mark.parametrize(
    ("name", "category", "message"),
    [
        ("folder-parts/kshot/meanmap", None, "bench list runs"),
        ("folder-parts/one-for-one/meanmap/nut", None, "No record of category nut"),
        ("folder-parts/one-for-one/meanmap", "nut", "No record of category nut"),
    ],
)
def test_a_missing_run_is_an_error(folder: Path, name: str, category: str | None, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        saved_model.find(name, folder / "runs", category)


def test_several_saved_models_and_a_run_without_one_are_errors(folder: Path, tmp_path: Path) -> None:
    (path,) = (folder / "runs").rglob("bolt.json")
    copied = {}
    for name in ("seed0", "seed1"):
        copied[name] = tmp_path / "demo" / name / "bolt.json"
        copied[name].parent.mkdir(parents=True)
        copied[name].write_bytes(path.read_bytes())
    with pytest.raises(BenchError, match="--keep-model"):
        saved_model.find("demo", tmp_path)
    for each in copied.values():
        each.with_suffix(".safetensors").write_bytes(b"")
    with pytest.raises(BenchError, match=r"matches 2: .*seed0.*seed1"):
        saved_model.find("demo", tmp_path)


def test_a_restored_method_predicts_as_in_the_run(folder: Path, saved: saved_model.SavedModel) -> None:
    stored = Store(folder / "runs").predictions(saved.record)
    images = saved_model.list_images([folder / "parts" / "bolt" / "test"])
    for prediction in predict.predict_images(saved, images, folder / "same", lambda *_: None):
        file = "/".join(("bolt", "test", *Path(prediction.image).parts[-2:]))
        assert prediction.score == pytest.approx(stored.scores[stored.files.index(file)], rel=1e-6)


def test_predictions_are_a_table_maps_and_overlays_of_the_size_of_the_image(
    folder: Path, saved: saved_model.SavedModel
) -> None:
    out, calls = folder / "out", list[tuple[int, int]]()
    images = saved_model.list_images([folder / "parts/bolt/test"])
    predictions = predict.predict_images(saved, images, out, lambda *counts: calls.append(counts))
    assert calls[-1] == (12, 12)
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    decisions = {Path(row["image"]).parent.name: row["is_anomalous"] for row in rows}
    assert decisions["spot"] == "True"
    assert sum(row["is_anomalous"] == "True" for row in rows) <= 4
    spot = next(prediction for prediction in predictions if "spot/000" in prediction.image)
    assert spot.map.endswith("maps/spot/000.png.npy")
    numbers = np.load(spot.map)
    assert numbers.shape == saved.preprocessing.size
    assert float(numbers.max()) == spot.max_pixel_score
    assert 0 < spot.anomalous_fraction < 0.2
    assert float((numbers > saved.record.pixel_threshold).mean()) == spot.anomalous_fraction
    with Image.open(spot.overlay) as overlay_image, Image.open(spot.image) as original_image:
        overlay, original = (np.asarray(image).astype(int) for image in (overlay_image, original_image))
    assert overlay.shape == (60, 80, 3)
    changed = np.abs(overlay - original).max(axis=2) > 60
    assert changed[15:35, 35:55].any()
    assert not changed[:, :25].any()  # far from the defect the image is unchanged
    assert (overlay == predict.CONTOUR_COLOR).all(axis=2).any()


def test_an_unreadable_image_has_an_error_and_the_others_are_predicted(
    folder: Path, saved: saved_model.SavedModel, tmp_path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    Image.new("L", (30, 200), 100).save(tmp_path / "tall.jpg")
    bad, tall = predict.predict_images(saved, saved_model.list_images([tmp_path]), tmp_path / "out", lambda *_: None)
    assert bad.score is None
    assert "bad.png is not" in bad.error
    assert tall.score is not None
    with Image.open(tall.overlay) as overlay:
        assert overlay.size == (30, 200)


def test_images_are_listed_from_files_and_folders_with_relative_paths(folder: Path, tmp_path: Path) -> None:
    test = folder / "parts" / "bolt" / "test"
    images = saved_model.list_images([test / "good", test / "spot" / "000.png", test / "good" / "000.png"])
    assert [str(name) for _, name in images] == ["good/000.png", "good/001.png", "good/002.png", "spot/000.png"]
    assert [str(name) for _, name in saved_model.list_images([test / "spot" / "000.png"])] == ["000.png"]
    for wrong, message in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "has none")):
        with pytest.raises(BenchError, match=message):
            saved_model.list_images([wrong])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_an_image_and_a_link_to_an_image_is(tmp_path: Path) -> None:
    (tmp_path / "0.png").touch()
    (tmp_path / "link.png").symlink_to("0.png")
    (tmp_path / "broken.png").symlink_to("none.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert [image.name for image, _ in saved_model.list_images([tmp_path])] == ["0.png", "broken.png", "link.png"]
    with pytest.raises(BenchError, match=r"pipe\.png is not a regular file"):
        saved_model.list_images([tmp_path / "pipe.png"])


def test_masks_and_other_files_of_a_folder_are_not_predicted_and_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("000.png", "000_mask.png", "001.png", "001_GT.png", "002_label.png", "sub/7.png", "sub/8_mask.png",
             "ground_truth/spot/000_mask.png", "notes.txt", "x.heic", ".hidden.txt", "Thumbs.db")  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    images = [name.as_posix() for _, name in saved_model.list_images([tmp_path])]
    assert images == ["000.png", "001.png", "sub/7.png", "sub/8_mask.png"]  # no image in sub/ is called 8
    (message,) = caplog.messages
    assert message == (
        "Not used: 4 masks (000_mask.png, 001_GT.png, 002_label.png, ...) and 2 files that are not images (notes.txt, "
        "x.heic). To predict one of them, pass the file itself."
    )
    caplog.clear()
    given = saved_model.list_images([tmp_path / "000_mask.png"])
    assert [name.as_posix() for _, name in given] == ["000_mask.png"]
    assert [path.name for path, _ in saved_model.list_images([tmp_path / "ground_truth"])] == ["000_mask.png"]
    assert caplog.messages == []


def test_masks_and_labels_may_be_products(tmp_path: Path) -> None:
    for name in ("bolts/test/good/0.png", "labels/test/good/0.png", "labels/ground_truth/spot/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [name.as_posix() for _, name in saved_model.list_images([tmp_path])]
    assert names == ["bolts/test/good/0.png", "labels/test/good/0.png"]


def test_results_of_this_and_of_earlier_predictions_are_not_inputs(tmp_path: Path) -> None:
    for name in (
        "new.jfif",
        "out/overlays/old.png",
        "other/overlays/old.png",
        "__MACOSX/new.png",
        "plain/overlays/a.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "other" / "scores.csv").touch()
    names = [str(name) for _, name in saved_model.list_images([tmp_path], tmp_path / "out")]
    assert names == ["new.jfif", "plain/overlays/a.png"]


def test_two_images_of_one_name_have_different_relative_paths_inside_the_output(tmp_path: Path) -> None:
    for name in ("a/0.png", "b/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    images = saved_model.list_images([tmp_path / "a" / ".." / "b", tmp_path / "a" / "0.png"])
    assert [str(name) for _, name in images] == ["b/0.png", "a/0.png"]


def test_an_image_of_another_size_or_aspect_ratio_has_a_warning(
    folder: Path, saved: saved_model.SavedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The training images have 80 x 60 pixels."""
    for name, size in (("same", (80, 60)), ("close", (150, 110)), ("large", (240, 180)), ("tall", (60, 80))):
        Image.new("L", size, 100).save(tmp_path / f"{name}.png")
    predictions = predict.predict_images(saved, saved_model.list_images([tmp_path]), tmp_path / "out", lambda *_: None)
    warnings = {Path(prediction.image).stem: prediction.warning for prediction in predictions}
    assert warnings["same"] == warnings["close"] == ""
    assert warnings["large"] == "it has 240 x 180 pixels, the training images 80 x 60"
    assert warnings["tall"]
    assert sum("2 of 4 images differ from the training images" in record.message for record in caplog.records) == 1


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of the record in another store, to be damaged."""
    (path,) = (folder / "runs").rglob("bolt.json")
    target = tmp_path / path.relative_to(folder / "runs")
    target.parent.mkdir(parents=True)
    for suffix in (".json", ".safetensors"):
        target.with_suffix(suffix).write_bytes(path.with_suffix(suffix).read_bytes())
    return target


def test_a_model_must_be_safetensors_and_a_pickle_is_never_loaded(copied: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    content = pickle.dumps(Payload())
    copied.with_suffix(".safetensors").write_bytes(content)
    record = Record.from_json(copied.read_text("utf-8"))
    artifacts = record.artifacts | {"model_sha256": sha256(content).hexdigest()}
    copied.write_text(replace(record, artifacts=artifacts).to_json(), "utf-8")
    with pytest.raises(BenchError, match="must be a saved state of meanmap"):
        saved_model.load(copied, device="cpu", weights=None, cache=tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_damaged_record_is_an_error(copied: Path, tmp_path: Path) -> None:
    copied.write_text("{}")
    with pytest.raises(BenchError, match="is not a readable record"):
        saved_model.load(copied, device="cpu", weights=None, cache=tmp_path)


def test_the_rate_of_the_threshold_is_printed_with_its_decimals(
    saved: saved_model.SavedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    options = saved.record.run.options | {"evaluation": {"calibrate": 0.025, "resolution": "input"}}
    record = replace(saved.record, run=replace(saved.record.run, options=options))
    predict_command._print_predictions(replace(saved, record=record), {})
    assert "at most 2.5 % of the good calibration images" in " ".join(capsys.readouterr().out.split())
