"""The store: results are read back bit for bit, and broken files are skipped."""

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.errors import BenchError
from bench.identity import run_hash
from bench.record import SCHEMA, MapPrecision, Record, Run
from bench.store import Store

# ---- paths


def test_a_path_has_the_fields_of_the_run(store: Store, run: Run) -> None:
    short_hash = run_hash(run, "d1")
    assert store.path(run, "d1", "bolt", "last") == store.root / f"real/kshot-4/jittered/{short_hash}/seed2/bolt.json"
    oracle = store.path(replace(run, protocol="unified", k=0), "d1", "bolt", "oracle")
    assert oracle == store.root / f"real/unified/jittered/{short_hash}/seed2/bolt.oracle.json"


def test_the_files_of_a_record_are_in_its_folder(store: Store, record: Record, predict) -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    saved = store.save(
        record, predict(), pictures={"best.map": picture, "good.image": np.dstack([picture] * 3)}, model=b"weights"
    )
    folder = store.path_of(record).parent
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "bolt.json",
        "bolt.npz",
        "bolt.safetensors",
        "pictures/bolt/best.map.png",
        "pictures/bolt/good.image.png",
    ]
    pictures = store.pictures(saved)
    assert list(pictures) == ["best.map", "good.image"]
    assert np.array_equal(np.asarray(Image.open(pictures["best.map"]).copy()), picture)
    assert (folder / "bolt.safetensors").read_bytes() == b"weights"


def test_a_dot_in_a_categorys_name_is_part_of_it(store: Store, record: Record, predict, file_names) -> None:
    for category in ("v1.2", "v1.3"):
        store.save(replace(record, category=category), predict(), pictures={"good.image": np.zeros((2, 2), np.uint8)})
    assert [record.category for record in store.records()] == ["v1.2", "v1.3"]
    assert file_names() == ["good.image.png"] * 2 + ["v1.2.json", "v1.2.npz", "v1.3.json", "v1.3.npz"]


def test_last_and_oracle_have_separate_records_predictions_and_pictures(
    store: Store, run: Run, record: Record, predict, are_equal
) -> None:
    last = store.save(record, predict(0), pictures={"best.map": np.zeros((2, 2), np.uint8)})
    oracle = store.save(replace(record, selection="oracle", eval_every=10), predict(1))
    assert store.get(run, "d1", "bolt", "last") == last
    assert store.get(run, "d1", "bolt", "oracle") == oracle
    assert not are_equal(store.predictions(last), store.predictions(oracle))
    assert list(store.pictures(last)) == ["best.map"]
    assert store.pictures(oracle) == {}


# ---- save and get


def test_get_returns_the_saved_record_and_no_other(store: Store, run: Run, record: Record, predict) -> None:
    assert store.get(run, "d1", "bolt", "last") is None
    saved = store.save(record, predict())
    assert store.get(run, "d1", "bolt", "last") == saved
    assert store.get(run, "d2", "bolt", "last") is None
    assert store.get(replace(run, seed=3), "d1", "bolt", "last") is None
    assert store.get(replace(run, settings={"lr": 1e-4}), "d1", "bolt", "last") is None
    assert store.get(run, "d1", "tile", "last") is None


def test_a_failed_record_has_no_predictions(store: Store, run: Run, record: Record, file_names) -> None:
    failed = store.save(replace(record, failure="out of memory", metrics={}), None)
    assert store.get(run, "d1", "bolt", "last") == failed
    assert file_names() == ["bolt.json"]
    with pytest.raises(BenchError, match=r"bolt\.npz cannot be read"):
        store.predictions(failed)


def test_save_adds_to_the_artifacts_of_a_record(store: Store, record: Record, predict) -> None:
    saved = store.save(replace(record, artifacts={"pictures": {"best": "crack/0.png"}}), predict())
    assert saved.artifacts.keys() == {"pictures", "map_precision", "sha256", "model"}
    assert (saved.artifacts["pictures"], saved.artifacts["map_precision"]) == ({"best": "crack/0.png"}, "float16")


