"""The ONNX file: it equals Pillow's resize and the method's predictions; what cannot be exported is an error."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import environment, registry
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.data.images import preprocess
from bench.deploy.saved_model import SavedModel
from bench.errors import BenchError
from bench.execution import method_checks
from bench.method import Prediction, Preprocessing, Setup
from bench.record import Record, Run

onnx = pytest.importorskip("onnx", reason="needs maskbench[export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs maskbench[export]")
pytest.importorskip("onnxscript", reason="needs maskbench[export]")

SIZES = ((64, 64), (40, 50), (201, 333), (500, 90))


@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("crop", [{}, {"keep_aspect": True}, {"keep_aspect": True, "crop": 40}])
def test_the_graph_equals_the_resize_of_pillow_for_any_size(resample: str, crop: dict[str, Any]) -> None:
    from bench.deploy.onnx_preprocessing import IMAGE, preprocessing_graph

    preprocessing = Preprocessing(48, 64, resample, **crop)  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(preprocessing_graph(preprocessing).SerializeToString())
    generator = np.random.default_rng(0)
    for rows, columns in SIZES:
        shade = 60 + 120 * np.linspace(0, 1, rows)[:, None, None] * np.linspace(0, 1, columns)[None, :, None]
        shade = shade + generator.normal(0, 8, (rows, columns, 3)) + 40 * (generator.random((rows, columns, 1)) > 0.9)
        image = Image.fromarray(shade.clip(0, 255).astype(np.uint8))
        (output,) = session.run(None, {IMAGE: np.asarray(image)})
        expected = np.asarray(preprocess(image, preprocessing)).transpose(2, 0, 1)[None].astype(np.float32)
        difference = np.abs(output * 255 - expected).round(3)
        assert difference.max() <= 1  # if a sum is at the boundary between two values
        assert (difference > 0).mean() < (0.4 if rows > columns else 0.04)  # Pillow may resize the columns first


def test_a_resize_by_nearest_neighbors_is_an_error() -> None:
    from bench.deploy.onnx_preprocessing import preprocessing_graph

    with pytest.raises(BenchError, match="this run has nearest"):
        preprocessing_graph(Preprocessing(48, 64, "nearest"))


@pytest.fixture
def save_model(
    tmp_path: Path, make_run: Callable[..., Run], make_record: Callable[..., Record]
) -> Callable[[str], SavedModel]:
    """Return a function that fits a method on synthetic images with the settings of profile check."""

    def save(name: str) -> SavedModel:
        return fitted_model(name, tmp_path, make_run, make_record)

    return save


def fitted_model(
    name: str, folder: Path, make_run: Callable[..., Run], make_record: Callable[..., Record]
) -> SavedModel:
    plan = make_plan(load_config(), registry.names("methods"), options={"method": name}, profile="check")
    (spec,) = plan.method_specs
    module = registry.load("methods", spec.method)
    settings, _ = spec.resolve(module.Settings, "")
    environment.seed_everything(3)
    method = module.METHOD(settings, Setup(method_checks.SIZE, environment.device("cpu"), 3))
    method.fit(method_checks.SyntheticImages(), lambda *_: None)
    run = make_run(name=name, method=spec.method, title=spec.title, preprocessing={"height": 64, "width": 64})
    record = make_record(run, category="part", threshold=1.5)
    return SavedModel(folder / "hash" / "seed0" / "part.json", record, method)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """An image of the size of the input, a larger one and a non-square one, with a bright spot."""
    pixels = (method_checks.SyntheticImages(count=1).pixels[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    pixels[30:38, 30:38] = 255
    paths = []
    for number, size in enumerate(((64, 64), (200, 200), (150, 90))):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@pytest.mark.filterwarnings("ignore:::torch")  # the exporter warns about its own internals
@pytest.mark.filterwarnings("ignore:::onnxscript")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["meanmap", "autoencoder", "patchcore", "aminet", "riad", "mfrnet", "scadn"])
def test_an_exported_model_predicts_as_the_method(
    name: str, tmp_path: Path, images: list[Path], save_model: Callable[[str], SavedModel]
) -> None:
    from bench.deploy.export import export

    result = export(save_model(name), tmp_path / "model.onnx", images)
    assert result.n_images == 3
    assert result.network_difference < 1e-4
    assert result.total_difference < 5e-3
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [each.name for each in session.get_inputs()] == ["image"]
    score, maps = session.run(["score", "map"], {"image": np.asarray(Image.open(images[1]).convert("RGB"))})
    assert (score.shape, maps.shape) == ((1,), (1, 64, 64))
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["threshold"] == "1.5"
    assert metadata["category"] == "part"


@pytest.mark.parametrize("name", ["differnet", "mkd"])
def test_a_method_whose_map_is_a_gradient_is_rejected_before_the_export_starts(
    name: str,
    tmp_path: Path,
    images: list[Path],
    save_model: Callable[[str], SavedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bench.deploy import export

    saved = save_model(name)
    monkeypatch.setattr(saved.method, "predict", lambda _: pytest.fail("predict was called"))
    with pytest.raises(BenchError, match=f"{name} is not one, because its map is a gradient") as error:
        export.export(saved, tmp_path / "model.onnx", images)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:::torch")
@pytest.mark.filterwarnings("ignore:::onnxscript")
@pytest.mark.slow
def test_a_method_with_random_predictions_cannot_be_exported(
    tmp_path: Path, images: list[Path], save_model: Callable[[str], SavedModel]
) -> None:
    from bench.deploy import export

    saved = save_model("meanmap")
    predict = saved.method.predict
    saved.method.predict = lambda batch: predict(batch[..., torch.randperm(64)])  # type: ignore[method-assign]
    with pytest.raises(BenchError, match=r"for meanmap it fails: .*randperm"):
        export.export(saved, tmp_path / "model.onnx", images)
    assert not (tmp_path / "model.onnx").exists()


def test_a_model_with_other_predictions_is_not_written(
    tmp_path: Path, images: list[Path], save_model: Callable[[str], SavedModel]
) -> None:
    from bench.deploy import export

    saved = save_model("meanmap")
    predict, calls = saved.method.predict, []

    def drifting(batch: torch.Tensor):
        calls.append(batch)
        prediction = predict(batch)
        return prediction if len(calls) < 3 else Prediction(prediction.scores * 1.1, prediction.maps)

    saved.method.predict = drifting  # type: ignore[method-assign]
    with pytest.raises(BenchError, match="Nothing was written"):
        export.export(saved, tmp_path / "model.onnx", images)
    assert not (tmp_path / "model.onnx").exists()


def test_half_precision_cannot_be_exported(
    tmp_path: Path, images: list[Path], save_model: Callable[[str], SavedModel]
) -> None:
    from dataclasses import replace

    from bench.deploy import export

    saved = save_model("meanmap")
    saved.method.setup = replace(saved.method.setup, precision="bfloat16")
    with pytest.raises(BenchError, match="got bfloat16"):
        export.export(saved, tmp_path / "model.onnx", images)


def test_a_full_disk_leaves_the_old_model(
    tmp_path: Path, images: list[Path], save_model: Callable[[str], SavedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.deploy import export

    def raise_disk_full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")

    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", raise_disk_full)
    with pytest.raises(BenchError, match="--out must be a writable file"):
        export.export(save_model("meanmap"), path, images)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir() if "onnx" in file.name] == ["model.onnx"]
