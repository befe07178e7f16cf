"""Other libraries' models under one colon: their names, what they answer, and what is refused in words."""

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


def planned(*methods: str, **said: object) -> Plan:
    return make_plan(load_config(), registry.names("methods"), options={"method": ",".join(methods), **said})


def test_a_name_with_a_colon_is_a_model_of_a_host() -> None:
    (choice,) = planned("sklearn:PCA").method_specs
    assert (choice.name, choice.method, choice.title) == ("sklearn:PCA", "sklearn", "PCA (scikit-learn)")
    assert choice.settings["model"] == ("PCA", "alias sklearn:PCA")


def test_a_setting_reaches_one_hosted_model_by_its_name() -> None:
    given = make_plan(
        load_config(),
        registry.names("methods"),
        options={"method": "sklearn:PCA,sklearn:IsolationForest"},
        settings={"sklearn:PCA.grid": "2"},
    )
    assert [choice.method_overrides for choice in given.method_specs] == [{"grid": ("2", "--set")}, {}]


def test_all_leaves_the_hosts_out() -> None:
    names = [choice.name for choice in planned("all").method_specs]
    assert "aminet" in names
    assert not [name for name in names if name.startswith(("sklearn", "anomalib"))]


def test_an_unknown_host_is_refused_with_those_there_are() -> None:
    with pytest.raises(BenchError, match=r"'sklern' is not a host .* Did you mean 'sklearn'\?"):
        planned("sklern:PCA")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "one is named, as sklearn:IsolationForest"),
        ({"model": "RandomForestClassifier"}, "'RandomForestClassifier' is none"),
        ({"model": "PCA", "options": "{"}, "options is a JSON object"),
        ({"model": "PCA", "options": '{"trees": 3}'}, "scikit-learn's PCA is not made so"),
    ],
)
def test_what_scikit_learn_has_not_is_refused_in_words(settings: dict[str, str], told: str) -> None:
    module = registry.load("methods", "sklearn")
    with pytest.raises(BenchError, match=told):
        module.METHOD(module.Settings(**settings, backbone="tf_efficientnet_lite0"), Setup((64, 64), CPU, 0))


def test_a_hosted_density_answers_what_scikit_learn_answers_for_the_same_vectors() -> None:
    module, images = registry.load("methods", "sklearn"), method_checks.SyntheticImages()
    settings = module.Settings(
        "PCA", '{"n_components": 4, "svd_solver": "full"}', "tf_efficientnet_lite0", grid=2, smoothing=0.0
    )
    method = module.METHOD(settings, Setup((64, 64), CPU, 0))
    method.fit(images, lambda *_: None)
    vectors = method.state()["vectors"].numpy()
    assert vectors.shape == (6 * 2 * 2, 40 + 112)
    estimator = make_pipeline(StandardScaler(), PCA(4, svd_solver="full")).fit(vectors)
    expected = -estimator.score_samples(vectors).reshape(6, 4)
    corners = method.predict(images.pixels).maps[:, ::63, ::63].reshape(6, 4)
    np.testing.assert_allclose(corners.numpy(), expected, rtol=1e-4)


def test_a_hosted_detector_takes_its_backbone_in_the_precision_that_is_asked_for() -> None:
    module, images = registry.load("methods", "sklearn"), method_checks.SyntheticImages()
    settings = module.Settings("PCA", backbone="tf_efficientnet_lite0", grid=2)
    whole, half = (module.METHOD(settings, Setup((64, 64), CPU, 0, precision=one)) for one in ("float32", "bfloat16"))
    for method in (whole, half):
        method.fit(images, lambda *_: None)
    one, other = whole.state()["vectors"], half.state()["vectors"]
    assert other.dtype == torch.float32
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, rtol=0.1, atol=0.05 * float(one.abs().max()))


def test_a_run_of_a_hosted_model_stands_in_the_store_under_its_own_name(parts: Path, tmp_path: Path) -> None:
    from bench.execution import schedule

    said = {"dataset": "folder", "protocol": "one-for-one", "time": False, "category": "bolt", "threads": 1}
    plan = make_plan(
        load_config(),
        registry.names("methods"),
        options={"method": "sklearn:IsolationForest", **said},
        settings={"grid": "4"},
        paths={"data": parts, "runs": tmp_path / "runs"},
    )
    (record,) = schedule.run_schedule(plan, schedule.make_schedule(plan), lambda *_: None)
    assert not record.failure
    assert record.run.title == "IsolationForest (scikit-learn)"
    assert record.run.settings["model"] == "IsolationForest"
    assert Store(plan.runs).path(record.run, record.data_digest, "bolt", "last").parts[-4] == "sklearn-IsolationForest"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the library's own
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("Padim", '{"layers": ["blocks.1", "blocks.2"], "n_features": 16}'),
        ("Stfpm", '{"layers": ["blocks.1", "blocks.2"]}'),
    ],
)
def test_anomalibs_models_keep_what_every_method_promises(model: str, options: str) -> None:
    pytest.importorskip("anomalib", reason="needs the extra maskbench[anomalib]")
    module = registry.load("methods", "anomalib")
    settings = module.Settings(model, "tf_efficientnet_lite0", epochs=2, batch=4, options=options)
    found = method_checks.check_method(module, settings)
    assert len(found) == 15
    assert not [f"{finding.requirement} {finding.problem}" for finding in found if finding.problem]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_needs_a_trainer_is_refused_in_words() -> None:
    pytest.importorskip("anomalib", reason="needs the extra maskbench[anomalib]")
    module = registry.load("methods", "anomalib")
    method = module.METHOD(module.Settings("Ganomaly", epochs=1), Setup((64, 64), CPU, 0))
    with pytest.raises(BenchError, match="only inside a Lightning trainer"):
        method.fit(method_checks.SyntheticImages(), lambda *_: None)
