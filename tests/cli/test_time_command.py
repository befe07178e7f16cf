"""`bench time`: what it prints and stores, that it fits once at most, and that reports go on reading its records."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.cli import app
from bench.evaluation import summary, timing
from bench.store import Store

WHERE = ("--dataset", "folder", "--data", "parts", "--protocol", "one-for-one", "--threads", "1", "--profile", "check")


@pytest.fixture
def bench(tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Calls the console script in this process; no time is measured in earnest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    whole = timing.profile
    monkeypatch.setattr(timing, "profile", lambda *given: whole(*given, passes=3, budget=0.2, largest=2))

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["bench", *words])
        with pytest.raises(SystemExit) as ended:
            app.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out if not ended.value.code else told.err

    return call


def test_every_part_is_told_and_what_is_in_it(bench: Any) -> None:
    code, told = bench("time", *WHERE, "--method", "meanmap,patchcore")
    assert code == 0, told
    for words in (
        "Mean map (floor)", "PatchCore", "network", "loader", "end to end", "images/s", "peak host memory", "FLOPs",
        "parameters", "1 thread;", "float32", "file -> map and score in main memory",
    ):  # fmt: skip
        assert words in told
    assert [record.category for record in Store(Path("runs")).records()] == ["bolt", "bolt"]  # one model a method


def test_the_record_holds_all_of_it_and_old_readers_find_the_median_where_it_was(bench: Any) -> None:
    code, told = bench("time", *WHERE, "--method", "meanmap", "--category", "plate", "--json")
    assert code == 0, told
    (record,) = Store(Path("runs")).records()
    assert record.category == "plate"
    assert json.loads(told) == [{"title": "Mean map (floor)", "category": "plate", **record.latency}]
    assert record.latency["median_ms"] == record.latency["network"]["median_ms"]
    assert record.latency["machine"]["threads"] == 1
    (group,) = summary.groups([record])
    cell = group.cell("plate", summary.LATENCY)
    assert cell is not None
    assert cell.mean == record.latency["median_ms"]


def test_what_was_timed_is_not_timed_again_and_what_was_only_run_is(bench: Any) -> None:
    bench("run", *WHERE, "--method", "meanmap", "--category", "bolt")
    (first,) = Store(Path("runs")).records()
    assert "network" not in first.latency
    bench("time", *WHERE, "--method", "meanmap")
    (second,) = Store(Path("runs")).records()
    _, told = bench("time", *WHERE, "--method", "meanmap")
    assert "network" in told
    assert list(Store(Path("runs")).records()) == [second]
    assert second.metrics == first.metrics


def test_a_kept_model_is_timed_without_a_fit_and_its_record_stays_as_it_was(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.methods.meanmap import MeanMap

    bench("run", *WHERE, "--method", "meanmap", "--category", "bolt", "--keep-model")
    (before,) = Store(Path("runs")).records()
    answers = Store(Path("runs")).predictions(before)
    monkeypatch.setattr(MeanMap, "fit", lambda *_: pytest.fail("it was fitted again"))
    code, told = bench("time", *WHERE, "--method", "meanmap", "--category", "bolt")
    assert code == 0, told
    (after,) = Store(Path("runs")).records()
    assert after.latency.keys() >= {"median_ms", "network", "loader", "end_to_end", "throughput", "flops", "machine"}
    assert (after.metrics, after.seconds, after.artifacts, after.started) == (
        before.metrics, before.seconds, before.artifacts, before.started,
    )  # fmt: skip
    assert (Store(Path("runs")).predictions(after).scores == answers.scores).all()


def test_a_failure_is_told_and_the_exit_code_says_so(bench: Any) -> None:
    (Path("parts") / "bolt" / "train" / "good" / "000.png").write_bytes(b"")
    code, _ = bench("time", *WHERE, "--method", "meanmap")
    assert code == 2