@pytest.mark.parametrize("maps", ["float16", "float32", "none"])
def test_predictions_are_read_back_bit_for_bit(
    store: Store, record: Record, predict, maps: MapPrecision, are_equal
) -> None:
    saved = store.save(record, predict().rounded(maps), map_precision=maps)
    stored = store.predictions(saved)
    expected = predict().rounded(maps) if maps != "none" else replace(predict(), maps=None)
    assert are_equal(stored, expected)
    assert (stored.scores.dtype, stored.masks.dtype, stored.has_pixel_labels.dtype) == (np.float64, np.bool_, np.bool_)
    assert saved.artifacts["map_precision"] == maps


def test_artifacts_state_that_there_are_no_maps(store: Store, record: Record, predict) -> None:
    saved = store.save(record, predict(maps=False), map_precision="float16")
    assert saved.artifacts["map_precision"] == "none"
    assert store.predictions(saved).maps is None


@given(seed=st.integers(0, 1000), power=st.integers(-130, 100))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_maps_of_any_magnitude_are_read_back_bit_for_bit(
    store: Store, record: Record, predict, seed: int, power: int, are_equal
) -> None:
    predictions = predict(seed)
    scaled = replace(predictions, maps=np.ldexp(predictions.maps, power)).rounded("float16")
    assert are_equal(store.predictions(store.save(record, scaled)), scaled)


def test_equal_predictions_give_equal_files(store: Store, record: Record, predict, tmp_path: Path) -> None:
    saved, other = store.save(record, predict()), Store(tmp_path / "other").save(record, predict())
    assert saved.artifacts["sha256"] == other.artifacts["sha256"]


def test_a_second_save_replaces_the_first(store: Store, record: Record, predict, are_equal, file_names) -> None:
    store.save(record, predict(0))
    second = store.save(replace(record, metrics={"image_auroc": 0.75}), predict(1))
    assert list(store.records()) == [second]
    assert are_equal(store.predictions(second), predict(1).rounded("float16"))
    assert file_names() == ["bolt.json", "bolt.npz"]


def test_records_are_in_the_order_of_their_paths(store: Store, run: Run, record: Record) -> None:
    for category in ("tile", "bolt"):
        for seed in (1, 0):
            store.save(replace(record, category=category, run=replace(run, seed=seed)), None)
    assert [(record.run.seed, record.category) for record in store.records()] == [
        (0, "bolt"),
        (0, "tile"),
        (1, "bolt"),
        (1, "tile"),
    ]


def test_a_store_without_a_folder_is_empty(store: Store) -> None:
    assert list(store.records()) == []
    assert store.to_frame().empty


def test_a_frame_has_one_row_per_record_and_one_column_per_value(store: Store, record: Record, predict) -> None:
    store.save(record, predict())
    store.save(replace(record, category="tile", metrics={"image_ap": 1.0}), None)
    frame = store.to_frame()
    assert frame["category"].tolist() == ["bolt", "tile"]
    assert frame["dataset"].tolist() == ["real", "real"]
    assert frame["settings.lr"].tolist() == [1e-3, 1e-3]
    assert frame["metrics.image_auroc"].tolist()[0] == 0.5
    assert frame["metrics.image_auroc"].isna().tolist() == [False, True]
    assert frame["artifacts.map_precision"].tolist()[0] == "float16"


