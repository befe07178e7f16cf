"""The store: results are read back bit for bit, no result is stored in part, and broken files are skipped."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.errors import BenchError
from bench.identity import run_hash
from bench.record import SCHEMA, Maps, Predictions, Record, Run
from bench.store import Store


@pytest.fixture
def run(make_run: Callable[..., Run]) -> Run:
    return make_run(dataset="real", protocol="kshot", k=4, seed=2, name="jittered", settings={"lr": 1e-3})


@pytest.fixture
def record(make_record: Callable[..., Record], run: Run) -> Record:
    return make_record(run, metrics={"image_auroc": 0.5}, artifacts={})


@pytest.fixture
def predict(make_predictions: Callable[..., Predictions]) -> Callable[..., Predictions]:
    """Return a function that makes random predictions of two images of 3 x 5 pixels: `predict(seed, maps=False)`."""

    def make(seed: int = 0, *, maps: bool = True) -> Predictions:
        generator = np.random.default_rng(seed)
        return make_predictions(
            count=2,
            files=("bolt/test/good/000.png", "bolt/test/crack/sch\udcf6n ‡.png"),
            defects=("good", "crack"),
            scores=generator.normal(size=2),
            maps=generator.normal(size=(2, 3, 5)).astype(np.float32) if maps else None,
            masks=generator.random((2, 3, 5)) > 0.5,
            has_pixel_labels=np.array([True, False]),
        )

    return make


def are_equal(one: Predictions, other: Predictions) -> bool:
    arrays = ("scores", "masks", "has_pixel_labels", *(() if one.maps is None or other.maps is None else ("maps",)))
    return (one.files, one.defects, one.maps is None) == (other.files, other.defects, other.maps is None) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a result that cannot be written is saved there
    return Store(tmp_path / "runs")


def file_names(store: Store) -> list[str]:
    return sorted(path.name for path in store.root.rglob("*") if path.is_file())


# ---- paths


def test_a_path_has_the_fields_of_the_run(store: Store, run: Run) -> None:
    short_hash = run_hash(run, "d1")
    assert store.path(run, "d1", "bolt", "last") == store.root / f"real/kshot-4/jittered/{short_hash}/seed2/bolt.json"
    oracle = store.path(replace(run, protocol="unified", k=0), "d1", "bolt", "oracle")
    assert oracle == store.root / f"real/unified/jittered/{short_hash}/seed2/bolt.oracle.json"


def test_the_files_of_a_record_are_in_its_folder(store: Store, record: Record, predict) -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    store.save(record, predict(), views={"best.map": picture, "good.image": np.dstack([picture] * 3)}, model=b"weights")
    folder = store.path_of(record).parent
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "bolt.json",
        "bolt.npz",
        "bolt.safetensors",
        "views/bolt/best.map.png",
        "views/bolt/good.image.png",
    ]
    views = store.views(record)
    assert list(views) == ["best.map", "good.image"]
    assert np.array_equal(np.asarray(Image.open(views["best.map"]).copy()), picture)
    assert (folder / "bolt.safetensors").read_bytes() == b"weights"


def test_a_dot_in_a_categorys_name_is_part_of_it(store: Store, record: Record, predict) -> None:
    for category in ("v1.2", "v1.3"):
        store.save(replace(record, category=category), predict(), views={"good.image": np.zeros((2, 2), np.uint8)})
    assert [record.category for record in store.records()] == ["v1.2", "v1.3"]
    assert file_names(store) == ["good.image.png"] * 2 + ["v1.2.json", "v1.2.npz", "v1.3.json", "v1.3.npz"]


def test_last_and_oracle_have_separate_records_predictions_and_pictures(
    store: Store, run: Run, record: Record, predict
) -> None:
    last = store.save(record, predict(0), views={"best.map": np.zeros((2, 2), np.uint8)})
    oracle = store.save(replace(record, selection="oracle", eval_every=10), predict(1))
    assert store.get(run, "d1", "bolt", "last") == last
    assert store.get(run, "d1", "bolt", "oracle") == oracle
    assert not are_equal(store.predictions(last), store.predictions(oracle))
    assert list(store.views(last)) == ["best.map"]
    assert store.views(oracle) == {}


# ---- save and get


def test_get_returns_the_saved_record_and_no_other(store: Store, run: Run, record: Record, predict) -> None:
    assert store.get(run, "d1", "bolt", "last") is None
    saved = store.save(record, predict())
    assert store.get(run, "d1", "bolt", "last") == saved
    assert store.get(run, "d2", "bolt", "last") is None
    assert store.get(replace(run, seed=3), "d1", "bolt", "last") is None
    assert store.get(replace(run, settings={"lr": 1e-4}), "d1", "bolt", "last") is None
    assert store.get(run, "d1", "tile", "last") is None


def test_a_failed_record_has_no_predictions(store: Store, run: Run, record: Record) -> None:
    failed = store.save(replace(record, failure="out of memory", metrics={}), None)
    assert store.get(run, "d1", "bolt", "last") == failed
    assert file_names(store) == ["bolt.json"]
    with pytest.raises(BenchError, match=r"bolt\.npz cannot be read"):
        store.predictions(failed)


def test_save_adds_to_the_artifacts_of_a_record(store: Store, record: Record, predict) -> None:
    saved = store.save(replace(record, artifacts={"views": {"best": "crack/0.png"}}), predict())
    assert saved.artifacts.keys() == {"views", "maps", "sha256", "model"}
    assert (saved.artifacts["views"], saved.artifacts["maps"]) == ({"best": "crack/0.png"}, "float16")


@pytest.mark.parametrize("maps", ["float16", "float32", "none"])
def test_predictions_are_read_back_bit_for_bit(store: Store, record: Record, predict, maps: Maps) -> None:
    saved = store.save(record, predict().rounded(maps), maps=maps)
    stored = store.predictions(saved)
    expected = predict().rounded(maps) if maps != "none" else replace(predict(), maps=None)
    assert are_equal(stored, expected)
    assert (stored.scores.dtype, stored.masks.dtype, stored.has_pixel_labels.dtype) == (np.float64, np.bool_, np.bool_)
    assert saved.artifacts["maps"] == maps


def test_artifacts_state_that_there_are_no_maps(store: Store, record: Record, predict) -> None:
    saved = store.save(record, predict(maps=False), maps="float16")
    assert saved.artifacts["maps"] == "none"
    assert store.predictions(saved).maps is None


@given(seed=st.integers(0, 1000), power=st.integers(-130, 100))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_maps_of_any_magnitude_are_read_back_bit_for_bit(
    store: Store, record: Record, predict, seed: int, power: int
) -> None:
    predictions = predict(seed)
    scaled = replace(predictions, maps=np.ldexp(predictions.maps, power)).rounded("float16")
    assert are_equal(store.predictions(store.save(record, scaled)), scaled)


def test_equal_predictions_give_equal_files(store: Store, record: Record, predict, tmp_path: Path) -> None:
    saved, other = store.save(record, predict()), Store(tmp_path / "other").save(record, predict())
    assert saved.artifacts["sha256"] == other.artifacts["sha256"]


def test_a_second_save_replaces_the_first(store: Store, record: Record, predict) -> None:
    store.save(record, predict(0))
    second = store.save(replace(record, metrics={"image_auroc": 0.75}), predict(1))
    assert list(store.records()) == [second]
    assert are_equal(store.predictions(second), predict(1).rounded("float16"))
    assert file_names(store) == ["bolt.json", "bolt.npz"]


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
    assert frame["artifacts.maps"].tolist()[0] == "float16"


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
    text = path.read_text("utf-8")
    path.with_name("tile.json").write_text(text, "utf-8")
    path.write_text(text.replace("0.001", "0.002"), "utf-8")
    assert list(store.records()) == []
    for name in ("bolt.json", "tile.json"):
        assert f"{path.with_name(name)} is skipped: its fields do not belong to its path. Remove it." in caplog.messages


def test_the_folder_of_a_store_can_be_moved(store: Store, record: Record, predict, tmp_path: Path) -> None:
    saved = store.save(record, predict())
    moved = Store(store.root.rename(tmp_path / "elsewhere"))
    assert list(moved.records()) == [saved]
    assert are_equal(moved.predictions(saved), predict().rounded("float16"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", None], ids=["empty", "cut off", "of another run"])
def test_predictions_that_are_not_those_of_the_record_are_an_error(
    store: Store, run: Run, record: Record, predict, content: bytes | None
) -> None:
    saved = store.save(record, predict())
    path = store.path(run, "d1", "bolt", "last").with_suffix(".npz")
    other = store.save(replace(record, category="tile"), predict(1))
    path.write_bytes(path.with_name("tile.npz").read_bytes() if content is None else content)
    with pytest.raises(BenchError, match=r"bolt\.npz is not the file that its record names\. .*--force"):
        store.predictions(saved)
    assert are_equal(store.predictions(other), predict(1).rounded("float16"))


def test_other_json_files_are_skipped(store: Store, record: Record, predict, caplog: pytest.LogCaptureFixture) -> None:
    saved = store.save(record, predict())
    (store.root / "notes.json").write_text('{"my": "notes"}')
    (store.root / "real" / "folder.json").mkdir()
    assert list(store.records()) == [saved]
    assert any("notes.json is skipped" in message for message in caplog.messages)


# ---- files that cannot be written


def test_a_file_with_the_name_of_the_folder_is_a_clear_error(tmp_path: Path, run: Run, record: Record, predict) -> None:
    (tmp_path / "runs").write_text("a file")
    store = Store(tmp_path / "runs")
    assert store.get(run, "d1", "bolt", "last") is None
    assert list(store.records()) == []
    with pytest.raises(BenchError, match=rf"Writing results below {tmp_path}/runs failed \(.*--runs"):
        store.save(record, predict())


def test_a_name_that_is_too_long_for_the_file_system_is_a_clear_error(
    store: Store, run: Run, record: Record, predict
) -> None:
    record = replace(record, category="x" * 300)
    assert store.get(run, "d1", record.category, "last") is None
    with pytest.raises(BenchError, match="File name too long"):
        store.save(record, predict())


def test_a_record_with_invalid_values_writes_no_file(store: Store, record: Record, predict) -> None:
    with pytest.raises(BenchError, match="its method_info"):
        store.save(replace(record, method_info={"rows": float("nan")}), predict())
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["../best", "a/b", "/best"])
def test_the_name_of_a_picture_cannot_be_a_path(store: Store, record: Record, predict, name: str) -> None:
    with pytest.raises(BenchError, match="A picture's name must be valid in a file name"):
        store.save(record, predict(), views={name: np.zeros((2, 2), np.uint8)})


@pytest.mark.parametrize("failing", range(3))
def test_a_full_disk_leaves_the_old_files_unchanged(
    store: Store, record: Record, predict, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    old = store.save(record, predict(0), model=b"old")
    calls = []

    def raise_disk_full(file: int) -> None:
        calls.append(file)
        if len(calls) > failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")

    monkeypatch.setattr(os, "fsync", raise_disk_full)
    with pytest.raises(BenchError, match=r"No space left on device.* this result is lost"):
        store.save(replace(record, metrics={}), predict(1), model=b"new")
    assert file_names(store) == ["bolt.json", "bolt.npz", "bolt.safetensors"]
    assert list(store.records()) == [old]
    assert are_equal(store.predictions(old), predict(0).rounded("float16"))


def test_a_result_that_cannot_be_written_is_saved_elsewhere_and_the_error_states_where(
    store: Store, record: Record, predict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sync = os.fsync

    def raise_disk_full(file: int) -> None:
        if Path(f"/proc/self/fd/{file}").readlink().is_relative_to(store.root):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")
        sync(file)

    monkeypatch.setattr(os, "fsync", raise_disk_full)
    with pytest.raises(BenchError, match="No space left on device") as error:
        store.save(record, predict(1), views={"best.image": np.zeros((2, 2), np.uint8)}, model=b"new")
    (elsewhere,) = tmp_path.glob("maskbench-*")
    assert f"This result is saved in {elsewhere}: copy its content into {store.root}." in str(error.value)
    monkeypatch.undo()
    shutil.copytree(elsewhere, store.root, dirs_exist_ok=True)
    (stored,) = store.records()
    assert stored.metrics == record.metrics
    assert are_equal(store.predictions(stored), predict(1).rounded("float16"))
    assert store.views(stored)


def test_too_little_space_and_a_read_only_folder_are_errors_before_a_fit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.check_writable(1000)
    assert not store.root.exists()  # the check creates no folder
    with pytest.raises(BenchError, match=r"about 1000000000000\.0 MB; .* has .* MB free"):
        store.check_writable(10**18)

    def raise_read_only(dir: Path) -> None:  # noqa: A002
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", raise_read_only)  # permissions do not stop root
    with pytest.raises(BenchError, match=r"is not writable \(Read-only file system\)\. Change its permissions"):
        store.check_writable()


def test_two_writers_of_one_record_leave_the_files_of_one_of_them(store: Store, record: Record, predict) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: store.save(replace(record, epoch=i), predict(i)), range(40)))
    (stored,) = store.records()
    assert are_equal(store.predictions(stored), predict(stored.epoch).rounded("float16"))
    assert file_names(store) == ["bolt.json", "bolt.npz"]


def test_old_temporary_files_of_a_killed_process_are_removed(store: Store, run: Run, record: Record, predict) -> None:
    store.save(record, predict())
    folder = store.path(run, "d1", "bolt", "last").parent
    old, recent, of_another_record = folder / ".bolt.npz.dead", folder / ".bolt.json.busy", folder / ".tile.npz.dead"
    for path in (old, recent, of_another_record):
        path.write_bytes(b"half")
    for path in (old, of_another_record):
        os.utime(path, (0, 0))
    store.save(record, predict())
    assert not old.exists()
    assert recent.exists()
    assert of_another_record.exists()


@pytest.mark.parametrize("renames", range(3))
def test_a_kill_between_two_renames_leaves_no_record(
    store: Store, record: Record, predict, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    store.save(record, predict(0), model=b"old")
    calls = []
    rename = Path.replace

    def rename_until_killed(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) > renames:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", rename_until_killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(replace(record, metrics={}), predict(1), model=b"new")
    assert list(store.records()) == []
    assert not any(name.startswith(".") for name in file_names(store))


SAVE_REPEATEDLY = """
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
import numpy as np
from bench.record import Predictions, Record
from bench.store import Store

