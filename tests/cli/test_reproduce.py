"""`bench run --reproduce`: a record is repeated from its values, and both are compared."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.cli import app
from bench.config.plan import Plan
from bench.evaluation.reproduction import compare_repetition
from bench.record import Record
from bench.store import Store

Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Return a function that repeats a record with the images of parts/: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def call(file: Path, *arguments: str, data: Path = parts) -> tuple[int, str, str]:
        command = ["bench", "run", "--reproduce", str(file), "--data", str(data), "--threads", "1", "--no-time"]
        monkeypatch.setattr(sys, "argv", [*command, *arguments])
        with pytest.raises(SystemExit) as exit_info:
            app.main()
        output = capsys.readouterr()
        return int(exit_info.value.code or 0), output.out, " ".join(output.err.split())

    return call


@pytest.fixture
def record_file(tmp_path: Path) -> Callable[[Record], Path]:
    """Return a function that writes a record as another person sends it: one file."""

    def write(record: Record) -> Path:
        file = tmp_path / "received.json"
        file.write_text(record.to_json(), "utf-8")
        return file

    return write


@pytest.mark.parametrize(
    "options",
    [
        {"method": "meanmap", "settings": {"smoothing": "1.5"}},
        {"method": "meanmap", "protocol": "kshot", "k": "2", "seed": "3", "category": "plate", "limit": "3"},
        {"method": "meanmap", "protocol": "unified"},
        {"method": "patchcore", "category": "bolt", "settings": {"coreset": "0.5"}},
        {"method": "aminet", "category": "bolt", "selection": "oracle", "eval_every": "1"},
        {"method": "meanmap", "category": "bolt", "calibrate": "0.5", "resolution": "original"},
    ],
    ids=lambda options: "-".join(f"{key}" for key in options if key != "settings"),
)
def test_a_record_of_this_machine_is_reproduced_exactly(
    plan_parts: Callable[..., Plan], run_plan: Callable[..., list[Record]], bench: Bench,
    record_file: Callable[[Record], Path], tmp_path: Path, options: dict[str, str],
) -> None:  # fmt: skip
    record = run_plan(plan_parts(**options))[-1]
    before = sorted(tmp_path.rglob("*.json"))
    code, output, errors = bench(record_file(record), "--json")
    (result,) = json.loads(output)
    assert code == 0, output + errors
    assert result["inputs"] == []
    assert [each["difference"] for each in result["metrics"]] == [0.0] * len(record.metrics)
    assert set(tmp_path.rglob("*.json")) - {tmp_path / "received.json"} == set(before)  # nothing is left behind


def test_with_runs_the_new_record_is_kept_at_the_same_path(
    plan_parts: Callable[..., Plan], run_plan: Callable[..., list[Record]], bench: Bench, tmp_path: Path
) -> None:
    (record, _) = run_plan(plan_parts())
    store = Store(tmp_path / "runs")
    code, output, _ = bench(store.path_of(record), "--runs", "repeated")
    assert code == 0
    assert "The record is reproduced" in output
    (repeated,) = Store(tmp_path / "repeated").records()
    assert Store(Path("a")).path_of(repeated) == Store(Path("a")).path_of(record)
    code, _, errors = bench(store.path_of(record), "--runs", "runs", "--force")
    assert code == 2
    assert "--runs must be another folder" in errors


def test_other_metrics_are_listed_with_their_tolerance(
    plan_parts: Callable[..., Plan], run_plan: Callable[..., list[Record]], bench: Bench,
    record_file: Callable[[Record], Path],
) -> None:  # fmt: skip
    record = run_plan(plan_parts())[0]
    metrics = record.metrics | {"image_auroc": record.metrics["image_auroc"] - 0.02}
    environment = record.environment | {"torch": "1.0.0"}
    code, output, _ = bench(record_file(replace(record, metrics=metrics, environment=environment)))
    assert code == 1
    (row,) = [line.split() for line in output.splitlines() if line.startswith("image_auroc")]
    assert row[3:] == ["+2.00", "±0.5", "no"]
    (row,) = [line.split() for line in output.splitlines() if line.startswith("pixel_auroc")]
    assert row[3:] == ["+0.00", "±0.5", "yes"]
    assert "Environment differs in environment.torch: record 1.0.0, here " in output


def test_other_images_are_not_a_repetition_even_if_the_metrics_agree(
    plan_parts: Callable[..., Plan], run_plan: Callable[..., list[Record]], bench: Bench, parts: Path, tmp_path: Path,
    record_file: Callable[[Record], Path],
) -> None:  # fmt: skip
    record = run_plan(plan_parts(category="bolt"))[0]
    image = parts / "bolt" / "train" / "good" / "000.png"
    pixels = np.array(Image.open(image))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(image)
    code, output, _ = bench(record_file(record))
    assert code == 1
    assert "Input differs in images and masks.hash" in output
    assert "Input differs in images and masks.fingerprints.bolt" in output
    assert "This is not a repetition" in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"failure": "no memory", "metrics": {}}, "needs a record with metrics"),
        ({"run.method": "../../evil"}, "'../../evil' is not a method"),
        ({"run.dataset": "os"}, "'os' must be one of the datasets"),
        ({"run.settings": {"smoothing": 1.0, "exec": "x"}}, "'exec' is not a setting of meanmap"),
        ({"run.settings": {"smoothing": "__import__('os')"}}, "smoothing (the record) must be a finite number"),
        ({"run.preprocessing": {"height": 32, "hook": "x"}}, "'hook' is not a setting of"),
        ({"run.options": {"hook": {"a": 1}}}, "'a' is not an option"),
        ({"run.options": {"execution": {"executor": "ray"}}}, "'executor' is not an option that affects metrics"),
        ({"run.options": {"execution": {"address": "192.0.2.1:6379"}}}, "'address' is not an option that affects"),
        ({"run.options": {"tasks": {"limit": 0, "layout": "/etc/passwd"}}}, "'layout' is not an option that affects"),
        ({"run.protocol": "online"}, "--protocol must be one of"),
        ({"category": "../bolt"}, "'../bolt' is not a category"),
    ],
)
def test_values_of_a_strangers_record_are_validated(
    plan_parts: Callable[..., Plan], run_plan: Callable[..., list[Record]], bench: Bench,
    record_file: Callable[[Record], Path], change: dict[str, object], message: str,
) -> None:  # fmt: skip
    record = run_plan(plan_parts(category="bolt"))[0]
    for name, value in change.items():
        if name == "run.options":
            record = replace(record, run=replace(record.run, options=record.run.options | value))  # type: ignore[operator]
        elif name.startswith("run."):
            record = replace(record, run=replace(record.run, **{name[4:]: value}))
        else:
            record = replace(record, **{name: value})
    code, _, errors = bench(record_file(record))
    assert code == 2
    assert message in errors


@pytest.mark.parametrize("text", ["", "[]", "{}", "cos\nsystem\n(S'true'\ntR.", '{"schema": 1}'])
def test_only_the_json_of_a_record_is_read(bench: Bench, tmp_path: Path, text: str) -> None:
    file = tmp_path / "record.json"
    file.write_text(text, "utf-8")
    code, _, errors = bench(file)
    assert code == 2
    assert "must" in errors


@pytest.mark.parametrize("name", ["pipe", "device", "sparse"])
def test_a_pipe_a_device_or_a_huge_file_is_not_read(bench: Bench, tmp_path: Path, name: str) -> None:
    file = tmp_path / "record.json"
    if name == "pipe":
        os.mkfifo(file)
    elif name == "device":
        file.symlink_to("/dev/zero")
    else:
        file.touch()
        os.truncate(file, 50 * 10**9)
    code, _, errors = bench(file)
    assert code == 2
    assert "cannot be read" in errors


def test_names_of_files_with_any_surrogate_are_compared(make_record: Callable[..., Record]) -> None:
    record = make_record()
    other = replace(record, train_files=["bolt/\ud800.png", "bolt/b\udcfc.png"])
    (difference,) = compare_repetition(record, other).inputs
    assert difference.name == "training images"


def test_the_command_of_a_record_is_not_executed(
    plan_parts: Callable[..., Plan], run_plan: Callable[..., list[Record]], bench: Bench, tmp_path: Path,
    record_file: Callable[[Record], Path],
) -> None:  # fmt: skip
    record = run_plan(plan_parts(category="bolt"))[0]
    command = f"bench run; touch {tmp_path / 'executed'}"
    assert bench(record_file(replace(record, command=command)))[0] == 0
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "arguments", [("--seed", "1"), ("--set", "smoothing=1"), ("--limit", "2"), ("--profile", "demo"), ("--dry-run",)]
)
def test_what_the_record_determines_cannot_be_changed(
    plan_parts: Callable[..., Plan], run_plan: Callable[..., list[Record]], bench: Bench,
    record_file: Callable[[Record], Path], arguments: tuple[str, ...],
) -> None:  # fmt: skip
    record = run_plan(plan_parts(category="bolt"))[0]
    code, _, errors = bench(record_file(record), *arguments)
    assert code == 2
    assert f"{arguments[0]}" in errors
    assert "the record" in errors


def test_a_metric_that_one_side_lacks_does_not_agree(make_record: Callable[..., Record]) -> None:
    record = make_record()
    result = compare_repetition(record, replace(record, metrics={"image_auroc": 0.9}))
    assert [check.agrees for check in result.metrics] == [True, False]
    assert not result.agrees
    assert compare_repetition(record, replace(record, metrics={"image_auroc": 0.9049, "pixel_auroc": 0.795})).agrees
    assert not compare_repetition(record, replace(record, metrics={"image_auroc": 0.9051, "pixel_auroc": 0.8})).agrees


def test_all_records_of_a_folder_are_repeated(
    plan_parts: Callable[..., Plan], run_plan: Callable[..., list[Record]], bench: Bench, tmp_path: Path
) -> None:
    run_plan(plan_parts(seed="0,1"))
    code, output, _ = bench(tmp_path / "runs" / "folder-parts" / "one-for-one" / "meanmap")
    assert code == 0
    assert output.count("The record is reproduced") == 4
    assert "4 of 4 records are reproduced." in output
    assert output.count("bolt.json") == output.count("plate.json") == 2  # each table has its file
    (tmp_path / "empty").mkdir()
    code, _, errors = bench(tmp_path / "empty")
    assert code == 2
    assert "needs a record or a folder of records" in errors


def test_failed_records_and_other_files_of_a_folder_are_skipped_with_a_line(
    plan_parts: Callable[..., Plan], run_plan: Callable[..., list[Record]], bench: Bench, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    store = Store(tmp_path / "runs")
    failed, _ = run_plan(plan_parts())
    store.save(replace(failed, failure="no memory", metrics={}, artifacts={}), None)
    (tmp_path / "runs" / "report.json").write_text("[1]", "utf-8")
    code, output, errors = bench(tmp_path / "runs")
    assert code == 0, errors
    assert output.count("The record is reproduced") == 1
    assert "bolt.json failed. Name another record." in caplog.text
    assert "report.json cannot be read: A record must have schema" in caplog.text
    store_file = store.path_of(failed)
    code, _, errors = bench(store_file)
    assert code == 2
    assert errors.endswith("bolt.json failed. Name another record.")


def test_a_record_that_cannot_be_repeated_does_not_end_the_others(
    plan_parts: Callable[..., Plan], run_plan: Callable[..., list[Record]], bench: Bench, tmp_path: Path
) -> None:
    store = Store(tmp_path / "runs")
    for record in run_plan(plan_parts()):
        if record.category == "bolt":
            store.save(replace(record, run=replace(record.run, method="removed")), None)
    code, output, errors = bench(tmp_path / "runs")
    assert code == 2
    assert "2 of 3 records are reproduced." in output
    assert "bolt.json: 'removed' is not a method of this installation" in errors


@pytest.mark.parametrize("name", ["missing.json", "~/missing.json"])
def test_a_missing_record_is_one_line(bench: Bench, tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code, _, errors = bench(Path(name))
    file = name.replace("~", str(tmp_path / "home"))
    assert code == 2
    assert errors.startswith(f"--reproduce needs the JSON file of a record; {file} cannot be read: No such file")
    assert errors.endswith("Correct the path.")
