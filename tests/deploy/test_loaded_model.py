"""A saved model in Python: paths, images and arrays in any mixture give the predictions of `bench predict`."""

import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bench
from bench.deploy.loaded_model import LoadedModel
from bench.errors import BenchError
from bench.record import Record


@pytest.fixture
def folder(tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def record(folder: Path) -> Record:
    (record,) = bench.run(
        "meanmap", dataset="folder", data="parts", protocol="one-for-one", time=False, category="bolt",
        keep_model=True, calibrate=0.4,
    )  # fmt: skip
    return record


@pytest.fixture
def model(record: Record) -> LoadedModel:
    return bench.load("folder-parts/one-for-one/meanmap", category=record.category)


@pytest.fixture
def spot(folder: Path) -> Path:
    return folder / "parts" / "bolt" / "test" / "spot" / "000.png"


def test_paths_images_and_arrays_are_predicted_alike_alone_and_mixed(
    model: LoadedModel, record: Record, spot: Path
) -> None:
    assert model.record.category == "bolt"
    image = Image.open(spot)
    values = [spot, str(spot), image, np.asarray(image), np.asarray(image.convert("RGBA"))]
    predictions = [model.predict(value) for value in values]
    assert len({float(prediction.scores[0]) for prediction in predictions}) == 1
    assert predictions[0].maps.shape == (1, 256, 256)  # the size of the input
    assert predictions[0].scores[0] == predictions[0].maps.max()
    assert np.array_equal(model.predict(values).scores, np.repeat(predictions[0].scores, 5))
    assert len(model.predict(np.stack([np.asarray(image)] * 2)).scores) == 2
    both = model.predict(path for path in (spot, spot.parents[1] / "good" / "000.png"))
    assert both.is_anomalous is not None
    assert both.is_anomalous.tolist() == [True, both.scores[1] > record.threshold]
    assert model.explain([spot]) == {}


def test_a_score_is_compared_with_the_threshold_in_float64(model: LoadedModel, spot: Path) -> None:
    score = model.predict(spot).scores[0]
    below = float(score) - 1e-12  # float32 rounds it to the score
    assert np.float32(below) == score
    model.record = replace(model.record, threshold=below)
    prediction = model.predict(spot)
    assert prediction.is_anomalous is not None
    assert prediction.is_anomalous.tolist() == [True]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "At least one image is needed, got none"),
        (np.zeros((0, 8, 8, 3), np.uint8), "At least one image is needed, got none"),
        (None, "NumPy array, got NoneType"),
        (7, "NumPy array, got int"),
        ([[1, 2]], "NumPy array, got list"),
        (np.zeros((4, 4, 3)), "the image is not: .* its range is unknown"),
        (
            [np.zeros((4, 4, 3), np.uint8), np.zeros((3, 8, 8), np.uint8)],
            r"image 1 is not: it has the shape \(3, 8, 8\)",
        ),
        (np.zeros((2, 3, 4, 4, 3), np.uint8), r"image 0 is not: it has the shape \(3, 4, 4, 3\)"),
        ("missing.png", "missing.png is not"),
    ],
)
def test_what_is_not_an_image_is_one_clear_error(model: LoadedModel, images: object, message: str) -> None:
    for call in (model.predict, model.explain):
        with pytest.raises(BenchError, match=message):
            call(images)  # type: ignore[arg-type]


def test_an_image_too_long_for_its_aspect_ratio_is_an_error_that_names_it(model: LoadedModel, tmp_path: Path) -> None:
    keep_aspect = replace(model.record.run, preprocessing=model.record.run.preprocessing | {"keep_aspect": True})
    model._saved = replace(model._saved, record=replace(model.record, run=keep_aspect))
    image = Image.new("L", (20_000, 1))
    image.save(tmp_path / "long.png")
    for value, name in ((image, "the image"), (tmp_path / "long.png", "long.png")):
        with pytest.raises(BenchError, match=f"{name} is not: 20000 x 1 would become"):
            model.predict(value)


@pytest.mark.slow  # torch.onnx takes seconds, and needs an extra
@pytest.mark.filterwarnings("ignore")  # the exporter warns about its own internals
def test_export_compares_on_stored_images_or_on_those_of_a_folder(model: LoadedModel, spot: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs maskbench[export]")
    pytest.importorskip("onnxscript", reason="needs maskbench[export]")
    assert model.export("stored.onnx").n_images > 0
    assert model.export("one.onnx", str(spot)).n_images == 1
    assert model.export("folder.onnx", [spot.parents[1]]).n_images == len(list(spot.parents[1].rglob("*.png")))
    assert Path("one.onnx").is_file()


def test_export_without_its_packages_or_on_another_device_is_one_clear_error(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bench.deploy.export", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BenchError, match=r"pip install 'maskbench\[export\]'"):
        model.export("a.onnx")
    monkeypatch.setitem(sys.modules, "bench.deploy.export", types.SimpleNamespace(export=None))
    model._saved.method.setup = replace(model._saved.method.setup, device=torch.device("cuda"))
    with pytest.raises(BenchError, match=r"needs a model on the CPU, got cuda\. Load it with device='cpu'"):
        model.export("a.onnx")
