"""The Python examples of docs/reports.md and docs/numbers.md run on a small dataset."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.config.plan import Plan
from bench.record import Record

DOCS = Path(__file__).resolve().parents[2] / "docs"


def python_block(page: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    return str(code)


@pytest.fixture
def folder_with_runs(
    parts: Path,
    plan_parts: Callable[..., Plan],
    run_plan: Callable[..., list[Record]],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Run meanmap on `parts`, and make the folder with `runs` the working folder."""
    run_plan(plan_parts())
    monkeypatch.chdir(parts.parent)
    return parts.parent


def test_the_records_are_a_data_frame(folder_with_runs: Path) -> None:
    variables: dict[str, object] = {}
    exec(python_block("reports.md"), variables)
    assert (folder_with_runs / "runs").is_dir()
    assert set(variables["frame"]["category"]) == {"bolt", "plate"}


def test_pixel_metrics_at_original_resolution_are_computed_from_stored_predictions(
    folder_with_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = python_block("numbers.md").replace('"mvtec"', '"folder"').replace('"bottle"', '"bolt"')
    code = code.replace("~/mvtec", str(folder_with_runs / "parts"))
    exec(code, {})
    assert "'pixel_auroc': " in capsys.readouterr().out
