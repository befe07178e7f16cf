"""Failed and interrupted writes: no result is stored in part, and old results stay unchanged."""

import errno
import fcntl
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
from bench.store import Store, read_verified


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


@pytest.mark.parametrize("name", ["../best", "a/b", "/best", "", ".best", "a\nb", "a\0b", "x" * 61, "\udcff"])
def test_the_name_of_a_picture_cannot_be_a_path(store: Store, record: Record, predict, name: str) -> None:
    with pytest.raises(BenchError, match="A picture's name must consist of"):
        store.save(record, predict(), pictures={name: np.zeros((2, 2), np.uint8)})


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
        store.save(record, predict(1), pictures={"best.image": np.zeros((2, 2), np.uint8)}, model=b"new")
    (elsewhere,) = tmp_path.glob("maskbench-*")
    assert f"This result is saved in {elsewhere}: copy its content into {store.root}." in str(error.value)
    monkeypatch.undo()
    shutil.copytree(elsewhere, store.root, dirs_exist_ok=True)
    (stored,) = store.records()
    assert stored.metrics == record.metrics
    assert are_equal(store.predictions(stored), predict(1).rounded("float16"))
    assert store.pictures(stored)


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


WRITE_AND_WAIT = """
import os, sys, time
from pathlib import Path
from bench.files import write_files

os.fsync = lambda file: (print("written", flush=True), time.sleep(1000))
write_files({Path(sys.argv[1]): b"half"})
"""


@pytest.mark.parametrize("sweep", ["the next save in the folder", "the next run with this store"])
def test_a_temporary_file_is_removed_by_the_next_call_that_finds_it_only_if_its_process_has_ended(
    store: Store, run: Run, record: Record, predict, sweep: str, file_names
) -> None:
    store.save(record, predict())
    target = store.path(run, "d1", "of another record", "last")
    foreign = target.with_name(".half.0123456789ab.tmp")
    foreign.write_text("of another program")

    def save_or_check() -> None:
        if sweep == "the next save in the folder":
            store.save(record, predict())
        else:
            store.check_writable()

    with subprocess.Popen([sys.executable, "-c", WRITE_AND_WAIT, str(target)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        save_or_check()
        assert sum(name.endswith(".maskbench-tmp") for name in file_names()) == 1
        process.kill()
    save_or_check()
    assert file_names() == [foreign.name, "bolt.json", "bolt.npz"]


def test_on_a_file_system_without_locks_a_temporary_file_is_removed_when_it_is_old(
    store: Store, run: Run, record: Record, predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_no_locks(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", raise_no_locks)
    store.save(record, predict())
    folder = store.path(run, "d1", "bolt", "last").parent
    old, recent = (folder / f".bolt.npz.{digit * 12}.maskbench-tmp" for digit in "01")
    for path in (old, recent):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.save(record, predict())
    assert not old.exists()
    assert recent.exists()


def test_a_new_result_removes_the_files_that_only_the_old_one_had(
    store: Store, record: Record, predict, file_names
) -> None:
    pictures = {name: np.zeros((2, 2), np.uint8) for name in ("best.image", "good.image")}
    store.save(record, predict(), pictures=pictures, model=b"model")
    store.save(record, predict(), pictures={"good.image": pictures["good.image"]})
    assert file_names() == ["bolt.json", "bolt.npz", "good.image.png"]


OPERATIONS = [
    *((os, name) for name in ("open", "fsync", "fstat", "stat", "scandir", "listdir")),
    *(
        (Path, name)
        for name in ("open", "mkdir", "replace", "unlink", "iterdir", "stat", "read_text", "write_text", "touch")
    ),
    (fcntl, "flock"),
]


@pytest.mark.parametrize("owner, name", OPERATIONS, ids=lambda value: getattr(value, "__name__", value))  # noqa: PT006
def test_whichever_file_operation_of_a_save_fails_a_complete_result_or_a_clear_error_remains(
    store: Store, record: Record, predict, monkeypatch: pytest.MonkeyPatch, owner, name: str, are_equal, file_names
) -> None:
    """Let the first, the second, ... call of one operation fail, until a save has no more such calls."""
    picture = {"best.image": np.zeros((2, 2), np.uint8)}
    operation = getattr(owner, name)
    for failing in range(100):
        old = store.save(record, predict(0), pictures=picture, model=b"old")
        count = 0

        def fail_once(*arguments, failing=failing, **options):
            nonlocal count
            count += 1
            if count == failing + 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO), "disk")
            return operation(*arguments, **options)

        monkeypatch.setattr(owner, name, fail_once)
        saved, message = None, ""
        try:
            saved = store.save(replace(record, epoch=7), predict(1), pictures=picture, model=b"new")
        except BenchError as error:
            message = str(error)
        monkeypatch.setattr(owner, name, operation)
        if saved is None:
            assert "Input/output error" in message
            assert "This result is saved in" in message or "this result is lost" in message
        stored = list(store.records())
        assert stored in ([old], [saved], [])
        for each in stored:
            seed, model = (0, b"old") if each == old else (1, b"new")
            assert are_equal(store.predictions(each), predict(seed).rounded("float16"))
            assert (
                read_verified(store.path_of(each).with_suffix(".safetensors"), each.artifacts["model_sha256"]) == model
            )
            assert list(store.pictures(each)) == ["best.image"]
        if count <= failing:
            assert stored == [saved]
            break
        store.check_writable()
        assert not any(file.endswith(".maskbench-tmp") for file in file_names())
    else:
        pytest.fail("a save has too many file operations")


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
