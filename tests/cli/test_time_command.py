"""`bench time`: its output, its records, and that it fits a method at most once."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.cli import app
from bench.evaluation import summary, timing
from bench.store import Store

DATA = ("--dataset", "folder", "--data", "parts", "--protocol", "one-for-one", "--threads", "1", "--profile", "check")


@pytest.fixture
def bench(tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Call the console script in this process, with few timed passes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    profile = timing.profile
    monkeypatch.setattr(timing, "profile", lambda *args: profile(*args, passes=3, budget=0.2, max_batch_size=2))

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            app.main()
        output = capsys.readouterr()
        return int(exit_info.value.code or 0), output.out if not exit_info.value.code else output.err

    return call


def test_all_times_are_printed_with_what_they_include(bench: Any) -> None:
    code, output = bench("time", *DATA, "--method", "meanmap,patchcore")
    assert code == 0, output
    for text in (
        "Mean map (baseline)", "PatchCore", "network", "loader", "end to end", "images/s", "peak host memory", "FLOPs",
        "parameters", "1 thread;", "float32", "file -> map and score in main memory",
    ):  # fmt: skip
        assert text in output
    assert [record.category for record in Store(Path("runs")).records()] == ["bolt", "bolt"]  # one model per method


def test_the_record_has_all_times_and_the_median_latency(bench: Any) -> None:
    code, output = bench("time", *DATA, "--method", "meanmap", "--category", "plate", "--json")
    assert code == 0, output
    (record,) = Store(Path("runs")).records()
    assert record.category == "plate"
    assert json.loads(output) == [{"title": "Mean map (baseline)", "category": "plate", **record.latency}]
    assert record.latency["median_ms"] == record.latency["network"]["median_ms"]
    assert record.latency["environment"]["threads"] == 1
    (group,) = summary.groups([record])
    cell = group.mean_std("plate", summary.LATENCY)
    assert cell is not None
    assert cell.mean == record.latency["median_ms"]


def test_a_run_without_times_is_timed_once(bench: Any) -> None:
    bench("run", *DATA, "--method", "meanmap", "--category", "bolt")
    (first,) = Store(Path("runs")).records()
    assert "network" not in first.latency
    bench("time", *DATA, "--method", "meanmap")
    (second,) = Store(Path("runs")).records()
    _, output = bench("time", *DATA, "--method", "meanmap")
    assert "network" in output
    assert list(Store(Path("runs")).records()) == [second]
    assert second.metrics == first.metrics


def test_a_saved_model_is_timed_without_a_fit(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.methods.meanmap import MeanMap

    bench("run", *DATA, "--method", "meanmap", "--category", "bolt", "--keep-model")
    (before,) = Store(Path("runs")).records()
    predictions = Store(Path("runs")).predictions(before)
    monkeypatch.setattr(MeanMap, "fit", lambda *_: pytest.fail("the method was fitted again"))
    code, output = bench("time", *DATA, "--method", "meanmap", "--category", "bolt")
    assert code == 0, output
    (after,) = Store(Path("runs")).records()
    assert after.latency.keys() >= {
        "median_ms",
        "network",
        "loader",
        "end_to_end",
        "throughput",
        "flops",
        "environment",
    }
    assert before.warnings  # of the narrow levels of the images
    assert after.warnings == before.warnings
    assert (after.metrics, after.seconds, after.artifacts, after.started) == (
        before.metrics, before.seconds, before.artifacts, before.started,
    )  # fmt: skip
    assert (Store(Path("runs")).predictions(after).scores == predictions.scores).all()


def test_a_failure_sets_the_exit_code(bench: Any) -> None:
    (Path("parts") / "bolt" / "train" / "good" / "000.png").write_bytes(b"")
    code, _ = bench("time", *DATA, "--method", "meanmap")
    assert code == 2
