"""`bench track`: what a record becomes in MLflow, TensorBoard and Weights & Biases, read with their own libraries."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cli import app
from bench.record import Record
from bench.store import Store
from bench.tracking.tracked_run import TrackedRun, tracked_runs


@pytest.fixture
def store(simulate: Callable[..., Store], make_record: Callable[..., Record]) -> Store:
    """A store with two records with losses and pictures, an oracle record and a failed one."""
    store = simulate(["bolt", "plate"], ["Restore"], settings={"lr": 0.001, "stages": [1, 2]})
    record = next(record for record in store.records() if record.category == "bolt")
    store.save(replace(record, selection="oracle", eval_every=5, artifacts={}), None)
    store.save(make_record(category="screw", failure="no <memory> | left", metrics={}), None)
    return store


@pytest.fixture
def track(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Return a function that calls `bench track` for the store: exit code and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # restored after the test

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["bench", "track", "--runs", str(store.root), *arguments])
        with pytest.raises(SystemExit) as exit_info:
            app.main()
        output = capsys.readouterr()
        return int(exit_info.value.code or 0), " ".join((output.out + output.err).split())

    return call


def runs_of(store: Store) -> dict[tuple[str, str], TrackedRun]:
    records = list(store.records())
    runs = tracked_runs(store, records, lambda _: ["synthetic data"])
    return {(record.category, record.selection): run for record, run in zip(records, runs, strict=True)}


def test_a_record_becomes_parameters_metrics_and_curves(store: Store) -> None:
    run = runs_of(store)["bolt", "last"]
    (record,) = (each for each in store.records() if (each.category, each.selection) == ("bolt", "last"))
    assert run.experiment == "parts one-for-one"
    assert run.name == "Restore bolt, seed 0"
    assert run.params["settings.lr"] == "0.001"
    assert run.params["settings.stages"] == "[1, 2]"
    assert run.params["options.precision"] == "float32"
    assert run.params["preprocessing.height"] == "24"
    assert run.metrics["image_auroc"] == record.metrics["image_auroc"]
    assert run.metrics["latency.median_ms"] == 30.0
    assert run.metrics["seconds.fit"] == 1.5
    losses = [(point.epoch, point.value) for point in run.curves if point.name == "loss"]
    assert losses == [(epoch, 10 / epoch) for epoch in range(1, 21)]
    assert [point.epoch for point in run.curves if point.name == "epoch.image_auroc"] == [5, 10, 15, 20]
    assert run.started == 1767323045.0  # 2026-01-02T03:04:05 UTC
    files = run.read_files()
    assert json.loads(files["bolt.json"])["category"] == "bolt"
    assert {name.rpartition(".")[2] for name in files} == {"json", "npz", "png"}


def test_selections_and_failures_are_marked_and_a_new_result_has_another_id(store: Store) -> None:
    runs = runs_of(store)
    assert "oracle" in runs["bolt", "oracle"].name
    assert runs["screw", "last"].failure == "no <memory> | left"
    assert len({run.id for run in runs.values()}) == len(runs) == 4
    record = next(record for record in store.records() if record.category == "screw")
    store.save(record, None)
    assert runs_of(store)["screw", "last"].id != runs["screw", "last"].id
    (record,) = (each for each in store.records() if (each.category, each.selection) == ("bolt", "last"))
    store.update(replace(record, latency={"median_ms": 4.0}))  # as `bench time`
    assert runs_of(store)["bolt", "last"].id != runs["bolt", "last"].id


def test_a_copy_of_a_store_has_the_same_runs(store: Store, tmp_path: Path) -> None:
    copy = Store(Path(shutil.copytree(store.root, tmp_path / "copy")))
    assert {key: run.id for key, run in runs_of(copy).items()} == {key: run.id for key, run in runs_of(store).items()}


def test_names_that_are_not_utf8_have_escapes(store: Store, make_record: Callable[..., Record]) -> None:
    store.save(make_record(category="b\udcfcchse", failure="no \ud800", metrics={}), None)
    run = runs_of(store)["b\udcfcchse", "last"]
    assert "b\\udcfcchse" in run.name
    assert run.failure == "no \\ud800"
    for text in (run.name, run.path, run.experiment, run.failure, *run.params.values(), *run.caveats):
        text.encode("utf-8")


class MemoryTracker:
    """A tracker that keeps the files of the runs."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}

    def has(self, run: TrackedRun) -> bool:
        """Return whether the run was written."""
        return run.id in self.files

    def write(self, run: TrackedRun) -> None:
        """Write the run."""
        self.files[run.id] = run.read_files()


