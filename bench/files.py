"""Files that are complete or absent, and the removal of temporary files whose process has been killed.

A temporary file or folder is locked by the process that writes it. The lock ends with that process, however it ends, on
any machine. So a temporary file without a lock is not in use, and the next call that finds it removes it.
"""

import errno
import hashlib
import logging
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

_log = logging.getLogger(__name__)

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STALE_SECONDS = 3600
"""Age after which a temporary file is removed on a file system without locks."""

_SUFFIX = ".maskbench-tmp"
_TEMPORARY = re.compile(rf"\..+\.[0-9a-f]{{12}}{re.escape(_SUFFIX)}")


def file_sha256(file: Path) -> str:
    """Return the sha256 of a file's content in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_files(files: Mapping[Path, bytes], *, obsolete: Iterable[Path] = (), lock: Path | None = None) -> None:
    """Write all files under temporary names, remove the obsolete files, and rename all in their order.

    If the disk is full, the old files stay unchanged.

    Args:
        files: content by path. Folders are created.
        obsolete: files to remove before the first rename.
        lock: folder that is locked during removal and renames, so that two calls do not mix their files.

    Raises:
        OSError: a file cannot be written.
    """
    with ExitStack() as stack:
        temporary_paths = {path: stack.enter_context(temporary_file(path)) for path in files}
        for path, temporary in temporary_paths.items():
            with temporary.open("wb") as file:
                file.write(files[path])
                file.flush()
                os.fsync(file.fileno())
        with folder_lock(lock):
            for path in obsolete:
                path.unlink(missing_ok=True)
            for path, temporary in temporary_paths.items():
                temporary.replace(path)
    for folder in {path.parent for path in files}:
        remove_abandoned(folder)


def read_regular_file(path: Path, max_bytes: float = math.inf) -> bytes:
    """Return the content of a file. A pipe or a device, whose reading may never end, is not opened.

    Raises:
        OSError: the file cannot be read, is not a regular one, or has more than `max_bytes`.
    """
    status = _regular_status(path)
    if status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes / 1e6:.0f} MB", str(path))
    return path.read_bytes()


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError for a pipe or a device, whose opening may never end."""
    _regular_status(path)
    return path.open("rb")


def _regular_status(path: Path) -> os.stat_result:
    """Return the status of a file. Raises OSError if it is not a regular one or does not exist."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return status


def files_below(folder: Path, suffix: str = "") -> list[Path]:
    """Return the files of a suffix in a folder and its subfolders, sorted by path.

    A subfolder that cannot be read is skipped with a warning.
    """

    def warn(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # another process may remove a folder
            _log.warning("%s is skipped: %s. Make it readable.", error.filename, error.strerror)

    names = ((parent, name) for parent, _, names in os.walk(folder, onerror=warn) for name in names)
    return sorted(Path(parent, name) for parent, name in names if name.endswith(suffix))


@contextmanager
def folder_lock(folder: Path | None) -> Iterator[None]:
    """Wait until no other process is inside this block for the folder; None waits for nothing.

    The lock ends with the process that holds it. Without locks, as on Windows and some network file systems, two
    writers of one record may interleave.
    """
    if folder is None or fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Create an empty file next to `path`, to be written and renamed to it; it is removed at the end if it was not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        temporary = _temporary_name(path)
        try:
            temporary.touch(exist_ok=False)
            with _locked(temporary) as exists:
                if exists:
                    yield temporary
                    return
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Create a folder next to `path`, to be renamed to it; it is removed at the end if it was not renamed."""
    while True:
        folder = _temporary_name(path)
        folder.mkdir(parents=True)
        try:
            with _locked(folder) as exists:
                if exists:
                    yield folder
                    return
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(folder: Path, *, recursive: bool = False) -> None:
    """Remove the temporary files and folders in a folder, or at any depth below it, whose process has ended."""
    with suppress(OSError):  # the folder may be missing or unreadable
        for path in folder.rglob(".*") if recursive else folder.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                with suppress(OSError):
                    _remove_if_abandoned(path)


def _temporary_name(path: Path) -> Path:
    # The start of the name is enough; process ids are not unique across machines.
    return path.with_name(f".{path.name[:50]}.{uuid4().hex[:12]}{_SUFFIX}")


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Lock a new temporary file or folder; yield False if another process removed it before it was locked."""
    if fcntl is None:
        yield True
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield path.exists()
    finally:
        os.close(descriptor)


def _remove_if_abandoned(path: Path) -> None:
    if fcntl is None:
        _remove_if_old(path)
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    except BlockingIOError:
        return  # a process is writing it
    except OSError:  # a file system without locks
        _remove_if_old(path)
    finally:
        os.close(descriptor)


def _remove_if_old(path: Path) -> None:
    if time.time() - path.stat().st_mtime > STALE_SECONDS:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
