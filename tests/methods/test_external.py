"""Models of other libraries: their names, predictions and errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import Plan, make_plan
from bench.errors import BenchError
from bench.execution import method_checks
from bench.method import Setup
from bench.store import Store

CPU = torch.device("cpu")


def plan_of(*methods: str) -> Plan:
    return make_plan(load_config(), registry.names("methods"), options={"method": ",".join(methods)})


def test_a_name_with_a_colon_is_a_model_of_a_library() -> None:
    (spec,) = plan_of("sklearn:PCA").method_specs
    assert (spec.name, spec.method, spec.title) == ("sklearn:PCA", "sklearn", "PCA (scikit-learn)")
    assert spec.settings["model"] == ("PCA", "--method sklearn:PCA")


def test_a_setting_can_be_given_to_one_external_model_by_its_name() -> None:
    plan = make_plan(
        load_config(),
        registry.names("methods"),
        options={"method": "sklearn:PCA,sklearn:IsolationForest"},
        settings={"sklearn:PCA.grid": "2"},
    )
    assert [spec.method_overrides for spec in plan.method_specs] == [{"grid": ("2", "--set")}, {}]


def test_all_does_not_include_external_methods() -> None:
    names = [spec.name for spec in plan_of("all").method_specs]
    assert "aminet" in names
    assert not [name for name in names if name.startswith(("sklearn", "anomalib"))]


def test_an_unknown_library_raises_an_error_with_a_suggestion() -> None:
    with pytest.raises(BenchError, match=r"'sklern' is not a method that runs .* Did you mean 'sklearn'\?"):
        plan_of("sklern:PCA")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "sklearn needs the name of a model, for example sklearn:IsolationForest"),
        ({"model": "RandomForestClassifier"}, "got 'RandomForestClassifier'"),
        ({"model": "PCA", "options": "{"}, "options must be a JSON object"),
        ({"model": "PCA", "options": '{"trees": 3}'}, "options must be arguments of scikit-learn's PCA"),
    ],
)
def test_a_wrong_model_or_option_raises_an_error(settings: dict[str, str], message: str) -> None:
    module = registry.load("methods", "sklearn")
    with pytest.raises(BenchError, match=message):
        module.METHOD(module.Settings(**settings, backbone="tf_efficientnet_lite0"), Setup((64, 64), CPU, 0))


def test_an_external_density_gives_the_scores_of_scikit_learn_for_the_same_vectors() -> None:
    module, images = registry.load("methods", "sklearn"), method_checks.SyntheticImages()
    settings = module.Settings(
        "PCA", '{"n_components": 4, "svd_solver": "full"}', "tf_efficientnet_lite0", grid=2, smoothing=0.0
    )
    method = module.METHOD(settings, Setup((64, 64), CPU, 0))
    method.fit(images, lambda *_: None)
    vectors = method.state_dict()["vectors"].numpy()
    assert vectors.shape == (6 * 2 * 2, 40 + 112)
    estimator = make_pipeline(StandardScaler(), PCA(4, svd_solver="full")).fit(vectors)
    expected = -estimator.score_samples(vectors).reshape(6, 4)
    corners = method.predict(images.pixels).maps[:, ::63, ::63].reshape(6, 4)
    np.testing.assert_allclose(corners.numpy(), expected, rtol=1e-4)


def test_the_backbone_of_an_external_detector_has_the_precision_of_the_setup() -> None:
    module, images = registry.load("methods", "sklearn"), method_checks.SyntheticImages()
    settings = module.Settings("PCA", backbone="tf_efficientnet_lite0", grid=2)
    setups = [Setup((64, 64), CPU, 0, precision=precision) for precision in ("float32", "bfloat16")]
    full_precision, half_precision = (module.METHOD(settings, setup) for setup in setups)
    for method in (full_precision, half_precision):
        method.fit(images, lambda *_: None)
    vectors, rounded = full_precision.state_dict()["vectors"], half_precision.state_dict()["vectors"]
    assert rounded.dtype == torch.float32
    assert not torch.equal(vectors, rounded)
    torch.testing.assert_close(vectors, rounded, rtol=0.1, atol=0.05 * float(vectors.abs().max()))


def test_a_run_of_an_external_model_is_stored_with_its_name(parts: Path, tmp_path: Path) -> None:
    from bench.execution import schedule

    options = {"dataset": "folder", "protocol": "one-for-one", "time": False, "category": "bolt", "threads": 1}
    plan = make_plan(
        load_config(),
        registry.names("methods"),
        options={"method": "sklearn:IsolationForest", **options},
        settings={"grid": "4"},
        paths={"data": parts, "runs": tmp_path / "runs"},
    )
    (record,) = schedule.run_schedule(plan, schedule.make_schedule(plan), lambda *_: None)
    assert not record.failure
    assert record.run.title == "IsolationForest (scikit-learn)"
    assert record.run.settings["model"] == "IsolationForest"
    assert Store(plan.runs).path(record.run, record.data_hash, "bolt", "last").parts[-4] == "sklearn-IsolationForest"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of the library
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("Padim", '{"layers": ["blocks.1", "blocks.2"], "n_features": 16}'),
        ("Stfpm", '{"layers": ["blocks.1", "blocks.2"]}'),
    ],
)
def test_the_models_of_anomalib_satisfy_the_contract(model: str, options: str) -> None:
    pytest.importorskip("anomalib", reason="needs the extra maskbench[anomalib]")
    module = registry.load("methods", "anomalib")
    settings = module.Settings(model, "tf_efficientnet_lite0", epochs=2, batch_size=4, options=options)
    results = method_checks.check_method(module, settings)
    assert len(results) == 19
    assert not [f"{result.requirement} {result.problem}" for result in results if result.problem]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_needs_a_trainer_raises_an_error() -> None:
    pytest.importorskip("anomalib", reason="needs the extra maskbench[anomalib]")
    module = registry.load("methods", "anomalib")
    method = module.METHOD(module.Settings("Ganomaly", epochs=1), Setup((64, 64), CPU, 0))
    with pytest.raises(BenchError, match="only with a Lightning trainer"):
        method.fit(method_checks.SyntheticImages(), lambda *_: None)