def test_a_damaged_file_of_one_record_does_not_end_the_others(
    track: Callable[..., tuple[int, str]], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    next(store.root.rglob("bolt.npz")).unlink()
    tracker = MemoryTracker()
    monkeypatch.setattr("bench.cli.track_command._open", lambda *_: tracker)
    code, output = track("--to", "mlflow")
    assert code == 2
    assert "3 records written to mlflow, 0 already existed. Restore bolt, seed 0: " in output
    assert "bolt.npz cannot be read" in output
    assert len(tracker.files) == 3


def test_a_missing_package_is_named_with_its_extra(
    track: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, package in (("mlflow", "mlflow"), ("wandb-offline", "wandb")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, f"bench.tracking.{package}_tracker", raising=False)
        code, output = track("--to", name)
        assert code == 2
        assert f"pip install 'maskbench[{package}]'" in output


@pytest.mark.slow  # needs an extra, which CI installs for the slow tests
@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_params_metrics_by_epoch_and_artifacts(
    track: Callable[..., tuple[int, str]], store: Store, tmp_path: Path
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs maskbench[mlflow]")
    code, output = track("--to", "mlflow", "--out", "ml")
    assert (code, output) == (0, "4 records written to mlflow, 0 already existed.")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "ml").as_uri())
    experiment = client.get_experiment_by_name("maskbench parts one-for-one")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {run.info.status for run in runs.values()} == {"FINISHED", "FAILED"}
    run = runs["Restore bolt, seed 0"]
    expected = runs_of(store)["bolt", "last"]
    assert run.data.params == expected.params
    assert run.data.metrics["image_auroc"] == expected.metrics["image_auroc"]
    assert run.data.tags["maskbench.caveats"] == "synthetic data"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(epoch, 10 / epoch) for epoch in range(1, 21)]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == set(expected.read_files())
    record = Path(client.download_artifacts(run.info.run_id, "bolt.json")).read_bytes()
    assert record == expected.read_files()["bolt.json"]
    assert "oracle" in runs["Restore bolt, seed 0, best epoch on the test set (oracle)"].data.tags["maskbench.caveats"]
    assert track("--to", "mlflow", "--out", "ml")[1].startswith("0 records written to mlflow, 4 already existed.")
    client.update_run(run.info.run_id, status="RUNNING")  # as an interrupted call leaves it
    assert track("--to", "mlflow", "--out", "ml")[1].startswith("1 record written to mlflow, 3 already existed.")
    again = client.search_runs([experiment.experiment_id])
    assert len(again) == 4
    assert {each.info.status for each in again} == {"FINISHED", "FAILED"}


@pytest.mark.slow  # needs an extra, which CI installs for the slow tests
@pytest.mark.filterwarnings("ignore")
def test_a_server_of_mlflow_that_cannot_be_reached_is_one_line(
    track: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="needs maskbench[mlflow]")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    code, output = track("--to", "mlflow")
    assert code == 2
    assert output.startswith("MLflow must accept the runs, but: ")
    assert output.endswith("Check --out, or MLFLOW_TRACKING_URI.")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_scalars_pictures_and_text(track: Callable[..., tuple[int, str]], store: Store) -> None:
    pytest.importorskip("tensorboard", reason="needs maskbench[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert track("--to", "tensorboard", "--out", "tb", "--category", "bolt")[1].startswith("2 records written")
    expected = runs_of(store)["bolt", "last"]
    folder = Path("tb") / f"{expected.path.removesuffix('.json')}.{expected.id}"
    events = EventAccumulator(str(folder))
    events.Reload()
    assert events.Scalars("image_auroc")[0].value == pytest.approx(expected.metrics["image_auroc"], abs=1e-6)
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(epoch, pytest.approx(10 / epoch, rel=1e-6)) for epoch in range(1, 21)]
    assert events.Scalars("loss")[0].wall_time == expected.started
    assert "worst.image" in events.Tags()["images"]
    assert (folder / "bolt.json").read_bytes() == expected.read_files()["bolt.json"]
    assert track("--to", "tensorboard", "--out", "tb")[1] == "2 records written to tensorboard, 2 already existed."
    failed = next(Path("tb").rglob("screw.*"))
    assert b"no &lt;memory> &#124; left" in next(failed.glob("events*")).read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_offline_runs(track: Callable[..., tuple[int, str]], store: Store) -> None:
    pytest.importorskip("wandb", reason="needs maskbench[wandb]")
    code, output = track("--to", "wandb-offline", "--out", "wb", "--category", "bolt", "--method", "restore")
    assert (code, output) == (0, "2 records written to wandb-offline, 0 already existed.")
    expected = runs_of(store)["bolt", "last"]
    (file,) = Path("wb").rglob(f"run-{expected.id}.wandb")
    content = file.read_bytes()
    for text in (b"Restore bolt, seed 0", b"settings.lr", b"image_auroc", b"epoch.image_auroc", b"synthetic data"):
        assert text in content
    assert track("--to", "wandb-offline", "--out", "wb", "--category", "bolt")[1].startswith("0 records written")
