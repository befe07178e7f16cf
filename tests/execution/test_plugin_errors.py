"""An error in the code of a plug-in ends only the jobs that need this plug-in, and never the command."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from bench import registry
from bench.cli.report_command import _render
from bench.deploy import saved_model
from bench.errors import MAX_TEXT, BenchError
from bench.execution.schedule import make_schedule, run_schedule
from bench.record import Record
from bench.report_format import Report
from bench.store import Store

ERRORS = ["ValueError", "SystemExit", "GeneratorExit", "BaseException", "UnprintableError"]

pytestmark = pytest.mark.usefixtures("plugin_methods")


@pytest.fixture
def run_both(plan_parts) -> Callable[..., tuple[dict[str, str], dict[str, Record]]]:
    """Return a function that runs the hostile method and the mean map, and returns what was skipped and the records."""

    def run(**settings: str) -> tuple[dict[str, str], dict[str, Record]]:
        names = {f"hostile.{name}": value for name, value in settings.items()}
        plan = plan_parts(method="hostile,meanmap", category="bolt", settings=names, keep_model=True)
        schedule = make_schedule(plan)
        records = {record.run.name: record for record in run_schedule(plan, schedule, lambda *_: None)}
        assert not records["meanmap"].failure
        assert make_schedule(plan_parts(method="meanmap", category="bolt", keep_model=True)).jobs == ()
        return schedule.skipped, records

    return run


@pytest.mark.parametrize(
    ("location", "error"), [*(("Settings", error) for error in ERRORS), ("file_hashes", "SystemExit")]
)
def test_a_method_that_cannot_be_planned_is_skipped_with_the_reason(run_both, location: str, error: str) -> None:
    skipped, records = run_both(location=location, error=error)
    assert list(records) == ["meanmap"]
    (reason,) = skipped.values()
    assert "raised by the plug-in" in reason or "its text cannot be read" in reason
    assert "\n" not in reason


@pytest.mark.parametrize("location", ["estimate_memory", "memory as text"])
def test_a_method_without_a_valid_estimate_of_memory_runs(
    run_both, location: str, caplog: pytest.LogCaptureFixture
) -> None:
    skipped, records = run_both(location=location)
    assert not skipped
    assert not records["hostile"].failure
    assert any("The memory of Hostile is unknown" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("location", "error"),
    [*(("fit", error) for error in ERRORS),
     *((location, "GeneratorExit") for location in ("__init__", "predict", "info", "state_dict"))],
)  # fmt: skip
def test_a_method_that_raises_an_error_in_a_job_is_a_failed_record(run_both, location: str, error: str) -> None:
    _, records = run_both(location=location, error=error)
    assert records["hostile"].failure
    assert error in records["hostile"].failure


@pytest.mark.parametrize(
    "location", ["complex predictions", "integer predictions", "info is not JSON", "a loss of another type"]
)
def test_values_that_cannot_be_stored_are_a_failed_record(run_both, location: str) -> None:
    _, records = run_both(location=location)
    assert "must" in records["hostile"].failure
    assert "\n" not in records["hostile"].failure


@pytest.mark.parametrize(
    ("location", "error"),
    [
        *(("explain", error) for error in ERRORS),
        *(
            (location, "ValueError")
            for location in ("a path as name", "a name with NUL", "a long name", "a number as name")
        ),
        *((location, "ValueError") for location in ("pictures of two channels", "too few pictures", "no dictionary")),
        ("pictures without a size", "ValueError"),
        ("NaN pictures", "ValueError"),
    ],
)
def test_an_error_in_explain_leaves_out_the_pictures_and_keeps_the_metrics(
    run_both, plan_parts, location: str, error: str
) -> None:
    _, records = run_both(location=location, error=error)
    record = records["hostile"]
    assert not record.failure
    assert record.metrics["image_auroc"] == 1.0
    assert any("no pictures" in warning for warning in record.warnings)
    settings = {"hostile.location": location, "hostile.error": error}
    again = plan_parts(method="hostile,meanmap", category="bolt", settings=settings, keep_model=True)
    assert make_schedule(again).jobs == ()  # the next call is not stuck


@pytest.mark.parametrize("location", ["fit", "explain"])
def test_the_text_of_a_failure_and_of_a_warning_is_short(run_both, location: str) -> None:
    _, records = run_both(location=location, error="a long text")
    record = records["hostile"]
    assert len(record.failure) <= MAX_TEXT + 100
    assert sum(map(len, record.warnings)) <= MAX_TEXT
    assert "characters left out" in record.failure + "".join(record.warnings)


# ---- definitions of plug-ins


@pytest.fixture
def add_plugin(tmp_path: Path) -> Iterator[Callable[[registry.PluginKind, str, str], None]]:
    """Return a function that adds a plug-in with a source text; all are removed after the test."""
    folders = {kind: list(import_module(f"bench.{kind}").__path__) for kind in registry.PLUGIN_KINDS}

    def add(kind: registry.PluginKind, name: str, source: str) -> None:
        (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / kind / f"{name}.py").write_text(source, "utf-8")
        registry.add_folder(kind, tmp_path / kind)

    yield add
    for kind, folder in folders.items():
        import_module(f"bench.{kind}").__path__ = folder


DEFINITIONS = {
    "none": "METHOD = None\nclass Settings: pass\n",
    "an_instance": "METHOD = 3\nclass Settings: pass\n",
    "another_class": "from dataclasses import dataclass\n@dataclass\nclass Settings: pass\nclass METHOD: pass\n",
    "no_settings": "from bench.methods.meanmap import METHOD\nSettings = None\n",
    "plain_settings": "from bench.methods.meanmap import METHOD\nclass Settings: pass\n",
    "generator_exit": "raise GeneratorExit\n",
    "base_exception": "raise BaseException('in an import')\n",
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_method_with_wrong_definitions_is_skipped_and_the_others_run(
    add_plugin, plan_parts, run_plan, name: str
) -> None:
    add_plugin("methods", f"defined_{name}", DEFINITIONS[name])
    plan = plan_parts(method=f"defined_{name},meanmap", category="bolt")
    schedule = make_schedule(plan)
    assert list(schedule.skipped) == [f"defined_{name}"]
    assert [record.run.name for record in run_plan(plan)] == ["meanmap"]


DATASET = 'TITLE = "Wrong"\nSYNTHETIC = False\nABOUT = ""\ndef samples(root):\n    '


@pytest.mark.parametrize(
    ("name", "body"),
    [("raising", "raise ValueError('raised by the plug-in')"), ("exiting", "raise SystemExit(3)"),
     ("none", "return None"), ("texts", "return ['a.png']")],
)  # fmt: skip
def test_a_dataset_that_raises_an_error_or_lists_no_samples_is_one_line(
    add_plugin, plan_parts, name: str, body: str
) -> None:
    add_plugin("datasets", f"wrong_{name}", DATASET + body + "\n")
    with pytest.raises(BenchError, match=f"datasets/wrong_{name} must") as error:
        make_schedule(plan_parts(dataset=f"wrong_{name}"))
    assert "\n" not in str(error.value)


def test_a_store_has_a_record_of_each_method_after_errors_of_both_kinds(plan_parts, run_plan) -> None:
    settings = {"hostile.location": "fit", "hostile.error": "GeneratorExit", "faulty.fault": "exits"}
    plan = plan_parts(method="hostile,faulty,meanmap", category="bolt", settings=settings)
    run_plan(plan)
    assert {record.run.name: bool(record.failure) for record in Store(plan.runs).records()} == {
        "hostile": True,
        "faulty": True,
        "meanmap": False,
    }


REPORT = 'SUFFIX = "txt"\nFIGURES = "none"\ndef render(report):\n    raise SystemExit("raised by the plug-in")\n'


def test_a_report_format_that_raises_an_error_leaves_the_others(add_plugin) -> None:
    add_plugin("reports", "raising", REPORT)
    modules = {name: registry.load("reports", name) for name in ("raising", "markdown")}
    report = Report("report", "Results", (), ())
    texts, paths, errors = _render(report, modules, None)
    assert (len(texts), paths) == (1, [])
    assert texts[0].startswith("# Results")
    assert errors == ["reports/raising must not raise SystemExit: raised by the plug-in. Fix the file."]


def test_a_saved_model_whose_predict_raises_an_error_is_one_line(plan_parts, run_plan, tmp_path: Path) -> None:
    plan = plan_parts(method="hostile", category="bolt", keep_model=True)
    (record,) = run_plan(plan)
    saved = saved_model.load(Store(plan.runs).path_of(record), device="cpu", weights=None, cache=tmp_path)
    assert saved.predict(torch.zeros(1, 3, *saved.preprocessing.size)).scores.shape == (1,)
    saved.method.settings = replace(saved.method.settings, location="predict", error="GeneratorExit")
    with pytest.raises(BenchError, match="methods/hostile must not raise GeneratorExit: raised by the plug-in"):
        saved.predict(torch.zeros(1, 3, *saved.preprocessing.size))
    saved.method.settings = replace(saved.method.settings, location="complex predictions")
    with pytest.raises(BenchError, match="Scores and maps must be floating-point numbers"):
        saved.predict(torch.zeros(1, 3, *saved.preprocessing.size))
