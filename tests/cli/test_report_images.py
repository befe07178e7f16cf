"""The test images of the page: which folder they are read from, and that they are those of the record."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bench.cli.app import app
from bench.cli.dataset_images import DatasetImages
from bench.config.plan import Plan
from bench.errors import BenchError
from bench.record import Record
from bench.store import Store

PlanParts = Callable[..., Plan]
RunPlan = Callable[..., list[Record]]


@pytest.fixture
def records(plan_parts: PlanParts, run_plan: RunPlan) -> list[Record]:
    return run_plan(plan_parts())


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *arguments])
    if isinstance(result.exception, BenchError):
        return 2, str(result.exception)
    return result.exit_code, result.output


def test_an_image_is_read_at_the_size_of_the_input(records: list[Record], parts: Path) -> None:
    record = records[0]
    images = DatasetImages({record.run.dataset: parts})
    image = images(record, record.test_files[0])
    assert isinstance(image, Image.Image)
    stored = Store(parts.parent / "runs").predictions(record)
    assert (image.height, image.width) == stored.masks.shape[1:]
    expected = Image.open(parts / record.test_files[0]).convert("RGB").resize(image.size, Image.Resampling.BILINEAR)
    assert (np.asarray(image) == np.asarray(expected)).all()


def test_the_reason_of_a_missing_image_is_stated(records: list[Record], parts: Path, tmp_path: Path) -> None:
    record, name = records[0], records[0].run.dataset
    file = record.test_files[0]
    unknown = DatasetImages({name: tmp_path / "nowhere"})(record, file)
    assert unknown == f"the folder of {name} is not known; `bench report --data DIR` names it"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "cannot be listed" in str(DatasetImages({name: empty})(record, file))
    images = DatasetImages({name: parts})
    assert "does not contain it" in str(images(record, "bolt/test/spot/999.png"))
    other = replace(record, run=replace(record.run, data_fingerprints={record.category: "other"}))
    assert "are not those of the record" in str(images(other, file))
    (parts / file).write_bytes(b"no image")
    assert "cannot be read" in str(images(record, file))


def test_the_command_reads_the_images_of_data(records: list[Record], parts: Path, tmp_path: Path) -> None:
    runs, out = str(parts.parent / "runs"), tmp_path / "out"
    assert run("--runs", runs, "--format", "html", "--out", str(out), "--data", str(parts))[0] == 0
    with_images = (out / "report.html").read_text("utf-8")
    assert '"reasons":[]' in with_images
    assert run("--runs", runs, "--format", "html", "--out", str(out))[0] == 0
    without_images = (out / "report.html").read_text("utf-8")
    assert "bench report --data DIR" in without_images
    assert len(records) == 2


def test_data_without_effect_is_rejected(records: list[Record], parts: Path, tmp_path: Path) -> None:
    runs = str(parts.parent / "runs")
    code, text = run("--runs", runs, "--data", str(parts))
    assert code == 2
    assert "--data is for the images of a page" in text
    code, text = run("--runs", runs, "--format", "html", "--data", str(tmp_path / "nowhere"))
    assert code == 2
    assert "does not exist" in text
    record = records[0]
    other = replace(record, run=replace(record.run, dataset="demo"), artifacts={})
    Store(parts.parent / "runs").save(other, None)
    code, text = run("--runs", runs, "--format", "html", "--data", str(parts))
    assert code == 2
    assert f"the records have demo, {record.run.dataset}" in text
