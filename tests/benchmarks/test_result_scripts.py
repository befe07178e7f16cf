"""The scripts that turn records into the tables of RESULTS.md."""

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from bench.store import Store

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return import_module


def test_a_command_is_exported_without_private_folders(script) -> None:
    public = script("export_results").public_command
    assert public("bench run --runs a/b --data /home/me --k 4") == "bench run --k 4 --data DATA"
    assert public("bench run --runs=a/b --data=/home/me --weights=w") == "bench run --data DATA --weights WEIGHTS"


def test_a_failed_record_is_exported_with_the_last_line_of_its_failure(script, make_record) -> None:
    record = make_record()
    record = replace(record, run=replace(record.run, options={"tasks": {"limit": 3}}), failure="Traceback\nno memory")
    line = script("export_results").row(record)
    assert (line["limit"], line["failure"]) == (3, "no memory")


def test_an_export_replaces_the_lines_of_repeated_runs_and_keeps_the_others(
    script, tmp_path, monkeypatch, make_record, make_predictions
) -> None:
    module, path = script("export_results"), tmp_path / "demo.csv"
    store = Store(tmp_path / "runs")
    for category, image_auroc in (("nut", 0.5), ("bolt", 0.75)):
        record = make_record(category=category, metrics={"image_auroc": image_auroc})
        options = {**record.run.options, "tasks": {"limit": 0}}
        record = replace(record, run=replace(record.run, options=options))
        store.save(record, make_predictions([0], 1.0))
    monkeypatch.setattr(sys, "argv", ["export_results.py", str(store.root), str(path)])
    module.main()
    text = path.read_text()
    path.write_text(text.replace(",nut,", ",gear,").replace("75.0", "74.0"))
    module.main()
    lines = pd.read_csv(path)
    assert dict(zip(lines["category"], lines["image_auroc"], strict=True)) == {"bolt": 75, "gear": 50, "nut": 50}


def records_of(values: dict[tuple[str, int], float]) -> pd.DataFrame:
    """Records of one method with these image AUROCs in percent, by category and seed."""
    columns = {"name": "a", "title": "A", "pixel_auroc": 50.0, "aupro_30": 20.0, "fit_seconds": 1.0}
    rows = [{"category": c, "seed": s, "image_auroc": value, **columns} for (c, s), value in values.items()]
    return pd.DataFrame(rows)


def test_a_mean_over_categories_needs_every_seed_in_every_category(script) -> None:
    by_category = script("auroc_tables").by_category
    complete = {("nut", 0): 80.0, ("nut", 1): 84.0, ("bolt", 0): 90.0, ("bolt", 1): 94.0}
    # the means of the seeds are 85 and 89
    assert "| 87.0 ± 2.8 / 50.0 ± 0.0 (20.0) |" in by_category(records_of(complete))
    del complete["bolt", 1]
    assert by_category(records_of(complete)).endswith("| – | 1 to 1 |\n")