record, store = Record.from_json(sys.argv[2]), Store(Path(sys.argv[1]))
for i in count():
    maps, masks = np.full((2, 50, 50), i, np.float32), np.zeros((2, 50, 50), np.bool_)
    scores, labels = np.array([i, i + 1.0]), np.array([True, True])
    predictions = Predictions(("a", "b"), ("good", "crack"), scores, maps, masks, labels)
    store.save(replace(record, epoch=i), predictions)
"""


def modified_at(path: Path) -> float:
    return path.stat().st_mtime


def test_a_process_that_is_killed_at_any_moment_leaves_complete_records_only(
    store: Store, record: Record, predict
) -> None:
    command = [sys.executable, "-c", SAVE_REPEATEDLY, str(store.root), record.to_json()]
    for delay in (0.01, 0.03, 0.05):
        with subprocess.Popen(command) as process:
            started = time.time()
            while process.poll() is None and max(map(modified_at, store.root.rglob("*.npz")), default=0.0) < started:
                time.sleep(0.001)
            time.sleep(delay)
            assert process.poll() is None  # it saves records until it is killed
            process.kill()
        for record in store.records():
            assert store.predictions(record).scores.tolist() == [record.epoch, record.epoch + 1]
    saved = store.save(record, predict())
    assert list(store.records()) == [saved]
