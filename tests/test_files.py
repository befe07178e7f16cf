"""Files are complete or absent: a full disk leaves the old content of any file."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cli import report_command
from bench.errors import BenchError
from bench.files import STALE_SECONDS, files_below, remove_abandoned, temporary_folder, write_files


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after whose call no file can be written."""

    def raise_disk_full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")

    return lambda: monkeypatch.setattr(os, "fsync", raise_disk_full)


def test_files_are_written_with_their_folders_and_nothing_else_is_left(tmp_path: Path) -> None:
    files = {tmp_path / "a" / "b" / "1.txt": b"one", tmp_path / "a" / "2.txt": b"two"}
    write_files(files)
    assert {path: path.read_bytes() for path in files_below(tmp_path)} == files


def test_a_full_disk_leaves_the_old_content(tmp_path: Path, fill_disk: Callable[[], None]) -> None:
    path = tmp_path / "file.txt"
    write_files({path: b"old"})
    fill_disk()
    with pytest.raises(OSError, match="No space left"):
        write_files({path: b"new", tmp_path / "other.txt": b"new"})
    assert {path: path.read_bytes() for path in files_below(tmp_path)} == {path: b"old"}


def test_a_full_disk_leaves_the_old_report(tmp_path: Path, fill_disk: Callable[[], None]) -> None:
    path = tmp_path / "report.md"
    report_command._write(tmp_path, {path: b"old"})
    fill_disk()
    with pytest.raises(BenchError, match="--out must be a writable folder"):
        report_command._write(tmp_path, {path: b"new"})
    assert path.read_bytes() == b"old"


def test_a_temporary_folder_that_is_renamed_stays_and_another_is_removed(tmp_path: Path) -> None:
    for is_renamed in (False, True):
        with temporary_folder(tmp_path / "target") as folder:
            (folder / "file.txt").write_text("content", "utf-8")
            remove_abandoned(tmp_path)  # it is in use
            assert (folder / "file.txt").exists()
            if is_renamed:
                folder.rename(tmp_path / "target")
        assert [path.name for path in tmp_path.iterdir()] == ["target"] * is_renamed


def test_only_temporary_files_of_bench_are_removed(tmp_path: Path) -> None:
    names = [".a.txt.tmp", ".a.0123456789ab.tmp", "a.0123456789ab.maskbench-tmp", ".a.0123.maskbench-tmp"]
    for name in [*names, ".a.0123456789ab.maskbench-tmp"]:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    assert STALE_SECONDS < 24 * 3600
    remove_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_folder_that_does_not_exist_has_no_files_and_nothing_to_remove(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert files_below(tmp_path / "missing") == []
    remove_abandoned(tmp_path / "missing", recursive=True)
    assert caplog.messages == []
