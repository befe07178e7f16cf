"""A kept run judges new images: found by its name, restored, and written as numbers and pictures."""

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.deploy import predict, saved_model
from bench.errors import BenchError
from bench.execution import schedule
from bench.store import Store


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with parts/ (one category of oblong images) and runs/ with one calibrated and kept run of the floor."""
    root, generator = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    folder = root / "parts" / "bolt"

    def save(name: str, *, spot: bool = False) -> None:
        pixels = generator.integers(90, 110, (60, 80, 3)).astype(np.uint8)
        if spot:
            pixels[20:30, 40:50] = 250
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)

    for i in range(12):
        save(f"train/good/{i:03}.png")
    for i in range(3):
        save(f"test/good/{i:03}.png")
        save(f"test/spot/{i:03}.png", spot=True)
    known = load_config()
    said = {"method": "meanmap", "dataset": "folder", "protocol": "one-for-one", "keep_model": True, "time": False,
            "calibrate": 0.2}  # fmt: skip
    paths = {"data": root / "parts", "runs": root / "runs", "cache": root / "cache"}
    plan = make_plan(known, registry.names("methods"), options=said, profile="check", paths=paths)
    (record,) = schedule.run_schedule(plan, schedule.make_schedule(plan), lambda *_: None)
    assert record.failure == ""
    assert record.threshold is not None
    return root


@pytest.fixture
def kept(place: Path) -> saved_model.SavedModel:
    path = saved_model.find("folder-parts/one-for-one/meanmap", place / "runs")
    return saved_model.load(path, device="cpu", weights=None, cache=place / "cache")


def test_a_run_is_found_by_its_file_its_folder_and_the_end_of_it(place: Path) -> None:
    runs = place / "runs"
    (path,) = runs.rglob("bolt.json")
    names = ("folder-parts/one-for-one/meanmap", "folder-parts/one-for-one/meanmap/bolt", "folder-parts", str(path),
             str(path.parent), str(path.parent.parent))  # fmt: skip
    assert {saved_model.find(name, runs) for name in names} == {path}
    assert saved_model.find("folder-parts", runs, "bolt") == path


@pytest.mark.parametrize(
    ("name", "category", "told"),
    [
        ("folder-parts/kshot/meanmap", None, "bench list runs"),
        ("folder-parts/one-for-one/meanmap/nut", None, "no such record"),
        ("folder-parts/one-for-one/meanmap", "nut", "has none of nut"),
    ],
)
def test_a_run_that_is_not_there_is_refused_in_words(place: Path, name: str, category: str | None, told: str) -> None:
    with pytest.raises(BenchError, match=told):
        saved_model.find(name, place / "runs", category)


def test_several_kept_runs_are_listed_and_one_without_a_model_says_how_to_keep_it(place: Path, tmp_path: Path) -> None:
    (path,) = (place / "runs").rglob("bolt.json")
    copied = {}
    for name in ("seed0", "seed1"):
        copied[name] = tmp_path / "demo" / name / "bolt.json"
        copied[name].parent.mkdir(parents=True)
        copied[name].write_bytes(path.read_bytes())
    with pytest.raises(BenchError, match="--keep-model"):
        saved_model.find("demo", tmp_path)
    for each in copied.values():
        each.with_suffix(".safetensors").write_bytes(b"")
    with pytest.raises(BenchError, match=r"means 2: .*seed0.*seed1"):
        saved_model.find("demo", tmp_path)


def test_a_restored_method_answers_as_the_run_did(place: Path, kept: saved_model.SavedModel) -> None:
    stored = Store(place / "runs").predictions(kept.record)
    named = saved_model.images([place / "parts" / "bolt" / "test"])
    found = predict.predict(kept, named, place / "same", lambda *_: None)
    for verdict in found:
        file = "/".join(Path(verdict.image).parts[-2:])
        assert verdict.score == pytest.approx(stored.scores[stored.files.index(file)], rel=1e-6)


def test_answers_are_a_table_maps_and_pictures_of_the_images_own_size(
    place: Path, kept: saved_model.SavedModel
) -> None:
    out, seen = place / "out", list[tuple[int, int]]()
    found = predict.predict(kept, saved_model.images([place / "parts/bolt/test"]), out, lambda *told: seen.append(told))
    assert seen[-1] == (12, 12)
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    called = {Path(row["image"]).parent.name: row["defective"] for row in rows}
    assert called["spot"] == "True"
    assert sum(row["defective"] == "True" for row in rows) <= 4
    spot = next(verdict for verdict in found if "spot/000" in verdict.image)
    assert spot.map.endswith("maps/spot/000.png.npy")
    numbers = np.load(spot.map)
    assert numbers.shape == kept.preprocessing.size
    assert float(numbers.max()) == spot.max_pixel_score
    assert 0 < spot.anomalous_fraction < 0.2
    assert float((numbers > kept.record.pixel_threshold).mean()) == spot.anomalous_fraction
    with Image.open(spot.overlay) as coloured, Image.open(spot.image) as given:
        picture, plain = (np.asarray(image).astype(int) for image in (coloured, given))
    assert picture.shape == (60, 80, 3)
    changed = np.abs(picture - plain).max(axis=2) > 60
    assert changed[15:35, 35:55].any()
    assert not changed[:, :25].any()  # far from the defect the image is as it was
    assert (picture == predict.CONTOUR).all(axis=2).any()


def test_a_bad_image_is_a_verdict_with_an_error_and_the_others_go_on(
    place: Path, kept: saved_model.SavedModel, tmp_path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    Image.new("L", (30, 200), 100).save(tmp_path / "tall.jpg")
    bad, tall = predict.predict(kept, saved_model.images([tmp_path]), tmp_path / "out", lambda *_: None)
    assert bad.score is None
    assert "bad.png is not" in bad.error
    assert tall.score is not None
    with Image.open(tall.overlay) as picture:
        assert picture.size == (30, 200)


def test_images_are_those_of_folders_and_files_each_with_a_place_of_its_own(place: Path, tmp_path: Path) -> None:
    test = place / "parts" / "bolt" / "test"
    named = saved_model.images([test / "good", test / "spot" / "000.png", test / "good" / "000.png"])
    assert [str(name) for _, name in named] == ["good/000.png", "good/001.png", "good/002.png", "spot/000.png"]
    assert [str(name) for _, name in saved_model.images([test / "spot" / "000.png"])] == ["000.png"]
    for wrong, told in ((tmp_path / "nowhere", "is neither"), (tmp_path, "holds none")):
        with pytest.raises(BenchError, match=told):
            saved_model.images([wrong])


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    """The record in a store of its own, to be broken."""
    (path,) = (place / "runs").rglob("bolt.json")
    to = tmp_path / path.relative_to(place / "runs")
    to.parent.mkdir(parents=True)
    for suffix in (".json", ".safetensors"):
        to.with_suffix(suffix).write_bytes(path.with_suffix(suffix).read_bytes())
    return to


def test_a_model_is_safetensors_or_refused_and_a_pickle_is_never_opened(copied: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    copied.with_suffix(".safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(BenchError, match="must be what meanmap restores"):
        saved_model.load(copied, device="cpu", weights=None, cache=tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_broken_record_is_refused_in_words(copied: Path, tmp_path: Path) -> None:
    copied.write_text("{}")
    with pytest.raises(BenchError, match="is no record that can be read"):
        saved_model.load(copied, device="cpu", weights=None, cache=tmp_path)
