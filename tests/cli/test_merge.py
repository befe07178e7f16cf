"""`bench merge`: records of several folders in one; different numbers are reported, never overwritten."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cli import app
from bench.errors import BenchError
from bench.merge import merge_stores
from bench.record import Predictions, Record
from bench.store import SEQUENCE_FILE, Store


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        app.main()
    return int(exit_info.value.code or 0)


@pytest.fixture
def machines(
    tmp_path: Path, make_record: Callable[..., Record], make_predictions: Callable[..., Predictions]
) -> tuple[Store, Store]:
    """Two stores with one record each of another category, with predictions, a model and a picture."""
    import numpy as np

    stores = Store(tmp_path / "one"), Store(tmp_path / "two")
    for store, category in zip(stores, ("bolt", "plate"), strict=True):
        picture = {"worst.image": np.zeros((2, 2, 3), np.uint8)}
        store.save(make_record(category=category), make_predictions(), pictures=picture, model=b"tensors")
    return stores


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != SEQUENCE_FILE
    }


def test_a_merged_store_has_the_files_of_all_stores_byte_by_byte(machines: tuple[Store, Store], tmp_path: Path) -> None:
    one, two = machines
    result = merge_stores([two.root, one.root], tmp_path / "merged")
    assert (result.added, result.equal, result.conflicts, result.damaged) == (2, 0, [], [])
    assert files_of(tmp_path / "merged") == files_of(one.root) | files_of(two.root)
    assert len(files_of(one.root)) == 4  # record, predictions, model, picture
    again = merge_stores([one.root, two.root], tmp_path / "merged")
    assert (again.added, again.equal) == (0, 2)


def test_the_merged_records_have_their_saving_order_and_a_later_one_comes_after_them(
    machines: tuple[Store, Store], tmp_path: Path, make_record: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = machines
    merge_stores([two.root, one.root], tmp_path / "merged")
    merged = Store(tmp_path / "merged")
    by_category = {record.category: record.sequence for record in merged.records()}
    assert by_category["bolt"] < by_category["plate"]
    monkeypatch.setattr("time.time_ns", lambda: 0)  # a clock that was set back
    later = merged.save(make_record(category="screw"), None)
    assert later.sequence == by_category["plate"] + 1


def test_different_numbers_are_reported_with_both_values_and_not_overwritten(
    machines: tuple[Store, Store],
    make_record: Callable[..., Record],
    make_predictions: Callable[..., Predictions],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two = machines
    metrics = {"image_auroc": 0.75, "pixel_auroc": 0.8}
    two.save(make_record(category="bolt", metrics=metrics), make_predictions(seed=(1,)))
    before = files_of(one.root)
    assert call(monkeypatch, "merge", two.root, "--to", one.root) == 1
    output = capsys.readouterr().out
    assert "metrics.image_auroc: 0.9 is kept, 0.75 is not copied" in output
    assert "sha256 of the predictions" in output
    assert "pixel_auroc" not in output  # it is equal
    assert "1 records added, 0 equal, 1 different, 0 damaged" in output
    after = files_of(one.root)
    assert {name: after[name] for name in before} == before
    assert call(monkeypatch, "merge", two.root, "--to", one.root, "--json") == 1
    (conflict,) = json.loads(capsys.readouterr().out)["conflicts"]
    assert {"name": "metrics.image_auroc", "kept": 0.9, "not_copied": 0.75} in conflict["differences"]


@pytest.mark.parametrize("existing_failed", [True, False])
def test_a_failed_record_never_replaces_one_with_metrics(
    tmp_path: Path, make_record: Callable[..., Record], existing_failed: bool
) -> None:
    good, failed = make_record(), make_record(failure="no memory", metrics={})
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    one.save(failed if existing_failed else good, None)
    two.save(good if existing_failed else failed, None)
    result = merge_stores([two.root], one.root)
    assert [record.failure for record in one.records()] == [""]
    assert (result.replaced, result.equal, result.added) == ((1, 0, 0) if existing_failed else (0, 1, 0))


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "png"])
def test_a_changed_or_missing_file_is_reported_and_its_record_is_not_merged(
    machines: tuple[Store, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], suffix: str,
) -> None:  # fmt: skip
    one, two = machines
    (file,) = one.root.rglob(f"*.{suffix}")
    file.write_bytes(file.read_bytes() + b"x")
    assert call(monkeypatch, "merge", one.root, two.root, "--to", tmp_path / "merged") == 2
    assert "is not the file that its record names" in capsys.readouterr().out
    assert [record.category for record in Store(tmp_path / "merged").records()] == ["plate"]


def test_a_damaged_record_and_one_at_a_wrong_path_are_reported(machines: tuple[Store, Store], tmp_path: Path) -> None:
    one, two = machines
    (record,) = one.root.rglob("*.json")
    record.write_text(record.read_text("utf-8").replace("0.9", "0.99"), "utf-8")
    (other,) = two.root.rglob("*.json")
    other.rename(other.with_name("screw.json"))
    result = merge_stores([one.root, two.root], tmp_path / "merged")
    assert [path.name for path, _ in result.damaged] == ["bolt.json", "screw.json"]
    assert result.added == 0


def test_a_picture_with_a_path_as_its_name_is_not_written(
    machines: tuple[Store, Store], tmp_path: Path, make_record: Callable[..., Record]
) -> None:
    """A record from an unknown person, whose checksum is valid, must not write outside the target."""
    one, _ = machines
    (record,) = one.records()
    name = "../../../../../../../evil"
    digest = next(iter(record.artifacts["pictures_sha256"].values()))
    artifacts = record.artifacts | {"pictures_sha256": {name: digest}}
    one.path_of(record).write_text(replace(record, artifacts=artifacts).to_json(), "utf-8")
    before = files_of(tmp_path)
    result = merge_stores([one.root], tmp_path / "merged")
    assert next(reason for _, reason in result.damaged).startswith("A picture's name must consist of")
    assert files_of(tmp_path) == before


def test_a_missing_folder_and_the_target_itself_are_errors(
    machines: tuple[Store, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, _ = machines
    assert call(monkeypatch, "merge", tmp_path / "none", "--to", one.root) == 2
    assert call(monkeypatch, "merge", one.root, "--to", one.root) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "is not a folder" in error
    assert "needs a target apart from its sources" in error


@pytest.mark.parametrize("sequence", [2**63 - 1, -1])
def test_a_sequence_after_which_no_record_could_be_read_is_not_merged(
    machines: tuple[Store, Store], tmp_path: Path, make_record: Callable[..., Record], sequence: int
) -> None:
    one, two = machines
    one.update(replace(next(one.records()), sequence=sequence))
    result = merge_stores([one.root, two.root], tmp_path / "merged")
    assert (result.added, len(result.damaged)) == (1, 1)
    merged = Store(tmp_path / "merged")
    merged.save(make_record(category="nut"), None)
    assert {record.category for record in merged.records()} == {"nut", "plate"}


@pytest.mark.parametrize(("source", "target"), [("one", "one"), ("one", "one/sub"), (".", "one")])
def test_a_store_is_not_merged_into_itself(
    machines: tuple[Store, Store], tmp_path: Path, source: str, target: str
) -> None:
    before = files_of(machines[0].root)
    with pytest.raises(BenchError, match="needs a target apart from its sources"):
        merge_stores([tmp_path / source], tmp_path / target)
    assert files_of(machines[0].root) == before
