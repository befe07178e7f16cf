"""maskbench from Python: the same runs as with the command, as a table and as a figure."""

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest

import bench
from bench.config.options import OPTIONS
from bench.config.run_options import RunOptions
from bench.errors import BenchError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path: Path, parts: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def run(method="meanmap", **changes):
    arguments = {"dataset": "folder", "data": "parts", "protocol": "one-for-one", "time": False, **changes}
    return bench.run(method, **arguments)


def test_a_run_returns_records_a_table_and_a_figure(folder: Path) -> None:
    results = run(seed=[0, 1])
    assert [(record.category, record.run.seed) for record in results] == [
        ("bolt", 0), ("plate", 0), ("bolt", 1), ("plate", 1)
    ]  # fmt: skip
    frame = results.to_frame()
    assert frame["metrics.image_auroc"].tolist() == [1.0] * 4
    assert frame["settings.smoothing"].tolist() == [2.0] * 4
    assert str(results) == "<4 records of Mean map (baseline), 0 failed>"
    assert str(results[:1]) == "<1 record of Mean map (baseline), 0 failed>"
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
    hints = get_type_hints(RunOptions)
    assert list(hints) == [name for name in OPTIONS if name != "method"]
    for name, hint in hints.items():
        option_type = OPTIONS[name].type
        if get_origin(option_type) is tuple:
            (item, _) = get_args(option_type)
            assert hint == item | Sequence[item] | str | None
        else:
            assert hint == option_type | None
        assert parameters[name].annotation == hint
        assert f"{name}: {OPTIONS[name].help}" in (inspect.getdoc(bench.run) or "")


@pytest.mark.slow  # mypy reads the whole package
def test_a_type_checker_finds_wrong_arguments(tmp_path: Path) -> None:
    lines = [
        'bench.run("meanmap", protocol="kshot", k=4, seed=[0, 1], category="gear", time=False).figure()',
        'bench.run("meanmap", protocl="kshot")',
        'bench.run("meanmap", protocol="k-shot")',
        "bench.report(full=False).upper()",
        "bench.check(None).problems",
    ]
    (tmp_path / "script.py").write_text("\n".join(["import bench", *lines]), "utf-8")
    root = Path(bench.__file__).parent.parent
    command = [sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml"), str(tmp_path / "script.py")]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    errors = [line for line in result.stdout.splitlines() if "script.py" in line and "error" in line]
    assert [line.split(":")[1] for line in errors] == ["3", "4"], result.stdout


def test_report_and_compare_return_markdown(folder: Path) -> None:
    run(category="bolt")
    run("patchcore", category="bolt")
    assert "PatchCore" in bench.report(criteria={"method": ["patchcore"]})
    assert "Mean map" not in bench.report(criteria={"method": ["patchcore"]})
    assert len(bench.report(full=False)) < len(bench.report())
    names = "folder-parts/one-for-one/meanmap", "folder-parts/one-for-one/patchcore"
    assert bench.compare(*names).startswith("# Mean map (baseline) and PatchCore")
    assert bench.compare(*names)._repr_markdown_() == bench.compare(*names)


def test_report_stays_a_function_after_the_contract_of_formats_is_imported(folder: Path) -> None:
    code = "import bench, bench.report_format; from bench import api; assert bench.report is api.report"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
    assert not [name for name in bench.__all__ if (ROOT / "bench" / f"{name}.py").is_file()]


def test_results_figures_and_checks_are_shown_in_a_notebook(folder: Path) -> None:
    results = run()
    table = results._repr_html_()
    assert "<th>image AUROC</th>" in table
    assert (
        "<tr><td>Mean map (baseline)</td><td>folder-parts one-for-one</td><td>bolt</td><td>0</td><td>100.0</td>"
        in table
    )
    assert results.figure()._repr_html_().startswith('<img src="data:image/png;base64,iVBOR')
    (folder / "parts" / "bolt" / "test" / "good" / "000.png").write_bytes(b"<b>")
    assert "failed: " in run()._repr_html_()
    checks = bench.check(folder / "parts")
    assert checks.problems
    assert "<td>failed</td>" in checks._repr_html_()
    assert "failed" in repr(checks)
    assert isinstance(checks[:1], type(checks))
    assert not bench.check("meanmap").problems
    with pytest.raises(BenchError, match="Did you mean 'meanmap'"):
        bench.check("meanmapp")


def test_the_home_folder_is_replaced_in_every_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / "layout.csv").write_text("image,label\nbolt/train/good/000.png,good\n", "utf-8")
    table = bench.check("~/parts")
    assert table[0].requirement.endswith(f", {folder / 'parts'}")
    results = run(category="bolt", data="~/parts", runs="~/results", keep_model=True)
    assert bench.records("~/results") == results
    assert "bolt" in bench.report(runs="~/results")
    model = bench.load("~/results", category="bolt", runs="~/results")
    assert model.predict("~/parts/bolt/test/good/000.png").scores.shape == (1,)
    with pytest.raises(BenchError, match="needs at least 3 good training images") as error:
        run(data="~/parts", runs="~/other", layout="~/layout.csv")
    assert "readable CSV" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
def test_the_example_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the code cells in one namespace; the value of a cell's last line is what a notebook shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((ROOT / "docs" / "example.ipynb").read_text("utf-8"))
    namespace: dict[str, object] = {}
    displayed_values = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            *statements, last = ast.parse("".join(cell["source"])).body
            exec(compile(ast.Module(statements, []), "cell", "exec"), namespace)
            if isinstance(last, ast.Expr):
                displayed_values.append(eval(compile(ast.Expression(last.value), "cell", "eval"), namespace))
            else:
                exec(compile(ast.Module([last], []), "cell", "exec"), namespace)
            assert cell["outputs"] == []
    results, frame, figure, comparison, scores, report, checks = displayed_values
    assert len(results) == len(frame) == 2
    assert len(scores) > 1
    for value in (results, figure, checks):
        assert value._repr_html_()
    for value in (comparison, report):
        assert value._repr_markdown_()