# ---- broken files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: b"", "A record must be JSON"),
        (lambda text: b"{", "A record must be JSON"),
        (lambda text: b"\xff\xfe", "can't decode byte"),
        (lambda text: b"[1, 2]", f"A record must have schema {SCHEMA}, got None"),
        (lambda text: b'{"schema": 99}', f"A record must have schema {SCHEMA}, got 99"),
        (lambda text: text.replace(b"0.5", b'"x"'), "metrics of a record must be dict"),
        (lambda text: text[:200], "A record must be JSON"),
    ],
    ids=["empty", "cut off", "no UTF-8", "no record", "another schema", "another type", "half"],
)
def test_a_corrupt_record_is_skipped_with_a_warning(
    store: Store, run: Run, record: Record, predict, caplog: pytest.LogCaptureFixture, change: Callable, message: str
) -> None:
    tile = store.save(replace(record, category="tile"), predict())
    store.save(record, predict())
    path = store.path(run, "d1", "bolt", "last")
    path.write_bytes(change(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert list(store.records()) == [tile]
        assert store.get(run, "d1", "bolt", "last") is None
    assert caplog.messages
    assert all(f"{path} is skipped: " in line and message in line for line in caplog.messages)


def test_a_record_whose_fields_do_not_fit_its_path_is_skipped(
    store: Store, run: Run, record: Record, predict, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(record, predict())
    path = store.path(run, "d1", "bolt", "last")
    path.with_name("tile.json").write_text(path.read_text("utf-8"), "utf-8")
    path.write_text(replace(record, run=replace(run, settings={"lr": 2e-3})).to_json(), "utf-8")
    assert list(store.records()) == []
    for name in ("bolt.json", "tile.json"):
        assert f"{path.with_name(name)} is skipped: its fields do not belong to its path. Remove it." in caplog.messages


def test_the_folder_of_a_store_can_be_moved(store: Store, record: Record, predict, tmp_path: Path, are_equal) -> None:
    saved = store.save(record, predict())
    moved = Store(store.root.rename(tmp_path / "elsewhere"))
    assert list(moved.records()) == [saved]
    assert are_equal(moved.predictions(saved), predict().rounded("float16"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", None], ids=["empty", "cut off", "of another run"])
def test_predictions_that_are_not_those_of_the_record_are_an_error(
    store: Store, run: Run, record: Record, predict, content: bytes | None, are_equal
) -> None:
    saved = store.save(record, predict())
    path = store.path(run, "d1", "bolt", "last").with_suffix(".npz")
    other = store.save(replace(record, category="tile"), predict(1))
    path.write_bytes(path.with_name("tile.npz").read_bytes() if content is None else content)
    with pytest.raises(BenchError, match=r"bolt\.npz is not the file that its record names\. .*--force"):
        store.predictions(saved)
    assert are_equal(store.predictions(other), predict(1).rounded("float16"))


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_a_file_whose_reading_would_never_end_is_skipped(
    store: Store, record: Record, predict, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    store.save(record, predict())
    file = store.root / "other.json"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.touch()
        os.truncate(file, 50 * 10**9)
    assert len(list(store.records())) == 1
    assert f"{file} is skipped" in caplog.text
    packed = store.path_of(record).with_suffix(".npz")
    packed.unlink()
    packed.symlink_to("/dev/zero")
    with pytest.raises(BenchError, match="cannot be read"):
        store.predictions(next(store.records()))


def test_other_json_files_are_skipped(store: Store, record: Record, predict, caplog: pytest.LogCaptureFixture) -> None:
    saved = store.save(record, predict())
    (store.root / "notes.json").write_text('{"my": "notes"}')
    (store.root / "real" / "folder.json").mkdir()
    assert list(store.records()) == [saved]
    assert any("notes.json is skipped" in message for message in caplog.messages)


def test_a_folder_that_cannot_be_read_is_skipped_with_a_warning(
    store: Store, run: Run, record: Record, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(record, None)
    other = store.save(replace(record, run=replace(run, seed=3)), None)
    hidden, scan = store.path_of(record).parent, os.scandir

    def scan_or_fail(folder: str) -> object:  # permissions do not stop root
        if Path(folder) == hidden:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scan_or_fail)
    assert list(store.records()) == [other]
    assert caplog.messages == [f"{hidden} is skipped: Permission denied. Make it readable."]
