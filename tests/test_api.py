"""maskbench from Python: the same runs as with the command, as a table and as a figure."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench.config.options import OPTIONS
from bench.errors import BenchError


@pytest.fixture
def folder(tmp_path: Path, parts: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def run(**changes):
    arguments = {"dataset": "folder", "data": "parts", "protocol": "one-for-one", "time": False, **changes}
    return bench.run("meanmap", **arguments)


def test_a_run_returns_records_a_table_and_a_figure(folder: Path) -> None:
    results = run(seed=[0, 1])
    assert [(record.category, record.run.seed) for record in results] == [
        ("bolt", 0), ("plate", 0), ("bolt", 1), ("plate", 1)
    ]  # fmt: skip
    frame = results.to_frame()
    assert frame["metrics.image_auroc"].tolist() == [1.0] * 4
    assert frame["settings.smoothing"].tolist() == [2.0] * 4
    assert str(results) == "<4 records of Mean map (floor), 0 failed>"
    assert str(results[:1]) == "<1 record of Mean map (floor), 0 failed>"
    (axes,) = results.figure("pixel_auroc").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bolt", "plate", "mean"]
    assert axes.get_xlabel() == "pixel AUROC, percent"
    points = axes.lines[0].get_xdata()
    assert points[2] == pytest.approx((points[0] + points[1]) / 2)
    results.figure().savefig(folder / "auroc.png")
    assert (folder / "auroc.png").stat().st_size > 5000
    assert bench.records() == bench.records(folder / "runs")
    assert len(bench.records()) == 4


def test_existing_records_are_reused_and_settings_are_named_as_in_the_command(folder: Path) -> None:
    first = run()
    assert [record.started for record in run()] == [record.started for record in first]
    other = run(settings={"smoothing": 4})
    assert {record.run.settings["smoothing"] for record in other} == {4.0}
    assert len(bench.records()) == 4


def test_a_sweep_gives_a_run_per_value_and_retry_runs_failures_only(folder: Path) -> None:
    results = run(sweep={"smoothing": [1, 4]}, category="bolt")
    assert [record.run.settings["smoothing"] for record in results] == [1.0, 4.0]
    assert len(run(sweep={"smoothing": "1,4"}, category="bolt", retry_failed=True)) == 2
    assert len(bench.records()) == 2


def test_a_failed_run_is_a_record_with_the_reason(folder: Path) -> None:
    (folder / "parts" / "bolt" / "test" / "good" / "000.png").write_bytes(b"")
    results = run()
    assert [record.category for record in results.failed] == ["bolt"]
    assert "000.png is not" in results.failed[0].failure
    assert len(results[:1]) == 1
    assert results.figure().axes


def test_errors_are_those_of_the_command(folder: Path) -> None:
    with pytest.raises(BenchError, match="Did you mean 'patchcore'"):
        bench.run("patchcor")
    with pytest.raises(BenchError, match="Did you mean 'protocol'"):
        bench.run("meanmap", protocl="kshot")
    with pytest.raises(BenchError, match="got 'image_aurok'"):
        run().figure("image_aurok")
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = bench.runn


def test_importing_bench_imports_neither_torch_nor_rich() -> None:
    code = "import sys, bench; assert bench.__all__; assert not {'torch', 'rich'} & {*sys.modules}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_signature_has_every_option_with_its_type_and_the_docstring_its_help() -> None:
    parameters = inspect.signature(bench.run).parameters
    for name, option in OPTIONS.items():
        assert name in parameters
        if name != "method":
            assert parameters[name].annotation == option.type | None
            assert f"{name}: {option.help}" in (inspect.getdoc(bench.run) or "")
