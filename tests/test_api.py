"""maskbench from Python: the same runs as by the command, as a table and as a figure."""

import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench.errors import BenchError


@pytest.fixture
def here(tmp_path: Path, parts: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def floor(**more):
    asked = {"dataset": "folder", "data": "parts", "protocol": "one-for-one", "time": False, **more}
    return bench.run("meanmap", **asked)


def test_a_run_gives_records_a_table_and_a_figure(here: Path) -> None:
    found = floor(seed=[0, 1])
    assert [(record.category, record.run.seed) for record in found] == [
        ("bolt", 0), ("plate", 0), ("bolt", 1), ("plate", 1)
    ]  # fmt: skip
    frame = found.frame()
    assert frame["metrics.image_auroc"].tolist() == [1.0] * 4
    assert frame["settings.smoothing"].tolist() == [2.0] * 4
    assert str(found) == "<4 records of Mean map (floor), 0 failed>"
    assert str(found[:1]) == "<1 record of Mean map (floor), 0 failed>"
    (axes,) = found.figure("pixel_auroc").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bolt", "plate", "mean"]
    assert axes.get_xlabel() == "pixel AUROC, percent"
    points = axes.lines[0].get_xdata()
    assert points[2] == pytest.approx((points[0] + points[1]) / 2)
    found.figure().savefig(here / "auroc.png")
    assert (here / "auroc.png").stat().st_size > 5000
    assert bench.records() == bench.records(here / "runs")
    assert len(bench.records()) == 4


def test_what_is_done_is_not_done_again_and_settings_are_named_as_in_the_command(here: Path) -> None:
    first = floor()
    assert [record.started for record in floor()] == [record.started for record in first]
    other = floor(settings={"smoothing": 4})
    assert {record.run.settings["smoothing"] for record in other} == {4.0}
    assert len(bench.records()) == 4


def test_a_sweep_gives_a_run_a_value_and_retry_does_only_what_failed(here: Path) -> None:
    found = floor(over={"smoothing": [1, 4]}, category="bolt")
    assert [record.run.settings["smoothing"] for record in found] == [1.0, 4.0]
    assert len(floor(over={"smoothing": "1,4"}, category="bolt", retry_failed=True)) == 2
    assert len(bench.records()) == 2


def test_a_failed_run_is_a_record_that_says_why(here: Path) -> None:
    (here / "parts" / "bolt" / "test" / "good" / "000.png").write_bytes(b"")
    found = floor()
    assert [record.category for record in found.failed] == ["bolt"]
    assert "000.png is not" in found.failed[0].failure
    assert len(found[:1]) == 1
    assert found.figure().axes


def test_what_the_command_refuses_is_refused(here: Path) -> None:
    with pytest.raises(BenchError, match="Did you mean 'patchcore'"):
        bench.run("patchcor")
    with pytest.raises(BenchError, match="Did you mean 'protocol'"):
        bench.run("meanmap", protocl="kshot")
    with pytest.raises(BenchError, match="'image_aurok' is none"):
        floor().figure("image_aurok")
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = bench.runn


def test_importing_bench_loads_nothing_heavy() -> None:
    code = "import sys, bench; assert bench.__all__; assert not {'torch', 'rich'} & {*sys.modules}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
