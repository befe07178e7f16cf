"""Failed and interrupted writes: no result is stored in part, and old results stay unchanged."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.errors import BenchError
from bench.record import Record, Run
from bench.store import Store


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
    store: Store, record: Record, predict, monkeypatch: pytest.MonkeyPatch, failing: int, are_equal, file_names
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
    assert file_names() == ["bolt.json", "bolt.npz", "bolt.safetensors"]
    assert list(store.records()) == [old]
    assert are_equal(store.predictions(old), predict(0).rounded("float16"))


def test_a_result_that_cannot_be_written_is_saved_elsewhere_and_the_error_states_where(
    store: Store, record: Record, predict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, are_equal
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


def test_two_writers_of_one_record_leave_the_files_of_one_of_them(
    store: Store, record: Record, predict, are_equal, file_names
) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: store.save(replace(record, epoch=i), predict(i)), range(40)))
    (stored,) = store.records()
    assert are_equal(store.predictions(stored), predict(stored.epoch).rounded("float16"))
    assert file_names() == ["bolt.json", "bolt.npz"]


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
    store: Store, record: Record, predict, monkeypatch: pytest.MonkeyPatch, renames: int, file_names
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
    assert not any(name.startswith(".") for name in file_names())


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
