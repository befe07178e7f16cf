"""The ONNX file: its resize is Pillow's, its answers are the method's; what can't be written is refused in words."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import environment, registry
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.data.images import prepare
from bench.deploy.saved_model import SavedModel
from bench.environment import seed_everything
from bench.errors import BenchError
from bench.execution import method_checks
from bench.method import Preprocessing, Setup
from bench.record import Record, Run

onnx = pytest.importorskip("onnx", reason="needs maskbench[export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs maskbench[export]")
pytest.importorskip("onnxscript", reason="needs maskbench[export]")

SIZES = ((64, 64), (40, 50), (201, 333), (500, 90))


@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("form", [{}, {"keep_aspect": True}, {"keep_aspect": True, "crop": 40}])
def test_the_graph_prepares_an_image_of_any_size_as_pillow_does(resample: str, form: dict) -> None:
    from bench.deploy.onnx_preprocessing import IMAGE, preprocessing_graph

    preprocessing = Preprocessing(48, 64, resample, **form)  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(preprocessing_graph(preprocessing).SerializeToString())
    generator = np.random.default_rng(0)
    for rows, columns in SIZES:
        shade = 60 + 120 * np.linspace(0, 1, rows)[:, None, None] * np.linspace(0, 1, columns)[None, :, None]
        shade = shade + generator.normal(0, 8, (rows, columns, 3)) + 40 * (generator.random((rows, columns, 1)) > 0.9)
        image = Image.fromarray(shade.clip(0, 255).astype(np.uint8))
        (found,) = session.run(None, {IMAGE: np.asarray(image)})
        wanted = np.asarray(prepare(image, preprocessing)).transpose(2, 0, 1)[None].astype(np.float32)
        apart = np.abs(found * 255 - wanted).round(3)
        assert apart.max() <= 1  # where a sum lies on the edge between two values
        assert (apart > 0).mean() < (0.4 if rows > columns else 0.04)  # Pillow may begin with a tall image's columns


def test_a_resize_by_nearest_neighbours_is_refused() -> None:
    from bench.deploy.onnx_preprocessing import preprocessing_graph

    with pytest.raises(BenchError, match="this run's is nearest"):
        preprocessing_graph(Preprocessing(48, 64, "nearest"))


def kept(name: str, where: Path) -> SavedModel:
    """A method fitted on drawn images at the smallest settings, beside a record of nothing else."""
    plan = make_plan(load_config(), registry.names("methods"), options={"method": name}, profile="check")
    (choice,) = plan.method_specs
    module = registry.load("methods", choice.method)
    settings, _ = choice.resolve(module.Settings, "")
    seed_everything(3)
    method = module.METHOD(settings, Setup(method_checks.SIZE, environment.device("cpu"), 3))
    method.fit(method_checks.SyntheticImages(), lambda *_: None)
    run = Run(
        dataset="drawn", synthetic=True, protocol="kshot", k=2, seed=0, limit=0, name=name, method=choice.method,
        title=choice.title, settings={}, preprocessing={"height": 64, "width": 64}, precision="float32", file_hashes={},
        profile="check", profile_note="",
    )  # fmt: skip
    record = Record(run=run, category="part", data_digest="", threshold=1.5)
    return SavedModel(where / "hash" / "seed0" / "part.json", record, method)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """An image as the method's own input, a larger one and an oblong one with a bright spot."""
    pixels = (method_checks.SyntheticImages(count=1).pixels[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    pixels[30:38, 30:38] = 255
    paths = []
    for number, size in enumerate(((64, 64), (200, 200), (150, 90))):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def exported(name: str, tmp_path: Path, images: list[Path]):
    from bench.deploy.export import export

    return export(kept(name, tmp_path), tmp_path / "model.onnx", images)


@pytest.mark.filterwarnings("ignore:::torch")  # of the exporter, about itself
@pytest.mark.filterwarnings("ignore:::onnxscript")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["meanmap", "autoencoder", "patchcore", "aminet", "riad", "mfrnet"])
def test_an_exported_method_answers_as_it_does_itself(name: str, tmp_path: Path, images: list[Path]) -> None:
    found = exported(name, tmp_path, images)
    assert found.images == 3
    assert found.network < 1e-4
    assert found.whole < 5e-3
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [given.name for given in session.get_inputs()] == ["image"]
    score, maps = session.run(["score", "map"], {"image": np.asarray(Image.open(images[1]).convert("RGB"))})
    assert (score.shape, maps.shape) == ((1,), (1, 64, 64))
    told = session.get_modelmeta().custom_metadata_map
    assert told["threshold"] == "1.5"
    assert told["category"] == "part"


@pytest.mark.filterwarnings("ignore:::torch")
@pytest.mark.filterwarnings("ignore:::onnxscript")
@pytest.mark.slow
def test_a_method_that_draws_at_each_predict_is_refused_in_words(tmp_path: Path, images: list[Path]) -> None:
    from bench.deploy import export

    found = kept("meanmap", tmp_path)
    predict = found.method.predict
    found.method.predict = lambda given: predict(given[..., torch.randperm(64)])  # type: ignore[method-assign]
    with pytest.raises(BenchError, match=r"that of meanmap it can't: .*randperm"):
        export.export(found, tmp_path / "model.onnx", images)
    assert not (tmp_path / "model.onnx").exists()


def test_a_graph_that_answers_otherwise_is_not_written(tmp_path: Path, images: list[Path]) -> None:
    from bench.deploy import export

    found = kept("meanmap", tmp_path)
    predict, calls = found.method.predict, []

    def drifting(given: torch.Tensor):
        calls.append(given)
        answer = predict(given)
        return answer if len(calls) < 3 else type(answer)(answer.scores * 1.1, answer.maps)

    found.method.predict = drifting  # type: ignore[method-assign]
    with pytest.raises(BenchError, match="Nothing was written"):
        export.export(found, tmp_path / "model.onnx", images)
    assert not (tmp_path / "model.onnx").exists()


def test_half_precision_is_refused(tmp_path: Path, images: list[Path]) -> None:
    from dataclasses import replace

    from bench.deploy import export

    found = kept("meanmap", tmp_path)
    found.method.setup = replace(found.method.setup, precision="bfloat16")
    with pytest.raises(BenchError, match="in bfloat16"):
        export.export(found, tmp_path / "model.onnx", images)
